"""Runs one experiment, or goes on with it:

  python -m bnonly_jax.main --config=configs/cifar10.py:resnet14 --workdir=DIR [--config.FIELD=VALUE ...]

Every field of the config can be set on the command line; bnonly_jax/config.py explains each.
The same command again goes on after a kill, and shows the result of a finished run.
"""

import ctypes
import sys

from absl import app
from absl import flags
from absl import logging
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'The experiment: a config file and, after a colon, its argument, as in'
    ' configs/cifar10.py:resnet14. Any field of it is set with --config.FIELD=VALUE.', lock_config=True)
_WORKDIR = flags.DEFINE_string(
    'workdir', None, 'Folder for all that the run writes: new, empty, or of this very run.')


def keep_freed_memory() -> None:
  """Tells glibc not to give XLA's temporary buffers back after each step.

  Taking them again costs a page fault for each 4 KiB, a quarter of a CPU step. The numbers are
  M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX and M_ARENA_MAX of glibc's malloc.h.
  """
  if sys.platform == 'linux':
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
    for parameter, value in ((-1, 2**31 - 1), (-2, 2**28), (-4, 0), (-8, 1)) if mallopt else ():
      mallopt(parameter, value)


def main(_) -> None:
  logging.set_verbosity(logging.WARNING)
  keep_freed_memory()
  from bnonly_jax.config import UserError
  from bnonly_jax.train import train_and_evaluate
  try:
    train_and_evaluate(_CONFIG.value, _WORKDIR.value)
  except UserError as error:
    sys.exit(f'error: {error}')


if __name__ == '__main__':
  app.run(main)
