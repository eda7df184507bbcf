"""The paper's CIFAR-10 recipe: BatchNorm only, 160 epochs, drops after 80 and 120.

  python -m bnonly_jax.data.prepare --dataset=cifar10 --download   # once
  python -m bnonly_jax.main --config=configs/cifar10.py:resnet14 --workdir=runs/resnet14

The paper reports 47.8 % for ResNet-14, 57.6 % for 32, 62.9 % for 56, 69.7 % for 110 and 75.7 % for
218. RESULTS.md has what this code reaches with the smaller ones, on the JPEG variant.

A short run, on the JPEG variant and of 8 epochs (drops after 4 and 6), adds

  --config.data.name=cifar10_jpeg --config.epochs=8

On two CPU cores (AMD EPYC) ResNet-14 takes 9 to 11 minutes then, and 25 when everything trains.
"""

import ml_collections

from bnonly_jax.config import default_config


def get_config(network: str = 'resnet14') -> ml_collections.ConfigDict:
  """Args: network, resnetN or resnetNxK (depth N = 6 D + 2, K times 16 channels), or vggN."""
  config = default_config()
  config.network = f'cifar_{network}'
  return config
