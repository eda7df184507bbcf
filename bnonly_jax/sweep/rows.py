"""The numbers that a panel shows: what the runs that are there have measured, point by point."""

from collections.abc import Iterator
import os
import re
from typing import Any
from typing import NamedTuple

import ml_collections
import numpy as np

from bnonly_jax.config import flat
from bnonly_jax.config import FREE
from bnonly_jax.config import UserError
from bnonly_jax.run import reading
from bnonly_jax.sweep import config as sweep_config
from bnonly_jax.sweep import paper
from bnonly_jax.sweep import runs as runs_lib


class Row(NamedTuple):
  """A line of a figure's table: one point, at one threshold or quantile if the panel has them."""
  line: str
  x: float | str | None
  at: float | None  # the threshold of small_gammas and zeroed, the quantile of gamma and beta
  runs: int  # that count
  missing: int
  mean: float | None  # over runs; in percent, but gamma and beta as they are
  sd: float | None  # the sample's standard deviation over runs; None of fewer than two
  paper: float | None

  @property
  def difference(self) -> float | None:
    """Ours minus the paper's."""
    return None if self.mean is None or self.paper is None else self.mean - self.paper


def rows(config: ml_collections.ConfigDict, workdir: str | os.PathLike, panel: str) -> list[Row]:
  """Gathers what a panel shows.

  Args:
    config: the sweep's, of `sweep.config.sweep`.
    workdir: the folder of all runs.
    panel: one of config.panels.

  Returns:
    A row for each point and threshold or quantile, in the config's order. Runs that are missing,
    of another experiment, diverged or not analysed count as missing.

  Raises:
    UserError: a run's config is none, a file of a run is damaged, or the runs of a point are
      trained on several versions of its data set.

  Example:
    >>> [(row.line, row.x, row.mean) for row in rows(config, 'runs/depth', 'test_accuracy')]
    [('BatchNorm', 14, 47.1), ...]
  """
  table, comparable = [], _as_the_paper(config)
  for point, runs in by_point(config, workdir):
    measured = _measured(runs, panel)
    found = [values for of_run in measured for values in of_run]
    missing = config.base.replicates * sum(not of_run for of_run in measured)
    published = paper.value(panel, point.changes) if comparable else None
    for at in list(dict.fromkeys(at for values in found for at in values)) or [None]:
      numbers = [values[at] for values in found if at in values]
      table.append(Row(point.line, point.x, at, len(numbers), missing,
                       float(np.mean(numbers)) if numbers else None,
                       float(np.std(numbers, ddof=1)) if len(numbers) > 1 else None, published))
  return table


def _as_the_paper(config):
  """Whether the runs differ from the paper's in no more than the scale says, or in JPEG files."""
  recipe = 'imagenet' if config.base.network.startswith('imagenet') else 'cifar10'
  ours, papers = flat(config.base), flat(sweep_config.base(config.scale, recipe))
  free = (*FREE, 'seed', 'replicates')
  if ours['data.name'] == 'cifar10_jpeg':
    papers['data.name'] = 'cifar10_jpeg'  # CIFAR-10's images, which captions and docs say
  return config.scale != 'smoke' and all(
      ours[name] == value for name, value in papers.items() if name not in free)


def by_point(config: ml_collections.ConfigDict, workdir: str | os.PathLike
             ) -> Iterator[tuple[sweep_config.Point, list[runs_lib.Run]]]:
  """Yields points with the runs of all seeds, whichever point the sweep lists a run under."""
  runs = runs_lib.runs(config, workdir)
  for point in config.points:
    name = runs_lib.point_name(config, point)
    yield point, [run for run in runs if run.point_name == name]


def histograms(runs: list[runs_lib.Run], panel: str) -> list[dict[str, Any]]:
  """Returns what the analyses of runs hold of gamma or beta; without norms there is none."""
  return [analysis[panel] for run in runs for analysis in runs_lib.analyses(run) if analysis[panel]]


def _measured(runs, panel):
  """What each run of a point has for a panel; nothing, if it is not done."""
  found = [runs_lib.progress(run) for run in runs]
  for one in found:
    if one.damage:
      raise UserError(one.damage)
  versions = {one.data_version: run.name for run, one in zip(runs, found, strict=True)
              if one.state == 'done'}
  if len(versions) > 1:
    which = ', '.join(f'{version} ({name})' for version, name in versions.items())
    raise UserError(f'runs of one point are trained on several versions of'
                    f' {runs[0].config.data.name}: {which}. They are not averaged: move those of'
                    ' one version away.')
  return [_of_run(run, one, panel) if one.state == 'done' else []
          for run, one in zip(runs, found, strict=True)]


def _of_run(run, progress, panel):
  """For each of a run's seeds a number by threshold, quantile or None."""
  result = progress.result
  if panel == 'train_accuracy':
    if run.config.replicates > 1:
      return []  # the lines have the mean over them
    lines = [line for line in reading.lines(run.workdir) if 'train_accuracy' in line]
    steps = np.diff([0, *(line['step'] for line in lines)])  # that each line is the mean of
    weights = steps * [line['epoch'] > result['epochs'] - 1 for line in lines]
    return [{None: 100 * float(np.average([line['train_accuracy'] for line in lines],
                                          weights=weights))}] if any(weights) else []
  if panel in sweep_config.RESULTS:
    return [{None: 100 * seed[panel]} for seed in result.get('replicates', [result])
            if seed.get(panel) is not None]
  return [_of_analysis(analysis, panel) for analysis in runs_lib.analyses(run)
          # Without norms there is no gamma, and ReLUs without ours after them do not tell.
          if analysis['relus' if panel == 'silent_relus' else 'gamma']]


def _of_analysis(analysis, panel):
  if panel == 'silent_relus':
    return {None: 100 * analysis['relus']['all']['silent_share']}
  if panel == 'zeroed':
    return {row['threshold']: 100 * row['test_accuracy'] for row in analysis['thresholds']}
  if panel == 'small_gammas':
    return {float(name.removeprefix('below_')): 100 * share
            for name, share in analysis['gamma']['all'].items() if name.startswith('below_')}
  return {int(name[1:]): value for name, value in analysis[panel]['all'].items()
          if re.fullmatch(r'q\d+', name)}
