"""What the programs of this package share: --config, mistakes in one line, the allocator."""

from collections.abc import Callable
import ctypes
import importlib.metadata
import importlib.util
import os
import sys
import threading
import traceback
from typing import Any

from absl import app
from absl import flags
from absl import logging
import ml_collections
from ml_collections import config_flags

from bnonly_jax.config import default_config
from bnonly_jax.config import explain_flags
from bnonly_jax.config import UserError

flags.disclaim_key_flags()  # --help of a program shows the flags that are defined here as its own


def define_config() -> flags.FlagHolder:
  """Defines --config and --config.FIELD."""
  return config_flags.DEFINE_config_file(
      'config', None, 'The experiment: a config file and, after a colon, its argument, as in'
      ' configs/cifar10.py:resnet14. Any field of it is set with --config.FIELD=VALUE.',
      lock_config=True)


def define_processes() -> Callable[[], None]:
  """Defines the flags of several processes; returns what joins them, to be called first of all."""
  coordinator = flags.DEFINE_string(
      'coordinator', '', 'Several processes: HOST:PORT of process 0. Not needed on TPU pods and'
      ' under Slurm, Open MPI and Kubernetes, which say so themselves.')
  distributed = flags.DEFINE_bool(
      'distributed', False, 'Several processes: let JAX find the others, where it is not seen that'
      ' there is a cluster (Cloud TPU VMs).')
  number = flags.DEFINE_integer('processes', 0, 'With --coordinator: how many processes.')
  index = flags.DEFINE_integer('process', -1, 'With --coordinator: which one this is, from 0.')
  timeout = flags.DEFINE_integer(
      'start_timeout', 300, 'Seconds to wait for the other processes at the start.')

  def join():
    from bnonly_jax.run import processes  # here, so that a mistake in the flags is told at once
    processes.initialize(os.environ, coordinator.value, number.value, index.value, timeout.value,
                         distributed.value)

  return join


def keep_freed_memory() -> None:
  """Tells glibc not to give XLA's temporary buffers back after each step, where the CPU trains.

  Taking them again costs a page fault for each 4 KiB, a quarter of a CPU step. It is to be told
  before JAX starts its backend, whose threads keep the arenas that they find. The numbers are
  M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX and M_ARENA_MAX of glibc's malloc.h.
  """
  if sys.platform == 'linux' and _only_cpu(os.environ.get('JAX_PLATFORMS', '')):
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
    for parameter, value in ((-1, 2**31 - 1), (-2, 2**28), (-4, 0), (-8, 1)) if mallopt else ():
      mallopt(parameter, value)


def _only_cpu(platforms):
  """Whether JAX will take the CPU for sure: so it is told, or nothing else is installed."""
  if platforms:
    return platforms.split(',')[0] == 'cpu'
  return not (importlib.util.find_spec('jax_plugins') or importlib.util.find_spec('libtpu')
              or importlib.metadata.entry_points(group='jax_plugins'))


def keep_compiled_programs() -> None:
  """Lets JAX keep what it compiles in a folder of the user's, unless the environment names one."""
  cache = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
  folder = os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', os.path.join(cache, 'bnonly_jax'))
  if 'jax' in sys.modules:  # it has read the environment already
    sys.modules['jax'].config.update('jax_compilation_cache_dir', folder)


def peers() -> bool:
  """Whether this process trains together with others."""
  jax = sys.modules.get('jax')
  return bool(jax) and jax.distributed.is_initialized()


def run(main: Callable[..., Any], missing: Callable[[], str], interrupted: str = 'stopped',
        topics: tuple[str, ...] = (),
        defaults: Callable[[], ml_collections.ConfigDict] = default_config) -> None:
  """Parses the command line and calls `main`; a mistake of the user's ends it with one line.

  Args:
    main: the program.
    missing: says which flags are needed and not given; '' if none is.
    interrupted: printed at Ctrl-C.
    topics: words of which one is to stand first on the command line, and is given to `main`.
    defaults: returns a config with the fields that --config has.
  """
  def parse(arguments):
    has_config = 'config' in flags.FLAGS
    try:
      rest = flags.FLAGS(arguments)
      if has_config and flags.FLAGS['config'].value is not None:
        flags.FLAGS['config'].value.lock()  # a file that could not be read shows itself here
    except Exception as error:  # a config file and ml_collections raise whatever they like
      text = str(error) if isinstance(error, flags.Error) else f'{type(error).__name__}: {error}'
      text = text.rpartition('UserError: ')[2]  # a config file's own, of whatever is around it
      explained = has_config and explain_flags(arguments, defaults())
      sys.exit(f'error: {explained or text.strip().splitlines()[-1].strip()}')
    if topics and rest[1:2] not in [[topic] for topic in topics]:
      sys.exit(f'error: the first word is to be one of: {", ".join(topics)}. Try --help.')
    if rest[1 + bool(topics):]:
      flag = '--config.FIELD' if has_config else '--FLAG'
      sys.exit(f'error: {rest[-1]!r} is no flag. Write {flag}=VALUE, with the dashes, with'
               ' the equals sign, and in quotes if there are blanks in it.')
    if missing():
      sys.exit(f'error: {missing()}')
    return rest

  def guarded(words):
    if not flags.FLAGS['verbosity'].present:
      logging.set_verbosity(logging.WARNING)
    keep_freed_memory()
    keep_compiled_programs()
    try:
      main(*words[1:])
    except UserError as error:
      if peers():  # who may not know of it, and for whom JAX's own end would wait five minutes
        timer = threading.Timer(15, os._exit, [1])
        timer.daemon = True
        timer.start()
      sys.exit(f'error: {error}')
    except KeyboardInterrupt:
      print(interrupted, file=sys.stderr)
      sys.exit(130)  # as a shell reports an interrupt
    except Exception:
      if not peers():
        raise
      # At once: JAX's own end of a process waits for the others, who may wait for this one.
      traceback.print_exc()
      print('error: this process failed, or another one died. Start all of them again: they go on'
            ' from the last checkpoint.', file=sys.stderr, flush=True)
      os._exit(1)

  app.run(guarded, flags_parser=parse)
