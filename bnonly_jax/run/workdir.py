"""The folder of one run: whose it is, and files that are either whole or not there.

A folder can lie in a bucket (gs://): all paths are those of etils.epath.
"""

from collections.abc import Iterable
import contextlib
import fcntl
import importlib.util
import json
import os
import platform
import time
from typing import Any

from etils import epath
import ml_collections

from bnonly_jax.config import default_config
from bnonly_jax.config import flat
from bnonly_jax.config import FREE
from bnonly_jax.config import UserError
from bnonly_jax.run import reading

# Besides, until a checkpoint is there: without one the run starts anew, and these are what messages
# advise to change. Until there is a line of training either, a folder is no run's, and all may.
FREE_UNTIL_SAVED = ('data.bad_images', 'data.test_split')


def path(workdir: str | os.PathLike) -> epath.Path:
  """Returns a workdir's path, absolute.

  Raises:
    UserError: it is in a bucket, and the package that reads and writes buckets is missing.
  """
  found = epath.Path(workdir).expanduser()
  if os.fspath(found).startswith('gs://') and not any(
      importlib.util.find_spec(name) for name in ('gcsfs', 'tensorflow')):  # etils takes either
    raise UserError(f'--workdir={workdir}: buckets are read and written by the package gcsfs, which'
                    ' is not installed. pip install gcsfs, or choose a folder.')
  return found if is_remote(found) else epath.Path(os.path.abspath(found))


def is_remote(workdir: epath.Path) -> bool:
  """Whether a folder lies in a bucket."""
  return '://' in os.fspath(workdir)


def check_folder(workdir: epath.Path) -> None:
  """Raises UserError if a path neither is a folder that can be written nor can become one."""
  if is_remote(workdir) and not os.fspath(workdir).startswith('gs://'):
    raise UserError(f'--workdir={workdir}: allowed are folders and gs://; Orbax writes no'
                    ' checkpoint to other buckets. Choose another --workdir, or mount the bucket.')
  try:
    exists = next(p for p in (workdir, *workdir.parents) if p.exists() or is_remote(p))
  except Exception as error:  # stores have errors of their own
    reason = ' '.join(str(error).split())[:200]
    raise UserError(f'--workdir={workdir} cannot be reached ({type(error).__name__}: {reason}).'
                    ' Check its name, the network and your credentials.') from error
  if exists.exists() and not exists.is_dir():
    raise UserError(f'--workdir={workdir}: {exists} is a file; allowed is a folder, new or of the'
                    ' same run. Choose another --workdir.')
  if not is_remote(exists) and not os.access(exists, os.W_OK | os.X_OK):
    raise UserError(f'--workdir={workdir}: {exists} cannot be written. Choose another --workdir.')


def check(workdir: epath.Path, facts: dict[str, Any]) -> dict[str, Any] | None:
  """Checks that a folder can be the run's: new, empty, or of a run with equal facts.

  Args:
    workdir: the folder.
    facts: the config's fields by dotted name, and what else the run depends on, as JSON holds it.
      The fields in FREE may differ, those in FREE_UNTIL_SAVED before the first checkpoint and
      all before the first line of training; and epochs may be more. A field that an older run
      lacks had its default.

  Returns:
    The run's result if it has finished, else None.

  Raises:
    UserError: it holds anything else, or a file there is damaged.
  """
  check_folder(workdir)
  if not workdir.exists():
    return None
  config = workdir / 'config.json'
  if not config.exists():
    foreign = sorted(p.name for p in workdir.iterdir() if not p.name.startswith('.'))
    if foreign:
      raise UserError(f'--workdir={workdir} holds {", ".join(foreign[:3])} and no config.json;'
                      ' allowed is a folder that is new, empty or of the same run. Choose another'
                      ' --workdir.')
    return None
  try:
    there = read_facts(workdir)
    names = there.keys() | facts.keys()
    differ = differences(there, facts, names)
  except (ValueError, TypeError) as error:
    raise UserError(f'--workdir={workdir}: config.json there is not that of a run ({error}). Put a'
                    ' whole copy in its place, or choose another --workdir.') from error
  result, lines = reading.result(workdir), reading.lines(workdir)
  if differ and not _saved(workdir):
    if there.keys() == facts.keys() and not any(line['step'] for line in lines):
      return None
    differ = differences(there, facts, names - set(FREE_UNTIL_SAVED))
  if differ:
    raise UserError(f'--workdir={workdir} holds another experiment: {"; ".join(differ)}.'
                    ' Choose another --workdir, or give the same config to go on with that run.'
                    f' What may differ is epochs (upwards) and {", ".join(FREE)}; before the first'
                    f' checkpoint also {", ".join(FREE_UNTIL_SAVED)}.')
  return result if result and (result['diverged'] or there['epochs'] == facts['epochs']) else None


