"""How long the rest of a sweep will take."""

import math
import os

import ml_collections
import numpy as np

from bnonly_jax import data
from bnonly_jax import describe
from bnonly_jax.benchmark import common
from bnonly_jax.run import metrics
from bnonly_jax.sweep import runs as runs_lib
from bnonly_jax.sweep import status


def estimate(config: ml_collections.ConfigDict, workdir: str | os.PathLike, only: str = '',
             task: int = 0, tasks: int = 1
             ) -> list[tuple[runs_lib.Run, runs_lib.Progress, float]]:
  """Estimates the seconds of training that are left of each run.

  A step takes as long as those that the point's runs have made in the workdir, or else as those of
  the other points by FLOPs; if there are none, the step of the first run is measured now.

  Returns:
    Runs in order, with how far they are and the seconds left.

  Raises:
    UserError: as `share` and `check_workdir`.
  """
  own = runs_lib.share(config, workdir, only, task, tasks)
  runs_lib.check_workdir(workdir)
  planned = [(run, runs_lib.progress(run)) for run in own]
  flops, measured = {}, {}
  for run, so_far in planned:
    if run.point_name not in flops:
      flops[run.point_name] = describe.describe(run.config)['flops_step'] * run.config.batch_size
    if so_far.seconds:
      steps, seconds = measured.get(run.point_name, (0, 0.0))
      measured[run.point_name] = steps + so_far.steps, seconds + so_far.seconds
  if not measured:
    run = planned[0][0]
    measured[run.point_name] = 1, common.step_seconds(run.config)
  rate = np.median([flops[name] * steps / seconds for name, (steps, seconds) in measured.items()])
  left = []
  for run, so_far in planned:
    steps, seconds = measured.get(run.point_name, (1, flops[run.point_name] / rate))
    finished = so_far.state in ('done', 'diverged')
    steps_left = max(_steps(run.config) - so_far.steps, 0)
    left.append((run, so_far, 0.0 if finished else steps_left * seconds / steps))
  return left


def _steps(config):
  info, _ = data.find_or_assume(config)
  images = round(info.train_images * config.data.subsample)
  return images // config.batch_size * config.epochs


def print_estimate(planned: list[tuple[runs_lib.Run, runs_lib.Progress, float]]) -> None:
  """Prints what `estimate` returns."""
  for run, so_far, seconds in planned:
    metrics.console.print(f'{run.name}  {so_far.state}  {_duration(seconds)}')
  total = sum(seconds for _, _, seconds in planned)
  metrics.console.print(f'{len(planned)} runs; left to do: {_duration(total)} of training on this'
                        ' machine, by measured steps; compiling and evaluating come on top')
  status.print_reasons([so_far for _, so_far, _ in planned])


def _duration(seconds):
  minutes = math.ceil(seconds / 60)
  return f'{minutes // 60}:{minutes % 60:02} h'
