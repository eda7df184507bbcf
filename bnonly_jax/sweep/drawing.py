"""Draws a sweep: its panels, their tables, and the report."""

import io
import os
from typing import Any

from etils import epath
import ml_collections

from bnonly_jax.config import UserError
from bnonly_jax.run import full_disk
from bnonly_jax.run import metrics
from bnonly_jax.run import plots
from bnonly_jax.run import workdir as workdir_lib
from bnonly_jax.sweep import config as sweep_config
from bnonly_jax.sweep import panels
from bnonly_jax.sweep import report
from bnonly_jax.sweep import rows as rows_lib
from bnonly_jax.sweep import runs as runs_lib
from bnonly_jax.sweep import tables

REMEDY = 'What was drawn before is whole; make room, and give the same command again.'


def draw(config: ml_collections.ConfigDict, workdir: str | os.PathLike
         ) -> tuple[epath.Path, dict[str, list[rows_lib.Row]]]:
  """Draws all panels of a sweep, and writes their tables and the report.

  Args:
    config: the sweep's, of `sweep.config.sweep`.
    workdir: the folder of all runs.

  Returns:
    The path of report.html, and the rows of each panel.

  Raises:
    UserError: as `rows`; or there is no such folder, it cannot be written, or it holds no finished
      run of this sweep. What was drawn before is then as it was.

  Example:
    >>> draw(config, 'runs/depth')[0]
    PosixPath('runs/depth/figures/main_depth/report.html')
  """
  sweep_config.check(config)
  runs_lib.check_workdir(workdir)
  found = [(run, runs_lib.progress(run)) for run in runs_lib.runs(config, workdir)]
  so_far = [progress for _, progress in found]
  unfit = runs_lib.unfit(so_far)
  if not any(progress.state in ('done', 'diverged') for progress in so_far):
    # An empty figure tells nothing, and would lie over what was drawn of other runs.
    because = f': {unfit}. Give the --config.base flags that they were trained with' if unfit else (
        '. Train them by `python -m bnonly_jax.sweep` with the same flags')
    raise UserError(f'--workdir={workdir} holds no finished run of this sweep'
                    f' ({runs_lib.counts(so_far)}), and nothing has been drawn{because}, or give'
                    ' another --workdir.')
  rows = {panel: rows_lib.rows(config, workdir, panel) for panel in config.panels}
  folder = workdir_lib.path(workdir) / 'figures' / config.name
  workdir_lib.check_folder(folder)
  if unfit:
    metrics.console.print(f'left out: {unfit}')
  with full_disk.told(folder, f'--workdir={workdir}', REMEDY):
    folder.mkdir(parents=True, exist_ok=True)
    for panel, table in rows.items():
      write_figure(panels.figure(config, workdir, panel, table), folder / panel)
      workdir_lib.write_text(folder / f'{panel}.csv', tables.csv_text(table))
      workdir_lib.write_text(folder / f'{panel}.md', tables.markdown(config, panel, table))
    workdir_lib.write_text(folder / 'report.html', report.html(config, found, folder, rows))
  return folder / 'report.html', rows


def write_figure(figure: Any, path: epath.Path) -> None:
  """Writes a figure of matplotlib's as PNG and SVG, to a path without its ending, and closes it."""
  for kind in ('png', 'svg'):
    drawing = io.BytesIO()
    figure.savefig(drawing, format=kind, dpi=150,
                   metadata={'Date': None} if kind == 'svg' else None)
    workdir_lib.write_bytes(path.with_name(f'{path.name}.{kind}'), drawing.getvalue())
  plots.pyplot().close(figure)


def print_drawn(config: ml_collections.ConfigDict, path: epath.Path,
                rows: dict[str, list[rows_lib.Row]]) -> None:
  """Prints what `draw` returns."""
  for panel, table in rows.items():
    metrics.console.print(f'{config.title}: {tables.label(panel)}; {tables.source(config)}')
    metrics.print_columns(*tables.cells(config, panel, table))
  metrics.console.print(f'written: {path} and beside it each figure and table')
