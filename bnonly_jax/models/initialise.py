"""The values a network starts from, drawn on the host: fast at any depth, equal on any device."""

from typing import Any

import jax
import numpy as np

from bnonly_jax import seeds


def initialise(network: Any, image_shape: tuple[int, ...], seed: int) -> dict[str, Any]:
  """Draws a network's variables.

  Each tensor depends on the seed and its own name alone. The distributions are those of the
  network's own `init`, which draws with JAX's generator instead: weights He normal with fan-in,
  gamma U[0, 1), beta 0, output bias U(-1/sqrt(fan_in), 1/sqrt(fan_in)) (open_lth's defaults).

  Args:
    network: a Flax module.
    image_shape: height, width, channels.
    seed: the experiment's.

  Returns:
    {'params': ..., 'batch_stats': ...} with float32 NumPy arrays as leaves.
  """
  shapes = variable_shapes(network, image_shape)

  def draw(path, leaf):
    name = '/'.join(key.key for key in path)
    generator = seeds.host_generator(seed, f'params/{name}')
    if name.endswith('kernel'):
      fan_in = np.prod(leaf.shape[-4:-1])  # the axis before these, if any, counts stacked blocks
      std = np.float32(np.sqrt(2 / fan_in))
      return std * generator.standard_normal(leaf.shape, np.float32)
    if name.endswith('scale'):
      return generator.random(leaf.shape, np.float32)
    if name == 'output/bias':
      bound = np.float32(shapes['params']['output']['kernel'].shape[0] ** -0.5)
      return bound * (2 * generator.random(leaf.shape, np.float32) - 1)
    return np.zeros(leaf.shape, np.float32)

  def statistics(path, leaf):
    return (np.ones if path[-1].key == 'var' else np.zeros)(leaf.shape, np.float32)

  return {'params': jax.tree_util.tree_map_with_path(draw, shapes['params']),
          'batch_stats': jax.tree_util.tree_map_with_path(statistics, shapes['batch_stats'])}


def variable_shapes(network: Any, image_shape: tuple[int, ...]) -> dict[str, Any]:
  """Returns the network's variables as jax.ShapeDtypeStruct leaves, with nothing computed."""
  images = jax.ShapeDtypeStruct((1, *image_shape), np.float32)
  return jax.eval_shape(network.init, jax.eval_shape(lambda: jax.random.key(0)), images)
