"""The values a network starts from, drawn on the host: fast at any depth, equal on any device."""

from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import numpy as np

from bnonly_jax import seeds
from bnonly_jax.models import layers

# How weights start: as in open_lth's models/initializers.py. Each takes a generator and the shape
# of one kernel, the features last.


def _fan_in(shape):
  return int(np.prod(shape[:-1]))


def _he_normal(generator, shape):
  return np.float32(np.sqrt(2 / _fan_in(shape))) * generator.standard_normal(shape, np.float32)


def _he_uniform(generator, shape):
  return np.float32(np.sqrt(6 / _fan_in(shape))) * _symmetric(generator, shape)


def _orthogonal(generator, shape):
  """torch.nn.init.orthogonal_: the kernel as a matrix [fan_in, features] has orthonormal rows or
  columns, whichever are fewer; uniform among such matrices."""
  rows, columns = _fan_in(shape), shape[-1]
  normal = generator.standard_normal((max(rows, columns), min(rows, columns)), np.float32)
  q, r = np.linalg.qr(normal)
  q = q * np.sign(np.diag(r))
  return np.ascontiguousarray(q if rows >= columns else q.T).reshape(shape)


def _binary(generator, shape):
  """The sign of a He normal draw, times that draw's standard deviation."""
  draw = _he_normal(generator, shape)
  return np.sign(draw) * np.std(draw, ddof=1)


def _symmetric(generator, shape):
  return 2 * generator.random(shape, np.float32) - 1


WEIGHT_STARTS = {'he_normal': _he_normal, 'he_uniform': _he_uniform, 'orthogonal': _orthogonal,
                 'binary': _binary}
# How a norm's scale and bias start, by config.norm_start: the scale's draw, and the bias.
NORM_STARTS = {
    'uniform': (lambda generator, shape: generator.random(shape, np.float32), 0),  # the paper's
    'one_zero': (lambda generator, shape: np.ones(shape, np.float32), 0),
    'one_one': (lambda generator, shape: np.ones(shape, np.float32), 1),
    'symmetric': (_symmetric, 0),  # U[-1, 1)
}


def initialise(network: nn.Module, image_shape: tuple[int, ...], seed: int,
               weight_start: str = 'he_normal', norm_start: str = 'uniform') -> dict[str, Any]:
  """Draws a network's variables.

  Each tensor depends on the seed and its own name alone; the kernels of a stack come one after the
  other from the stack's generator. By default the distributions are the paper's and those of the
  network's own `init`, which draws with JAX's generator instead: weights He normal with fan-in,
  gamma U[0, 1), beta 0. Other biases are U(-1/sqrt(fan_in), 1/sqrt(fan_in)), PyTorch's default,
  with every start (open_lth's initialisers set weights only).

  Args:
    network: a Flax module.
    image_shape: height, width, channels.
    seed: the experiment's.
    weight_start: a key of WEIGHT_STARTS.
    norm_start: a key of NORM_STARTS.

  Returns:
    {'params': ..., 'batch_stats': ...} with float32 NumPy arrays as leaves.
  """
  shapes = variable_shapes(network, image_shape)
  params = flax.traverse_util.flatten_dict(shapes['params'], sep='/')
  draw_scale, norm_bias = NORM_STARTS[norm_start]

  def draw(name, shape):
    generator = seeds.host_generator(seed, f'params/{name}')
    if name.endswith('kernel'):
      kernel = WEIGHT_STARTS[weight_start]
      if layers.is_stacked(name):
        return np.stack([kernel(generator, shape[1:]) for _ in range(shape[0])])
      return kernel(generator, shape)
    if name.endswith('scale'):
      return draw_scale(generator, shape)
    sibling = params.get(name.removesuffix('bias') + 'kernel')
    if sibling is None:  # a norm's
      return np.full(shape, norm_bias, np.float32)
    return np.float32(_fan_in(sibling.shape) ** -0.5) * _symmetric(generator, shape)

  drawn = {name: draw(name, leaf.shape) for name, leaf in params.items()}
  statistics = jax.tree_util.tree_map_with_path(
      lambda path, leaf: (np.ones if path[-1].key == 'var' else np.zeros)(leaf.shape, np.float32),
      shapes['batch_stats'])
  return {'params': flax.traverse_util.unflatten_dict(drawn, sep='/'), 'batch_stats': statistics}


def variable_shapes(network: nn.Module, image_shape: tuple[int, ...]) -> dict[str, Any]:
  """Returns the network's variables as jax.ShapeDtypeStruct leaves, with nothing computed.

  'batch_stats' is there, empty, also for a network without BatchNorm.
  """
  images = jax.ShapeDtypeStruct((1, *image_shape), np.float32)
  shapes = jax.eval_shape(network.init, jax.eval_shape(lambda: jax.random.key(0)), images)
  return {'batch_stats': {}, **shapes}
