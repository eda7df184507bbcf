"""Reading what a run has written, of which a kill or a person may have left a part."""

from collections.abc import Collection
import json
from typing import Any

from etils import epath

from bnonly_jax.config import UserError

_ANEW = 'Put a whole copy in its place, or move it away: the same command goes on without it.'


def values(file: epath.Path, fields: Collection[str] = (), remedy: str = _ANEW) -> dict[str, Any]:
  """Returns what a JSON file holds: values by name.

  Args:
    file: which must be there.
    fields: names that it must have.
    remedy: what the user is to do if it is damaged.

  Raises:
    UserError: it cannot be read, or is something else.
  """
  try:
    found = json.loads(file.read_text())
    if not isinstance(found, dict):
      raise ValueError('it holds no values by name')
    lacking = [name for name in fields if name not in found]
    if lacking:
      raise ValueError(f'it has no {", ".join(lacking)}')
  except (OSError, ValueError) as error:
    raise _damaged(file, getattr(error, 'strerror', None) or error, remedy) from error
  return found


def result(workdir: epath.Path, remedy: str = _ANEW) -> dict[str, Any] | None:
  """Returns what result.json holds, or None if there is none; arguments and errors as `values`."""
  file = workdir / 'result.json'
  return values(file, ('diverged', 'epochs', 'steps', 'test_accuracy'),
                remedy) if file.exists() else None


def trained_parameters(workdir: epath.Path) -> int:
  """Returns how many parameters a run trains, as parameters.json says.

  Raises:
    UserError: it is not there, or damaged.
  """
  file = workdir / 'parameters.json'
  try:
    return sum(row['trained'] for row in json.loads(file.read_text()))
  except (OSError, ValueError, TypeError, KeyError) as error:
    raise _damaged(file, getattr(error, 'strerror', None) or error) from error


def lines(workdir: epath.Path) -> list[dict[str, Any]]:
  """Returns the lines of metrics.jsonl, none if it is not there; leaves out a last one cut short.

  Raises:
    UserError: another line is damaged.
  """
  file, found = workdir / 'metrics.jsonl', []
  try:
    texts = file.read_text().splitlines() if file.exists() else []
  except (OSError, ValueError) as error:
    raise _damaged(file, getattr(error, 'strerror', None) or error) from error
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


def _damaged(file, reason, remedy=_ANEW):
  return UserError(f'{file} is damaged or cannot be read ({reason}). {remedy}')
