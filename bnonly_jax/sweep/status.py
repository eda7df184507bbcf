"""What is printed of the runs of a sweep: how many are how far, and which they are."""

from collections.abc import Sequence
import os

import ml_collections
import numpy as np

from bnonly_jax.run import metrics
from bnonly_jax.sweep import runs as runs_lib


def print_status(config: ml_collections.ConfigDict, workdir: str | os.PathLike,
                 only: str = '') -> None:
  """Prints, point by point, how many runs are in which state, their accuracy and their time.

  Raises:
    UserError: as `runs` and `check_workdir`.
  """
  points, lines = {}, []
  own = runs_lib.runs(config, workdir, only)
  runs_lib.check_workdir(workdir)
  for run in own:
    points.setdefault(run.point_name, []).append(runs_lib.progress(run))
  everything = sum(points.values(), [])
  for name, found in [*points.items(), ('all', everything)]:
    states = [one.state for one in found]
    accuracies = [100 * seed['test_accuracy'] for one in found if one.state == 'done'
                  for seed in one.result.get('replicates', [one.result])]
    shown = f'{np.mean(accuracies):.2f}' if accuracies and name != 'all' else ''
    if shown and len(accuracies) > 1:
      shown += f' +- {np.std(accuracies, ddof=1):.2f}'
    lines.append([name, *(str(states.count(state) or '') for state in runs_lib.STATES), shown,
                  f'{sum(one.seconds for one in found) / 3600:.2f}'])
  metrics.print_columns(['runs', *runs_lib.STATES, 'test accuracy, %', 'hours'], lines)
  print_reasons(everything)


def print_list(config: ml_collections.ConfigDict, workdir: str | os.PathLike, only: str = '',
               task: int = 0, tasks: int = 1) -> None:
  """Prints every run, its state, and what it changes in the base config.

  Raises:
    UserError: as `share` and `check_workdir`.
  """
  own, found = runs_lib.share(config, workdir, only, task, tasks), []
  runs_lib.check_workdir(workdir)
  for run in own:
    found.append(runs_lib.progress(run))
    changes = '  '.join(f'{field}={value}' for field, value in run.point.changes.items())
    metrics.console.print(f'{run.name}  {found[-1].state}  {changes}')
  print_reasons(found)


def print_reasons(found: Sequence[runs_lib.Progress]) -> None:
  """Prints what the states alone do not tell: fields that differ, damaged files."""
  for text in (runs_lib.unfit(found), *(one.damage for one in found)):
    if text:
      metrics.console.print(text)
