"""A tiny run on the embedded scans, and what tests ask of its folder."""

import jax
from orbax.checkpoint import v1 as ocp

from bnonly_jax.config import default_config

TIMES = ('time_seconds', 'time_images_per_second', 'seconds', 'finished')


def tiny_config(data_dir, **fields):
  config = default_config()
  config.update(network='cifar_resnet8', epochs=2, batch_size=256, eval_batch_size=100, log_every=2)
  config.data.update(name='digits', dir=str(data_dir), pad=1, flip=False, mean=(0.305,),
                     std=(0.376,))
  config.update_from_flattened_dict(fields)
  return config


def without_times(lines):
  return [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


def last_state(workdir):
  newest = max((workdir / 'checkpoints').iterdir(), key=lambda path: int(path.name))
  return jax.tree.leaves(ocp.load(newest))
