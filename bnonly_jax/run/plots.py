"""The plots of one run, and what all plots share."""

import io
import sys
import textwrap
from typing import Any

from etils import epath
import numpy as np

from bnonly_jax import masks
from bnonly_jax import models
from bnonly_jax.run import reading

# Okabe and Ito's colours, which people of any colour vision tell apart.
BLUE, ORANGE, GREY = '#0072B2', '#E69F00', '#999999'
COLOURS = (BLUE, ORANGE, '#009E73', '#CC79A7', '#56B4E9', '#D55E00', '#000000')


def pyplot():
  """Returns matplotlib.pyplot, which draws into files."""
  # Imported where it is used, at the end of a run: it takes as long as preparing a small data set.
  import matplotlib
  if 'matplotlib.pyplot' not in sys.modules:  # else a notebook's, which shows its figures itself
    matplotlib.use('agg')
  import matplotlib.pyplot
  return matplotlib.pyplot


def gammas(parameters: dict[str, models.Parameter], trainable: Any, frozen: Any) -> np.ndarray:
  """Returns every gamma, of all replicates, in one vector.

  Args:
    parameters: what is known of each, by name.
    trainable: the half of the parameters that trains, on the host.
    frozen: the other half.
  """
  trainable, frozen = masks.flatten(trainable), masks.flatten(frozen)
  found = [np.zeros(0, np.float32)]
  for name, known in parameters.items():
    if known.group == 'gamma':
      value, rest = trainable[name], frozen[name]
      if isinstance(rest, masks.Chosen):  # some blocks of a stack
        tensor = np.array(rest.tensor).reshape(*np.shape(rest.index)[:-1], -1)
        np.put_along_axis(tensor, np.asarray(rest.index), value, -1)
        found += [tensor.ravel()]
      else:
        found += [np.ravel(rest if value is None else value)]
  return np.concatenate(found)


def accuracy_over_epochs(workdir: epath.Path, title: str) -> None:
  """Draws training and test accuracy as metrics.jsonl has them."""
  lines = reading.lines(workdir)
  figure, axes = pyplot().subplots(figsize=(6, 4), layout='constrained')
  for key, label, colour in (('train_accuracy', 'training batches, augmented', ORANGE),
                             ('test_accuracy', 'test', BLUE)):
    points = [(line['epoch'], line[key]) for line in lines if key in line]
    axes.plot([x for x, _ in points], [y for _, y in points], label=label, color=colour,
              marker='.' if key == 'test_accuracy' else '')
  axes.set(xlabel='epoch', ylabel='accuracy', ylim=(0, 1), title=title)
  axes.grid(alpha=0.3)
  axes.legend()
  _save(figure, workdir / 'accuracy.png')


def gamma_histogram(workdir: epath.Path, start: np.ndarray, end: np.ndarray,
                    title: str) -> None:
  """Draws the distribution of gamma before and after training."""
  figure, axes = pyplot().subplots(figsize=(6, 4), layout='constrained')
  lost = np.sum(~np.isfinite(end))
  end = end[np.isfinite(end)]
  bins = np.histogram_bin_edges(np.concatenate([start, end]), 60)
  axes.hist(start, bins, label='start', color=GREY, alpha=0.6)
  axes.hist(end, bins, label=f'end ({lost} not finite)' if lost else 'end', color=BLUE,
            histtype='step', linewidth=1.5)
  axes.set(xlabel='gamma', ylabel='number of features', title=title)
  axes.grid(alpha=0.3)
  axes.legend()
  _save(figure, workdir / 'gamma.png')


def gamma_beta_by_layer(analysis: dict[str, Any], path: epath.Path, title: str) -> None:
  """Draws the quantiles of gamma, and of beta if there is one, by layer, of an analysis.json."""
  names = [row['layer'] for row in analysis['gamma']['layers']]
  groups = [group for group in ('gamma', 'beta') if analysis[group]]
  size = _width(names), 0.5 + 3.5 * len(groups)
  figure, panels = pyplot().subplots(len(groups), 1, figsize=size, sharex=True, squeeze=False,
                                     layout='constrained')
  panels = panels[:, 0]
  for axes, group in zip(panels, groups, strict=True):
    rows = analysis[group]['layers']
    column = lambda q, rows=rows: [row[f'q{q}'] for row in rows]
    x = range(len(rows))
    for low, high, alpha in ((5, 95, 0.25), (25, 75, 0.5)):
      axes.fill_between(x, column(low), column(high), color=BLUE, alpha=alpha, linewidth=0,
                        label=f'{low} to {high} %')
    axes.plot(x, column(50), color='black', linewidth=1.5, label='median')
    for q, label in ((0, 'smallest and largest'), (100, None)):
      axes.plot(x, column(q), color=ORANGE, linewidth=1, label=label)
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.set_ylabel(f"{group} of a layer's features")
    axes.grid(alpha=0.3)
  _layer_axis(panels[-1], names)
  figure.legend(*panels[0].get_legend_handles_labels(), loc='outside lower center', ncols=4,
                fontsize='small')
  panels[0].set_title(title)
  _save(figure, path)


