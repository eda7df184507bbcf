"""Which images, with which labels, a step takes: functions of the seed and the step alone."""

import functools

import numpy as np

from bnonly_jax import seeds


def subsample(images: int, number: int, seed: int) -> np.ndarray:
  """Chooses `number` of the training images by the seed; returns int64 indices, ascending."""
  if number == images:
    return np.arange(images)
  return np.sort(seeds.host_generator(seed, 'subsample').permutation(images)[:number])


def random_labels(images: int, share: float, classes: int, seed: int) -> np.ndarray:
  """Draws classes for a share of the training images (Zhang et al., arXiv 1611.03530).

  A drawn class can be the image's own. A larger share gives the same images the same classes and
  more besides.

  Returns:
    int32 [images]: the class, or -1 where the image keeps its own label.
  """
  generator = seeds.host_generator(seed, 'random_labels')
  replaced = generator.permutation(images)[:round(share * images)]
  drawn = generator.integers(0, classes, images, np.int32)
  labels = np.full(images, -1, np.int32)
  labels[replaced] = drawn[replaced]
  return labels


@functools.lru_cache(maxsize=1024)  # replicates take turns
def _orders(seed):
  def order(epoch, images):
    return seeds.host_generator(seed, f'epoch/{epoch}').permutation(images)
  return functools.lru_cache(maxsize=2)(order)  # two epochs, at the border between them


def train_indices(seed: int, step: int, images: int, batch_size: int) -> np.ndarray:
  """Returns the images that a training step takes.

  An epoch is one permutation keyed by (seed, epoch), cut into batches; the rest is dropped.

  Args:
    seed: the experiment's.
    step: number of the step, from 0.
    images: size of the training set.
    batch_size: global.

  Returns:
    int32 [batch_size].
  """
  epoch, position = divmod(step, images // batch_size)
  return _orders(seed)(epoch, images)[position * batch_size:][:batch_size].astype(np.int32)


def eval_indices(images: int, batch_size: int) -> list[tuple[np.ndarray, np.ndarray]]:
  """Cuts a split into batches of one size; the last is filled up with image 0 at weight 0.

  Returns:
    Pairs (index int32 [batch_size], weight float32 [batch_size]).
  """
  batches = []
  for start in range(0, images, batch_size):
    index = np.arange(start, start + batch_size)
    weight = (index < images).astype(np.float32)
    batches.append((np.where(index < images, index, 0).astype(np.int32), weight))
  return batches


def own_slice(batch: np.ndarray, process: int, processes: int) -> np.ndarray:
  """Returns the part of a global batch that a process feeds to its devices."""
  number = len(batch) // processes
  return batch[process * number:(process + 1) * number]
