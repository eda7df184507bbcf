"""The values a network starts from, drawn on the host: fast at any depth, equal on any device."""

from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from bnonly_jax import seeds
from bnonly_jax.models import parameters as parameters_lib

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
  other from the stack's generator. Known are the kernels and biases of convolutions and dense
  layers, and the scales and biases of norms, whoever wrote the network. By default their
  distributions are the paper's: weights He normal with fan-in, gamma U[0, 1), beta 0. Other biases
  are U(-1/sqrt(fan_in), 1/sqrt(fan_in)), PyTorch's default, with every start (open_lth's
  initialisers set weights only). All else is drawn by the module's own initialiser, with the key
  that Flax derives from the seed, the module's path and the variable's place in the module.

  Args:
    network: a Flax module.
    image_shape: height, width, channels.
    seed: the experiment's.
    weight_start: a key of WEIGHT_STARTS.
    norm_start: a key of NORM_STARTS.

  Returns:
    {'params': ..., 'batch_stats': ...} with NumPy arrays as leaves, float32 if the network does not
    say otherwise.
  """
  shapes, parameters = look(network, image_shape)
  names = flax.traverse_util.flatten_dict(shapes, sep='/')
  drawn, own = {}, []
  for name, leaf in names.items():
    collection, _, rest = name.partition('/')
    if collection == 'params':
      value = _draw(parameters[rest], rest, seed, WEIGHT_STARTS[weight_start],
                    NORM_STARTS[norm_start])
    else:
      start = {'mean': np.zeros, 'var': np.ones}.get(name.rpartition('/')[2])
      value = start and start(leaf.shape)
    if value is None:
      own.append(name)
    else:
      drawn[name] = np.asarray(value, leaf.dtype)
  if own:
    drawn |= _by_own_initialisers(network, image_shape, seed, own)
  variables = flax.traverse_util.unflatten_dict({name: drawn[name] for name in names}, sep='/')
  return {'batch_stats': {}, **variables}


def _draw(known, name, seed, start, norm_start):
  """Draws a parameter by its name; None if that is its module's to do."""
  generator = seeds.host_generator(seed, f'params/{name}')
  draw_scale, norm_bias = norm_start
  if known.group == 'gamma':
    return draw_scale(generator, known.whole_shape)
  if known.group == 'beta':
    return np.full(known.whole_shape, norm_bias, np.float32)
  if not known.fan_in:
    return None
  if name.endswith('bias'):
    return np.float32(known.fan_in ** -0.5) * _symmetric(generator, known.whole_shape)
  # Of several axes of features, as attention has them, one is made, the last.
  shape = known.shape if _fan_in(known.shape) == known.fan_in else (known.fan_in, -1)
  shape = np.empty(known.shape, bool).reshape(shape).shape
  kernels = [start(generator, shape) for _ in range(len(known.names))]
  return np.stack(kernels).reshape(known.whole_shape)


def _by_own_initialisers(network, image_shape, seed, names):
  """Draws the named variables by the network's own init, of which the compiler drops the rest."""
  def draw(key):
    images = jnp.zeros((1, *image_shape), jnp.float32)
    drawn = nn.meta.unbox(network.init(key, images, train=False))
    flat = flax.traverse_util.flatten_dict(drawn, sep='/')
    return {name: flat[name] for name in names}

  return jax.device_get(jax.jit(draw)(jax.random.key(seed)))


def look(network: nn.Module, image_shape: tuple[int, ...]
         ) -> tuple[dict[str, Any], dict[str, parameters_lib.Parameter]]:
  """Returns a network's variables, as shapes, and what is known of its parameters.

  Args:
    network: a Flax module whose `__call__(images, train)` gives logits.
    image_shape: height, width, channels.

  Returns:
    The variables as jax.ShapeDtypeStruct leaves, with nothing computed; 'batch_stats' is there,
    empty, also for a network without BatchNorm. And a `Parameter` by name.
  """
  images = jax.ShapeDtypeStruct((1, *image_shape), np.float32)
  shapes, parameters = parameters_lib.look(network, images, train=False)
  return {'batch_stats': {}, **shapes}, parameters


def variable_shapes(network: nn.Module, image_shape: tuple[int, ...]) -> dict[str, Any]:
  """Returns the first of what `look` returns."""
  return look(network, image_shape)[0]
