r"""Draws what a network sees: training images as augmented, and evaluation images, with labels.

  python -m bnonly_jax.data.show --config=configs/cifar10.py --out=DIR [--config.FIELD=VALUE ...]

writes DIR/train.png and DIR/eval.png, 64 images each.
"""

import contextlib
import pathlib

from absl import flags
from etils import epath
import ml_collections

from bnonly_jax import command_line
from bnonly_jax.config import UserError

_NUMBER = 64


def show(config: ml_collections.ConfigDict, out: str | pathlib.Path) -> list[epath.Path]:
  """Draws the first training images of the run and the first evaluation images.

  Args:
    config: the run's.
    out: a folder, made if it is not there.

  Returns:
    The paths of the two PNG files.

  Raises:
    UserError: as `experiment.build`, or an image is bad, or the folder cannot be written.
  """
  import numpy as np

  from bnonly_jax import experiment
  from bnonly_jax.data import augment
  from bnonly_jax.data import device
  from bnonly_jax.data import prepare
  from bnonly_jax.run import plots
  out = epath.Path(out).expanduser()
  config = ml_collections.ConfigDict({**config.to_dict(), 'replicates': 1})  # the first
  run = experiment.build(config)
  info = run.info
  if config.data.name == 'digits':
    prepare.prepare('digits', config.data.dir)
  source = experiment.open_source(run)

  def first(batches):
    images, names = [], []
    for some, labels in batches:
      images += list(some)
      names += [info.class_names[label] for label in labels]
      if len(names) >= _NUMBER:
        break
    return images[:_NUMBER], names[:_NUMBER]

  def training():
    for step, (batch, _) in enumerate(source.train_batches(0)):
      batch = device.look_up(source.train_set, batch, info.image_shape)
      positions = np.arange(len(batch.labels), dtype=np.int32)
      images, _ = augment.augment(batch, config.seed, np.int32(step), positions, run.preparation)
      yield np.asarray(images), batch.labels

  def evaluation():
    for batch, weight in source.eval_batches(config.eval_batch_size):
      images, labels = device.look_up(source.test_set, batch, info.image_shape)
      yield images[weight > 0], labels[weight > 0]

  title = f'{config.data.name}: %s, {"x".join(map(str, info.image_shape))}'
  paths = []
  for name, batches, what in (('train', training(), f'training images of seed {config.seed}'),
                              ('eval', evaluation(), f'images of split {info.test_split}')):
    paths.append(out / f'{name}.png')
    images, names = first(batches)
    with _told_of(out):
      plots.image_sheet(paths[-1], images, names, title % what)
  return paths


@contextlib.contextmanager
def _told_of(out):
  try:
    yield
  except OSError as error:
    raise UserError(f'--out={out} cannot be written ({error.strerror or error}); allowed is a'
                    ' folder, new or not. Choose another --out.') from error


if __name__ == '__main__':
  _CONFIG = command_line.define_config()
  _OUT = flags.DEFINE_string('out', None, 'Folder for train.png and eval.png, made if need be.')
  command_line.run(
      lambda: print('\n'.join(str(path) for path in show(_CONFIG.value, _OUT.value))),
      lambda: '' if _CONFIG.value and _OUT.value else
      '--config=FILE.py[:ARGUMENT] and --out=DIR are both needed. Try'
      ' --config=configs/digits.py --out=runs/show, or --help.')
