"""Reading what a run has written, of which a kill or a person may have left a part."""

import json
from typing import Any

from etils import epath

from bnonly_jax.config import UserError


def result(workdir: epath.Path) -> dict[str, Any] | None:
  """Returns what result.json holds, or None if there is none.

  Raises:
    UserError: it is no result.
  """
  file = workdir / 'result.json'
  if not file.exists():
    return None
  try:
    found = json.loads(file.read_text())
  except ValueError as error:
    raise _damaged(file, error) from error
  if not isinstance(found, dict) or not found.keys() >= {'diverged', 'epochs', 'steps',
                                                         'test_accuracy'}:
    raise _damaged(file, 'that is no result of a run')
  return found


def lines(workdir: epath.Path) -> list[dict[str, Any]]:
  """Returns the lines of metrics.jsonl, none if it is not there; leaves out a last one cut short.

  Raises:
    UserError: another line is damaged.
  """
  file, found = workdir / 'metrics.jsonl', []
  try:
    texts = file.read_text().splitlines() if file.exists() else []
  except ValueError as error:
    raise _damaged(file, error) from error
  for number, text in enumerate(texts, 1):
    try:
      line = json.loads(text)
      if not isinstance(line, dict) or not isinstance(line.get('step'), int):
        raise ValueError('that is no line of metrics')
      found.append(line)
    except ValueError as error:
      if number < len(texts):  # else a kill cut it short
        raise _damaged(file, f'line {number}: {error}') from error
  return found


def _damaged(file, reason):
  return UserError(f'{file} is damaged ({reason}). Put a whole copy in its place, or move it away:'
                   ' the same command goes on without it.')
