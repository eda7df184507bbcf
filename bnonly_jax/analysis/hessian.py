"""How sharp the training loss is: the largest eigenvalue of its Hessian in what trains."""

from collections.abc import Callable
from typing import Any
from typing import NamedTuple

import jax
from jax.flatten_util import ravel_pytree
import jax.numpy as jnp
import numpy as np

from bnonly_jax import experiment
from bnonly_jax import masks
from bnonly_jax import models
from bnonly_jax import seeds
from bnonly_jax.analysis import activations
from bnonly_jax.analysis.loading import Loaded
from bnonly_jax.config import UserError
from bnonly_jax.data import device
from bnonly_jax.objective import labels as labels_lib

IMAGES = 256  # of training, on which the loss is taken; chosen for ResNet-14 in a minute on a CPU
ITERATIONS = 200  # at most
TOLERANCE = 1e-2  # of |Hv - value v| / |value|, whose square bounds the value's error


class Eigenvalue(NamedTuple):
  """An eigenvalue as power iteration has found it."""
  value: float
  residual: float  # |Hv - value v| / |value| of the unit vector v
  iterations: int  # products with the Hessian
  converged: bool  # whether the residual is within the tolerance


def largest_eigenvalue(loss: Callable[[Any], jax.Array], parameters: Any, seed: int = 0,
                       iterations: int = ITERATIONS, tolerance: float = TOLERANCE) -> Eigenvalue:
  """Finds the largest eigenvalue of a function's Hessian by power iteration.

  Products with the Hessian are jax.jvp of jax.grad; it is never formed. Power iteration finds the
  eigenvalue of the largest magnitude. If that is negative, a second one on the Hessian less that
  value, whose eigenvalues are all positive, finds the largest.

  Args:
    loss: from a tree like `parameters` to a scalar.
    parameters: where the Hessian is taken, a tree with at least one number.
    seed: of the vector that the iteration starts from.
    iterations: products at most, in each of the two.
    tolerance: of the residual.
  """
  start, unravel = ravel_pytree(parameters)
  slope = jax.grad(lambda x: loss(unravel(x)))
  product = jax.jit(lambda at, v: jax.jvp(slope, (at,), (v,))[1])
  drawn = seeds.host_generator(seed, 'sharpness').standard_normal(start.size)
  first = _iterate(lambda v: product(start, v), drawn, 0.0, start.dtype, iterations, tolerance)
  if first.value >= 0:
    return first
  second = _iterate(lambda v: product(start, v), drawn, first.value, start.dtype, iterations,
                    tolerance)
  return second._replace(iterations=first.iterations + second.iterations)


def _iterate(product, vector, shift, dtype, iterations, tolerance):
  """Power iteration on the matrix less shift times the identity; sums are taken in float64."""
  vector, done, residual = vector / np.linalg.norm(vector), 0, np.inf
  while done < iterations and residual > tolerance:
    moved = np.float64(product(jnp.asarray(vector, dtype)))
    value = vector @ moved
    residual = np.linalg.norm(moved - value * vector) / max(abs(value), 1e-30)
    ahead, done = moved - shift * vector, done + 1
    vector = ahead / max(np.linalg.norm(ahead), 1e-30)
  return Eigenvalue(float(value), float(residual), done, bool(residual <= tolerance))


def sharpness(loaded: Loaded, images: int = IMAGES) -> dict[str, Any]:
  """Finds the largest eigenvalue of the Hessian of a run's training loss in what trains.

    sharpness(run)['largest_eigenvalue']

  The loss is the cross-entropy, smoothed as in training, of the first training images that the run
  uses, with its labels, not augmented, and in training mode: BatchNorm normalises by these images,
  all of them together. Decay and teachers are left out.

  Args:
    loaded: the run.
    images: how many, at most.

  Returns:
    `largest_eigenvalue`, `residual`, `iterations` and `converged` as `Eigenvalue` has them;
    `train_images`, `train_loss` on them, and `parameters`, how many train.

  Raises:
    UserError: nothing trains, or as `activations.image_batches`.
  """
  run, config = loaded.experiment, loaded.config
  mask = masks.of_config(config, run.parameters, run.config.seed)
  trainable, frozen = masks.partition(loaded.variables['params'], mask)
  count = sum(np.size(leaf) for leaf in jax.tree.leaves(trainable))
  if not count:
    raise UserError(f'--sharpness: config.train is {config.train!r} in {loaded.workdir}, where'
                    ' nothing trains; needed is a run that trains something. Choose another'
                    ' --workdir.')
  network = experiment.create_network(config, run.info.classes, models.Statistics(),
                                      run.target.backend)
  pixels, labels = _first(loaded, images)
  normalised = device.normalise(jnp.asarray(pixels), run.preparation)

  def apply(variables, images):
    return network.apply(variables, images, train=True, mutable=['batch_stats'])[0]

  def logits_of(variables):
    if not models.is_own(config.network):
      return apply(variables, normalised)
    # Its norms may name the axis of devices, here one.
    over_devices = jax.vmap(apply, (None, 0), axis_name=device.AXIS)
    return over_devices(variables, normalised[None])[0]

  def loss(trainable):
    variables = {'params': masks.merge(trainable, frozen),
                 'batch_stats': loaded.variables['batch_stats']}
    with jax.default_matmul_precision(config.matmul_precision):
      logits = logits_of(variables)
    return labels_lib.cross_entropy(logits, labels, None, config.label_smoothing)

  found = largest_eigenvalue(loss, trainable, run.config.seed)
  return {'largest_eigenvalue': found.value, 'residual': found.residual,
          'iterations': found.iterations, 'converged': found.converged,
          'train_images': len(labels), 'train_loss': float(jax.jit(loss)(trainable)),
          'parameters': count}


def _first(loaded, number):
  """The first training images of a run, uint8 [n, H, W, C], and their labels."""
  pixels, labels, count = [], [], 0
  for some, theirs in activations.image_batches(loaded, train=True):
    pixels.append(some[:number - count])
    labels.append(theirs[:number - count])
    count += len(labels[-1])
    if count == number:
      break
  return np.concatenate(pixels), np.concatenate(labels)
