"""`benchmark table`: what `benchmark step` wrote to the JSON files of a folder, as Markdown."""

import json
import pathlib
from typing import Any

from bnonly_jax.config import UserError

HEAD = ('row', 'network', 'batch', 'precision', 'trained', 'ms', 'images/s', 'peak MB', 'of FLOPs',
        'against', 'ms', 'peak MB', 'ours/theirs')
_COMPILED = ('row', 'compiled for', 'network', 'batch', 'precision', 'trained', 'fits',
             'temporary MB', 'all-reduced kB')
TPU_HEAD = (*_COMPILED, 'ms', 'images', 'forward', 'backward', 'optimizer', 'evaluation ms',
            'against', 'temporary MB', 'ms', 'ours/theirs')
GPU_HEAD = (*_COMPILED, 'kernels', 'MB moved', 'evaluation kernels', 'against', 'temporary MB',
            'kernels', 'MB moved', 'ours/theirs: kernels', 'MB moved')


def markdown(folder: str) -> str:
  """Returns the versions, and a line for each file, as Markdown.

  What was measured has a table of its own, and so has what is a compiler's estimate.

  Raises:
    UserError: no such folder, no figures in it, or a file that cannot be read.
  """
  measured, estimated = {}, {}
  for path in sorted(pathlib.Path(folder).glob('*.json')) if folder else ():
    try:
      content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
      raise UserError(f'{path} of --rows cannot be read ({error}). Remove it, and measure that row'
                      ' again.') from error
    if 'selections' in content:
      measured[path.stem] = content
    elif 'estimates' in content:
      estimated[path.stem] = content
  if not measured and not estimated:
    raise UserError(f'--rows is {folder!r}, a folder without figures. Write some into it:'
                    ' benchmark step --config=... --out=FOLDER/NAME.json')
  parts = [*([_measured(measured)] if measured else []),
           *([_estimated(estimated)] if estimated else [])]
  return '\n\n'.join(parts)


def _measured(found):
  said = dict.fromkeys(
      f'{row["device"]}, jax {row["jax"]}' + (
          f', PyTorch {row["torch"]["version"]}: {row["torch"]["allocators"]}'
          if 'torch' in row else '') for row in found.values())
  lines = [*(f'- {text}' for text in said), '',
           *_table(HEAD, [_cells(name, row) for name, row in found.items()])]
  errors = {f'- {name}: PyTorch, {mode}: {error}' for name, row in found.items()
            for mode, error in row.get('torch', {}).get('errors', {}).items()}
  return '\n'.join([*lines, *(['', *sorted(errors)] if errors else [])])


def _estimated(found):
  said = dict.fromkeys(
      f'by the estimate of a compiler, not measured: {row["device"]}, '
      + ', '.join(f'{name} {version}' for name, version in row['versions'].items())
      + (f'; {row["clock"] / 1e9:.2f} GHz: {row["clock_source"]}' if row['clock'] else '')
      for row in found.values())
  lines = [f'- {text}' for text in said]
  for tpu, head in ((True, TPU_HEAD), (False, GPU_HEAD)):
    rows = [_estimated_cells(name, row, tpu) for name, row in found.items()
            if row['device'].startswith('TPU') == tpu]
    lines += ['', *_table(head, rows)] if rows else []
  return '\n'.join(lines)


def _table(head, rows):
  return [_line(head), _line(['---'] * len(head)), *map(_line, rows)]


def _line(cells):
  return f'| {" | ".join(cells)} |'


def _cells(name: str, whole: dict[str, Any]) -> list[str]:
  (trained, ours), *others = whole['selections'].items()
  against, theirs = others[0] if others else ('', {})
  precision = whole['compute_dtype']
  if 'torch' in whole:
    theirs = whole['torch']
    against, precision = f'PyTorch, {theirs["mode"]}', theirs['precision_of_both']

  return [name, whole['network'], str(whole['batch']), precision, trained,
          _figure(ours, 'step_seconds', 1e3, ',.2f'), _figure(ours, 'images_per_second', 1, ',.0f'),
          _figure(ours, 'peak', 1e-6, ',.0f'), _figure(ours, 'share_of_flops', 1, '.1%'),
          against, _figure(theirs, 'step_seconds', 1e3, ',.2f'),
          _figure(theirs, 'peak', 1e-6, ',.0f'),
          _figure(whole.get('ratio', {}), 'step_seconds', 1, '.2f')]


def _estimated_cells(name: str, whole: dict[str, Any], tpu: bool) -> list[str]:
  found, trained = whole['estimates'], whole['train']
  ours, evaluation, ratio = found[trained], found['evaluation'], whole.get('ratio', {})
  against = next((each for each in found if each not in (trained, 'evaluation')), '')
  theirs = found.get(against, {})
  milliseconds = lambda row: _figure(row, 'milliseconds', 1, ',.3g')
  kernels = lambda row: _figure(row, 'kernels', 1, ',.0f')
  moved = lambda row: _figure(row, 'bytes', 1e-6, ',.0f')
  temporary = lambda row: _figure(row, 'temporary', 1e-6, ',.0f')
  cells = [name, whole['on'], whole['network'], str(whole['batch']), whole['compute_dtype'],
           trained, {True: 'yes', False: 'no', None: ''}[ours['fits']], temporary(ours),
           _figure(ours, 'all_reduced', 1e-3, ',.1f')]
  if tpu:
    stages = ours.get('stages', {})
    return [*cells, milliseconds(ours),
            *(milliseconds(stages.get(stage, {}))
              for stage in ('images', 'forward', 'backward', 'optimizer')),
            milliseconds(evaluation), against, temporary(theirs), milliseconds(theirs),
            _figure(ratio, 'milliseconds', 1, '.2f')]
  return [*cells, kernels(ours), moved(ours), kernels(evaluation), against, temporary(theirs),
          kernels(theirs), moved(theirs), _figure(ratio, 'kernels', 1, '.2f'),
          _figure(ratio, 'bytes', 1, '.2f')]


def _figure(row, key, factor, form):
  return f'{row[key] * factor:{form}}' if key in row else ''
