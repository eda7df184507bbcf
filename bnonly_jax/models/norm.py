"""Norms, each with the addition and the ReLU that follow it; BatchNorm saves only its own input.

The ReLUs here are all that the networks have. `network.apply(..., mutable=['intermediates'])` gives
besides the logits which of them fire: 'fired' of each norm that ends in one, bool [N, C], whether
the output is above 0 anywhere in the image. Stacks of blocks have them stacked on the first axis.
"""

from collections.abc import Callable
import functools
from typing import Any
from typing import NamedTuple

import flax.linen as nn
import jax
from jax import lax
import jax.numpy as jnp

from bnonly_jax.config import UserError

# PyTorch's defaults, which the official code (open_lth) uses: eps, and the running averages keep
# 0.9 of the old value at each step.
EPSILON = 1e-5
KEEP = 0.9


KINDS = ('batch', 'group', 'layer', 'instance', 'ibn_a', 'ibn_b', 'layer_channels', 'rms', 'none')
WITH_BATCHNORM = ('batch', 'ibn_a', 'ibn_b')  # those with BatchNorms among them
GROUP_SIZE = 8  # channels a group of GroupNorm


class Statistics(NamedTuple):
  """Over which images BatchNorm takes its statistics.

  Attributes:
    axis_name: the axis of devices, where the images of several belong together; None: each device's
      belong to it alone.
    device_groups: indices on that axis of the devices whose images belong together, all groups
      having as many; None: all devices.
    parts: into how many groups of their own the images at hand are cut, in their order. More than 1
      only without `axis_name`.
  """
  axis_name: str | None = None
  device_groups: tuple[tuple[int, ...], ...] | None = None
  parts: int = 1

  def mean(self, tree: Any) -> Any:
    """Returns the means of arrays over the devices whose images belong together."""
    if self.axis_name is None:
      return tree
    groups = self.device_groups and [list(group) for group in self.device_groups]
    return lax.pmean(tree, self.axis_name, axis_index_groups=groups)

  def devices(self) -> int:
    """Returns over how many devices' images the statistics are taken."""
    if self.axis_name is None:
      return 1
    return len(self.device_groups[0]) if self.device_groups else lax.axis_size(self.axis_name)


def make_norm(kind: str, train: bool, statistics: Statistics, backend: str = 'cpu',
              epsilon: float = EPSILON, keep: float = KEEP) -> Callable[[str], nn.Module]:
  """Returns what makes a network's norms, given their names.

  Of ibn_a and ibn_b it makes the BatchNorms; `layers.stage` puts the others between them.
  """
  if kind in WITH_BATCHNORM:
    return lambda name: BatchNorm(train, statistics, backend, epsilon, keep, name=name)
  if kind == 'none':
    return lambda name: NoNorm(name=name)
  if kind in ('layer_channels', 'rms'):
    return lambda name: ChannelNorm('rms' if kind == 'rms' else 'layer', epsilon, name=name)
  size = {'group': GROUP_SIZE, 'layer': None, 'instance': 1}[kind]
  return lambda name: GroupNorm(size, epsilon, name=name)


class BatchNorm(nn.Module):
  """relu(scale * (y - mean) / sqrt(var + 1e-5) + bias + residual) over [N, H, W, C], C last.

  Like PyTorch's and unlike flax.linen's, the running variance averages the unbiased variance
  (n / (n - 1) times that of the batch), while the batch is normalised by the biased one.

  Attributes:
    train: normalise by the batch and update batch_stats, or normalise by batch_stats.
    statistics: over which images. The running averages are those of the device's own images, a
      mean over `statistics.parts`.
    backend: for which it is to be fast.
    epsilon: what is added to the variance.
    keep: how much of the old value the running averages keep at each step.
  """
  train: bool = False
  statistics: Statistics = Statistics()
  backend: str = 'cpu'
  epsilon: float = EPSILON
  keep: float = KEEP
  is_norm = 'batch'

  @nn.compact
  def __call__(self, y: jax.Array, residual: jax.Array | None = None,
               relu: bool = True) -> jax.Array:
    channels = y.shape[-1:]
    scale = self.param('scale', nn.initializers.uniform(1.0), channels)
    bias = self.param('bias', nn.initializers.zeros, channels)
    running_mean = self.variable('batch_stats', 'mean', jnp.zeros, channels)
    running_var = self.variable('batch_stats', 'var', jnp.ones, channels)
    if not self.train:
      inverse = lax.rsqrt(running_var.value + self.epsilon)
      z = _normalise(wide(y), _along(running_mean.value, y), _along(inverse, y), scale, bias)
      return _watched(self, _finish(z, residual, relu).astype(y.dtype), relu)
    out, mean, var = batch_norm(y, scale, bias, residual, relu, self.statistics,
                                self.backend, self.epsilon)
    if not self.is_initializing():
      count = self.statistics.devices() * y.size // (y.shape[-1] * self.statistics.parts)
      unbiased = var * (count / max(count - 1, 1))
      running_mean.value = self.keep * running_mean.value + (1 - self.keep) * mean
      running_var.value = self.keep * running_var.value + (1 - self.keep) * unbiased
    return _watched(self, out, relu)


