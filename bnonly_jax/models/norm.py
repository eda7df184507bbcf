"""Norms, each with the addition and the ReLU that follow it; BatchNorm saves only its own input.

The ReLUs here are all that the networks have. `network.apply(..., mutable=['intermediates'])` gives
besides the logits which of them fire: 'fired' of each norm that ends in one, bool [N, C], whether
the output is above 0 anywhere in the image. Stacks of blocks have them stacked on the first axis.
"""

from collections.abc import Callable
import functools

import flax.linen as nn
import jax
from jax import lax
import jax.numpy as jnp

# PyTorch's defaults, which the official code (open_lth) uses: eps, and the running averages keep
# 0.9 of the old value at each step.
EPSILON = 1e-5
KEEP = 0.9


KINDS = ('batch', 'group', 'layer', 'none')
GROUP_SIZE = 8  # channels a group of GroupNorm


def make_norm(kind: str, train: bool, sync_axis: str | None) -> Callable[[str], nn.Module]:
  """Returns what makes a network's norms, given their names."""
  if kind == 'batch':
    return lambda name: BatchNorm(train, sync_axis, name=name)
  if kind == 'none':
    return lambda name: NoNorm(name=name)
  return lambda name: GroupNorm(GROUP_SIZE if kind == 'group' else None, name=name)


class BatchNorm(nn.Module):
  """relu(scale * (y - mean) / sqrt(var + 1e-5) + bias + residual) over [N, H, W, C], C last.

  Like PyTorch's and unlike flax.linen's, the running variance averages the unbiased variance
  (n / (n - 1) times that of the batch), while the batch is normalised by the biased one.

  Attributes:
    train: normalise by the batch and update batch_stats, or normalise by batch_stats.
    axis_name: the axis of devices whose shares of the batch have their statistics in common, or
      None for each its own. The running averages are the device's own either way.
  """
  train: bool = False
  axis_name: str | None = None

  @nn.compact
  def __call__(self, y: jax.Array, residual: jax.Array | None = None,
               relu: bool = True) -> jax.Array:
    channels = y.shape[-1:]
    scale = self.param('scale', nn.initializers.uniform(1.0), channels)
    bias = self.param('bias', nn.initializers.zeros, channels)
    running_mean = self.variable('batch_stats', 'mean', jnp.zeros, channels)
    running_var = self.variable('batch_stats', 'var', jnp.ones, channels)
    if not self.train:
      inverse = lax.rsqrt(running_var.value + EPSILON)
      z = _normalise(wide(y), running_mean.value, inverse, scale, bias)
      return _watched(self, _finish(z, residual, relu).astype(y.dtype), relu)
    out, mean, var = batch_norm(y, scale, bias, residual, relu, self.axis_name)
    if not self.is_initializing():
      devices = 1 if self.axis_name is None else lax.axis_size(self.axis_name)
      count = devices * y.size // y.shape[-1]
      unbiased = var * (count / max(count - 1, 1))
      running_mean.value = KEEP * running_mean.value + (1 - KEEP) * mean
      running_var.value = KEEP * running_var.value + (1 - KEEP) * unbiased
    return _watched(self, out, relu)


class GroupNorm(nn.Module):
  """GroupNorm (Wu and He 2018, arXiv 1803.08494): each image by itself, groups of channels.

  Attributes:
    group_size: channels a group; None is all of them, which is LayerNorm over [H, W, C].
  """
  group_size: int | None

  @nn.compact
  def __call__(self, y: jax.Array, residual: jax.Array | None = None,
               relu: bool = True) -> jax.Array:
    scale = self.param('scale', nn.initializers.uniform(1.0), y.shape[-1:])
    bias = self.param('bias', nn.initializers.zeros, y.shape[-1:])
    grouped = wide(y).reshape(*y.shape[:3], -1, self.group_size or y.shape[-1])
    mean = jnp.mean(grouped, (1, 2, 4), keepdims=True)
    var = jnp.mean(jnp.square(grouped - mean), (1, 2, 4), keepdims=True)
    normalised = ((grouped - mean) * lax.rsqrt(var + EPSILON)).reshape(y.shape)
    out = _finish(normalised * scale + bias, residual, relu).astype(y.dtype)
    return _watched(self, out, relu)


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


def _normalise(y, mean, inverse, scale, bias):
  return (y - mean) * (inverse * scale) + bias


def _finish(z, residual, relu):
  if residual is not None:
    z = z + residual
  # Not maximum(z, 0): where a reduction follows, XLA's CPU backend makes that of a NaN 0.
  return jnp.where(z < 0, 0, z) if relu else z


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def batch_norm(y: jax.Array, scale: jax.Array, bias: jax.Array, residual: jax.Array | None,
               relu: bool, axis_name: str | None) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Normalises by the batch, adds the residual if any, applies the ReLU if asked.

  For the backward pass it saves y and, with a residual, one boolean an element; what autodiff would
  save besides (x-hat, the sum, the ReLU's input) is computed again.

  Args:
    y: [N, H, W, C], of any floating dtype; all is computed in at least float32.
    scale: [C], gamma.
    bias: [C], beta.
    residual: [N, H, W, C] or None.
    relu: whether max(., 0) comes last.
    axis_name: axis of devices to take the statistics over, or None.

  Returns:
    The output [N, H, W, C] of y's dtype; the mean [C] and the biased variance [C] of y, which carry
    no gradient.
  """
  return _forward(y, scale, bias, residual, relu, axis_name)[0]


def _mean(x, axis_name):
  mean = jnp.mean(x, (0, 1, 2))
  return mean if axis_name is None else lax.pmean(mean, axis_name)


def _forward(y, scale, bias, residual, relu, axis_name):
  x = wide(y)
  mean = _mean(x, axis_name)
  # One pass over y for both moments; a variance that rounding makes negative is zero.
  var = jnp.maximum(_mean(jnp.square(x), axis_name) - jnp.square(mean), 0)
  inverse = lax.rsqrt(var + EPSILON)
  out = _finish(_normalise(x, mean, inverse, scale, bias), residual, relu).astype(y.dtype)
  passes = out > 0 if relu and residual is not None else None
  return (out, mean, var), (y, mean, inverse, scale, bias, passes, residual is not None)


def _backward(relu, axis_name, saved, cotangents):
  y, mean, inverse, scale, bias, passes, has_residual = saved
  dtype, y, g = y.dtype, wide(y), wide(cotangents[0])
  if relu:
    if passes is None:
      passes = _normalise(y, mean, inverse, scale, bias) > 0
    g = jnp.where(passes, g, 0)
  d_bias = jnp.sum(g, (0, 1, 2))
  # That of g times x-hat, without an x-hat in memory.
  d_scale = inverse * (jnp.sum(g * y, (0, 1, 2)) - mean * d_bias)
  count = y.size // y.shape[-1]
  mean_g, mean_gx = d_bias / count, d_scale / count
  if axis_name is not None:
    mean_g, mean_gx = lax.pmean((mean_g, mean_gx), axis_name)
  slope = inverse * mean_gx
  dy = (scale * inverse) * (g - slope * y - (mean_g - slope * mean))
  return dy.astype(dtype), d_scale, d_bias, g.astype(dtype) if has_residual else None


batch_norm.defvjp(_forward, _backward)
