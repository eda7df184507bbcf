r"""Draws the figures of a sweep from the runs that are there, with tables and a report beside them.

  python -m bnonly_jax.figures --config=configs/figures/main_depth.py:short --workdir=DIR

writes DIR/figures/NAME/: for each panel a PNG, an SVG, a CSV and a Markdown table, and report.html,
one file that can be sent on. Trained runs come from python -m bnonly_jax.sweep.
"""

from collections.abc import Sequence
import csv
import io
import os
import re
from typing import NamedTuple

from absl import flags
from etils import epath
import ml_collections
import numpy as np

from bnonly_jax import command_line
from bnonly_jax import paper
from bnonly_jax import sweep
from bnonly_jax import sweep_config
from bnonly_jax.config import flat
from bnonly_jax.config import UserError
from bnonly_jax.run import metrics
from bnonly_jax.run import plots
from bnonly_jax.run import workdir as workdir_lib

_MARKERS = 'osD^vP*'


class Row(NamedTuple):
  """A line of a figure's table: one point, at one threshold or quantile if the panel has them."""
  line: str
  x: float | str | None
  at: float | None  # the threshold of small_gammas and zeroed, the quantile of gamma and beta
  runs: int  # that count
  missing: int
  mean: float | None  # over runs; in percent, but gamma and beta as they are
  sd: float | None  # the sample's standard deviation over runs; None of fewer than two
  paper: float | None

  @property
  def difference(self) -> float | None:
    """Ours minus the paper's."""
    return None if self.mean is None or self.paper is None else self.mean - self.paper


def rows(config: ml_collections.ConfigDict, workdir: str | os.PathLike, panel: str) -> list[Row]:
  """Gathers what a panel shows.

  Args:
    config: the sweep's, of `sweep_config.sweep`.
    workdir: the folder of all runs.
    panel: one of config.panels.

  Returns:
    A row for each point and threshold or quantile, in the config's order. Runs that are missing,
    diverged or not analysed count as missing.

  Example:
    >>> [(row.line, row.x, row.mean) for row in rows(config, 'runs/depth', 'test_accuracy')]
    [('BatchNorm', 14, 47.1), ...]
  """
  table, comparable = [], _as_the_paper(config)
  for point, runs in _by_point(config, workdir):
    measured = [_measured(run, panel) for run in runs]
    found = [values for of_run in measured for values in of_run]
    missing = config.base.replicates * sum(not of_run for of_run in measured)
    published = paper.value(panel, point.changes) if comparable else None
    for at in list(dict.fromkeys(at for values in found for at in values)) or [None]:
      numbers = [values[at] for values in found if at in values]
      table.append(Row(point.line, point.x, at, len(numbers), missing,
                       float(np.mean(numbers)) if numbers else None,
                       float(np.std(numbers, ddof=1)) if len(numbers) > 1 else None, published))
  return table


def _as_the_paper(config):
  """Whether the runs differ from the paper's in no more than the scale says."""
  recipe = 'imagenet' if config.base.network.startswith('imagenet') else 'cifar10'
  ours, papers = flat(config.base), flat(sweep_config.base(config.scale, recipe))
  free = (*workdir_lib.FREE, 'seed', 'replicates')
  return config.scale != 'smoke' and all(
      ours[name] == value for name, value in papers.items() if name not in free)


def _by_point(config, workdir):
  """Points with their runs: those of each seed, whichever point the sweep lists them under."""
  runs = sweep.runs(config, workdir)
  for point in config.points:
    name = sweep.point_name(config, point)
    yield point, [run for run in runs if run.point_name == name]


def _measured(run, panel):
  """What a run has for a panel: for each of its seeds a number by threshold, quantile or None."""
  progress = sweep.progress(run)
  if progress.state != 'done':
    return []
  result = progress.result
  if panel == 'train_accuracy':
    lines = [line for line in metrics.read(run.workdir) if 'train_accuracy' in line]
    steps = np.diff([0, *(line['step'] for line in lines)])  # that each line is the mean of
    weights = steps * [line['epoch'] > result['epochs'] - 1 for line in lines]
    return [{None: 100 * float(np.average([line['train_accuracy'] for line in lines],
                                          weights=weights))}]
  if panel in sweep_config.RESULTS:
    return [{None: 100 * seed[panel]} for seed in result.get('replicates', [result])
            if seed.get(panel) is not None]
  return [_of_analysis(analysis, panel) for analysis in sweep.analyses(run)
          if analysis['gamma'] or panel == 'silent_relus']  # without norms there is no gamma