class GroupNorm(nn.Module):
  """GroupNorm (Wu and He 2018, arXiv 1803.08494): each image by itself, groups of channels.

  Attributes:
    group_size: channels a group; None is all of them, which is LayerNorm over [H, W, C], and 1 is
      InstanceNorm.
    epsilon: what is added to the variance.
  """
  group_size: int | None
  epsilon: float = EPSILON

  @property
  def is_norm(self) -> str:
    """Which kind of norm it is."""
    return {None: 'layer', 1: 'instance'}.get(self.group_size, 'group')

  @nn.compact
  def __call__(self, y: jax.Array, residual: jax.Array | None = None,
               relu: bool = True) -> jax.Array:
    if self.group_size and y.shape[-1] % self.group_size:
      raise UserError(f"config.norm is 'group', with groups of {self.group_size} channels, and a"
                      f' layer has {y.shape[-1]}; allowed is a network whose layers have multiples'
                      ' of that. Choose another norm or network.')
    scale = self.param('scale', nn.initializers.uniform(1.0), y.shape[-1:])
    bias = self.param('bias', nn.initializers.zeros, y.shape[-1:])
    grouped = wide(y).reshape(*y.shape[:3], -1, self.group_size or y.shape[-1])
    mean = jnp.mean(grouped, (1, 2, 4), keepdims=True)
    var = jnp.mean(jnp.square(grouped - mean), (1, 2, 4), keepdims=True)
    normalised = ((grouped - mean) * lax.rsqrt(var + self.epsilon)).reshape(y.shape)
    out = _finish(normalised * _along(scale, y) + _along(bias, y), residual, relu).astype(y.dtype)
    return _watched(self, out, relu)


class ChannelNorm(nn.Module):
  """LayerNorm or RMSNorm (arXiv 1910.07467) over the channels of each pixel or token, [..., C].

  Attributes:
    is_norm: layer, or rms: without the mean and without a bias.
    epsilon: what is added to the variance, or to the mean square.
  """
  is_norm: str
  epsilon: float = EPSILON

  @nn.compact
  def __call__(self, y: jax.Array, residual: jax.Array | None = None,
               relu: bool = True) -> jax.Array:
    scale = self.param('scale', nn.initializers.uniform(1.0), y.shape[-1:])
    x = wide(y)
    if self.is_norm == 'layer':
      x = x - jnp.mean(x, -1, keepdims=True)
    z = x * lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + self.epsilon) * _along(scale, y)
    if self.is_norm == 'layer':
      z = z + _along(self.param('bias', nn.initializers.zeros, y.shape[-1:]), y)
    return _watched(self, _finish(z, residual, relu).astype(y.dtype), relu)


class InstanceBatchNorm(nn.Module):
  """IBN-a's norm (Pan et al. 2018, arXiv 1807.09441): InstanceNorm of half the channels, the first.

  Attributes:
    batch_norm: makes the other half's, given its name.
  """
  batch_norm: Callable[[str], nn.Module]

  @nn.compact
  def __call__(self, y: jax.Array, residual: jax.Array | None = None,
               relu: bool = True) -> jax.Array:
    half = y.shape[-1] // 2
    halves = (GroupNorm(1, name='in_norm')(y[..., :half], relu=False),
              self.batch_norm('bn_norm')(y[..., half:], relu=False))
    return _watched(self, _finish(jnp.concatenate(halves, -1), residual, relu), relu)


class NoNorm(nn.Module):
  """The addition and the ReLU without a norm before them."""

  def __call__(self, y: jax.Array, residual: jax.Array | None = None,
               relu: bool = True) -> jax.Array:
    return _watched(self, _finish(y, residual, relu), relu)


def _watched(module, out, relu):
  """Returns `out`; to who asks for 'intermediates' it tells which ReLUs fire: bool [N, C]."""
  # Asked first, so that nothing of it is in a step that is to be compiled without.
  if relu and module.is_mutable_collection('intermediates'):
    module.sow('intermediates', 'fired', jnp.any(out > 0, (1, 2)))
  return out


def wide(x: jax.Array) -> jax.Array:
  """Returns x in at least float32: what statistics and sums are taken in."""
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _along(vector, x):
  """A vector over the channels, in the shape that meets x there."""
  return vector.reshape((1,) * (x.ndim - 1) + (-1,))


