"""Attacks by the gradient of the loss with respect to the pixels, within a bound on each pixel.

FGSM (Goodfellow et al. 2015, arXiv 1412.6572) moves every pixel by eps in the direction in which
the loss grows. PGD (Madry et al. 2018, arXiv 1706.06083) starts at random within eps of the image
and takes steps of 2.5 eps / steps in these directions, each projected back to within eps of the
image. Pixels are in [0, 1], before normalisation, and stay there.
"""

from collections.abc import Callable
from collections.abc import Sequence
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bnonly_jax import analysis
from bnonly_jax import seeds
from bnonly_jax.data import device

STEP = 2.5  # times eps / steps is how far PGD's steps go; Madry et al. 2018, section 5
ROUNDING = 1e-6  # by which float32 may miss the bound


def perturb(logits: Callable[[jax.Array], jax.Array], images: jax.Array, labels: jax.Array,
            eps: float | jax.Array, steps: int, start: jax.Array | None = None) -> jax.Array:
  """Changes images so that a network takes them for something else.

  Args:
    logits: of pixels float32 [N, H, W, C] in [0, 1].
    images: float32 [N, H, W, C], pixels in [0, 1].
    labels: int32 [N].
    eps: by how much a pixel may change.
    steps: of PGD; 0: FGSM.
    start: with PGD, where it starts, in [-1, 1] times eps from each pixel; None: at the image.

  Returns:
    Images like those given, each pixel in [0, 1] and within eps of what it was.
  """
  def loss(x):
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits(x)), labels[:, None], -1)
    return -jnp.sum(chosen)  # of each image its own

  lowest, highest = jnp.maximum(images - eps, 0), jnp.minimum(images + eps, 1)

  def move(x, by):
    return jnp.clip(x + by * jnp.sign(jax.grad(loss)(x)), lowest, highest)

  if not steps:
    return move(images, eps)
  first = images if start is None else jnp.clip(images + eps * start, lowest, highest)
  return jax.lax.fori_loop(0, steps, lambda _, x: move(x, STEP * eps / steps), first)


def accuracies(loaded: analysis.Loaded, eps: Sequence[float], steps: int) -> list[float]:
  """Attacks a run's network on its test set, in evaluation (BatchNorm's running statistics).

  PGD's random starts follow from the run's seed and the image's place in the test set.

    accuracies(run, (0, 2 / 255, 8 / 255), steps=10)

  Args:
    loaded: the run, from `analysis.load`.
    eps: by how much a pixel in [0, 1] may change, each; 0 is the test set as it is.
    steps: of PGD; 0: FGSM.

  Returns:
    The accuracy in [0, 1] for each eps.

  Raises:
    UserError: as `analysis.image_batches`.
  """
  run, size = loaded.experiment, loaded.experiment.eval_batch_size
  program = _program(run.network, run.preparation, run.config.matmul_precision, steps)
  variables, correct, count = jax.device_put(loaded.variables), np.zeros(len(eps), int), 0
  for images, labels in analysis.image_batches(loaded):
    batch = [np.concatenate([x, np.zeros((size - len(x), *x.shape[1:]), x.dtype)])
             for x in (images, labels)]  # of one size
    positions = count + np.arange(size, dtype=np.int32)
    for i, each in enumerate(eps):
      right, farthest, low, high = jax.device_get(program(
          variables, *batch, np.int32(run.config.seed), positions, np.float32(each)))
      assert farthest <= each + ROUNDING, f'a pixel has moved by {farthest}, and {each} is allowed'
      assert low >= 0 and high <= 1, f'pixels are in [{low}, {high}] and not in [0, 1]'
      correct[i] += right[:len(labels)].sum()
    count += len(labels)
  return (correct / count).tolist()


@functools.lru_cache(maxsize=16)
def _program(network: nn.Module, preparation: device.Preparation, precision: str, steps: int
             ) -> Callable[..., Any]:
  """Returns what attacks a batch: which labels stay right, and how far which pixels went."""
  def call(variables, images, labels, seed, positions, eps):
    pixels, start = images.astype(jnp.float32) / 255, None

    def logits(x):
      with jax.default_matmul_precision(precision):
        return network.apply(variables, device.normalise(255 * x, preparation), train=False)

    if steps:
      bits = seeds.image_bits(seed, 0, positions, int(np.prod(images.shape[1:])), 'attack')
      start = (bits.astype(jnp.float32) / np.float32(2**31) - 1).reshape(images.shape)
    changed = perturb(logits, pixels, labels, eps, steps, start)
    right = jnp.argmax(logits(changed), -1) == labels
    return right, jnp.max(jnp.abs(changed - pixels)), jnp.min(changed), jnp.max(changed)

  return jax.jit(call)