def _saved(workdir):
  """Whether a folder holds the state or the result of training steps."""
  return any(found.name.isdigit() or found.name.startswith('result')
             for pattern in ('checkpoints/*', 'damaged/*', 'result*')
             for found in workdir.glob(pattern))


def read_config(workdir: epath.Path, given: str = ''
                ) -> tuple[ml_collections.ConfigDict, dict[str, Any]]:
  """Returns the config of the run that a folder holds, and the facts as `check` has them.

  Args:
    workdir: the folder.
    given: how the user has named it, for messages; '' is by --workdir.

  Raises:
    UserError: the folder holds no run.
  """
  given = given or f'--workdir={workdir}'
  allowed = ('allowed is the folder of a run, finished or not. Give the --workdir that'
             ' bnonly_jax.main was given.')
  if not workdir.is_dir():
    raise UserError(f'{given}: there is no such folder; {allowed}')
  if not (workdir / 'config.json').exists():
    raise UserError(f'{given}: it holds no config.json; {allowed}')
  config = default_config()
  try:
    facts = read_facts(workdir)
    if 'data.version' not in facts:
      raise ValueError('data.version is missing')
    config.update_from_flattened_dict({name: facts[name] for name in flat(config)})
  except (OSError, ValueError, TypeError) as error:
    raise UserError(f'{given}: config.json there is not that of a run ({error}); {allowed}'
                    ) from error
  return config, facts


def read_facts(workdir: epath.Path) -> dict[str, Any]:
  """Returns what config.json holds, as `current` has it.

  Raises:
    OSError, ValueError, TypeError: there is no such file, or it is not a run's.
  """
  return current(read_json(workdir / 'config.json'))


def current(facts: dict[str, Any]) -> dict[str, Any]:
  """Returns the facts of a run, perhaps of an older version, with the fields of today.

  A field that it lacks had its default. Before there was batchnorm_images, sync_batchnorm and the
  number of devices said the same.
  """
  facts = {**flat(default_config()), **facts}
  sync, devices = facts.pop('sync_batchnorm', True), facts.pop('devices', 1)
  if not sync and devices > 1:
    facts['batchnorm_images'] = facts['batch_size'] // devices
  return facts


def differences(there: dict[str, Any], facts: dict[str, Any], names: Iterable[str]) -> list[str]:
  """Says in which of the named facts a run differs from another so that it cannot go on as that.

  Args:
    there: the facts of the run that there is, with defaults for what it lacks.
    facts: those of the run that is wanted.
    names: which of them count; those in FREE do not.
  """
  differ = [f'{name} = {there.get(name)!r} there and {facts.get(name)!r} here'
            for name in sorted(names)
            if name not in (*FREE, 'epochs') and there.get(name) != facts.get(name)]
  if there['epochs'] > facts['epochs']:
    differ.append(f'epochs = {there["epochs"]} there and {facts["epochs"]} here, which may only'
                  ' grow')
  return differ


def holds(workdir: epath.Path, facts: dict[str, Any]) -> bool:
  """Whether config.json in a folder is that of the run with these facts."""
  return (workdir / 'config.json').exists() and not differences(read_facts(workdir), facts, facts)


