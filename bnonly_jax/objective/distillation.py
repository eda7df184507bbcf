"""The loss with teachers: networks that are trained already (Hinton et al. 2015, 1503.02531)."""

from typing import Any
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from bnonly_jax.data import device


class Teacher(NamedTuple):
  """A network that teaches, without its variables."""
  network: nn.Module
  preparation: device.Preparation  # the normalisation and the dtype of its own training


class Teaching(NamedTuple):
  """Who teaches, and how much it counts.

  Attributes:
    teachers: one or more.
    weight: share of their term in the loss, 0 to 1.
    temperature: what logits are divided by in it.
  """
  teachers: tuple[Teacher, ...]
  weight: float
  temperature: float


def targets(teaching: Teaching, variables: tuple[dict[str, Any], ...],
            images: jax.Array) -> jax.Array:
  """Returns the log of the mean of the teachers' softened probabilities, float32 [N, classes].

  Args:
    teaching: who teaches.
    variables: of each of its teachers, which are in evaluation: BatchNorm's running statistics.
    images: uint8 [N, H, W, C], as augmented.
  """
  each = jnp.stack([
      softened(teacher.network.apply(own, device.normalise(images, teacher.preparation),
                                     train=False), teaching.temperature)
      for teacher, own in zip(teaching.teachers, variables, strict=True)])
  return jax.nn.logsumexp(each, 0) - jnp.log(float(len(teaching.teachers)))


def softened(logits: jax.Array, temperature: float) -> jax.Array:
  """Returns the logs of the probabilities that logits [N, classes] give at a temperature."""
  return jax.nn.log_softmax(logits / temperature)


def divergence(taught: jax.Array, logits: jax.Array, temperature: float) -> jax.Array:
  """Returns temperature^2 times the mean over images of KL(teachers' || own probabilities).

  With the square, the size of its gradient hardly depends on the temperature.

  Args:
    taught: [N, classes], from `targets` at the same temperature.
    logits: [N, classes], of the network that is taught.
    temperature: what they are divided by.
  """
  own = softened(logits, temperature)
  losses = optax.losses.kl_divergence_with_log_targets(own, taught.astype(own.dtype))
  return temperature ** 2 * jnp.mean(losses)