def _of_analysis(analysis, panel):
  if panel == 'silent_relus':
    return {None: 100 * analysis['relus']['all']['silent_share']}
  if panel == 'zeroed':
    return {row['threshold']: 100 * row['test_accuracy'] for row in analysis['thresholds']}
  if panel == 'small_gammas':
    return {float(name.removeprefix('below_')): 100 * share
            for name, share in analysis['gamma']['all'].items() if name.startswith('below_')}
  return {int(name[1:]): value for name, value in analysis[panel]['all'].items()
          if re.fullmatch(r'q\d+', name)}


def draw(config: ml_collections.ConfigDict,
         workdir: str | os.PathLike) -> tuple[epath.Path, dict[str, list[Row]]]:
  """Draws all panels of a sweep, and writes their tables and the report.

  Args:
    config: the sweep's.
    workdir: the folder of all runs.

  Returns:
    The path of report.html, and the rows of each panel.

  Raises:
    UserError: a run's config is none, or there is no such folder, or it cannot be written.

  Example:
    >>> draw(config, 'runs/depth')[0]
    PosixPath('runs/depth/figures/main_depth/report.html')
  """
  from bnonly_jax import report
  sweep.check(config)
  if not workdir_lib.path(workdir).is_dir():
    raise UserError(f'--workdir={workdir} is no folder; needed is that of a sweep\'s runs. Train'
                    ' them there: python -m bnonly_jax.sweep with the same flags.')
  folder = workdir_lib.path(workdir) / 'figures' / config.name
  workdir_lib.check_folder(folder)
  folder.mkdir(parents=True, exist_ok=True)
  panels = {}
  for panel in config.panels:
    panels[panel] = rows(config, workdir, panel)
    if panel in ('gamma', 'beta'):
      figure = _histograms(config, workdir, panel)
    elif panel in ('small_gammas', 'zeroed'):
      figure = _by_threshold(config, panel, panels[panel])
    else:
      figure = _lines(config, panel, panels[panel])
    for kind in ('png', 'svg'):
      drawing = io.BytesIO()
      figure.savefig(drawing, format=kind, dpi=150,
                     metadata={'Date': None} if kind == 'svg' else None)
      (folder / f'{panel}.{kind}').write_bytes(drawing.getvalue())
    plots.pyplot().close(figure)
    (folder / f'{panel}.csv').write_text(_csv(panels[panel]))
    (folder / f'{panel}.md').write_text(markdown(config, panel, panels[panel]))
  (folder / 'report.html').write_text(report.html(config, workdir, folder, panels))
  return folder / 'report.html', panels


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
  return f'{part}{" and ".join(names)}, {config.base.epochs} epochs, {seeds}'


def _axes(config, columns=1, spread='bars'):
  columns = max(columns, 1)
  figure, axes = plots.pyplot().subplots(
      1, columns, figsize=(max(6.4, 3.6 * columns), 4.4), layout='constrained', squeeze=False,
      sharey=True)
  figure.suptitle(f'{config.title}\n{source(config)}; {spread}: one standard deviation over seeds',
                  fontsize='medium')
  for one in axes.flat:
    one.grid(alpha=0.3)
  return figure, list(axes.flat)


def _style(lines):
  """Colour and marker by line."""
  names = list(dict.fromkeys(lines))
  return {name: (plots.COLOURS[i % len(plots.COLOURS)], _MARKERS[i % len(_MARKERS)])
          for i, name in enumerate(names)}


