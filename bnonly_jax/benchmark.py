r"""Measures what this package costs.

  python -m bnonly_jax.benchmark data [--config=FILE.py[:ARGUMENT]] [--data_dir=DIR] [--out=FILE]
  python -m bnonly_jax.benchmark scale [--config=FILE.py[:ARGUMENT]] [--out=FILE]

data: images per second that every prepared data set gives on one core, resident and streamed, and
  224x224 crops of JPEGs of ImageNet's size, made for the purpose; with --config beside the rate
  that the training step of that experiment takes them at.
scale: bytes all-reduced a step for each network, BatchNorm only and all, by the compiled step; the
  least time of a step on a pod by the devices' peaks; and the step of --config on 1, 2 and 4
  simulated devices.

Prints tables, and writes them as JSON to --out.
"""

from collections.abc import Callable
from collections.abc import Sequence
import json
import math
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
from typing import Any
from typing import NamedTuple

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


def _child(call, config, cores=None, devices=0):
  """Runs a function of this file in a new process; returns seconds and its result.

  Args:
    call: the function's name.
    config: its argument.
    cores: which ones the process has; None: all.
    devices: number of simulated ones; 0: as this process.
  """
  code = ('import json, os, sys\n'
          'cores = json.loads(sys.argv[3])\n'
          'if cores: os.sched_setaffinity(0, cores)\n'
          'import ml_collections\n'
          'from bnonly_jax import benchmark, command_line\n'
          'command_line.keep_freed_memory()\n'
          'config = ml_collections.ConfigDict(json.loads(sys.argv[2]))\n'
          'print(json.dumps(getattr(benchmark, sys.argv[1])(config)), flush=True)')
  environment = dict(os.environ)
  if devices:
    environment.update(JAX_PLATFORMS='cpu', XLA_FLAGS=(
        f'{os.environ.get("XLA_FLAGS", "")} --xla_force_host_platform_device_count={devices}'))
  start = time.perf_counter()
  with subprocess.Popen(
      [sys.executable, '-c', code, call, config.to_json(), json.dumps(cores)],
      stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as process:
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


def _compiled_step(config):
  """Compiles the training step for all devices; returns it, its state and a function that runs it.

  The images are random and not resident, so that no data set is needed.
  """
  import jax
  import numpy as np

  from bnonly_jax import data
  from bnonly_jax import describe
  from bnonly_jax import optimizer
  from bnonly_jax import steps
  from bnonly_jax import train
  from bnonly_jax.data import augment
  planned = train.plan(config, describe.find_or_assume(config)[0])
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

  return step.lower(state, frozen, None, batch), run


def step_seconds(config: ml_collections.ConfigDict) -> float:
  """Returns the median seconds of a training step on all devices of this process."""
  return median_seconds(_compiled_step(config)[1])


def all_reduced_bytes(config: ml_collections.ConfigDict) -> int:
  """Returns how many bytes each device puts into the all-reduces of the compiled step."""
  lowered, _ = _compiled_step(config)
  sizes = {'pred': 1, 's32': 4, 'u32': 4, 'bf16': 2, 'f16': 2, 'f32': 4, 'f64': 8}
  total = 0
  for line in lowered.compile().as_text().splitlines():
    found = re.match(r'\s*(?:ROOT )?\S+ = (.*?) all-reduce(?:-start)?\(', line)
    for kind, shape in re.findall(r'(\w+)\[([\d,]*)\]', found[1]) if found else ():
      total += sizes[kind] * math.prod(int(n) for n in shape.split(',') if n)
  return total


class Peak(NamedTuple):
  """What a device can do at most."""
  flops: float  # a second, bfloat16, dense
  memory: float  # bytes a second
  link: float  # bytes a second into the interconnect, one direction


# "TPU v5e" of the Cloud TPU documentation: 197 TFLOP/s, 819 GB/s, 1,600 Gbit/s between chips, both
# directions together. NVIDIA's H100 SXM data sheet: 989 TFLOP/s, 3.35 TB/s, NVLink 900 GB/s both.
PEAKS = {'TPU v5 lite': Peak(197e12, 819e9, 100e9),
         'NVIDIA H100 80GB HBM3': Peak(989e12, 3.35e12, 450e9)}


def roofline(flops_an_image: float, bytes_reduced: float, batch: int, devices: int, peak: Peak
             ) -> dict[str, float]:
  """Estimates the least seconds of a step: no computation at less than peak, no latency.

  Args:
    flops_an_image: of a training step.
    bytes_reduced: that each device puts into the all-reduce; a ring sends 2 (n - 1) / n of them.
    batch: images on a device.
    devices: number of them.
    peak: of a device.

  Returns:
    `compute_seconds` and `reduce_seconds`.
  """
  return {'compute_seconds': flops_an_image * batch / peak.flops,
          'reduce_seconds': 2 * (devices - 1) / devices * bytes_reduced / peak.link}


SCALE_NETWORKS = ('cifar_resnet14', 'cifar_resnet110', 'cifar_resnet866', 'imagenet_resnet50',
                  'imagenet_resnet200')
PODS = {'v5e-256': ('TPU v5 lite', 256), '8 H100': ('NVIDIA H100 80GB HBM3', 8)}


def scale_table(networks: Sequence[str] = SCALE_NETWORKS) -> list[dict[str, Any]]:
  """Computes what data parallelism costs, for BatchNorm only and for all.

  Returns:
    For each network and selection `bytes_reduced` (of the step compiled for two devices here),
    `flops_step` an image, and for each of PODS the `roofline` at a batch of 128 a device (32 for
    ImageNet).
  """
  from bnonly_jax import describe
  from bnonly_jax.config import default_config
  rows = []
  for network in networks:
    for selection in ('batchnorm', 'all'):
      config = default_config()
      config.update(network=network, train=selection, batch_size=2)
      config.data.update(name='none', image_size=224 if network.startswith('imagenet') else 0)
      _, reduced = _child('all_reduced_bytes', config, None, devices=2)
      flops = describe.describe(config)['flops_step']
      batch = 32 if network.startswith('imagenet') else 128
      rows.append({'network': network, 'train': selection, 'bytes_reduced': reduced,
                   'flops_step': flops, 'batch': batch,
                   **{pod: roofline(flops, reduced, batch, devices, PEAKS[kind])
                      for pod, (kind, devices) in PODS.items()}})
  return rows


def device_table(config: ml_collections.ConfigDict) -> list[dict[str, Any]]:
  """Times the step of one config on 1, 2 and 4 simulated devices, the same batch over all."""
  return [{'devices': devices, 'step_seconds': _child('step_seconds', config, None, devices)[1]}
          for devices in (1, 2, 4)]


def _print_table(head, lines):
  from bnonly_jax import metrics
  widths = [max(map(len, column)) for column in zip(head, *lines, strict=True)]
  for line in (head, *lines):
    metrics.console.print('  '.join(
        cell.rjust(width) if i else cell.ljust(width)
        for i, (cell, width) in enumerate(zip(line, widths, strict=True))))


def measure_data() -> dict[str, Any]:
  """`benchmark data`: measures, prints and returns."""
  result = {'data': data_table(_DATA_DIR.value)}
  _print_table(
      ('data set', 'images', 'shape', 'start to first batch', 'resident: a batch of 128',
       'streamed: images/s a core'),
      [(row['data'], f'{row["images"]:,}', 'x'.join(map(str, row['shape'])),
        f'{row["start_seconds"]:.1f} s',
        f'{row["batch_milliseconds"]:.2f} ms' if row['resident'] else 'too large',
        f'{row["streamed_per_second"]:,.0f}') for row in result['data']])
  if _CONFIG.value is not None:
    rate = _CONFIG.value.batch_size / step_seconds(_CONFIG.value)
    result['step_images_per_second'] = rate
    print(f'a training step of {_CONFIG.value.network} takes {rate:,.0f} images/s on all devices'
          ' of this machine')
  return result


def measure_scale() -> dict[str, Any]:
  """`benchmark scale`: measures, prints and returns."""
  from bnonly_jax.config import default_config
  result = {'scale': scale_table()}
  _print_table(
      ('network', 'trained', 'all-reduced a step', 'FLOPs an image',
       *(f'{pod}: compute + all-reduce, at least' for pod in PODS)),
      [(row['network'], row['train'], f'{row["bytes_reduced"]:,} B', f'{row["flops_step"]:,}',
        *('{:.3f} + {:.3f} ms'.format(*(1e3 * row[pod][f'{part}_seconds']
                                       for part in ('compute', 'reduce'))) for pod in PODS))
       for row in result['scale']])
  config = _CONFIG.value or default_config()
  result['devices'] = device_table(config)
  _print_table(('simulated devices', f'step of {config.network}, {config.train}'),
               [(str(row['devices']), f'{1e3 * row["step_seconds"]:.0f} ms')
                for row in result['devices']])
  return result


def main(topic: str) -> None:
  result = {'data': measure_data, 'scale': measure_scale}[topic]()
  if _OUT.value:
    pathlib.Path(_OUT.value).write_text(json.dumps(result, indent=2) + '\n')


if __name__ == '__main__':
  _CONFIG = command_line.define_config()
  _DATA_DIR = flags.DEFINE_string('data_dir', '', "Folder of prepared data sets; '' is TFDS's own.")
  _OUT = flags.DEFINE_string('out', '', 'A JSON file to write the figures to.')
  command_line.run(main, lambda: '', topics=('data', 'scale'))
