"""The folder of one run: whose it is, and files that are either whole or not there."""

import json
import os
import pathlib
from typing import Any

import ml_collections

from bnonly_jax.config import flat
from bnonly_jax.config import UserError


def check(workdir: pathlib.Path, config: ml_collections.ConfigDict) -> None:
  """Checks that a folder is new, empty, or holds a run with this very config. Writes nothing.

  Raises:
    UserError: it holds anything else.
  """
  if not workdir.exists():
    return
  if not workdir.is_dir():
    raise UserError(f'--workdir={workdir} is a file; allowed is a folder, new or of the same run.'
                    ' Choose another --workdir.')
  path = workdir / 'config.json'
  if not path.exists():
    foreign = sorted(p.name for p in workdir.iterdir() if not p.name.startswith('.'))
    if foreign:
      raise UserError(f'--workdir={workdir} holds {", ".join(foreign[:3])} and no config.json;'
                      ' allowed is a folder that is new, empty or of the same run. Choose another'
                      ' --workdir.')
    return
  there, here = json.loads(path.read_text()), flat(config)
  differ = [f'{name} = {there.get(name)!r} there and {here.get(name)!r} here'
            for name in sorted(there.keys() | here.keys()) if there.get(name) != here.get(name)]
  if differ:
    raise UserError(f'--workdir={workdir} holds another experiment: {"; ".join(differ)}.'
                    ' Choose another --workdir, or give the same config to go on with that run.')


def read_json(path: pathlib.Path) -> Any:
  """Returns the value in a JSON file."""
  return json.loads(path.read_text())


def write_json(path: pathlib.Path, value: Any) -> None:
  """Writes JSON so that at any moment the file is either the old or the new one, whole."""
  draft = path.with_name(f'.{path.name}')
  draft.write_text(json.dumps(value, indent=2) + '\n')
  os.replace(draft, path)
