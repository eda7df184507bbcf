r"""Runs what is missing of a sweep: all the runs of a figure, one folder each.

  python -m bnonly_jax.sweep --config=configs/figures/main_depth.py:short --workdir=DIR \
      [--status | --list | --dry_run] [--only=EXPRESSION] [--task=I --tasks=N] \
      [--config.base.FIELD=VALUE ...]

A run lies in DIR/NETWORK-SELECTION.../seedS, and figures that need the same run share it. The same
command again goes on after a kill. A run that fails is left behind, told at the end, and tried
again by the next command. The figures: python -m bnonly_jax.figures.
"""

import os

from absl import flags

from bnonly_jax import command_line
from bnonly_jax.config import UserError
from bnonly_jax.sweep import config as sweep_config
from bnonly_jax.sweep import flags as sweep_flags

_CONFIG, _WORKDIR, wrong = sweep_flags.define()
_STATUS = flags.DEFINE_bool(
    'status', False, 'Show how many runs are done, running, failed, missing.')
_LIST = flags.DEFINE_bool('list', False, 'Show the runs and their states.')
_DRY_RUN = flags.DEFINE_bool('dry_run', False, 'Show the runs and the time that they will take.')
_ONLY = flags.DEFINE_string(
    'only', '', 'A regular expression: only the runs in whose name it is found.')
_TASK = flags.DEFINE_integer('task', 0, 'Which share of the runs is to be done, from 0.')
_TASKS = flags.DEFINE_integer('tasks', 1, 'How many shares there are.')
_PROCESSES = command_line.define_processes()


def main() -> None:
  # Here, so that a mistake in the flags is told at once.
  from bnonly_jax.run import processes
  from bnonly_jax.sweep import estimate
  from bnonly_jax.sweep import status
  from bnonly_jax.sweep import training
  where = _CONFIG.value, _WORKDIR.value, _ONLY.value
  if _STATUS.value:
    status.print_status(*where)
  elif _LIST.value:
    status.print_list(*where, _TASK.value, _TASKS.value)
  elif _DRY_RUN.value:
    estimate.print_estimate(estimate.estimate(*where, _TASK.value, _TASKS.value))
  else:
    processes.initialize(os.environ, **_PROCESSES())
    failed = training.run_missing(*where, _TASK.value, _TASKS.value)
    status.print_status(*where)
    if failed:
      raise UserError(f'{len(failed)} run(s) failed: {", ".join(run.name for run in failed)}.'
                      f' Reasons are in {failed[0].failure} and its like; the same command tries'
                      ' them again.')


if __name__ == '__main__':
  command_line.run(main, wrong, interrupted='stopped; the same command goes on',
                   defaults=sweep_config.skeleton)
