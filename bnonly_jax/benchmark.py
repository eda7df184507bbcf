r"""Measures what this package costs.

  python -m bnonly_jax.benchmark data [--config=FILE.py[:ARGUMENT]] [--data_dir=DIR] [--out=FILE]

data: images per second that every prepared data set gives on one core, resident and streamed, and
  224x224 crops of JPEGs of ImageNet's size, made for the purpose; with --config beside the rate
  that the training step of that experiment takes them at.

Prints a table, and writes it as JSON to --out.
"""

from collections.abc import Callable
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

from absl import flags
import ml_collections

from bnonly_jax import command_line

_REPEATS = 7


def median_seconds(call: Callable[[], Any]) -> float:
  """Returns the median time of seven calls after a first one."""
  call()
  seconds = []
  for _ in range(_REPEATS):
    start = time.perf_counter()
    call()
    seconds.append(time.perf_counter() - start)
  return sorted(seconds)[_REPEATS // 2]


def write_imagenet_like(folder: pathlib.Path, number: int = 64) -> int:
  """Writes JPEG files of 500x375 with a natural image's spectrum and about 110 kB, ImageNet's mean.

  Returns:
    The mean size of a file in bytes.
  """
  import cv2
  import numpy as np
  rng = np.random.default_rng(0)
  height, width = 375, 500
  distance = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
  distance[0, 0] = 1 / width
  sizes = []
  for i in range(number):
    path = folder / ('train' if i < number * 3 // 4 else 'test') / 'some' / f'{i:03}.jpg'
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
  import jax

  from bnonly_jax import data
  from bnonly_jax import steps
  from bnonly_jax import train
  feed = train.open_feed(config, data.find(config))
  batch = next(steps.feed(feed.train_batches(0), 1))
  jax.block_until_ready((steps.place(feed.train_set, 1), batch))


def data_rates(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """Measures how fast a data set comes on the one core that the process has.

  Returns:
    `images`, `shape`, `resident` (whether it is by its size), `streamed_per_second`: images that
    one thread reads and decodes; and if it is resident `batch_milliseconds` for indexing,
    cropping, flipping and normalising a batch on the device.
  """
  import jax
  import jax.numpy as jnp
  import numpy as np

  from bnonly_jax import data
  from bnonly_jax import train
  from bnonly_jax.data import augment
  from bnonly_jax.data import streamed
  info = data.find(config)
  source = streamed.train_source(config, info)
  number = -(-256 // config.batch_size)
  seconds = median_seconds(lambda: [source[step] for step in range(number)])
  row = {'images': info.train_images, 'shape': info.image_shape,
         'resident': data.is_resident(config, info),
         'streamed_per_second': number * config.batch_size / seconds}
  if row['resident']:
    feed = train.open_feed(config, info)
    normalise = augment.normaliser(config.data.mean, config.data.std)

    @jax.jit
    def crop(images, index, step):
      return normalise(augment.crop_and_flip(images[index], 0, step, jnp.arange(len(index)),
                                             config.data.pad, config.data.flip))

    images = jax.device_put(feed.train_set.images)
    index = jax.device_put(next(feed.train_batches(0))[0])
    seconds = median_seconds(
        lambda: [crop(images, index, np.int32(i)).block_until_ready() for i in range(10)]) / 10
    row['batch_milliseconds'] = 1e3 * seconds
  return row


def _child(call, config, cores):
  """Runs a function of this file in a new process on some cores; returns seconds and its result."""
  code = ('import json, os, sys\n'
          'os.sched_setaffinity(0, json.loads(sys.argv[3]))\n'
          'import ml_collections\n'
          'from bnonly_jax import benchmark, command_line\n'
          'command_line.keep_freed_memory()\n'
          'config = ml_collections.ConfigDict(json.loads(sys.argv[2]))\n'
          'print(json.dumps(getattr(benchmark, sys.argv[1])(config)), flush=True)')
  start = time.perf_counter()
  with subprocess.Popen(
      [sys.executable, '-c', code, call, config.to_json(), json.dumps(cores)],
      stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
    line = process.stdout.readline()
    seconds = time.perf_counter() - start  # without the process's end
    _, errors = process.communicate()
  if process.returncode:
    raise RuntimeError(errors)
  return seconds, json.loads(line)


def data_table(data_dir: str = '') -> list[dict[str, Any]]:
  """Measures every prepared data set, and JPEGs of ImageNet's size, each in new processes.

  Returns:
    For each what `data_rates` gives, `data`, and `start_seconds` from the process's start to the
    first batch on the device, on all cores: the median of seven.
  """
  from bnonly_jax import data
  from bnonly_jax.config import default_config
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
      starts = sorted(_child('time_to_first_batch', config, cores)[0] for _ in range(_REPEATS))
      _, row = _child('data_rates', config, cores[:1])
      label = f'JPEGs of 500x375, {size / 1e3:.0f} kB' if name.startswith('folder:') else name
      rows.append({'data': label, **row, 'start_seconds': starts[_REPEATS // 2]})
  return rows


def step_rate(config: ml_collections.ConfigDict) -> float:
  """Returns images a second that the training step takes on this machine's devices."""
  import jax
  import numpy as np

  from bnonly_jax import data
  from bnonly_jax import optimizer
  from bnonly_jax import steps
  from bnonly_jax import train
  from bnonly_jax.data import augment
  planned = train.plan(config)
  rate = optimizer.schedule(config.optimizer, config.batch_size, 100, 10)
  tx = optimizer.create(config.optimizer, rate, planned.mask)
  devices = jax.local_device_count()
  state, frozen = steps.place(
      steps.create_state(train.draw_variables(config, planned), planned.mask, tx), devices)
  step = steps.train_step(planned.network, tx, rate, 0, 0, False,
                          augment.normaliser(config.data.mean, config.data.std))
  images = np.random.default_rng(0).integers(
      0, 256, (config.batch_size, *planned.info.image_shape), np.uint8)
  batch = next(steps.feed([data.Images(images, np.zeros(config.batch_size, np.int32))], devices))

  def run():
    nonlocal state
    state, _ = jax.block_until_ready(step(state, frozen, None, batch))

  return config.batch_size / median_seconds(run)


def print_data_table(rows: list[dict[str, Any]]) -> None:
  """Prints what `data_table` returns."""
  from bnonly_jax import metrics
  table = [('data set', 'images', 'shape', 'start to first batch', 'resident: a batch of 128',
            'streamed: images/s a core')]
  for row in rows:
    table.append((row['data'], f'{row["images"]:,}', 'x'.join(map(str, row['shape'])),
                  f'{row["start_seconds"]:.1f} s',
                  f'{row["batch_milliseconds"]:.2f} ms' if row['resident'] else 'too large',
                  f'{row["streamed_per_second"]:,.0f}'))
  widths = [max(map(len, column)) for column in zip(*table, strict=True)]
  for line in table:
    metrics.console.print('  '.join(
        cell.rjust(width) if i else cell.ljust(width)
        for i, (cell, width) in enumerate(zip(line, widths, strict=True))))


def main(_: str) -> None:
  result = {'data': data_table(_DATA_DIR.value)}
  print_data_table(result['data'])
  if _CONFIG.value is not None:
    result['step_images_per_second'] = step_rate(_CONFIG.value)
    print(f'a training step of {_CONFIG.value.network} takes'
          f' {result["step_images_per_second"]:,.0f} images/s on all devices of this machine')
  if _OUT.value:
    pathlib.Path(_OUT.value).write_text(json.dumps(result, indent=2) + '\n')


if __name__ == '__main__':
  _CONFIG = command_line.define_config()
  _DATA_DIR = flags.DEFINE_string('data_dir', '', "Folder of prepared data sets; '' is TFDS's own.")
  _OUT = flags.DEFINE_string('out', '', 'A JSON file to write the figures to.')
  command_line.run(main, lambda: '', topics=('data',))
