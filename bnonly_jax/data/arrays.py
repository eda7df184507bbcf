"""Data sets that are given as NumPy arrays, from Python."""

import hashlib
from typing import Any

import ml_collections
import numpy as np

from bnonly_jax.config import require
from bnonly_jax.config import UserError
from bnonly_jax.data import resident
from bnonly_jax.data.sets import Images
from bnonly_jax.data.sets import in_use
from bnonly_jax.data.sets import Info

NAME = 'arrays'  # config.data.name of a run on them


def given(train_set: tuple[Any, Any], test_set: tuple[Any, Any]
          ) -> tuple[Info, dict[str, Images]]:
  """Checks two splits, and says of them what a prepared data set says of itself.

  Args:
    train_set: images, uint8 [N, H, W, C], and labels, whole numbers [N] from 0.
    test_set: the same.

  Returns:
    The info, whose version is a digest of all values, and the splits train and test by name.

  Raises:
    UserError: they are no such arrays.
  """
  splits = {name: _split(f'{name}_set', value)
            for name, value in (('train', train_set), ('test', test_set))}
  train, test = splits['train'], splits['test']
  shape = train.images.shape[1:]
  if test.images.shape[1:] != shape:
    raise UserError(f'the images of test_set are {test.images.shape[1:]}; allowed is {shape}, as'
                    ' those of train_set are. Resize them.')
  classes = int(train.labels.max()) + 1
  if test.labels.max() >= classes or classes < 2:
    raise UserError(f'the labels of train_set are up to {classes - 1} and those of test_set up to'
                    f' {test.labels.max()}; needed are two classes or more in train_set, and no'
                    ' others in test_set. Number the classes from 0.')
  digest = hashlib.sha256()
  for array in (*train, *test):
    digest.update(f'{array.shape}'.encode() + array.tobytes())
  return Info(None, digest.hexdigest()[:16], shape, shape, tuple(map(str, range(classes))),
              len(train.labels), len(test.labels), 'test'), splits


def instead(config: ml_collections.ConfigDict, train_set: tuple[Any, Any] | None,
            test_set: tuple[Any, Any] | None
            ) -> tuple[ml_collections.ConfigDict, Info | None, dict[str, Images] | None]:
  """Returns a run's config, info and splits if arrays are given; else the config and None twice.

  Raises:
    UserError: as `given` and `named`.
  """
  if train_set is None and test_set is None:
    return config, None, None
  info, splits = given(train_set, test_set)
  return named(config, info), info, splits


def named(config: ml_collections.ConfigDict, info: Info) -> ml_collections.ConfigDict:
  """Returns the config of a run on given arrays.

  Raises:
    UserError: a field of config.data asks for what only images that are decoded can have.
  """
  config = config.copy_and_resolve_references()
  config.data.name = NAME
  for field, allowed in (('image_size', 0), ('channels', 0)):
    require(config, f'data.{field}', f'{allowed} with arrays: give them as the network takes them',
            config.data[field] == allowed)
  require(config, 'data.test_split', "test or '' with arrays",
          config.data.test_split in ('', 'test'))
  used = in_use(config, info)
  if not resident.is_resident(config, used):
    size = resident.size(config, used) / 2**30
    raise UserError(f'train_set and test_set take {size:.1f} GiB on each device, more than'
                    f' config.data.resident_limit = {config.data.resident_limit}. Raise it, or'
                    ' prepare the images as a data set (config.data.name = \'folder:PATH\').')
  return config


def _split(name, value):
  try:
    images, labels = map(np.asarray, value)
  except (TypeError, ValueError) as error:
    raise UserError(f'{name} is {type(value).__name__}; allowed is a pair of arrays. Give'
                    f' {name}=(images, labels).') from error
  said = f'{name} has images {images.dtype} {list(images.shape)} and labels {labels.dtype}' \
         f' {list(labels.shape)}'
  if images.dtype != np.uint8 or images.ndim != 4 or 0 in images.shape:
    raise UserError(f'{said}; images allowed are uint8 [N, height, width, channels]. Convert them:'
                    ' the mean and spread of their pixels are config.data.mean and .std.')
  if labels.shape != images.shape[:1] or labels.dtype.kind not in 'iu' or labels.min() < 0:
    raise UserError(f'{said}; labels allowed are whole numbers [{len(images)}] from 0. Convert'
                    ' them.')
  return Images(images, labels.astype(np.int32))
