"""Data sets by name, through TFDS and without TensorFlow: what there is and what it holds."""

from collections.abc import Callable
from collections.abc import Iterator
import difflib
import hashlib
import json
import os
import pathlib
import re
from typing import Any
from typing import NamedTuple

import ml_collections
import numpy as np

from bnonly_jax import models
from bnonly_jax.config import require
from bnonly_jax.config import UserError
from bnonly_jax.data import decode
from bnonly_jax.data import records


class Images(NamedTuple):
  """Images with their labels: a whole split, or a batch."""
  images: np.ndarray  # uint8 [N, H, W, C]
  labels: np.ndarray  # int32 [N]


class Source(NamedTuple):
  """What training takes its images from."""
  train_set: Images | None  # whole, images as `device.rows` lays them out; None: streamed
  test_set: Images | None
  # From a step on: what the step takes (int32 [n] into train_set, of several replicates [n, R]; or
  # Images [n]), and how many bad images were replaced in it.
  train_batches: Callable[[int], Iterator[tuple[Any, int]]]
  # From the global batch size: what an evaluation takes, in batches, and the images' weights
  # float32 [n], 0 where there is no good image.
  eval_batches: Callable[[int], Iterator[tuple[Any, np.ndarray]]]


class Info(NamedTuple):
  """What a data set says of itself."""
  path: pathlib.Path | None
  version: str
  stored_shape: tuple[int | None, int | None, int]  # height, width (None: any) and channels
  image_shape: tuple[int, int, int]  # as the network takes them
  class_names: tuple[str, ...]
  train_images: int
  test_images: int
  test_split: str
  left_out: str = ''  # files of a folder that are no images, counted

  @property
  def classes(self) -> int:
    return len(self.class_names)


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


def newest_version(name: str, root: pathlib.Path) -> pathlib.Path | None:
  """Returns the folder of the newest prepared version of a data set; None: there is none."""
  return max(versions(name, root), key=lambda p: [int(n) for n in p.name.split('.')], default=None)


def require_array_record(path: pathlib.Path, remedy: str) -> None:
  """Checks the format of a prepared data set.

  Raises:
    UserError: it is another than ArrayRecord, or cannot be told.
  """
  try:
    found = json.loads((path / 'dataset_info.json').read_text()).get('fileFormat', 'tfrecord')
  except (OSError, ValueError) as error:
    raise UserError(f'{path / "dataset_info.json"} cannot be read: {records.first_line(error)}.'
                    f' Move that folder away. {remedy}') from error
  if found != 'array_record':
    raise UserError(f'{path} is prepared as {found}; allowed is array_record. Move that folder'
                    f' away. {remedy}')


def find(config: ml_collections.ConfigDict) -> Info:
  """Looks up a prepared data set or a folder, touching neither network nor TensorFlow.

  Args:
    config: the whole config; the fields in config.data count. The newest version there is counts.

  Raises:
    UserError: it is not prepared, not as ArrayRecord, has no images with labels, an empty split or
      class, one class only, or images of several sizes while config.data.image_size is 0.
  """
  name = config.data.name
  if name == 'digits':  # prepares itself when a run starts
    info = Info(directory(config.data.dir) / 'digits' / '1.0.0', '1.0.0', (8, 8, 1), (),
                tuple('0123456789'), 1437, 360, _test_split(config, ('train', 'test'), ''))
  elif name.startswith('folder:'):
    info = _find_folder(config)
  elif name == 'arrays':
    raise UserError("config.data.name is 'arrays': images that a Python program gives; only it can"
                    ' give them again: train_and_evaluate(..., train_set=..., test_set=...).')
  else:
    info = _find_prepared(config)
  for split, images in (('train', info.train_images), (info.test_split, info.test_images)):
    if not images:
      raise UserError(f'config.data.name is {name!r}, whose split {split} is empty; needed is at'
                      ' least one image. Fill it, or choose another data set.')
  if info.classes < 2:
    raise UserError(f'config.data.name is {name!r}, of one class only ({info.class_names[0]});'
                    ' needed are two or more to tell apart. Choose another data set.')
  channels = config.data.channels or info.stored_shape[2]
  size = config.data.image_size
  require(config, 'data.image_size', f'a number of pixels, since the images of {name} are of'
          ' several sizes: 224 is the usual one for ImageNet', size or info.stored_shape[0])
  return info._replace(image_shape=(*((size, size) if size else info.stored_shape[:2]), channels))


