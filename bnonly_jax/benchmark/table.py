"""`benchmark table`: what `benchmark step` wrote to the JSON files of a folder, in one table."""

import json
import pathlib
from typing import Any

from bnonly_jax.config import UserError

HEAD = ('row', 'network', 'batch', 'precision', 'trained', 'ms', 'images/s', 'peak MB', 'of FLOPs',
        'against', 'ms', 'peak MB', 'ours/theirs')


def markdown(folder: str) -> str:
  """Returns the versions, and a line for each file, as Markdown.

  Raises:
    UserError: no such folder, or no figures in it.
  """
  found = {}
  for path in sorted(pathlib.Path(folder).glob('*.json')) if folder else ():
    content = json.loads(path.read_text())
    if 'selections' in content:
      found[path.stem] = content
  if not found:
    raise UserError(f'--rows is {folder!r}, a folder without figures. Write some into it:'
                    ' benchmark step --config=... --out=FOLDER/NAME.json')
  said = dict.fromkeys(
      f'{row["device"]}, jax {row["jax"]}' + (
          f', PyTorch {row["torch"]["version"]}: {row["torch"]["allocators"]}'
          if 'torch' in row else '') for row in found.values())
  lines = [*(f'- {text}' for text in said), '', _line(HEAD), _line(['---'] * len(HEAD)),
           *(_line(_cells(name, row)) for name, row in found.items())]
  errors = {f'- {name}: PyTorch, {mode}: {error}' for name, row in found.items()
            for mode, error in row.get('torch', {}).get('errors', {}).items()}
  return '\n'.join([*lines, *(['', *sorted(errors)] if errors else [])])


def _line(cells):
  return f'| {" | ".join(cells)} |'


def _cells(name: str, whole: dict[str, Any]) -> list[str]:
  (trained, ours), *others = whole['selections'].items()
  against, theirs = others[0] if others else ('', {})
  precision = whole['compute_dtype']
  if 'torch' in whole:
    theirs = whole['torch']
    against, precision = f'PyTorch, {theirs["mode"]}', theirs['precision_of_both']

  def figure(row, key, factor, form):
    return f'{row[key] * factor:{form}}' if key in row else ''

  return [name, whole['network'], str(whole['batch']), precision, trained,
          figure(ours, 'step_seconds', 1e3, ',.2f'), figure(ours, 'images_per_second', 1, ',.0f'),
          figure(ours, 'peak', 1e-6, ',.0f'), figure(ours, 'share_of_flops', 1, '.1%'),
          against, figure(theirs, 'step_seconds', 1e3, ',.2f'),
          figure(theirs, 'peak', 1e-6, ',.0f'),
          figure(whole.get('ratio', {}), 'step_seconds', 1, '.2f')]
