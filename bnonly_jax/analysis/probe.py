"""A linear probe: what a linear classifier reads from the features before the output layer."""

from typing import Any

import numpy as np

from bnonly_jax.analysis import activations
from bnonly_jax.analysis import evaluation
from bnonly_jax.analysis.loading import Loaded

# Added to the variance, 1, of each standardised feature: enough for features that are copies of
# each other, and little beside what others say of a class.
PENALTY = 1e-3


def linear_probe(loaded: Loaded) -> dict[str, Any]:
  """Fits a linear probe on a run's training images and tests it on the test images.

    linear_probe(run)['test_accuracy']

  The probe is ridge regression, in closed form and float64, of the classes (1 for an image's own, 0
  for the others) on the standardised features before the output layer; the largest value is the
  class. The training images are those that the run uses, with its labels, not augmented.

  Returns:
    `features` (how many), `penalty`, `train_images`, `test_images`, `test_accuracy`, and
    `own_test_accuracy`, the network's own with its output layer.

  Raises:
    UserError: as `activations.image_batches`.
  """
  layer, classes = activations.OUTPUT, np.eye(loaded.experiment.info.classes)
  pooled = activations.pooled(loaded, (layer,))
  count, sums = 0, (0.0, 0.0, 0.0, 0.0)
  for images, labels in activations.image_batches(loaded, train=True):
    x, y = np.float64(pooled(images)[layer]), classes[labels]
    count += len(x)
    sums = tuple(a + b for a, b in zip(sums, (x.sum(0), y.sum(0), x.T @ x, x.T @ y), strict=True))
  weights, bias = ridge(count, *sums)
  tested, correct = 0, 0
  for images, labels in activations.image_batches(loaded):
    scores = np.float64(pooled(images)[layer]) @ weights + bias
    tested, correct = tested + len(labels), correct + int(np.sum(scores.argmax(1) == labels))
  (own,) = evaluation.evaluate(loaded, loaded.variables['params'])
  return {'features': len(weights), 'penalty': PENALTY, 'train_images': count,
          'test_images': tested, 'test_accuracy': correct / tested,
          'own_test_accuracy': own['test_accuracy']}


def ridge(count: int, x: np.ndarray, y: np.ndarray, xx: np.ndarray, xy: np.ndarray
          ) -> tuple[np.ndarray, np.ndarray]:
  """Solves ridge regression on standardised features from sums over images.

  Args:
    count: images.
    x: [C], the sum of the features.
    y: [K], the sum of the targets.
    xx: [C, C], the sum of the features' products.
    xy: [C, K], the sum of the products of features and targets.

  Returns:
    Weights [C, K] and bias [K], of the features as they are. A feature that is the same in every
    image gets weight 0.
  """
  x, y = x / count, y / count
  covariance, cross = xx / count - np.outer(x, x), xy / count - np.outer(x, y)
  variance, square = np.diag(covariance), np.diag(xx) / count
  varies = variance > 1e-12 * square  # below, it is what float64 leaves of a constant
  scale = np.where(varies, 1 / np.sqrt(np.where(varies, variance, 1)), 0)
  correlation = covariance * np.outer(scale, scale)
  solved = np.linalg.solve(correlation + PENALTY * np.eye(len(x)), cross * scale[:, None])
  weights = solved * scale[:, None]
  return weights, y - x @ weights
