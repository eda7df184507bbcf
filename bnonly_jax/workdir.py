"""The folder of one run: whose it is, and files that are either whole or not there."""

import fcntl
import json
import os
import pathlib
import platform
import time
from typing import Any
from typing import TextIO

from bnonly_jax.config import default_config
from bnonly_jax.config import flat
from bnonly_jax.config import UserError

# Fields without influence on a run's state: where data lies, and what is kept of the run.
FREE = ('data.dir', 'data.workers', 'data.worker_kind', 'eval_batch_size',
        'checkpoint_every', 'checkpoint_keep')


def check(workdir: pathlib.Path, facts: dict[str, Any]) -> None:
  """Checks that a folder can be the run's: new, empty, or of a run with equal facts.

  Args:
    workdir: the folder.
    facts: the config's fields by dotted name, and what else the run depends on, as JSON holds it.
      The fields in FREE may differ; one that an older run lacks had its default.

  Raises:
    UserError: it holds anything else.
  """
  exists = next(path for path in (workdir, *workdir.parents) if path.exists())
  if not exists.is_dir():
    raise UserError(f'--workdir={workdir}: {exists} is a file; allowed is a folder, new or of the'
                    ' same run. Choose another --workdir.')
  if not os.access(exists, os.W_OK | os.X_OK):
    raise UserError(f'--workdir={workdir}: {exists} cannot be written. Choose another --workdir.')
  if exists != workdir:
    return
  path = workdir / 'config.json'
  if not path.exists():
    foreign = sorted(p.name for p in workdir.iterdir() if not p.name.startswith('.'))
    if foreign:
      raise UserError(f'--workdir={workdir} holds {", ".join(foreign[:3])} and no config.json;'
                      ' allowed is a folder that is new, empty or of the same run. Choose another'
                      ' --workdir.')
    return
  try:
    there = {**flat(default_config()), **read_json(path)}
  except (ValueError, TypeError) as error:
    raise UserError(f'--workdir={workdir}: config.json there is not that of a run ({error}). Choose'
                    ' another --workdir.') from error
  differ = [f'{name} = {there.get(name)!r} there and {facts.get(name)!r} here'
            for name in sorted(there.keys() | facts.keys())
            if name not in FREE and there.get(name) != facts.get(name)]
  if differ:
    raise UserError(f'--workdir={workdir} holds another experiment: {"; ".join(differ)}.'
                    ' Choose another --workdir, or give the same config to go on with that run.')


def read_json(path: pathlib.Path) -> Any:
  """Returns the value in a JSON file."""
  return json.loads(path.read_text())


def lock(workdir: pathlib.Path) -> TextIO:
  """Makes the folder and keeps other processes out of it until this one ends.

  Returns:
    The open lock file. The lock lasts as long as the process keeps it.

  Raises:
    UserError: the folder cannot be made, or another process has it; the message says which.
  """
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    file = open(workdir / '.lock', 'a+')  # noqa: SIM115
  except OSError as error:
    raise UserError(f'--workdir={workdir} cannot be made or written ({error}). Choose another'
                    ' --workdir.') from error
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError as error:
    file.seek(0)
    raise UserError(f'--workdir={workdir} is in use by {file.read().strip() or "another process"}.'
                    ' Wait for it or stop it, or choose another --workdir.') from error
  file.truncate(0)
  file.write(f'process {os.getpid()} on {platform.node()} since {time.strftime("%F %T")}\n')
  file.flush()
  return file


def write_json(path: pathlib.Path, value: Any) -> None:
  """Writes JSON so that at any moment the file is either the old or the new one, whole."""
  draft = path.with_name(f'.{path.name}')
  draft.write_text(json.dumps(value, indent=2) + '\n')
  os.replace(draft, path)
