"""What is wrong with a command line or with the config file that it names, in one line."""

from collections.abc import Iterator
from collections.abc import Sequence
import difflib
import importlib.machinery
import importlib.util
import inspect
import os
import pathlib
import re
import sys
import traceback

from absl import flags
import ml_collections

from bnonly_jax.config import flat
from bnonly_jax.config import UserError


def _given(arguments: Sequence[str]) -> Iterator[tuple[str, str | None]]:
  """Yields the flags of a command line with their values; None: without one."""
  for argument, following in zip(arguments, [*arguments[1:], '-'], strict=True):
    if argument.startswith('-'):
      flag, equals, value = argument.lstrip('-').partition('=')
      yield flag, value if equals else None if following.startswith('-') else following


def explain_flags(arguments: Sequence[str], defaults: ml_collections.ConfigDict) -> str:
  """Returns which --config flag names no file or no field, or stands too early; or ''.

  Args:
    arguments: the command line.
    defaults: a config with the fields that there are.
  """
  fields = list(flat(defaults))
  names = [flag for flag, _ in _given(arguments)]
  early = [name for name in names[:names.index('config') if 'config' in names else None]
           if name.startswith('config.')]
  if early:
    return (f'--{early[0]} sets a field of a config, and no --config stands before it. Write'
            f' --config=FILE.py[:ARGUMENT] first, then --{early[0]}=...')
  for flag, value in _given(arguments):
    name, setting = flag.removeprefix('config.'), '...' if value is None else value
    file = (value or '').split(':')[0]
    if flag == 'config' and value is not None and not (
        file.endswith('.py') and os.path.isfile(file)):
      return _no_file(value, 'configs/figures' if 'base' in defaults else 'configs')
    if f'base.{name}' in fields and name not in fields:
      return f'--{flag}: a field of every run of a sweep is set with --config.base.{name}={setting}'
    if flag in fields:
      return f'--{flag}: a field of the config is set with --config.{flag}={setting}'
    if flag.startswith('config.') and name not in fields:
      section = name if any(f.startswith(f'{name}.') for f in fields) else name.rpartition('.')[0]
      there = [f for f in fields if f.rpartition('.')[0] == section] or fields
      close = '' if section == name else _closest(name, there) or _closest(name, fields)
      return (f'--{flag}: '
              + ('each field of it has a flag of its own.' if section == name else
                 'there is no such field.')
              + (f' Did you mean --config.{close}?' if close else '')
              + f' Allowed are {", ".join(f"--config.{f}" for f in there)}.')
  return ''


def _no_file(value, folder):
  file = value.split(':')[0]
  there = {path.stem: str(path) for path in sorted(pathlib.Path(folder).glob('*.py'))}
  close = difflib.get_close_matches(pathlib.Path(file).stem, there, 1)
  kind = 'no Python file' if os.path.isfile(file) else 'a folder' if os.path.isdir(file) else (
      'no file')
  found = ', '.join(there.values()) or f'none in {pathlib.Path(folder).absolute()}'
  return (f'--config={value}: {file or "that"} is {kind}.'
          + (f' Did you mean {there[close[0]]}?' if close else '')
          + f' Allowed is the path of a config file (here: {found}),'
          ' and after it a colon and its argument.')


def _closest(name, fields):
  """The field that is most like a name in its last part, or abbreviated by it; or ''."""
  name, last = name.rpartition('.')[2], {field.rpartition('.')[2]: field for field in fields}
  short = {''.join(word[0] for word in part.split('_')): part for part in last if '_' in part}
  close = difflib.get_close_matches(name, last, 1)
  return last[close[0]] if close else last.get(short.get(name), '')


