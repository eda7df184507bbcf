"""`benchmark data`: how fast data sets come."""

import os
import pathlib
import tempfile
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from bnonly_jax import data
from bnonly_jax import experiment
from bnonly_jax.benchmark import common
from bnonly_jax.config import default_config
from bnonly_jax.config import UserError
from bnonly_jax.data import augment
from bnonly_jax.data import device
from bnonly_jax.data import resident
from bnonly_jax.data import streamed
from bnonly_jax.run import metrics


def write_imagenet_like(folder: pathlib.Path, number: int = 64) -> int:
  """Writes JPEG files of 500x375 with a natural image's spectrum and about 110 kB, ImageNet's mean.

  Returns:
    The mean size of a file in bytes.
  """
  rng = np.random.default_rng(0)
  height, width = 375, 500
  distance = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
  distance[0, 0] = 1 / width
  sizes = []
  for i in range(number):
    path = folder / ('train' if i < number * 3 // 4 else 'test') / 'ab'[i % 2] / f'{i:03}.jpg'
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = rng.normal(size=(3, height, width))
    pixels = np.fft.ifft2(np.fft.fft2(noise) / distance).real  # amplitude falls as 1 / frequency
    pixels = 0.8 * pixels.mean(0, keepdims=True) + 0.2 * pixels  # channels of a photo are alike
    pixels = np.clip(128 + 60 * pixels / pixels.std(), 0, 255).astype(np.uint8)
    cv2.imwrite(str(path), pixels.transpose(1, 2, 0), [cv2.IMWRITE_JPEG_QUALITY, 88])
    sizes.append(path.stat().st_size)
  return int(np.mean(sizes))


def time_to_first_batch(config: ml_collections.ConfigDict) -> None:
  """Imports everything, opens the data set, takes one batch: what a run does before it trains."""
  run = experiment.build(config)
  source, local = experiment.open_source(run), run.target.local
  batch = next(device.send_ahead(source.train_batches(0), local))
  jax.block_until_ready((device.place(source.train_set, local), batch))


def data_rates(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """Measures how fast a data set comes on the one core that the process has.

  Returns:
    `images`, `shape`, `resident` (whether it is by its size), `streamed_per_second`: images that
    one thread reads and decodes; and if it is resident `batch_milliseconds` for indexing,
    augmenting and normalising a batch on the device.
  """
  info = data.find(config)
  source = streamed.train_source(config, info)
  number = -(-256 // config.batch_size)
  seconds = common.median_seconds(lambda: [source[step] for step in range(number)])
  row = {'images': info.train_images, 'shape': info.image_shape,
         'resident': resident.is_resident(config, info),
         'streamed_per_second': number * config.batch_size / seconds}
  if row['resident']:
    run = experiment.build(config)
    source, preparation = experiment.open_source(run), run.preparation

    @jax.jit
    def prepare(whole, index, step):
      batch = device.look_up(whole, index, info.image_shape)
      positions = jnp.arange(len(index))
      images, _ = augment.augment(batch, 0, step, positions, preparation)
      return device.normalise(images, preparation)

    whole, index = jax.device_put((source.train_set, next(source.train_batches(0))[0]))
    seconds = common.median_seconds(
        lambda: [prepare(whole, index, np.int32(i)).block_until_ready() for i in range(10)]) / 10
    row['batch_milliseconds'] = 1e3 * seconds
  return row


def data_table(data_dir: str = '') -> list[dict[str, Any]]:
  """Measures every prepared data set, and JPEGs of ImageNet's size, each in new processes.

  Returns:
    For each what `data_rates` gives, `data`, and `start_seconds` from the process's start to the
    first batch on the device, on all cores: the median of seven.
  """
  root = data.directory(data_dir)
  names = sorted({path.parent.relative_to(root).as_posix() for path in data.versions('**', root)})
  cores = sorted(os.sched_getaffinity(0))
  rows = []
  with tempfile.TemporaryDirectory() as folder:
    size = write_imagenet_like(pathlib.Path(folder))
    for name in [*names, f'folder:{folder}']:
      config = default_config()
      config.data.update(name=name, dir=data_dir, mean=(0.45,), std=(0.22,))
      if name.startswith('folder:'):
        config.update(batch_size=32)
        config.data.update(image_size=224, pad=0)
      try:
        data.find(config)
      except UserError as error:
        print(f'left out: {error}')
        continue
      starts = sorted(common.child(time_to_first_batch, config, cores)[0]
                      for _ in range(common.REPEATS))
      _, row = common.child(data_rates, config, cores[:1])
      label = f'JPEGs of 500x375, {size / 1e3:.0f} kB' if name.startswith('folder:') else name
      rows.append({'data': label, **row, 'start_seconds': starts[common.REPEATS // 2]})
  return rows


def measure(config: ml_collections.ConfigDict | None, data_dir: str) -> dict[str, Any]:
  """Measures, prints, and returns what `data_table` does and the rate of the config's step."""
  result = {'data': data_table(data_dir)}
  metrics.print_columns(
      ('data set', 'images', 'shape', 'start to first batch', 'resident: a batch of 128',
       'streamed: images/s a core'),
      [(row['data'], f'{row["images"]:,}', 'x'.join(map(str, row['shape'])),
        f'{row["start_seconds"]:.1f} s',
        f'{row["batch_milliseconds"]:.2f} ms' if row['resident'] else 'too large',
        f'{row["streamed_per_second"]:,.0f}') for row in result['data']])
  if config is not None:
    rate = config.batch_size / common.step_seconds(config)
    result['step_images_per_second'] = rate
    print(f'a training step of {config.network} takes {rate:,.0f} images/s on all devices'
          ' of this machine')
  return result
