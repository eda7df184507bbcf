"""Blocks against flax.linen.BatchNorm and lax's convolution under plain autodiff, in float64."""

import functools

import flax.linen as nn
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest

from bnonly_jax.models import layers
from bnonly_jax.models.norm import Statistics

BLOCKS = {'basic': (layers.BasicBlock, 1), 'bottleneck': (layers.Bottleneck, 4)}


@pytest.fixture(autouse=True)
def double_precision():
  with jax.enable_x64(True):
    yield


def reference(kind, variables, x, stride, train, axis):
  """The block from its definition; returns its output and the new running means."""
  params, stats = variables['params'], variables['batch_stats']
  means = {}

  def conv(x, name, stride=1):
    kernel = params[name]['kernel']
    pad = [((kernel.shape[0] - 1) // 2,) * 2] * 2
    return lax.conv_general_dilated(x, kernel, (stride, stride), pad,
                                    dimension_numbers=('NHWC', 'HWIO', 'NHWC'))

  def norm(y, name):
    module = nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5,
                          axis_name=axis, dtype=jnp.float64, param_dtype=jnp.float64)
    out, updated = module.apply({'params': params[name], 'batch_stats': stats[name]}, y,
                                mutable=['batch_stats'])
    means[name] = updated['batch_stats']['mean']
    return out

  y = nn.relu(norm(conv(x, 'conv1', stride if kind == 'basic' else 1), 'norm1'))
  if kind == 'basic':
    y = norm(conv(y, 'conv2'), 'norm2')
  else:
    y = nn.relu(norm(conv(y, 'conv2', stride), 'norm2'))
    y = norm(conv(y, 'conv3'), 'norm3')
  if 'shortcut_conv' in params:
    x = norm(conv(x, 'shortcut_conv', stride), 'shortcut_norm')
  return nn.relu(y + x), means


@pytest.mark.parametrize('devices, sync', [(1, False), (4, False), (4, True)])
@pytest.mark.parametrize('train', [True, False])
@pytest.mark.parametrize('stride', [1, 2])  # the residual as it is, and by the shortcut
@pytest.mark.parametrize('kind', BLOCKS)
def test_a_block_and_its_gradients_are_exact(kind, stride, train, devices, sync):
  block, expansion = BLOCKS[kind]
  features, axis = 6, 'batch' if sync else None
  style = layers.Style(statistics=Statistics(axis))
  channels = expansion * features if stride == 1 else 5
  module = block(features, layers.parts(style, train), stride)
  rng = np.random.default_rng(0)
  x = rng.normal(size=(devices, 3, 6, 8, channels))
  weight = rng.normal(size=(devices, 3, 6 // stride, 8 // stride, expansion * features))
  shapes = jax.eval_shape(block(features, layers.parts(layers.Style(), False), stride).init,
                          jax.random.key(0), x[0])
  variables = jax.tree.map(lambda leaf: rng.random(leaf.shape) + 0.1, shapes)

  def ours(params, x, weight):
    (out, _), updated = module.apply({**variables, 'params': params}, x, mutable=['batch_stats'])
    means = {name: leaf['mean'] for name, leaf in updated.get('batch_stats', {}).items()}
    return jnp.sum(out * weight), means

  def plain(params, x, weight):
    out, means = reference(kind, {**variables, 'params': params}, x, stride, train, axis)
    return jnp.sum(out * weight), means

  both = []
  for function in (ours, plain):
    step = jax.pmap(jax.value_and_grad(function, (0, 1), has_aux=True), axis_name='batch',
                    in_axes=(None, 0, 0))
    both.append(jax.device_get(step(variables['params'], x, weight)))
  ((loss, means), gradients), ((expected_loss, expected_means), expected) = both
  np.testing.assert_allclose(loss, expected_loss, rtol=1e-9)
  if train:
    assert means.keys() == expected_means.keys() and len(means) >= 2
    for name, mean in means.items():
      # Ours are each device's own; averaged over devices they are those of the whole batch.
      np.testing.assert_allclose(np.mean(mean, 0), np.mean(expected_means[name], 0), rtol=1e-9)
  scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))
  for (path, a), b in zip(jax.tree_util.tree_flatten_with_path(gradients)[0],
                          jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9 * scale, err_msg=str(path))


class Stage(nn.Module):
  """Three equal blocks."""
  style: layers.Style

  @nn.compact
  def __call__(self, x):
    return layers.stage(x, 'stage1', layers.BasicBlock, 3, 4, layers.parts(self.style, True), 1,
                        self.style)


@pytest.mark.parametrize('backend', [
    'cpu', *(pytest.param(other, marks=pytest.mark.slow) for other in ('gpu', 'tpu'))])
def test_unrolled_stacks_are_those_in_loops_to_rounding(backend):
  images = np.random.default_rng(0).normal(size=(2, 4, 4, 4))
  stages = [Stage(layers.Style(backend=backend, unroll=unroll)) for unroll in (1, 2, 0)]
  variables = jax.tree.map(jnp.float64, stages[0].init(jax.random.key(0), images))

  def loss(stage, params):
    y, updated = stage.apply({**variables, 'params': params}, images, mutable=['batch_stats'])
    return jnp.sum(y ** 2), updated

  found, loops = [], []
  for stage in stages:
    step = jax.jit(jax.value_and_grad(functools.partial(loss, stage), has_aux=True)).lower(
        variables['params'])
    loops.append(step.as_text().count('stablehlo.while'))
    found.append(step.compile()(variables['params']))
  assert loops == [2, 2, 0]
  for other in found[1:]:
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-9),
                 found[0], other)
