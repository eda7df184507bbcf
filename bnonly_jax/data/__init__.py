"""Data sets by name, through TFDS and without TensorFlow: their arrays, the indices of batches."""

import json
import os
import pathlib
import re
from typing import NamedTuple

import numpy as np

from bnonly_jax import seeds
from bnonly_jax.config import UserError


class Images(NamedTuple):
  """A split of a data set, kept whole."""
  images: np.ndarray  # uint8 [N, H, W, C]
  labels: np.ndarray  # int32 [N]


class Info(NamedTuple):
  """What a prepared data set says of itself."""
  path: pathlib.Path
  image_shape: tuple[int, int, int]  # height, width, channels
  classes: int
  train_images: int
  test_images: int


def directory(data_dir: str) -> pathlib.Path:
  """Returns the folder of prepared data sets; '' stands for TFDS's own."""
  default = os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets'
  return pathlib.Path(data_dir or default).expanduser()


def versions(name: str, root: pathlib.Path) -> list[pathlib.Path]:
  """Returns the folders of the prepared versions of a data set, or with '**' of all data sets."""
  if name != '**' and not re.fullmatch(r'\w[\w-]*(/\w[\w.+-]*)?', name):
    return []
  return [path.parent for path in root.glob(f'{name}/*/dataset_info.json')
          if re.fullmatch(r'\d+\.\d+\.\d+', path.parent.name)]


def find(name: str, data_dir: str) -> Info:
  """Looks up a prepared data set, touching neither network nor TensorFlow.

  Args:
    name: TFDS's, as 'cifar10' or 'name/config'. The newest version there is counts.
    data_dir: the folder of prepared data sets, or ''.

  Raises:
    UserError: it is not prepared, not as ArrayRecord, or holds no images of one size with labels.
  """
  root = directory(data_dir)
  remedy = f'Prepare it: python -m bnonly_jax.data.prepare --dataset={name}'
  if name == 'cifar10_jpeg':
    remedy += ' --source=PATH'
  if data_dir:
    remedy += f' --data_dir={data_dir}'
  if name == 'digits':  # prepares itself when a run starts
    return Info(root / 'digits' / '1.0.0', (8, 8, 1), 10, 1437, 360)
  found = versions(name, root)
  if not found:
    prepared = sorted({path.parent.relative_to(root).as_posix() for path in versions('**', root)})
    raise UserError(f'config.data.name is {name!r}, which is not prepared in {root}; there is:'
                    f' {", ".join(prepared) or "none"}. {remedy}')
  path = max(found, key=lambda p: [int(n) for n in p.name.split('.')])
  file_format = json.loads((path / 'dataset_info.json').read_text()).get('fileFormat', 'tfrecord')
  if file_format != 'array_record':
    raise UserError(f'config.data.name is {name!r}, prepared in {path} as {file_format}; allowed is'
                    f' array_record. Move that folder away. {remedy}')

  import tensorflow_datasets as tfds
  info = tfds.builder_from_directory(path).info
  if not {'image', 'label'} <= set(info.features) or 'train' not in info.splits:
    raise UserError(f'config.data.name is {name!r}, with features {", ".join(info.features)} and'
                    f' splits {", ".join(info.splits)}; needed are image, label and train, test.'
                    ' Choose an image classification data set.')
  shape, test = info.features['image'].shape, _test_split(info)
  if None in shape or test is None:
    raise UserError(f'config.data.name is {name!r}, with images of shape {shape} and splits'
                    f' {", ".join(info.splits)}; needed are images of one size, and test or'
                    ' validation. Choose another data set.')
  return Info(path, shape, info.features['label'].num_classes, info.splits['train'].num_examples,
              info.splits[test].num_examples)


def _test_split(info):
  return next((split for split in ('test', 'validation') if split in info.splits), None)


def load(path: pathlib.Path) -> tuple[Images, Images]:
  """Reads the training and the test images of a prepared data set, in its own order."""
  import tensorflow_datasets as tfds
  builder = tfds.builder_from_directory(path)

  def read(split):
    source = builder.as_data_source(split)
    images = np.empty((len(source), *builder.info.features['image'].shape), np.uint8)
    labels = np.empty(len(source), np.int32)
    for start in range(0, len(source), 1000):  # in bulk: three times faster than one by one
      rows = range(start, min(start + 1000, len(source)))
      for i, example in zip(rows, source.__getitems__(rows), strict=True):
        images[i], labels[i] = example['image'], example['label']
    return Images(images, labels)

  return read('train'), read(_test_split(builder.info))


def subsample(train_set: Images, number: int, seed: int) -> Images:
  """Returns `number` of the training images, chosen by the seed, in their old order."""
  if number == len(train_set.labels):
    return train_set
  chosen = seeds.host_generator(seed, 'subsample').permutation(len(train_set.labels))[:number]
  chosen.sort()
  return Images(train_set.images[chosen], train_set.labels[chosen])


def randomise_labels(train_set: Images, share: float, classes: int, seed: int) -> Images:
  """Replaces a share of the labels by uniformly drawn classes (Zhang et al., arXiv 1611.03530).

  A drawn class can be the old one. A larger share replaces the same labels by the same classes and
  more besides.
  """
  generator = seeds.host_generator(seed, 'random_labels')
  replaced = generator.permutation(len(train_set.labels))[:round(share * len(train_set.labels))]
  drawn = generator.integers(0, classes, len(train_set.labels), np.int32)
  labels = train_set.labels.copy()
  labels[replaced] = drawn[replaced]
  return train_set._replace(labels=labels)


def train_indices(seed: int, step: int, images: int, batch_size: int,
                  epoch_order: dict[int, np.ndarray]) -> np.ndarray:
  """Returns the images that a training step takes.

  An epoch is one permutation keyed by (seed, epoch), cut into batches; the rest is dropped.

  Args:
    seed: the experiment's.
    step: number of the step, from 0.
    images: size of the training set.
    batch_size: global.
    epoch_order: a dictionary that keeps the current epoch's permutation from call to call.

  Returns:
    int32 [batch_size].
  """
  epoch, position = divmod(step, images // batch_size)
  if epoch not in epoch_order:
    epoch_order.clear()
    epoch_order[epoch] = seeds.host_generator(seed, f'epoch/{epoch}').permutation(images)
  return epoch_order[epoch][position * batch_size:][:batch_size].astype(np.int32)


def eval_batches(images: int, batch_size: int) -> list[tuple[np.ndarray, np.ndarray]]:
  """Cuts a split into batches of one size; the last is filled up with image 0 at weight 0.

  Returns:
    Pairs (index int32 [batch_size], weight float32 [batch_size]).
  """
  batches = []
  for start in range(0, images, batch_size):
    index = np.arange(start, start + batch_size)
    weight = (index < images).astype(np.float32)
    batches.append((np.where(index < images, index, 0).astype(np.int32), weight))
  return batches