def _normalise(y, mean, inverse, scale, bias):
  return (y - mean) * (inverse * _along(scale, y)) + _along(bias, y)


def _finish(z, residual, relu):
  if residual is not None:
    z = z + residual
  # Not maximum(z, 0): where a reduction follows, XLA's CPU backend makes that of a NaN 0. And not
  # z < 0: the gradient at 0 is to be 0, as in the backward pass below and in PyTorch.
  return jnp.where(z <= 0, 0, z) if relu else z


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6, 7))
def batch_norm(y: jax.Array, scale: jax.Array, bias: jax.Array, residual: jax.Array | None,
               relu: bool, statistics: Statistics, backend: str = 'cpu',
               epsilon: float = EPSILON) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Normalises by the batch, adds the residual if any, applies the ReLU if asked.

  For the backward pass it saves y and, with a residual, one boolean an element; what autodiff would
  save besides (x-hat, the sum, the ReLU's input) is computed again.

  Args:
    y: [N, H, W, C], of any floating dtype; all is computed in at least float32.
    scale: [C], gamma.
    bias: [C], beta.
    residual: [N, H, W, C] or None.
    relu: whether max(., 0) comes last.
    statistics: over which images to take the statistics.
    backend: for which it is to be fast.
    epsilon: what is added to the variance.

  Returns:
    The output [N, H, W, C] of y's dtype; the mean [C] and the biased variance [C] of y, which carry
    no gradient, each the mean over `statistics.parts`.
  """
  return _forward(y, scale, bias, residual, relu, statistics, backend, epsilon)[0]


def _cut(x, parts):
  """[N, H, W, C] as [parts, N / parts, H, W, C]; as it is where there is one part."""
  return x if x is None or parts == 1 else x.reshape(parts, -1, *x.shape[1:])


def _sums(a, b, backend):
  """Sums two arrays over all axes but the parts' and the channels', which stay with size 1."""
  if backend != 'gpu':
    return tuple(jnp.sum(x, (-4, -3, -2), keepdims=True) for x in (a, b))
  # There two sums are two or three kernels each; a pair of them in one reduction is two in all.
  zero = jnp.zeros((), a.dtype)
  pair = lax.reduce((a, b), (zero, zero), lambda x, y: (x[0] + y[0], x[1] + y[1]),
                    tuple(range(a.ndim - 4, a.ndim - 1)))
  return tuple(jnp.expand_dims(x, tuple(range(a.ndim - 4, a.ndim - 1))) for x in pair)


def _over_parts(reduce, x):
  """Reduces what `_sums` returned to [C]."""
  return reduce(x.reshape(-1, x.shape[-1]), 0) if x.ndim == 5 else x.reshape(-1)


def _forward(y, scale, bias, residual, relu, statistics, backend, epsilon):
  cut = lambda a: _cut(a, statistics.parts)
  x = cut(wide(y))
  # One pass over y for both moments; a variance that rounding makes negative is zero.
  total, squares = _sums(x, jnp.square(x), backend)
  count = x.size // total.size
  mean, square = statistics.mean((total / count, squares / count))
  var = jnp.maximum(square - jnp.square(mean), 0)
  inverse = lax.rsqrt(var + epsilon)
  out = _finish(_normalise(x, mean, inverse, scale, bias), cut(residual), relu)
  out = out.astype(y.dtype).reshape(y.shape)
  passes = out > 0 if relu and residual is not None else None
  moments = [_over_parts(jnp.mean, moment) for moment in (mean, var)]
  return (out, *moments), (y, mean, inverse, scale, bias, passes, residual is not None)


def _backward(relu, statistics, backend, epsilon, saved, cotangents):
  y, mean, inverse, scale, bias, passes, has_residual = saved
  shape, dtype = y.shape, y.dtype
  y, g, passes = (_cut(a, statistics.parts) for a in (wide(y), wide(cotangents[0]), passes))
  if relu:
    if passes is None:
      passes = _normalise(y, mean, inverse, scale, bias) > 0
    g = jnp.where(passes, g, 0)
  d_bias, products = _sums(g, g * y, backend)
  # That of g times x-hat, without an x-hat in memory.
  d_scale = inverse * (products - mean * d_bias)
  count = y.size // d_bias.size
  mean_g, mean_gx = statistics.mean((d_bias / count, d_scale / count))
  slope = inverse * mean_gx
  dy = (_along(scale, y) * inverse) * (g - slope * y - (mean_g - slope * mean))
  return (dy.astype(dtype).reshape(shape), _over_parts(jnp.sum, d_scale),
          _over_parts(jnp.sum, d_bias),
          g.astype(dtype).reshape(shape) if has_residual else None)


batch_norm.defvjp(_forward, _backward)