def explain_values(arguments: Sequence[str], flag_values: flags.FlagValues) -> str:
  """Returns which flag has a value of another type than its own, and which that is; or ''.

  Args:
    arguments: the command line.
    flag_values: the flags that are defined; those of the config's fields are, once it is loaded.
  """
  for name, value in _given(arguments):
    if name == 'config' or value is None or name not in flag_values:
      continue
    flag = flag_values[name]
    default = list(flag.default) if isinstance(flag.default, list | tuple) else None
    numbers = bool(default) and _are_numbers(default)
    try:
      parsed = flag.parser.parse(value)
    except (ValueError, TypeError, SyntaxError):
      parsed = None
    if parsed is None or (numbers and not _are_numbers(parsed)):
      allowed = {'bool': 'true or false', 'tuple': 'numbers with commas between, or () for none'
                 }.get(flag.parser.flag_type()) or flag.parser.syntactic_help
      example = str(flag.default).lower() if flag.parser.flag_type() == 'bool' else flag.default
      if default is not None:
        example = ','.join(map(str, default))
      return f'--{name}={value}: allowed is {allowed}' + (
          f'. {flag.help}' if flag.default is None else f', as in --{name}={example}')
  return ''


def _are_numbers(values):
  return all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)


def explain_file(arguments: Sequence[str], defaults: ml_collections.ConfigDict) -> str:
  """Loads the config file of a command line once more, and returns where and why it fails, or ''.

  Args:
    arguments: the command line.
    defaults: a config with the fields that there are.
  """
  given = [value for flag, value in _given(arguments) if flag == 'config' and value]
  if not given:
    return ''
  file, colon, argument = given[-1].partition(':')
  try:
    get_config = getattr(_load(file), 'get_config', None)
    if not callable(get_config):
      return (f'{file} has no function get_config. Write def get_config(), which returns a config:'
              ' default_config() with fields changed.')
    code = getattr(inspect.unwrap(get_config), '__code__', None)
    line = f'{file}:{code.co_firstlineno}' if code else file
    try:
      inspect.signature(get_config).bind(*[argument] if colon else [])
    except TypeError as error:
      return f'{line}: get_config{inspect.signature(get_config)} with ' + (
          f'{argument!r} given after the colon: {error}. Leave :{argument} out of --config, or give'
          ' get_config a parameter for it.' if colon else
          f'nothing given: {error}. Write its argument after a colon: --config={file}:ARGUMENT')
    config = get_config(*[argument] if colon else [])
    if not isinstance(config, ml_collections.ConfigDict):
      return (f'{line}: get_config returns {_kind(config)}; allowed is a ConfigDict. Start from'
              ' default_config(), change its fields and return it.')
  except Exception as error:  # whatever a user's file raises
    return _explain_error(file, error, defaults)
  return ''


def _kind(value):
  return 'nothing' if value is None else f'a {type(value).__name__}'


def _load(file):
  loader = importlib.machinery.SourceFileLoader('config_config', file)
  module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
  sys.modules[loader.name] = module  # where dataclasses look for it
  loader.exec_module(module)
  return module


def _explain_error(file, error, defaults):
  text = ' '.join(str(error).split())
  lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__)
           if frame.filename == file]
  where = f'{file}:{lines[-1]}' if lines else file
  unknown = re.search(r'Key "(\w+)" does not exist', text)
  if isinstance(error, SyntaxError):
    where = f'{error.filename or file}:{error.lineno}' if error.lineno else file
    return f'{where}: {error.msg}: {(error.text or "").strip()!r}. Correct that line.'
  if isinstance(error, UserError):
    return f'{where}: {text}'
  if unknown:
    close = _closest(unknown[1], list(flat(defaults)))
    return (f'{where}: the config has no field {unknown[1]!r}.'
            + (f' Did you mean {close!r}?' if close else '')
            + ' Allowed are the fields that python -m bnonly_jax.main --help lists.')
  if isinstance(error, ImportError):
    return f'{where}: {text}. Install it, or correct that line.'
  return f'{where}: {type(error).__name__}: {text[:300]}. Correct that line.'
