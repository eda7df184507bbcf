"""Data sets by name, through TFDS and without TensorFlow: what there is and what it holds."""

from collections.abc import Callable
from collections.abc import Iterator
import hashlib
import json
import os
import pathlib
import re
from typing import Any
from typing import NamedTuple

import ml_collections
import numpy as np

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
    UserError: it is another than ArrayRecord.
  """
  found = json.loads((path / 'dataset_info.json').read_text()).get('fileFormat', 'tfrecord')
  if found != 'array_record':
    raise UserError(f'{path} is prepared as {found}; allowed is array_record. Move that folder'
                    f' away. {remedy}')


def find(config: ml_collections.ConfigDict) -> Info:
  """Looks up a prepared data set or a folder, touching neither network nor TensorFlow.

  Args:
    config: the whole config; the fields in config.data count. The newest version there is counts.

  Raises:
    UserError: it is not prepared, not as ArrayRecord, has no images with labels, an empty split or
      class, or images of several sizes while config.data.image_size is 0.
  """
  name = config.data.name
  if name == 'digits':  # prepares itself when a run starts
    info = Info(directory(config.data.dir) / 'digits' / '1.0.0', '1.0.0', (8, 8, 1), (),
                tuple('0123456789'), 1437, 360, 'test')
  elif name.startswith('folder:'):
    info = _find_folder(config)
  else:
    info = _find_prepared(config)
  for split, images in (('train', info.train_images), (info.test_split, info.test_images)):
    if not images:
      raise UserError(f'config.data.name is {name!r}, whose split {split} is empty; needed is at'
                      ' least one image. Fill it, or choose another data set.')
  channels = config.data.channels or info.stored_shape[2]
  size = config.data.image_size
  require(config, 'data.image_size', f'a number of pixels, since the images of {name} are of'
          ' several sizes: 224 is the usual one for ImageNet', size or info.stored_shape[0])
  return info._replace(image_shape=(*((size, size) if size else info.stored_shape[:2]), channels))


def _find_prepared(config):
  name, data_dir = config.data.name, config.data.dir
  root = directory(data_dir)
  remedy = f'Prepare it: python -m bnonly_jax.data.prepare --dataset={name}'
  if name == 'cifar10_jpeg':
    remedy += ' --source=PATH'
  if data_dir:
    remedy += f' --data_dir={data_dir}'
  path = newest_version(name, root)
  if path is None:
    prepared = sorted({path.parent.relative_to(root).as_posix() for path in versions('**', root)})
    raise UserError(f'config.data.name is {name!r}, which is not prepared in {root}; there is:'
                    f' {", ".join(prepared) or "none"}. {remedy}')
  require_array_record(path, remedy)
  import tensorflow_datasets as tfds
  info = tfds.builder_from_directory(path).info
  splits = {split: info.splits[split].num_examples for split in info.splits}
  if not {'image', 'label'} <= set(info.features) or 'train' not in splits:
    raise UserError(f'config.data.name is {name!r}, with features {", ".join(info.features)} and'
                    f' splits {", ".join(splits)}; needed are image, label and train.'
                    ' Choose an image classification data set.')
  test = _test_split(config, splits)
  height, width, channels = info.features['image'].shape
  return Info(path, path.name, (height, width, channels or 3), (),
              tuple(info.features['label'].names), splits['train'], splits[test], test)


def _find_folder(config):
  path = pathlib.Path(config.data.name.removeprefix('folder:')).expanduser().absolute()
  suffixes = ', '.join(records.IMAGE_SUFFIXES)
  layout = f'PATH/train/CLASS/* and PATH/test/CLASS/* with files {suffixes}'
  if not (path / 'train').is_dir():
    raise UserError(f'config.data.name is {config.data.name!r}, but there is no folder'
                    f' {path / "train"}; allowed is folder:PATH with {layout}.')
  test = _test_split(config, sorted(p.name for p in path.iterdir() if p.is_dir()))
  classes = sorted(p.name for p in (path / 'train').iterdir() if p.is_dir())
  foreign = {p.name for p in (path / test).iterdir() if p.is_dir()} - set(classes)
  if foreign:
    raise UserError(f'{path / test} has the class {min(foreign)}, and {path / "train"} has not;'
                    f' allowed are {", ".join(classes[:20])}. Rename or move that folder away.')
  train, tested = (records.open_folder(path, split, classes) for split in ('train', test))
  present = set(train.labels)
  for label, name in enumerate(classes):
    if label not in present:
      raise UserError(f'the class folder {path / "train" / name} holds no image; needed are files'
                      f' {suffixes}. Fill it, or remove it.')
  shape = (None, None, 3)
  if not config.data.image_size and train.paths:
    try:
      shape = decode.read_header(train.paths[0].read_bytes())
    except decode.BadImage as rule:
      raise UserError(f'{train.paths[0]}: {rule}; allowed are JPEG and PNG of 8 bits a channel,'
                      ' grey or colour. Repair or remove it: the first image says what size all'
                      ' have.') from rule
  files = '\n'.join(str(p.relative_to(path)) for split in (train, tested) for p in split.paths)
  version = hashlib.sha256(files.encode()).hexdigest()[:16]
  stored = (*shape[:2], 3 if config.data.channels else shape[2])
  return Info(path, version, stored, (), tuple(classes), len(train), len(tested), test)


def _test_split(config, splits):
  allowed = [split for split in splits if split != 'train']
  if config.data.test_split:
    require(config, 'data.test_split', ', '.join(allowed) or 'a split beside train: there is none',
            config.data.test_split in allowed)
    return config.data.test_split
  found = next((split for split in ('test', 'validation', 'val') if split in splits), None)
  if found is None:
    raise UserError(f'config.data.name is {config.data.name!r}, with splits {", ".join(splits)};'
                    ' needed is one to test on. Set --config.data.test_split=...')
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


def find_or_assume(config: ml_collections.ConfigDict) -> tuple[Info, bool]:
  """Looks up the data set; without one it is CIFAR-10's size, or ImageNet's for its networks.

  Returns:
    What there is to say of it, and whether it is prepared.
  """
  try:
    return find(config), True
  except UserError:
    large = config.network.startswith('imagenet')
    shape = (224, 224, 3) if large else (32, 32, 3)
    return Info(None, '', shape, shape, ('',) * (1000 if large else 10),
                     1_281_167 if large else 50_000, 50_000 if large else 10_000, 'test'), False
