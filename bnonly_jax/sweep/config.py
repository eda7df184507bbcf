"""What a sweep's config file is made of: points of a figure, and the scales to run it at."""

from collections.abc import Sequence
import dataclasses
from typing import Any

import ml_collections

from bnonly_jax.config import default_config
from bnonly_jax.config import imagenet_config
from bnonly_jax.config import UserError

# smoke: tiny nets on the embedded scans, a minute or two; to see that all works.
# short: 5,000 images of the JPEG variant of CIFAR-10 and 8 epochs, drops after 4 and 6: an
# afternoon on two CPU cores for the main figure.
# paper: the paper's recipe, data and number of seeds.
SCALES = ('smoke', 'short', 'paper')
SEEDS = {'smoke': 2, 'short': 3, 'paper': 5}

# What a figure's panel shows, by its name in `sweep(panels=...)`.
RESULTS = {
    'test_accuracy': 'test accuracy (%)',
    'test_top5_accuracy': 'top-5 test accuracy (%)',
    'train_accuracy': 'accuracy on the training batches of the last epoch (%)',
}
ANALYSES = {
    'gamma': 'gamma',
    'beta': 'beta',
    'small_gammas': 'gammas with |gamma| < t (%)',
    'zeroed': 'test accuracy without gammas below t (%)',
    'silent_relus': 'ReLUs that never fire on the test set (%)',
}


@dataclasses.dataclass(frozen=True)
class Point:
  """One point of a figure: the runs of all seeds with the same changes to the base config.

  Attributes:
    line: what the legend calls the line that the point is on.
    x: where on the x axis, a number or a word; None: a level line across the axis.
    changes: values by dotted field of the base config.
  """
  line: str
  x: float | str | None
  changes: dict[str, Any]


def base(scale: str, recipe: str = 'cifar10') -> ml_collections.ConfigDict:
  """Returns the config that all runs of a sweep start from.

  Args:
    scale: one of SCALES.
    recipe: cifar10 or imagenet.

  Raises:
    UserError: there is no such scale.
  """
  check_scale(scale)
  config = imagenet_config() if recipe == 'imagenet' and scale == 'paper' else default_config()
  if scale == 'smoke':
    config.data.name = 'digits'
    config.data.pad = 1
    config.data.flip = False
    config.data.mean = (0.305,)
    config.data.std = (0.376,)
    config.epochs = 2
    config.log_every = 5
  if scale == 'short':
    config.data.name = 'cifar10_jpeg'
    config.data.subsample = 0.1
    config.epochs = 8
    config.eval_every = 4
    config.log_every = 13
  return config


def check_scale(scale: str) -> None:
  """Raises UserError if there is no such scale."""
  if scale not in SCALES:
    raise UserError(f'the scale is {scale!r}; allowed is {", ".join(SCALES)}. Write it after the'
                    ' config file and a colon: --config=configs/figures/main_depth.py:short.')


def sweep(name: str, title: str, scale: str, x: str, points: Sequence[Point],
          panels: Sequence[str] = ('test_accuracy',), seeds: int = 0,
          base_config: ml_collections.ConfigDict | None = None,
          over: Sequence[str] = ()) -> ml_collections.ConfigDict:
  """Returns a sweep: a config of configs.

  Args:
    name: of the folder that its figures go to.
    title: of the figures.
    scale: one of SCALES.
    x: what the x axis is called.
    points: of the figure.
    panels: what is drawn, keys of RESULTS and ANALYSES: one figure each.
    seeds: runs a point; 0: as many as the scale has in SEEDS.
    base_config: what all runs start from; None: `base(scale)`.
    over: lines of the figure. Its tables say by how much the others are above each of them.

  Raises:
    UserError: there is no such scale.
  """
  check_scale(scale)
  return ml_collections.ConfigDict({
      'name': name,
      'title': title,
      'scale': scale,
      'x': x,
      'panels': tuple(panels),
      'seeds': seeds or SEEDS[scale],
      'base': base_config or base(scale),
      'over': tuple(over),
      'points': tuple(points),
  }).lock()


def skeleton() -> ml_collections.ConfigDict:
  """Returns a sweep without points: the fields there are."""
  return sweep('', '', 'paper', '', ())


def check(config: ml_collections.ConfigDict) -> None:
  """Checks what a sweep's config has besides its runs.

  Raises:
    UserError: it is no sweep's, or a field is out of range.
  """
  if 'base' not in config or 'points' not in config:
    raise UserError('--config is that of a single run; needed is a sweep\'s, as those in'
                    ' configs/figures. For a single run: python -m bnonly_jax.main.')
  panels = {**RESULTS, **ANALYSES}
  for panel in config.panels:
    if panel not in panels:
      raise UserError(f'config.panels has {panel!r}; allowed are {", ".join(panels)}.')
  if config.seeds < 1:
    raise UserError(f'config.seeds is {config.seeds}; allowed is 1 or more. Set --config.seeds=...')
