"""A panel as a figure of matplotlib's."""

from collections.abc import Sequence
import os
from typing import Any

import ml_collections
import numpy as np

from bnonly_jax.run import plots
from bnonly_jax.sweep import rows as rows_lib
from bnonly_jax.sweep import tables

_MARKERS = 'os^vDP*X<>'  # not as many as colours, so that no two of many lines look alike


def figure(config: ml_collections.ConfigDict, workdir: str | os.PathLike, panel: str,
           table: Sequence[rows_lib.Row]) -> Any:
  """Draws a panel.

  Args:
    config: the sweep's.
    workdir: the folder of all runs; histograms are read from it.
    panel: one of config.panels.
    table: its rows.

  Returns:
    A matplotlib figure, to be closed by whoever saves it.
  """
  if panel in ('gamma', 'beta'):
    return _histograms(config, workdir, panel)
  if panel in ('small_gammas', 'zeroed'):
    return _by_threshold(config, panel, table)
  return _lines(config, panel, table)


def _axes(config, columns=1, spread='bars'):
  columns = max(columns, 1)
  figure, axes = plots.pyplot().subplots(
      1, columns, figsize=(max(6.4, 3.6 * columns), 4.4), layout='constrained', squeeze=False,
      sharey=True)
  figure.suptitle(f'{config.title}\n{tables.source(config)}; {spread}: one standard deviation over'
                  ' seeds', fontsize='medium')
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
  slanted = {} if numeric or len(xs) < 7 else {
      'rotation': 45, 'horizontalalignment': 'right', 'rotation_mode': 'anchor'}
  axes.set_xticks(xs if numeric else range(len(xs)), [f'{x:g}' if numeric else x for x in xs],
                  **slanted)
  if not numeric and xs:  # else a network that few lines have may fall off the axis
    axes.set_xlim(-0.5, len(xs) - 0.5)
  axes.minorticks_off()
  axes.set(xlabel=config.x, ylabel=tables.label(panel))
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
  all_axes[0].set_ylabel(tables.label(panel))
  return figure


def _histograms(config, workdir, panel):
  """Histograms, mean over seeds and a band of one standard deviation, one pair of axes an x."""
  points = [(point, rows_lib.histograms(runs, panel))
            for point, runs in rows_lib.by_point(config, workdir)]
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