def _lines(config, panel, table):
  """One number a point: lines over numbers, markers over words."""
  figure, (axes,) = _axes(config)
  xs = list(dict.fromkeys(row.x for row in table if row.x is not None))
  numeric = all(isinstance(x, int | float) for x in xs)
  styles = _style(row.line for row in table)
  for number, (line, (colour, marker)) in enumerate(styles.items()):
    own = [row for row in table if row.line == line]
    shift = 0 if numeric else 0.5 * ((number + 0.5) / len(styles) - 0.5)
    place = lambda row, shift=shift: row.x if numeric else xs.index(row.x) + shift
    level = [row for row in own if row.x is None]
    for row in level:
      if row.paper is not None:
        axes.axhline(row.paper, color=colour, linestyle=':', label=f'{line}, the paper')
      if row.mean is None:
        axes.plot([], [], color=colour, linestyle='--', label=f'{line} (not run)')
      else:
        axes.axhline(row.mean, color=colour, linestyle='--', label=line)
        axes.axhspan(row.mean - (row.sd or 0), row.mean + (row.sd or 0), color=colour, alpha=0.15)
    there = [row for row in own if row.x is not None and row.mean is not None]
    absent = ': ' + ', '.join(f'{row.x:g}' if numeric else row.x for row in own
                              if row.x is not None and row.mean is None)
    name = line if len(there) == len(own) else f'{line} (not run{absent * bool(there)})'
    if there or not level:
      axes.errorbar([place(row) for row in there], [row.mean for row in there],
                    [row.sd or 0 for row in there], color=colour, marker=marker,
                    label=name,
                    linestyle='-' if numeric else '', capsize=3)
    published = [row for row in own if row.x is not None and row.paper is not None]
    axes.plot([place(row) for row in published], [row.paper for row in published], marker,
              color=colour, markerfacecolor='none', markersize=9)
  if numeric and xs and min(xs) > 0 and max(xs) / min(xs) >= 4:
    axes.set_xscale('log', base=2)
  axes.set_xticks(xs if numeric else range(len(xs)), [f'{x:g}' if numeric else x for x in xs],
                  rotation=0 if numeric or len(xs) < 7 else 45)
  axes.minorticks_off()
  axes.set(xlabel=config.x, ylabel=label(panel))
  axes.set_ylim(bottom=0)
  _legend(figure, axes, table)
  return figure


def _legend(figure, axes, table):
  handles, labels = axes.get_legend_handles_labels()
  if any(row.x is not None and row.paper is not None for row in table):
    handles.append(axes.plot([], [], 'o', color=plots.GREY, markerfacecolor='none',
                             markersize=9)[0])
    labels.append('the paper, its full recipe')
  longest = max(map(len, labels), default=0)
  columns = 3 if longest <= 28 else 2 if longest <= 45 else 1
  figure.legend(handles, labels, loc='outside lower center', ncols=columns, fontsize='small')


def _by_threshold(config, panel, table):
  """Lines over thresholds, one pair of axes a value of x."""
  xs = list(dict.fromkeys(row.x for row in table))
  figure, all_axes = _axes(config, len(xs))
  styles = _style(row.line for row in table)
  ats = sorted({row.at for row in table if row.at is not None})
  for axes, x in zip(all_axes, xs, strict=True):
    for line, (colour, marker) in styles.items():
      own = [row for row in table if (row.line, row.x) == (line, x) and row.mean is not None]
      axes.errorbar([ats.index(row.at) for row in own], [row.mean for row in own],
                    [row.sd or 0 for row in own], color=colour, marker=marker, capsize=3,
                    label=line if own else f'{line} (not run)')
    axes.set_title(x, fontsize='medium')
    axes.set_xticks(range(len(ats)), [f'{at:g}' for at in ats])
    axes.set_xlabel('threshold t')
    axes.set_ylim(bottom=0)
    axes.legend(fontsize='small')
  all_axes[0].set_ylabel(label(panel))
  return figure