def summary(info: Info) -> str:
  """Says in one line how many images and classes there are, and which files are left out."""
  left_out = (f'; left out: {info.left_out} (allowed are {", ".join(records.IMAGE_SUFFIXES)} in'
              ' class folders)' if info.left_out else '')
  where = f'in {info.path}' if info.path else 'given as arrays'
  return (f'data {where}: train: {info.train_images:,} images in {info.classes:,} classes;'
          f' {info.test_split}: {info.test_images:,} images{left_out}')


def _find_prepared(config):
  name = config.data.name
  path = newest_version(name, directory(config.data.dir))
  if path is None:
    raise UserError(_explain_missing(name, config.data.dir))
  require_array_record(path, _remedy(name, config.data.dir))
  info = records.open_builder(path).info
  splits = {split: info.splits[split].num_examples for split in info.splits}
  features = dict(info.features.items())
  image, label = features.get('image'), features.get('label')
  if len(getattr(image, 'shape', None) or ()) != 3 or not getattr(label, 'names', None) or (
      'train' not in splits):
    raise UserError(f'config.data.name is {name!r}, with features {", ".join(features)} and'
                    f' splits {", ".join(splits)}; needed are image, label (a class) and train.'
                    ' Choose an image classification data set.')
  test = _test_split(config, splits, 'Choose another data set')
  height, width, channels = image.shape
  return Info(path, path.name, (height, width, channels or 3), (),
              tuple(label.names), splits['train'], splits[test], test)


def _remedy(name, data_dir):
  """How to prepare a data set, or which one may have been meant."""
  import tensorflow_datasets as tfds  # a third of a second, and without TensorFlow
  command, where = 'python -m bnonly_jax.data.prepare --dataset=', f' --data_dir={data_dir}'
  where = where if data_dir else ''
  family, stock = name.split('/')[0], tfds.list_builders(with_community_datasets=False)
  if name == 'cifar10_jpeg':
    return f'Prepare it: {command}{name} --source=PATH{where}'
  if family in stock:
    manual = tfds.builder_cls(family).MANUAL_DOWNLOAD_INSTRUCTIONS
    return (f"Prepare it, which needs TensorFlow once (pip install -e '.[prepare]'):"
            f' {command}{name} {"--source=DIR" if manual else "--download"}{where}')
  if name and pathlib.Path(name).expanduser().is_dir():
    return f'For the images in that folder: --config.data.name=folder:{name}'
  prepared = [path.parent.name for path in versions('**', directory(data_dir))]
  close = difflib.get_close_matches(name, [*prepared, 'digits', 'cifar10_jpeg', *stock], 1)
  did_you_mean = f'Did you mean {close[0]}? ' if close else ''
  return (f'{did_you_mean}Allowed are folder:PATH, digits, and what {command}NAME prepares:'
          ' cifar10_jpeg and the names at https://www.tensorflow.org/datasets/catalog')


def _explain_missing(name, data_dir):
  root = directory(data_dir)
  prepared = sorted({path.parent.relative_to(root).as_posix() for path in versions('**', root)})
  return (f'config.data.name is {name!r}, which is not prepared in {root}; there is:'
          f' {", ".join(prepared) or "none"}. {_remedy(name, data_dir)}')


