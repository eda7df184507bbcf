"""The plots of one run."""

import io
import textwrap

from etils import epath
import numpy as np

from bnonly_jax import masks
from bnonly_jax import metrics

# Okabe and Ito's colours, which people of any colour vision tell apart.
_BLUE, _ORANGE, _GREY = '#0072B2', '#E69F00', '#999999'


def _pyplot():
  # Imported where it is used, at the end of a run: it takes as long as preparing a small data set.
  import matplotlib
  matplotlib.use('agg')
  import matplotlib.pyplot
  return matplotlib.pyplot


def gammas(*params: dict) -> np.ndarray:
  """Returns every gamma in parameters, or in a half of them, in one vector."""
  return np.concatenate([np.zeros(0, np.float32)] + [
      np.ravel(value) for tree in params for name, value in masks.flatten(tree).items()
      if masks.group_of(name) == 'gamma' and value is not None])


def accuracy_over_epochs(workdir: epath.Path, title: str) -> None:
  """Draws training and test accuracy as metrics.jsonl has them."""
  lines = metrics.read(workdir)
  figure, axes = _pyplot().subplots(figsize=(6, 4), layout='constrained')
  for key, label, colour in (('train_accuracy', 'training batches, augmented', _ORANGE),
                             ('test_accuracy', 'test', _BLUE)):
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
  figure, axes = _pyplot().subplots(figsize=(6, 4), layout='constrained')
  lost = np.sum(~np.isfinite(end))
  end = end[np.isfinite(end)]
  bins = np.histogram_bin_edges(np.concatenate([start, end]), 60)
  axes.hist(start, bins, label='start', color=_GREY, alpha=0.6)
  axes.hist(end, bins, label=f'end ({lost} not finite)' if lost else 'end', color=_BLUE,
            histtype='step', linewidth=1.5)
  axes.set(xlabel='gamma', ylabel='number of features', title=title)
  axes.grid(alpha=0.3)
  axes.legend()
  _save(figure, workdir / 'gamma.png')


def image_sheet(path: epath.Path, images: list[np.ndarray], names: list[str],
                title: str) -> None:
  """Draws images uint8 [H, W, C] in rows of eight, each below its name."""
  rows = -(-len(images) // 8)
  figure, axes = _pyplot().subplots(rows, 8, figsize=(10, 1.35 * rows + 0.5), layout='constrained',
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
  _pyplot().close(figure)
