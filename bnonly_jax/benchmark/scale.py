"""`benchmark scale`: what data parallelism costs."""

from typing import Any

import jax
import ml_collections

from bnonly_jax import describe
from bnonly_jax.benchmark import common
from bnonly_jax.benchmark.peaks import Peak
from bnonly_jax.benchmark.peaks import PEAKS
from bnonly_jax.config import default_config
from bnonly_jax.config import require
from bnonly_jax.run import metrics


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
DEVICES = 1, 2, 4  # simulated ones, on which a step is timed
PODS = {'v5e-256': ('TPU v5 lite', 256), '8 H100': ('NVIDIA H100 80GB HBM3', 8)}


def scale_table() -> list[dict[str, Any]]:
  """Computes what data parallelism costs, for BatchNorm only and for all.

  Returns:
    For each of SCALE_NETWORKS and selection `bytes_reduced` (of the step compiled for two devices
    here), `flops_step` an image, and for each of PODS the `roofline` at a batch of 128 a device (32
    for ImageNet).
  """
  rows = []
  for network in SCALE_NETWORKS:
    for selection in ('batchnorm', 'all'):
      config = default_config()
      config.update(network=network, train=selection, batch_size=2)
      config.data.update(name='none', image_size=224 if network.startswith('imagenet') else 0)
      _, reduced = common.child(common.all_reduced_bytes, config, devices=2)
      config.batch_size = jax.local_device_count()
      flops = describe.describe(config)['flops_step']
      batch = 32 if network.startswith('imagenet') else 128
      rows.append({'network': network, 'train': selection, 'bytes_reduced': reduced,
                   'flops_step': flops, 'batch': batch,
                   **{pod: roofline(flops, reduced, batch, devices, PEAKS[kind])
                      for pod, (kind, devices) in PODS.items()}})
  return rows


def device_table(config: ml_collections.ConfigDict) -> list[dict[str, Any]]:
  """Times the step of one config on 1, 2 and 4 simulated devices, the same batch over all."""
  return [{'devices': n, 'step_seconds': common.child(common.step_seconds, config, devices=n)[1]}
          for n in DEVICES]


def measure(config: ml_collections.ConfigDict | None) -> dict[str, Any]:
  """Measures, prints, and returns what `scale_table` and `device_table` do.

  Raises:
    UserError: the config is not that of a run on each of DEVICES.
  """
  config = config or default_config()
  require(config, 'batch_size', f'a multiple of {max(DEVICES)}, on so many devices it is timed',
          config.batch_size % max(DEVICES) == 0)
  common.built(config)
  result = {'scale': scale_table()}
  metrics.print_columns(
      ('network', 'trained', 'all-reduced a step', 'FLOPs an image',
       *(f'{pod}: compute + all-reduce, at least' for pod in PODS)),
      [(row['network'], row['train'], f'{row["bytes_reduced"]:,} B', f'{row["flops_step"]:,}',
        *('{:.3f} + {:.3f} ms'.format(*(1e3 * row[pod][f'{part}_seconds']
                                       for part in ('compute', 'reduce'))) for pod in PODS))
       for row in result['scale']])
  result['devices'] = device_table(config)
  metrics.print_columns(('simulated devices', f'step of {config.network}, {config.train}'),
               [(str(row['devices']), f'{1e3 * row["step_seconds"]:.0f} ms')
                for row in result['devices']])
  return result
