"""Trains what is missing of a sweep, one run after the other; a run that fails is left behind."""

import os
import time
import traceback

import jax
import ml_collections

from bnonly_jax import analysis
from bnonly_jax import experiment
from bnonly_jax import train
from bnonly_jax.config import UserError
from bnonly_jax.run import metrics
from bnonly_jax.run import processes
from bnonly_jax.sweep import config as sweep_config
from bnonly_jax.sweep import runs as runs_lib


def run_missing(config: ml_collections.ConfigDict, workdir: str | os.PathLike, only: str = '',
                task: int = 0, tasks: int = 1) -> list[runs_lib.Run]:
  """Trains what is not done of a sweep's runs, and analyses it where a panel asks for that.

  Args:
    config: the sweep's, of `sweep.config.sweep`.
    workdir: the folder of all runs.
    only: as for `runs`.
    task: as for `share`.
    tasks: how many share the sweep; they need not know of each other.

  Returns:
    The runs that failed.

  Raises:
    UserError: before any run: a config cannot be run here, the folder cannot be.
      With several processes also the first run that fails.
    SystemExit, KeyboardInterrupt: as for `train_and_evaluate`; the same call goes on.
  """
  metrics.console.quiet = not processes.is_main()
  own = runs_lib.share(config, workdir, only, task, tasks)
  runs_lib.check_workdir(workdir, may_be_new=True)
  for run in {run.point_name: run for run in own}.values():
    experiment.build(run.config)
  analysed = bool(set(config.panels) & set(sweep_config.ANALYSES))
  return [run for number, run in enumerate(own)
          if not _finish(run, f'[{number + 1}/{len(own)}] {run.name}: ', analysed)]


def _finish(run, say, analysed):
  """Does what is left of a run, and returns whether that went well."""
  def look():
    there = runs_lib.progress(run)
    return there.state, there.damage

  state, damage = processes.on_main(look)
  if state == 'running':
    metrics.console.print(f'{say}running elsewhere')
    return True
  try:
    if damage:
      raise UserError(damage)
    if state not in ('done', 'diverged'):
      metrics.console.print(f'{say}{state}, starts at {time.strftime("%H:%M:%S")}')
      result = train.train_and_evaluate(run.config, run.workdir)
      state = 'diverged' if result['diverged'] else 'done'
    if state == 'done' and analysed:
      _analyse(run)
    processes.on_main(lambda: run.failure.unlink(missing_ok=True))
  except Exception as error:
    if jax.process_count() > 1:
      raise  # the others may be inside the run, waiting for this process
    trained = state in ('done', 'diverged')  # then it is the analysis that failed
    if not trained and runs_lib.progress(run).state in ('running', 'done', 'diverged'):
      metrics.console.print(f'{say}running elsewhere')  # since a moment ago
      return True
    text = str(error) if isinstance(error, UserError) else traceback.format_exc()
    metrics.console.print(f'{say}failed: {text.strip().splitlines()[-1]}')
    _keep_reason(run, text)
    return False
  return True


def _keep_reason(run, text):
  try:
    run.failure.parent.mkdir(parents=True, exist_ok=True)
    run.failure.write_text(text + '\n')
  except OSError as full:
    raise UserError(f'{run.failure} cannot be written ({full.strerror or full}), and {run.name}'
                    f' failed: {text.strip().splitlines()[-1]} Make room, and the same command goes'
                    ' on.') from full


def _analyse(run):
  there = processes.on_main(lambda: [found['seed'] for found in runs_lib.analyses(run)])
  for replicate in range(run.config.replicates):
    if run.config.seed + replicate not in there:
      analysis.analyse(run.workdir, replicate=replicate, data_dir=run.config.data.dir)