def claim(workdir: epath.Path, lock: contextlib.ExitStack, files: dict[str, Any]) -> None:
  """Makes the folder, keeps other processes out of it, and writes JSON files there.

  The result of a shorter run becomes result_EPOCHS_epochs.json. The frozen half, the start and
  the teachers that an attempt with another config left go: they are written anew.

  Args:
    workdir: the folder.
    lock: the lock is let go when this is closed, or when the process ends in whatever way.
    files: values by name; config.json's are facts as `check` has them.

  Raises:
    UserError: the folder cannot be made or written, or another process has it, has just finished
      the run, or has begun another experiment there; the message says which.
  """
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    if not is_remote(workdir):  # a bucket knows no lock
      _lock(workdir, lock)
    if (workdir / 'config.json').exists() and 'config.json' in files:
      facts = files['config.json']
      if check(workdir, facts):  # again: now no one else can change it
        raise UserError(f'--workdir={workdir} has just been finished by another process. The same'
                        ' command shows its result.')
      if not holds(workdir, facts):
        for name in ('frozen', 'start', 'start.json', 'teachers', 'teachers.json'):
          if (workdir / name).exists():
            (workdir / name).rmtree() if (workdir / name).is_dir() else (workdir / name).unlink()
    result = reading.result(workdir)
    if result:
      (workdir / 'result.json').rename(workdir / f'result_{result["epochs"]}_epochs.json')
    for name, value in files.items():
      write_json(workdir / name, value)
  except OSError as error:
    raise UserError(f'--workdir={workdir} cannot be made or written ({error}). Choose another'
                    ' --workdir, or make room.') from error


def _lock(workdir, stack):
  file = open(workdir / '.lock', 'a+')  # noqa: SIM115
  stack.callback(file.close)
  try:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:  # `is_locked` of another process takes it for a moment
      time.sleep(0.2)
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError as error:
    file.seek(0)
    raise UserError(f'--workdir={workdir} is in use by {file.read().strip() or "another process"}.'
                    ' Wait for it or stop it, or choose another --workdir.') from error
  except OSError:  # a file system without locks
    pass
  file.truncate(0)
  file.write(f'process {os.getpid()} on {platform.node()} since {time.strftime("%F %T")}\n')
  file.flush()


def is_locked(workdir: epath.Path) -> bool:
  """Whether another process has a folder; of one in a bucket that cannot be told."""
  if is_remote(workdir) or not (workdir / '.lock').exists():
    return False
  with open(workdir / '.lock') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
      return True
    except OSError:  # a file system without locks
      return False
  return False


def move(source: epath.Path, target: epath.Path) -> None:
  """Moves a folder; in a bucket file by file, so that nothing is lost at a kill."""
  if not is_remote(source):
    source.rename(target)
    return
  _copy(source, target)
  source.rmtree()


def _copy(source, target):
  target.mkdir(parents=True, exist_ok=True)
  for path in source.iterdir():
    if path.is_dir():
      _copy(path, target / path.name)
    else:
      path.copy(target / path.name)


def read_json(file: epath.Path) -> Any:
  """Returns the value in a JSON file."""
  return json.loads(file.read_text())


def write_json(file: epath.Path, value: Any) -> None:
  """Writes JSON so that at any moment the file is either the old or the new one, whole."""
  text = json.dumps(value, indent=2) + '\n'
  write_text(file, text)


def write_text(file: epath.Path, text: str) -> None:
  """Writes text as `write_bytes` writes bytes."""
  write_bytes(file, text.encode())


def write_bytes(file: epath.Path, content: bytes) -> None:
  """Writes a file so that at any moment, a power cut too, it is the old or the new one, whole."""
  if is_remote(file):  # an object of a bucket appears whole
    file.write_bytes(content)
    return
  draft = file.parent / f'.{file.name}'
  try:
    with draft.open('wb') as out:
      out.write(content)
      out.flush()
      os.fsync(out.fileno())
    draft.replace(file)
  except OSError:
    with contextlib.suppress(OSError):  # a part of it would take the room that is lacking
      draft.unlink(missing_ok=True)
    raise