def small_gammas(analysis: dict[str, Any], path: epath.Path, title: str) -> None:
  """Draws gamma's histogram, and the accuracy without the small ones, of an analysis.json."""
  figure, (left, right) = pyplot().subplots(1, 2, figsize=(10, 4.2), layout='constrained')
  gamma, rows = analysis['gamma'], analysis['thresholds']
  largest = rows[-1]['threshold']
  left.stairs(gamma['all']['histogram'], gamma['bins'], fill=True, color=BLUE)
  left.axvspan(-largest, largest, color=ORANGE, alpha=0.3, linewidth=0,
               label=f'abs(gamma) below {largest:g}')
  left.set(xlabel='gamma', ylabel='number of features')
  left.legend(fontsize='small')
  labels = ['as trained', *(f'< {row["threshold"]:g}\n'
                            f'({row["gammas_zeroed"] / gamma["all"]["count"]:.1%} of all)'
                            for row in rows[1:])]
  bars = right.bar(labels, [row['test_accuracy'] for row in rows],
                   color=[GREY] + [BLUE] * (len(rows) - 1))
  right.bar_label(bars, fmt='%.3f', fontsize='small')
  right.set(xlabel='gammas set to zero, by abs(gamma)', ylabel='test accuracy', ylim=(0, 1.05))
  figure.suptitle(textwrap.fill(title, 100), fontsize='medium')
  _write(figure, path)


def relus(analysis: dict[str, Any], path: epath.Path, title: str) -> None:
  """Draws which share of each layer's ReLUs never fires, of an analysis.json."""
  rows = analysis['relus']['layers']
  names = [row['layer'] for row in rows]
  figure, axes = pyplot().subplots(figsize=(_width(names), 5), layout='constrained')
  bottom = np.zeros(len(rows))
  silent, effective = (np.array([row[key] for row in rows])
                       for key in ('silent_share', 'effective_share'))
  for values, label, colour in ((effective, 'effective', BLUE),
                                (1 - silent - effective, 'fires, but its gamma is small', GREY),
                                (silent, 'never fires', ORANGE)):
    axes.bar(range(len(rows)), values, 0.85, bottom, color=colour, label=label)
    bottom += values
  axes.set(ylabel="share of a layer's ReLUs, test set", ylim=(0, 1), title=title)
  _layer_axis(axes, names)
  figure.legend(loc='outside lower center', ncols=3, fontsize='small')
  _save(figure, path)


def cka_by_layer(found: dict[str, Any], path: epath.Path) -> None:
  """Draws how alike the layers of two runs are, of a cka_*.json."""
  names = [row['layer'] for row in found['layers']]
  figure, axes = pyplot().subplots(figsize=(_width(names), 5), layout='constrained')
  axes.plot(range(len(names)), [np.nan if row['cka'] is None else row['cka']
                                for row in found['layers']], marker='.', color=BLUE)
  label = lambda run: f'{run["network"]}, training {run["train"]}, seed {run["seed"]}'
  axes.set(ylabel='linear CKA, test set', ylim=(0, 1.02),
           title=f'{label(found["run"])} and {label(found["other"])}')
  axes.grid(alpha=0.3)
  _layer_axis(axes, names)
  _save(figure, path)


def attacked(found: dict[str, Any], path: epath.Path) -> None:
  """Draws the accuracy of runs by how far pixels may move, of an attack.json."""
  figure, axes = pyplot().subplots(figsize=(6.5, 4.8), layout='constrained')
  for number, run in enumerate(found['runs']):
    points = [(255 * row['eps'], row['test_accuracy']) for row in run['accuracies']]
    axes.plot(*zip(*points, strict=True), '-' if number < len(COLOURS) else '--', marker='o',
              color=COLOURS[number % len(COLOURS)],
              label=f'{run["name"]}: {run["network"]}, training {run["train"]}')
  axes.set(xlabel='largest change of a pixel, of 255 levels', ylabel='test accuracy',
           ylim=(0, 1.02), title='FGSM' if not found['steps'] else f'PGD, {found["steps"]} steps')
  axes.grid(alpha=0.3)
  figure.legend(loc='outside lower center', ncols=1, fontsize='small')
  _save(figure, path)


def _layer_axis(axes, names):
  """Names the layers below the axes: all of them, or where there are many the stages' first."""
  stages = [name.split('/')[0] for name in names]
  places = [i for i, stage in enumerate(stages)
            if len(names) <= 50 or i == 0 or stage != stages[i - 1]]
  axes.set_xticks(places, [names[i] for i in places], rotation=90, fontsize='x-small')
  axes.set(xlim=(-0.6, len(names) - 0.4), xlabel='layer, from the images to the output')


def _width(names):
  return min(14, max(6.5, 0.22 * len(names)))


def image_sheet(path: epath.Path, images: list[np.ndarray], names: list[str],
                title: str) -> None:
  """Draws images uint8 [H, W, C] in rows of eight, each below its name."""
  rows = -(-len(images) // 8)
  figure, axes = pyplot().subplots(rows, 8, figsize=(10, 1.35 * rows + 0.5), layout='constrained',
                              squeeze=False)
  for place in axes.flat:
    place.set_axis_off()
  for place, image, name in zip(axes.flat, images, names, strict=False):
    place.imshow(np.repeat(image, 3 // image.shape[-1], -1))
    place.set_title(textwrap.shorten(name, 18, placeholder='...'), fontsize='x-small')
  figure.suptitle(title, fontsize='medium')
  path.parent.mkdir(parents=True, exist_ok=True)
  _write(figure, path)


def _save(figure, path):
  title = figure.axes[0].get_title()
  figure.axes[0].set_title('\n'.join(textwrap.wrap(title, 70)), fontsize='medium')
  _write(figure, path)


def _write(figure, path):
  png = io.BytesIO()  # matplotlib itself knows no buckets
  figure.savefig(png, format='png', dpi=120)
  path.write_bytes(png.getvalue())
  pyplot().close(figure)