def _find_folder(config):
  name = config.data.name
  path = pathlib.Path(name.removeprefix('folder:')).expanduser().absolute()
  suffixes = ', '.join(records.IMAGE_SUFFIXES)
  layout = (f'Needed are train/CLASS/* and test/CLASS/* in it, a folder for each class, with files'
            f' {suffixes}')
  splits = records.class_folders(path)
  if 'train' not in splits:
    there = f'holds {", ".join(splits[:5]) or "no folders"} and not train' if path.is_dir() else (
        'is no folder')
    raise UserError(f'config.data.name is {name!r}, but {path} {there}. {layout}.')
  test = _test_split(config, splits, layout)
  classes = records.class_folders(path / 'train')
  foreign = set(records.class_folders(path / test)) - set(classes)
  if classes and foreign:
    raise UserError(f'{path / test} has the class {min(foreign)}, and {path / "train"} has not;'
                    f' allowed are {", ".join(classes[:20])}. Rename or move that folder away.')
  train, tested = (records.open_folder(path, split, classes) for split in ('train', test))
  for split, opened in (('train', train), (test, tested)):
    if not opened.paths:
      raise UserError(f'config.data.name is {name!r}, but {path / split} holds no image in a class'
                      f' folder; there is: {_counted(opened.left_out) or "nothing"}. {layout}.')
  present = set(train.labels)
  for label, class_name in enumerate(classes):
    if label not in present:
      raise UserError(f'the class folder {path / "train" / class_name} holds no image; needed are'
                      f' files {suffixes}. Fill it, or remove it.')
  shape = (None, None, 3) if config.data.image_size else _size_of_all(train)
  files = '\n'.join(str(p.relative_to(path)) for split in (train, tested) for p in split.paths)
  version = hashlib.sha256(files.encode()).hexdigest()[:16]
  stored = (*shape[:2], 3 if config.data.channels else shape[2])
  return Info(path, version, stored, (), tuple(classes), len(train), len(tested), test,
              _counted(train.left_out + tested.left_out))


def _size_of_all(train):
  """The size of the first image, which is to be that of all."""
  (file, _), = train.read([0])
  try:
    return decode.read_header(file)
  except decode.BadImage as rule:
    raise UserError(f'{train.paths[0]}: {rule}; allowed are JPEG and PNG of 8 bits a channel, grey'
                    ' or colour. Repair or remove it: the first image says what size all have.'
                    ) from rule


def _counted(left_out):
  """Says how many files of which kinds are left out, the most frequent first."""
  kinds = left_out.most_common()
  text = [f'{number:,} {kind}' for kind, number in kinds[:6]]
  others = sum(number for _, number in kinds[6:])
  return ', '.join(text + ([f'{others:,} others'] if others else []))


def _test_split(config, splits, remedy):
  allowed = [split for split in splits if split != 'train']
  if config.data.test_split:
    require(config, 'data.test_split', ', '.join(allowed) or 'a split beside train: there is none',
            config.data.test_split in allowed)
    return config.data.test_split
  found = next((split for split in ('test', 'validation', 'val') if split in splits), None)
  if found is None:
    raise UserError(f'config.data.name is {config.data.name!r}, with splits {", ".join(splits)};'
                    ' needed is one to test on: test, validation or val.'
                    + (f' If it is {" or ".join(allowed[:5])}, set --config.data.test_split.'
                       if allowed else '') + f' {remedy}.')
  return found


def open_split(info: Info, split: str) -> records.Folder | records.ArrayRecords:
  """Opens the records of a split."""
  if (info.path / split).is_dir():
    return records.open_folder(info.path, split, info.class_names)
  return records.open_array_records(info.path, split)


def form(config: ml_collections.ConfigDict, info: Info) -> decode.Form:
  """Returns what the images are decoded to."""
  return decode.Form(*info.image_shape, info.stored_shape, config.data.eval_resize,
                     tuple(config.data.crop_area), tuple(config.data.crop_ratio))


def in_use(config: ml_collections.ConfigDict, info: Info) -> Info:
  """Returns a data set with as many training images as config.data.subsample leaves."""
  return info._replace(train_images=round(config.data.subsample * info.train_images))


def _is_there(config):
  name = config.data.name
  if name.startswith('folder:'):
    return pathlib.Path(name.removeprefix('folder:')).expanduser().exists()
  return name == 'digits' or newest_version(name, directory(config.data.dir)) is not None


def find_or_assume(config: ml_collections.ConfigDict) -> tuple[Info, bool]:
  """Looks up the data set; one that is not there has CIFAR-10's size, or for networks made for
  ImageNet that one's, and the pixels and channels that config.data asks for.

  Returns:
    What there is to say of it, and whether it is prepared.

  Raises:
    UserError: it is there, and `find` refuses it.
  """
  if _is_there(config):
    return find(config), True
  side = models.image_size(config.network)
  large, size = side > 32, config.data.image_size or side
  shape = (size, size, config.data.channels or 3)
  return Info(None, '', shape, shape, ('',) * (1000 if large else 10),
              1_281_167 if large else 50_000, 50_000 if large else 10_000, 'test'), False