def _histograms(config, workdir, panel):
  """Histograms, mean over seeds and a band of one standard deviation, one pair of axes an x."""
  points = [(point, [analysis[panel] for run in runs for analysis in sweep.analyses(run)
                     if analysis[panel]]) for point, runs in _by_point(config, workdir)]
  xs = list(dict.fromkeys(point.x for point, _ in points))
  figure, all_axes = _axes(config, len(xs), 'bands')
  styles = _style(point.line for point, _ in points)
  for axes, x in zip(all_axes, xs, strict=True):
    there = [one for point, found in points if point.x == x for one in found]
    if there:
      edges = np.linspace(min(one['bins'][0] for one in there),
                          max(one['bins'][-1] for one in there), 61)
    for point, found in points:
      colour = styles[point.line][0]
      if point.x == x and not found:
        axes.plot([], [], color=colour, label=f'{point.line} (not run)')
      elif point.x == x:
        shares = [100 * np.diff(np.interp(edges, one['bins'], _cumulated(one['all']['histogram'])))
                  for one in found]
        mean = np.mean(shares, 0)
        sd = np.std(shares, 0, ddof=1) if len(shares) > 1 else np.zeros_like(mean)
        axes.stairs(mean, edges, color=colour, label=point.line, linewidth=1.5)
        axes.stairs(mean + sd, edges, baseline=np.maximum(mean - sd, 0), fill=True, color=colour,
                    alpha=0.2)
    axes.set_title(x, fontsize='medium')
    axes.set_xlabel(panel)
    axes.legend(fontsize='small')
  all_axes[0].set_ylabel(f'share of the {panel}s in a bin (%)')
  return figure


def _cumulated(counts):
  """Shares below each edge of a histogram."""
  return np.concatenate([[0], np.cumsum(counts)]) / np.sum(counts)


def cells(config: ml_collections.ConfigDict, panel: str,
          table: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
  """Returns a table's head and lines as text, without columns that would be empty."""
  number = lambda value: '' if value is None else f'{value:.4g}' if panel in (
      'gamma', 'beta') else f'{value:.2f}'
  at = {'gamma': 'quantile, %', 'beta': 'quantile, %'}.get(panel, 'threshold')
  head = ['', config.x, at, 'runs', 'missing', 'mean', 'standard deviation', 'paper', 'difference']
  lines = [[row.line, '' if row.x is None else f'{row.x:g}' if isinstance(row.x, int | float)
            else row.x, '' if row.at is None else f'{row.at:g}', str(row.runs),
            str(row.missing or ''), number(row.mean) or 'missing', number(row.sd),
            number(row.paper), number(row.difference)] for row in table]
  used = [i for i in range(len(head)) if any(line[i] for line in lines)]
  return [head[i] for i in used], [[line[i] for i in used] for line in lines]


def markdown(config: ml_collections.ConfigDict, panel: str, table: Sequence[Row]) -> str:
  """Returns a panel's table in Markdown."""
  head, lines = cells(config, panel, table)
  text = [f'{config.title}: {label(panel)}; {source(config)}.', '']
  text += [f'| {" | ".join(line)} |' for line in (head, ['---'] * len(head), *lines)]
  return '\n'.join(text) + '\n'


def _csv(table: Sequence[Row]) -> str:
  text = io.StringIO()
  writer = csv.writer(text, lineterminator='\n')
  writer.writerow([*Row._fields, 'difference'])
  writer.writerows([*row, row.difference] for row in table)
  return text.getvalue()


def main() -> None:
  path, panels = draw(_CONFIG.value, _WORKDIR.value)
  for panel, table in panels.items():
    metrics.console.print(f'{_CONFIG.value.title}: {label(panel)}; {source(_CONFIG.value)}')
    metrics.print_columns(*cells(_CONFIG.value, panel, table))
  metrics.console.print(f'written: {path} and beside it each figure and table')


if __name__ == '__main__':
  _CONFIG = command_line.define_config()
  _WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of all the runs of the sweep.')
  command_line.run(
      main, lambda: '' if _CONFIG.value and _WORKDIR.value else
      '--config=FILE.py[:SCALE] and --workdir=DIR are both needed. Try --config='
      'configs/figures/main_depth.py:smoke --workdir=runs/smoke, or --help.',
      defaults=sweep_config.skeleton)
