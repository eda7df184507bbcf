"""The loss with the labels."""

import jax
import optax

from bnonly_jax.data import augment


def cross_entropy(logits: jax.Array, labels: jax.Array, mixed: augment.Mixed | None,
                  label_smoothing: float) -> jax.Array:
  """The mean cross-entropy with the labels, spread over the classes and mixed with others.

  Args:
    logits: float [N, classes].
    labels: int32 [N].
    mixed: the labels of what each image is mixed with, and its own share; None: none is mixed.
    label_smoothing: share of each label that is spread over all classes.
  """
  def one(labels):
    if not label_smoothing:
      return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    targets = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    return optax.softmax_cross_entropy(logits, optax.smooth_labels(targets, label_smoothing))

  losses = one(labels)
  if mixed is not None:
    share = mixed.share.astype(logits.dtype) / 256
    losses = share * losses + (1 - share) * one(mixed.labels)
  return losses.mean()
