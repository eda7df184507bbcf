"""What the programs of this package share: --config, mistakes in one line, the allocator."""

from collections.abc import Callable
from collections.abc import Sequence
import contextlib
import ctypes
import importlib.metadata
import importlib.util
import logging as standard_logging
import os
import re
import sys
import threading
import traceback
from typing import Any

from absl import app
from absl import flags
from absl import logging
import ml_collections
from ml_collections import config_flags

from bnonly_jax import mistakes
from bnonly_jax.config import default_config
from bnonly_jax.config import UserError

flags.disclaim_key_flags()  # --help of a program shows the flags that are defined here as its own


def define_config() -> flags.FlagHolder:
  """Defines --config and --config.FIELD."""
  return config_flags.DEFINE_config_file(
      'config', None, 'The experiment: a config file and, after a colon, its argument, as in'
      ' configs/cifar10.py:resnet14. Any field of it is set with --config.FIELD=VALUE.',
      lock_config=True)


def define_processes() -> Callable[[], dict[str, Any]]:
  """Defines the flags of several processes; returns what gives `processes.initialize` their values.

  That is to be called before anything else of JAX.
  """
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

  return lambda: {'coordinator': coordinator.value, 'number': number.value, 'index': index.value,
                  'timeout': timeout.value, 'force': distributed.value}


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


def parse(arguments: Sequence[str], flag_values: flags.FlagValues,
          defaults: Callable[[], ml_collections.ConfigDict]) -> tuple[list[str], str]:
  """Parses a command line.

  Args:
    arguments: the command line, the program's name first.
    flag_values: the flags that are defined.
    defaults: returns a config with the fields that --config has.

  Returns:
    What is left without the flags, the program's name first, and what is wrong, in one line, or ''.
  """
  has_config, rest, failed = 'config' in flag_values, [], None
  standard_logging.disable()  # ml_collections warns of what is told below
  try:
    rest = flag_values(arguments)
    if has_config and flag_values['config'].present:
      flag_values['config'].value.lock()  # a file that could not be read shows itself here
  except Exception as error:  # a config file and ml_collections raise whatever they like
    failed = error
  standard_logging.disable(standard_logging.NOTSET)
  wrong = mistakes.explain_flags(arguments, defaults()) if failed and has_config else ''
  wrong = wrong or mistakes.explain_values(arguments, flag_values)
  if failed and not wrong:
    text = str(failed) if isinstance(failed, flags.Error) else f'{type(failed).__name__}: {failed}'
    if isinstance(failed, flags.UnrecognizedFlagError) and 'Did you mean' not in text:
      text += '. --help lists those that there are.'
    elif text.startswith('Missing value for flag'):
      text += f'. Write {text.rpartition(" ")[2]}=VALUE.'
    wrong = (has_config and mistakes.explain_file(arguments, defaults())
             or text.strip().splitlines()[-1].strip())
  return rest, wrong


def run(main: Callable[..., Any], missing: Callable[[], str], interrupted: str = 'stopped',
        topics: tuple[str, ...] = (),
        defaults: Callable[[], ml_collections.ConfigDict] = default_config,
        more_words: Callable[[], bool] = lambda: False) -> None:
  """Parses the command line and calls `main`; a mistake of the user's ends it with one line.

  Args:
    main: the program.
    missing: says which flags are needed and not given; '' if none is.
    interrupted: printed at Ctrl-C.
    topics: words of which one is to stand first on the command line, and is given to `main`.
    defaults: returns a config with the fields that --config has.
    more_words: whether any number of words may stand on the command line, once its flags are read;
      they are given to `main`.
  """
  def parse_or_exit(arguments):
    rest, wrong = parse(arguments, flags.FLAGS, defaults)
    if not wrong and topics and rest[1:2] not in [[topic] for topic in topics]:
      wrong = f'the first word is to be one of: {", ".join(topics)}. Try --help.'
    if not wrong and rest[1 + bool(topics):] and not more_words():
      forms = ('--config=FILE.py[:ARGUMENT] and --config.FIELD=VALUE' if 'config' in flags.FLAGS
               else '--FLAG=VALUE')
      wrong = (f'{" ".join(rest[1 + bool(topics):])!r} is no flag. Write {forms}, with two plain'
               ' dashes, with the equals sign, and in quotes if there are blanks in it.')
    wrong = wrong or missing()
    if wrong:
      sys.exit(f'error: {wrong}')
    return rest

  def guarded(words):
    if not flags.FLAGS['verbosity'].present:
      logging.set_verbosity(logging.WARNING)
    keep_freed_memory()
    keep_compiled_programs()
    try:
      main(*words[1:])
    except KeyboardInterrupt:
      print(interrupted, file=sys.stderr)
      sys.exit(130)  # as a shell reports an interrupt
    except Exception as error:
      told = str(error) if isinstance(error, UserError) else explain_platform(error)
      if told:
        if peers():  # who may not know of it, and for whom JAX's own end would wait five minutes
          timer = threading.Timer(15, os._exit, [1])
          timer.daemon = True
          timer.start()
        sys.exit(f'error: {told}')
      if not peers():
        raise
      # At once: JAX's own end of a process waits for the others, who may wait for this one.
      traceback.print_exc()
      print('error: this process failed, or another one died. Start all of them again: they go on'
            ' from the last checkpoint.', file=sys.stderr, flush=True)
      os._exit(1)

  app.run(guarded, flags_parser=parse_or_exit)


def explain_platform(error: Exception) -> str:
  """Returns what is wrong with JAX_PLATFORMS if that is why a program failed, else ''."""
  wanted = os.environ.get('JAX_PLATFORMS')
  text = ''.join(traceback.format_exception(error))  # of a process of a benchmark's too
  told = re.search(r"Unable to initialize backend '\w+': (.*?)(?: \(set JAX_|\n|$)", text)
  # Of a GPU that is not there JAX says no more than that an assertion of its own does not hold.
  if not wanted or not (told or 'assert _default_backend is not None' in text):
    return ''
  there = 'perhaps another'
  if not peers():
    import jax.extend.backend
    with contextlib.suppress(Exception):
      jax.extend.backend.clear_backends()
      jax.config.update('jax_platforms', '')
      there = jax.default_backend()
  reason = f' ({told[1].rstrip(".")})' if told else ''
  return (f'JAX_PLATFORMS={wanted}: JAX finds no such device here{reason}; there is {there}. Unset'
          ' JAX_PLATFORMS to train on what there is, or install JAX for the device: pip install -e'
          " '.[cuda13]' or '.[tpu]'.")
