"""Data sets that are decoded on the host as training goes, by Grain's threads or processes."""

from collections.abc import Iterator
import dataclasses
import os
import signal
import threading
import time
from typing import Any

from absl import flags
import ml_collections
import numpy as np

from bnonly_jax import seeds
from bnonly_jax.data import batches
from bnonly_jax.data import decode
from bnonly_jax.data import records as records_lib
from bnonly_jax.data import sets


@dataclasses.dataclass(frozen=True)
class TrainBatches:
  """Step number to batch: what a process takes in a training step, the same whoever asks."""
  config: ml_collections.ConfigDict
  info: sets.Info
  process: int
  processes: int
  records: Any
  chosen: np.ndarray  # the records in use
  drawn: np.ndarray  # their labels; -1: their own

  def __len__(self) -> int:
    return self.config.epochs * (self.info.train_images // self.config.batch_size)

  def __getitem__(self, step: int) -> dict[str, Any]:
    """Returns `images` uint8 [n, H, W, C], `labels` int32 [n] and `bad`."""
    config, form = self.config, sets.form(self.config, self.info)
    index = batches.own_slice(batches.train_indices(
        config.seed, step, self.info.train_images, config.batch_size),
                              self.process, self.processes)
    first = self.process * len(index)  # place of this process's images in the global batch

    def decode_at(file, position):
      if not config.data.image_size:
        return decode.whole(file, form)
      generator = seeds.host_generator(config.seed, f'crop/{step}/{first + position}')
      return decode.random_crop(file, form, generator)

    images = np.zeros((len(index), *self.info.image_shape), np.uint8)
    labels, bad = records_lib.read_images(self.records, self.chosen[index].tolist(),
                                          self.info.classes, decode_at, images, replace=True)
    labels = np.where(self.drawn[index] < 0, labels, self.drawn[index])
    return {'images': images, 'labels': labels, 'bad': _pack(bad)}


@dataclasses.dataclass(frozen=True)
class EvalBatches:
  """Number to batch of an evaluation."""
  config: ml_collections.ConfigDict
  info: sets.Info
  batch_size: int  # global
  process: int
  processes: int
  records: Any

  def __len__(self) -> int:
    return -(-self.info.test_images // self.batch_size)

  def __getitem__(self, number: int) -> dict[str, Any]:
    """Returns `images` uint8 [n, H, W, C], `labels` int32 [n], `weight` float32 [n] and `bad`."""
    config, form = self.config, sets.form(self.config, self.info)
    index, weight = (batches.own_slice(x, self.process, self.processes) for x in
                     batches.eval_indices(self.info.test_images, self.batch_size)[number])
    decoder = decode.centre_crop if config.data.image_size else decode.whole
    images = np.zeros((len(index), *self.info.image_shape), np.uint8)
    labels, real = np.zeros(len(index), np.int32), int(weight.sum())
    labels[:real], bad = records_lib.read_images(
        self.records, index[:real].tolist(), self.info.classes,
        lambda file, _: decoder(file, form), images[:real], replace=False)
    weight[[image.position for image in bad]] = 0
    return {'images': images, 'labels': labels, 'weight': weight, 'bad': _pack(bad)}


def _pack(bad):
  """Returns the bad images as text, which also passes between processes."""
  return np.array('\n'.join('\t'.join(map(str, image)) for image in bad))


def _unpack(batch):
  lines = [line.split('\t', 2) for line in str(batch['bad']).splitlines()]
  return [records_lib.Bad(int(position), record, rule) for position, record, rule in lines]


def train_source(config: ml_collections.ConfigDict, info: sets.Info, process: int = 0,
                 processes: int = 1) -> TrainBatches:
  """Opens the training split; arguments as for `open_source`."""
  records = sets.open_split(info, 'train')
  return TrainBatches(
      config, info, process, processes, records,
      batches.subsample(len(records), info.train_images, config.seed),
      batches.random_labels(info.train_images, config.data.random_labels, info.classes,
                            config.seed))


def open_source(config: ml_collections.ConfigDict, info: sets.Info, process: int = 0,
                processes: int = 1) -> sets.Source:
  """Opens a data set; nothing is decoded yet.

  Args:
    config: the run's.
    info: the data set's, train_images being the number in use.
    process: which process feeds its part of every batch.
    processes: of how many.

  Returns:
    A source whose batches raise UserError at a bad image, if config.data.bad_images is stop.
  """
  skip = config.data.bad_images == 'skip'
  train = train_source(config, info, process, processes)
  tests = sets.open_split(info, info.test_split)

  def train_batches(start):
    for batch in _decoded(train, start, config):
      bad = _unpack(batch)
      if not skip:
        records_lib.refuse(bad)
      yield sets.Images(batch['images'], batch['labels']), len({image.position for image in bad})

  def eval_batches(batch_size):
    left_out = []
    for batch in _decoded(EvalBatches(config, info, batch_size, process, processes, tests), 0,
                          config):
      left_out += _unpack(batch)
      if not skip:
        records_lib.refuse(left_out)
      yield sets.Images(batch['images'], batch['labels']), batch['weight']
    if process == 0:
      records_lib.report(info.test_split, 'left out', left_out)

  return sets.Source(None, None, train_batches, eval_batches)


def _begin_worker(*_: int) -> None:
  """Lets a worker process end with its parent, whatever ends that, and Ctrl-C pass it by."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  parent = os.getppid()

  def watch():
    while os.getppid() == parent:
      time.sleep(1)
    os._exit(1)

  threading.Thread(target=watch, daemon=True).start()


def _decoded(source: TrainBatches | EvalBatches, start: int,
             config: ml_collections.ConfigDict) -> Iterator[dict[str, Any]]:
  """Yields the batches from `start` on, in order, several being decoded at the same time."""
  import grain
  workers = config.data.workers or min(len(os.sched_getaffinity(0)), 32)
  batches_left = grain.MapDataset.source(source)[start:]
  processes = config.data.worker_kind == 'processes'
  if not processes:
    iterator = iter(batches_left.to_iter_dataset(
        grain.ReadOptions(num_threads=workers, prefetch_buffer_size=workers + 1)))
  else:
    if not flags.FLAGS.is_parsed():  # Grain reads flags of its own, also where there is no main
      flags.FLAGS.mark_as_parsed()
    iterator = iter(
        batches_left.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=1))
        .mp_prefetch(grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=1),
                     worker_init_fn=_begin_worker))
  try:
    for batch in iterator:
      # Copies, since Grain frees what its processes share only once nothing refers to it.
      yield {name: np.array(value) for name, value in batch.items()} if processes else batch
  finally:
    iterator.close()
