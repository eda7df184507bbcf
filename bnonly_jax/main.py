r"""Runs one experiment, or goes on with it:

  python -m bnonly_jax.main --config=configs/cifar10.py:resnet14 --workdir=DIR \
      [--config.FIELD=VALUE ...]

The same command again goes on after a kill, and shows the result of a finished run.

Exit codes: 0 finished, 1 an error, 3 the run diverged, 130 Ctrl-C, 143 SIGTERM or a preemption.
"""

import os
import sys

from absl import flags

from bnonly_jax import command_line
from bnonly_jax.config import describe

_CONFIG = command_line.define_config()
_WORKDIR = flags.DEFINE_string(
    'workdir', None, 'Folder for all that the run writes: new, empty, or of this very run.')
_PROFILE = flags.DEFINE_bool(
    'profile', False, 'Write a trace of 50 steps into WORKDIR/profile, for Perfetto or XProf.')
_PROCESSES = command_line.define_processes()
_DESCRIBE = flags.DEFINE_bool(
    'describe', False, 'Print parameters, FLOPs and bytes of the config, and train nothing.')
_NAMES = flags.DEFINE_bool(
    'names', False, 'With --describe: print every parameter with its shape, its group and whether'
    ' it trains, by the name that config.train may use.')
_ON = flags.DEFINE_string(
    'on', '', 'With --describe: devices that are not there, h100 or a TPU slice such as v5e:4x4.'
    ' Compiles the steps for them, and says whether they fit into the memory.')


def missing() -> str:
  """Says which flags are needed and not given."""
  if _CONFIG.value is None or not (_WORKDIR.value or _DESCRIBE.value):
    return ('--config=FILE.py[:ARGUMENT] and --workdir=DIR are both needed.'
            ' Try --config=configs/digits.py --workdir=runs/digits, or --help.')
  for flag in (_ON, _NAMES):
    if flag.value and not _DESCRIBE.value:
      return f'--{flag.name}={flag.value} trains nothing: add --describe, or leave it out.'
  if _ON.value and _NAMES.value:
    return f'--names with --on={_ON.value}: names are the same everywhere. Leave one of them out.'
  return ''


def main() -> None:
  if _ON.value:
    os.environ.setdefault('JAX_PLATFORMS', 'cpu')  # nothing runs
  # Here, so that a mistake in the flags is told at once.
  from bnonly_jax import describe as description
  from bnonly_jax.benchmark import elsewhere
  from bnonly_jax.run import processes
  from bnonly_jax.train import train_and_evaluate
  processes.initialize(os.environ, **_PROCESSES())
  if _ON.value:
    elsewhere.print_fit(_CONFIG.value, _ON.value)
  elif _NAMES.value:
    description.print_names(_CONFIG.value)
  elif _DESCRIBE.value:
    description.print_description(_CONFIG.value)
  else:
    result = train_and_evaluate(_CONFIG.value, _WORKDIR.value, _PROFILE.value)
    sys.exit(3 if result['diverged'] else 0)


if __name__ == '__main__':
  __doc__ += f'\nThe fields, their defaults and what they mean:\n\n{describe()}\n'
  command_line.run(main, missing,
                   interrupted='stopped; the same command goes on from the last checkpoint')
