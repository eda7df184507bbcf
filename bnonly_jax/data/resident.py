"""Data sets that are kept whole on every device: decoded once, indexed by every step."""

from concurrent.futures import ThreadPoolExecutor
import itertools
import os

import ml_collections
import numpy as np

from bnonly_jax.data import batches
from bnonly_jax.data import decode
from bnonly_jax.data import device
from bnonly_jax.data import records as records_lib
from bnonly_jax.data import sets

_CHUNK = 1000  # records read at once by a thread


def is_resident(config: ml_collections.ConfigDict, info: sets.Info) -> bool:
  """Whether a data set is kept whole on every device: what is decoded once and fits.

  Args:
    config: the run's. Replicates may each use other images.
    info: the data set's, train_images being the number that each uses.
  """
  return not config.data.image_size and size(config, info) <= config.data.resident_limit * 2**30


def size(config: ml_collections.ConfigDict, info: sets.Info) -> float:
  """Returns the bytes that a data set takes on each device; the arguments are `is_resident`'s."""
  train_images = info.train_images * min(config.replicates, 1 / config.data.subsample)
  return device.row_size(info.image_shape) * (train_images + info.test_images)


def open_source(config: ml_collections.ConfigDict, info: sets.Info, process: int = 0,
                processes: int = 1, given: dict[str, sets.Images] | None = None) -> sets.Source:
  """Loads a data set.

  Args:
    config: the run's.
    info: the data set's, train_images being the number in use.
    process: which process feeds its part of every batch.
    processes: of how many.
    given: the splits, of a data set that is given as arrays.

  Raises:
    UserError: an image is bad, and config.data.bad_images is stop.
  """
  skip = config.data.bad_images == 'skip'
  opened = given or {split: sets.open_split(info, split) for split in ('train', info.test_split)}
  number = {split: len(records.labels) if given else len(records)
            for split, records in opened.items()}
  seeds = range(config.seed, config.seed + config.replicates)
  chosen = [batches.subsample(number['train'], info.train_images, seed) for seed in seeds]
  used = np.unique(chosen)
  places = [np.searchsorted(used, indices).astype(np.int32) for indices in chosen]
  train, bad = load(config, info, opened['train'], used, replace=skip)
  if config.data.random_labels:
    drawn = batches.random_labels(info.train_images, config.data.random_labels, info.classes,
                                  config.seed)
    train = train._replace(labels=np.where(drawn < 0, train.labels, drawn))
  test, bad_tests = load(config, info, opened[info.test_split],
                         np.arange(number[info.test_split]), replace=False)
  if skip and process == 0:
    records_lib.report('train', 'replaced', bad)
    records_lib.report(info.test_split, 'left out', bad_tests)
  if not skip:
    records_lib.refuse(bad + bad_tests)
  good = np.ones(len(test.labels), np.float32)
  good[[image.position for image in bad_tests]] = 0

  def train_batches(start):
    for step in itertools.count(start):
      index = [place[batches.train_indices(seed, step, info.train_images, config.batch_size)]
               for seed, place in zip(seeds, places, strict=True)]
      index = np.stack(index, -1) if len(index) > 1 else index[0]
      yield batches.own_slice(index, process, processes), 0

  def eval_batches(batch_size):
    for index, weight in batches.eval_indices(len(test.labels), batch_size):
      yield tuple(batches.own_slice(x, process, processes) for x in (index, weight * good[index]))

  return sets.Source(train, test, train_batches, eval_batches)


def load(config: ml_collections.ConfigDict, info: sets.Info,
         records: records_lib.Folder | records_lib.ArrayRecords | sets.Images, indices: np.ndarray,
         replace: bool) -> tuple[sets.Images, list[records_lib.Bad]]:
  """Decodes records of a split on all cores; of images that are given decoded, takes them.

  Returns:
    Images as `device.rows` lays them out, with labels; and the bad images, as
    `records.read_images` says.
  """
  if isinstance(records, sets.Images):
    return sets.Images(device.rows(records.images[indices]), records.labels[indices]), []
  form = sets.form(config, info)
  images = np.zeros((len(indices), *info.image_shape), np.uint8)

  def chunk(start):
    labels, bad = records_lib.read_images(
        records, indices[start:start + _CHUNK].tolist(), info.classes,
        lambda file, _: decode.whole(file, form), images[start:start + _CHUNK], replace)
    return labels, [image._replace(position=start + image.position) for image in bad]

  with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
    parts = list(pool.map(chunk, range(0, len(indices), _CHUNK)))
  return (sets.Images(device.rows(images), np.concatenate([labels for labels, _ in parts])),
          [image for _, bad in parts for image in bad])
