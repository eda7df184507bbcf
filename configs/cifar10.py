"""The paper's CIFAR-10 recipe: BatchNorm only, 160 epochs, drops after 80 and 120.

  python -m bnonly_jax.data.prepare --dataset=cifar10 --download   # once
  python -m bnonly_jax.main --config=configs/cifar10.py:resnet14 --workdir=runs/resnet14

Measured, on the JPEG variant and short (8 epochs, drops after 4 and 6), with
--config.data.name=cifar10_jpeg --config.epochs=8, on two CPU cores (AMD EPYC), ResNet-14:
  batchnorm   39.5, 39.1 and 40.7 % test accuracy (seeds 0 to 2), 9 to 11 minutes a run
  all         77.4 % (seed 0), 25 minutes
  nothing     10.0 % (seed 0)
The paper's own (CIFAR-10, 160 epochs, mean of 5 seeds, read off its main figure to about half a
point), BatchNorm only: 47.8 % for ResNet-14, 57.6 for 32, 62.9 for 56, 69.7 for 110, 75.7 for 218.
Not yet reproduced with this code at that length.
"""

import ml_collections

from bnonly_jax.config import default_config


def get_config(network: str = 'resnet14') -> ml_collections.ConfigDict:
  """Args: network, resnetN or resnetNxK (depth N = 6 D + 2, K times 16 channels), or vggN."""
  config = default_config()
  config.network = f'cifar_{network}'
  return config
