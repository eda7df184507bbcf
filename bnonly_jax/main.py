r"""Runs one experiment, or goes on with it:

  python -m bnonly_jax.main --config=configs/cifar10.py:resnet14 --workdir=DIR \
      [--config.FIELD=VALUE ...]

The same command again goes on after a kill, and shows the result of a finished run.
"""

import ctypes
import sys

from absl import app
from absl import flags
from absl import logging
from ml_collections import config_flags

from bnonly_jax.config import describe
from bnonly_jax.config import explain_flags
from bnonly_jax.config import UserError

_CONFIG = config_flags.DEFINE_config_file(
    'config', None, 'The experiment: a config file and, after a colon, its argument, as in'
    ' configs/cifar10.py:resnet14. Any field of it is set with --config.FIELD=VALUE.',
    lock_config=True)
_WORKDIR = flags.DEFINE_string(
    'workdir', None, 'Folder for all that the run writes: new, empty, or of this very run.')
_DESCRIBE = flags.DEFINE_bool(
    'describe', False, 'Print parameters, FLOPs and bytes of the config, and train nothing.')


def keep_freed_memory() -> None:
  """Tells glibc not to give XLA's temporary buffers back after each step.

  Taking them again costs a page fault for each 4 KiB, a quarter of a CPU step. The numbers are
  M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX and M_ARENA_MAX of glibc's malloc.h.
  """
  if sys.platform == 'linux':
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
    for parameter, value in ((-1, 2**31 - 1), (-2, 2**28), (-4, 0), (-8, 1)) if mallopt else ():
      mallopt(parameter, value)


def parse_flags(arguments: list[str]) -> list[str]:
  """Parses the command line; a mistake in it ends the process with one line."""
  try:
    rest = flags.FLAGS(arguments)
    if _CONFIG.value is not None:
      _CONFIG.value.lock()  # a file that could not be read shows itself here
  except Exception as error:  # a config file and ml_collections raise whatever they like
    text = f'{"" if isinstance(error, flags.Error) else type(error).__name__ + ": "}{error}'
    sys.exit(f'error: {explain_flags(arguments) or text.strip().splitlines()[-1].strip()}')
  if rest[1:]:
    sys.exit(f'error: {rest[1]!r} is no flag. Write --config.FIELD=VALUE, with the dashes, with the'
             ' equals sign, and in quotes if there are blanks in it.')
  if _CONFIG.value is None or not (_WORKDIR.value or _DESCRIBE.value):
    sys.exit('error: --config=FILE.py[:ARGUMENT] and --workdir=DIR are both needed.'
             ' Try --config=configs/digits.py --workdir=runs/digits, or --help.')
  return rest


def main(_) -> None:
  if not flags.FLAGS['verbosity'].present:
    logging.set_verbosity(logging.WARNING)
  keep_freed_memory()
  # Here, so that a mistake in the flags is told at once.
  from bnonly_jax.describe import print_description
  from bnonly_jax.train import train_and_evaluate
  try:
    if _DESCRIBE.value:
      print_description(_CONFIG.value)
    else:
      train_and_evaluate(_CONFIG.value, _WORKDIR.value)
  except UserError as error:
    sys.exit(f'error: {error}')
  except KeyboardInterrupt:
    print('stopped; the same command goes on from the last checkpoint', file=sys.stderr)
    sys.exit(130)  # as a shell reports an interrupt


if __name__ == '__main__':
  __doc__ += f'\nThe fields, their defaults and what they mean:\n\n{describe()}\n'
  app.run(main, flags_parser=parse_flags)
