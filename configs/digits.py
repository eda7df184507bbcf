"""BatchNorm only on the embedded scans of handwritten digits.

  python -m bnonly_jax.main --config=configs/digits.py --workdir=runs/digits

Measured on two CPU cores (AMD EPYC), 360 test scans, 40 epochs with drops after 20 and 30:
  resnet20   78.6 and 80.0 % (seeds 0 and 1), 25 seconds from start to end
  resnet14   73.9, 82.5 and 84.7 % (seeds 0 to 2), 20 seconds; training all 97.8 %, training nothing
             7.8 % (seed 0)
"""

import ml_collections

from bnonly_jax.config import default_config


def get_config(network: str = 'resnet20') -> ml_collections.ConfigDict:
  """Args: network, resnetN or resnetNxK (depth N = 6 D + 2, K times 16 channels)."""
  config = default_config()
  config.network = f'cifar_{network}'
  config.data.name = 'digits'
  config.data.pad = 1
  config.data.flip = False
  config.data.mean = (0.305,)  # of the 1,437 training scans
  config.data.std = (0.376,)
  config.epochs = 40
  return config
