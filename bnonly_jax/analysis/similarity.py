"""Linear CKA: how alike two layers represent the same images (Kornblith et al. 2019, 1905.00414).

It is 1 for equal features, and neither a rotation of one layer's features nor a common factor
changes it. All is computed in float64, from sums over batches, so that no more than a batch of
features is held.
"""

from collections.abc import Collection
from typing import NamedTuple

import numpy as np

from bnonly_jax.analysis import activations
from bnonly_jax.analysis.loading import Loaded
from bnonly_jax.config import UserError


class Sums(NamedTuple):
  """What batches of two layers' features add up to, float64."""
  count: int
  x_shift: np.ndarray  # [C]: subtracted from each image, so that no digits are lost
  y_shift: np.ndarray  # [D]
  x: np.ndarray  # [C], sum over images
  y: np.ndarray  # [D]
  xx: np.ndarray  # [C, C], sum over images of the products
  yy: np.ndarray  # [D, D]
  xy: np.ndarray  # [C, D]


def add(sums: Sums | None, x: np.ndarray, y: np.ndarray) -> Sums:
  """Adds a batch of features [n, C] and [n, D] of the same images; `sums` of the first is None."""
  x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
  if sums is None:
    sums = Sums(0, x.mean(0), y.mean(0), *([0.0] * 5))
  x, y = x - sums.x_shift, y - sums.y_shift
  return Sums(sums.count + len(x), sums.x_shift, sums.y_shift, sums.x + x.sum(0),
              sums.y + y.sum(0), sums.xx + x.T @ x, sums.yy + y.T @ y, sums.xy + x.T @ y)


def linear_cka(sums: Sums) -> float | None:
  """Returns the linear CKA of two layers, in [0, 1]; None if one of them is the same everywhere."""
  def centred(products, a, b):
    return np.linalg.norm(products - np.outer(a, b) / sums.count)

  own = centred(sums.xx, sums.x, sums.x) * centred(sums.yy, sums.y, sums.y)
  return float(centred(sums.xy, sums.x, sums.y) ** 2 / own) if own else None


def cka(x: np.ndarray, y: np.ndarray) -> float | None:
  """Returns the linear CKA of features [N, C] and [N, D] of the same images.

    cka(features(run, images, pool=True)['output'], features(other, images, pool=True)['output'])
  """
  return linear_cka(add(None, x, y))


def by_layer(loaded: Loaded, other: Loaded, layers: Collection[str] | None = None
             ) -> dict[str, float | None]:
  """Returns the linear CKA of each layer of two runs, on the test images of the first.

    by_layer(run, analysis.load('runs/all'))['output']

  Spatial positions are pooled: a feature is its mean over the positions of an image. Each network
  sees the images normalised as in its own training.

  Args:
    loaded: the run whose test images are taken.
    other: the run to compare with.
    layers: as for `activations.features`; None: those of both that end in ReLUs, and 'output'.

  Raises:
    UserError: the networks take images of other sizes, or have no such layer both.
  """
  shapes = [one.experiment.info.image_shape for one in (loaded, other)]
  if shapes[0] != shapes[1]:
    raise UserError(f'--cka={other.workdir}: its network sees images of {shapes[1]}, and that of'
                    f' {loaded.workdir} of {shapes[0]}; allowed are runs on images of one size.')
  if layers is None:
    there = activations.layer_names(other)
    layers = [layer for layer in activations.layer_names(loaded) if layer in there]
  layers = activations.choose(loaded, layers)
  activations.choose(other, layers)  # which tells what it lacks
  both = [activations.pooled(one, layers) for one in (loaded, other)]
  sums = dict.fromkeys(layers)
  for images, _ in activations.image_batches(loaded):
    x, y = (pooled(images) for pooled in both)
    sums = {layer: add(sums[layer], x[layer], y[layer]) for layer in layers}
  return {layer: linear_cka(found) for layer, found in sums.items()}
