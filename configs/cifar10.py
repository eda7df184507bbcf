"""The paper's CIFAR-10 recipe: BatchNorm only, 160 epochs, drops after 80 and 120."""

import ml_collections

from bnonly_jax.config import default_config


def get_config(network: str = 'resnet14') -> ml_collections.ConfigDict:
  """Args: network, resnetN or resnetNxK (depth N = 6 D + 2, K times 16 channels)."""
  config = default_config()
  config.network = f'cifar_{network}'
  return config
