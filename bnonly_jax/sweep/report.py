"""A sweep as one HTML file that needs nothing beside it."""

import base64
from collections.abc import Sequence
import html as html_lib
import time

from etils import epath
import ml_collections

from bnonly_jax.config import default_config
from bnonly_jax.config import flat
from bnonly_jax.sweep import rows as rows_lib
from bnonly_jax.sweep import runs as runs_lib
from bnonly_jax.sweep import tables

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
       color: #222; background: #fff }
img { max-width: 100%; display: block; margin: 1rem auto }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums }
.wide { overflow-x: auto }
th, td { padding: .2rem .7rem; border-bottom: 1px solid #ddd; text-align: right;
         white-space: nowrap }
th:first-child, td:first-child { text-align: left }
th { border-bottom: 2px solid #888 }
code { background: #f3f3f3; padding: 0 .2rem }
summary { cursor: pointer; font-weight: 600; margin-top: 1rem }
"""


def html(config: ml_collections.ConfigDict,
         runs: Sequence[tuple[runs_lib.Run, runs_lib.Progress]], folder: epath.Path,
         panels: dict[str, Sequence[rows_lib.Row]]) -> str:
  """Returns the report of a sweep: its figures, tables, configs, costs and versions.

  Args:
    config: the sweep's.
    runs: all of its runs, and how far each is.
    folder: where the panels' SVG files are.
    panels: the rows of each panel.
  """
  so_far = [progress for _, progress in runs]
  parts = [f'<h1>{_text(config.title)}</h1>',
           f'<p>{_text(tables.source(config))}. {len(runs)} runs: {runs_lib.counts(so_far)}.'
           f' Written {time.strftime("%Y-%m-%d %H:%M %Z")}.</p>']
  if unfit := runs_lib.unfit(so_far):
    parts.append(f'<p><strong>Left out: {_text(unfit)}.</strong></p>')
  if config.scale != 'paper':
    parts.append(f'<p>This is the scale <code>{config.scale}</code>, not the paper&rsquo;s recipe:'
                 ' what it shows is which selection learns more, not what the paper reports.</p>')
  for panel, table in panels.items():
    drawing = base64.b64encode((folder / f'{panel}.svg').read_bytes()).decode()
    name = _text(tables.label(panel))
    parts += [f'<h2>{name}</h2>',
              f'<img alt="{name}" src="data:image/svg+xml;base64,{drawing}">',
              _table(*tables.cells(config, panel, table))]
  parts += ['<h2>Runs</h2>', _table(*_runs(runs)), _costs(runs)]
  base, defaults = flat(config.base), flat(default_config())
  changed = {name: value for name, value in base.items() if value != defaults[name]}
  parts += ['<h2>Config</h2><p>What all runs have, where it differs from the defaults:</p>',
            _table(['field', 'value'], [[name, str(value)] for name, value in changed.items()]),
            '<details><summary>All fields</summary>',
            _table(['field', 'value'], [[name, str(value)] for name, value in base.items()]),
            '</details>']
  return ('<!doctype html><html lang="en"><meta charset="utf-8">'
          '<meta name="viewport" content="width=device-width">'
          f'<title>{_text(config.title)}</title><style>{_STYLE}</style>'
          f'{"".join(parts)}</html>\n')


def _text(value):
  return html_lib.escape(str(value))


def _table(head, lines):
  row = lambda tag, line: f'<tr>{"".join(f"<{tag}>{_text(cell)}</{tag}>" for cell in line)}</tr>'
  return (f'<div class="wide"><table>{row("th", head)}'
          f'{"".join(row("td", line) for line in lines)}</table></div>')


def _runs(runs):
  lines = []
  for run, progress in runs:
    result = progress.result or {}
    percent = lambda name, result=result: (
        '' if result.get(name) is None else f'{100 * result[name]:.2f}')
    lines.append([run.name, progress.state, percent('untrained_test_accuracy'),
                  percent('test_accuracy'), f'{result.get("trained_parameters", "")}',
                  f'{progress.steps:,}', f'{progress.seconds / 60:.1f}',
                  f'{result.get("devices", "")} {result.get("device_kind", "")}'])
  return ['run', 'state', 'untrained, %', 'test accuracy, %', 'trained', 'steps',
          'minutes of training', 'devices'], lines


def _costs(runs):
  hours = sum(progress.seconds for _, progress in runs) / 3600
  versions = {', '.join(f'{name} {version}' for name, version in result['versions'].items())
              for _, progress in runs if (result := progress.result)}
  return (f'<p>{hours:.2f} hours of training steps in all, without compiling and evaluating.'
          f' Versions: {_text("; ".join(sorted(versions)) or "none yet")}.</p>')
