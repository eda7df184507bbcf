"""BatchNorm only on the embedded scans of handwritten digits: seconds on two CPU cores."""

import ml_collections

from bnonly_jax.config import default_config


def get_config(network: str = 'resnet14') -> ml_collections.ConfigDict:
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
