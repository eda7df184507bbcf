"""A panel as a table, in Markdown and CSV, and what it is called."""

from collections.abc import Sequence
import csv
import io
from typing import Any

import ml_collections

from bnonly_jax.sweep import config as sweep_config
from bnonly_jax.sweep import rows as rows_lib


def label(panel: str) -> str:
  """Returns what a panel shows, in words."""
  return {**sweep_config.RESULTS, **sweep_config.ANALYSES}[panel]


def source(config: ml_collections.ConfigDict) -> str:
  """Says what the runs are trained on: a line below every title."""
  names = dict.fromkeys(point.changes.get('data.name', config.base.data.name)
                        for point in config.points)
  share = config.base.data.subsample
  part = f'{share:.0%} of ' if share < 1 else ''
  seeds = f'{config.seeds} seed' + 's' * (config.seeds > 1)
  epochs = f'{config.base.epochs} epoch' + 's' * (config.base.epochs > 1)
  return f'{part}{" and ".join(names)}, {epochs}, {seeds}'


def cells(config: ml_collections.ConfigDict, panel: str,
          table: Sequence[rows_lib.Row]) -> tuple[list[str], list[list[str]]]:
  """Returns a table's head and lines as text, without columns that would be empty.

  For each line that `config.over` names there is a column of what the others have more than it.
  """
  number = lambda value: '' if value is None else f'{value:.4g}' if panel in (
      'gamma', 'beta') else f'{value:.2f}'
  at = {'gamma': 'quantile, %', 'beta': 'quantile, %'}.get(panel, 'threshold')
  means = {(row.line, row.x, row.at): row.mean for row in table}

  def gain(row, line):
    least = means.get((line, row.x, row.at))
    known = row.line != line and None not in (row.mean, least)
    return f'{row.mean - least:+.2f}' if known else ''

  head = ['', config.x, at, 'runs', 'missing', 'mean', 'standard deviation', 'paper', 'difference',
          *(f'over {line}' for line in config.over)]
  lines = [[row.line, '' if row.x is None else f'{row.x:g}' if isinstance(row.x, int | float)
            else row.x, '' if row.at is None else f'{row.at:g}', str(row.runs),
            str(row.missing or ''), number(row.mean) or 'missing', number(row.sd),
            number(row.paper), number(row.difference),
              *(gain(row, line) for line in config.over)] for row in table]
  used = [i for i in range(len(head)) if any(line[i] for line in lines)]
  return [head[i] for i in used], [[line[i] for i in used] for line in lines]


def markdown(config: ml_collections.ConfigDict, panel: str, table: Sequence[rows_lib.Row]) -> str:
  """Returns a panel's table in Markdown."""
  head, lines = cells(config, panel, table)
  return f'{config.title}: {label(panel)}; {source(config)}.\n\n{piped(head, lines)}'


def piped(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
  """Returns a table in Markdown."""
  return ''.join(f'| {" | ".join(line)} |\n' for line in (head, ['---'] * len(head), *lines))


def csv_text(table: Sequence[rows_lib.Row]) -> str:
  """Returns a table as CSV, all of its numbers in full."""
  return comma_separated([*rows_lib.Row._fields, 'difference'],
                         [[*row, row.difference] for row in table])


def comma_separated(head: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
  """Returns a table as CSV."""
  text = io.StringIO()
  writer = csv.writer(text, lineterminator='\n')
  writer.writerows([head, *lines])
  return text.getvalue()
