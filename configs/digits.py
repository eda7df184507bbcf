"""BatchNorm only on the embedded scans of handwritten digits.

  python -m bnonly_jax.main --config=configs/digits.py --workdir=runs/digits

40 epochs, with drops of the rate after 20 and 30. On two CPU cores (AMD EPYC) a run takes 25
seconds from start to end, and with resnet14 20 seconds. The README's first table has the accuracies
of resnet14 on the 360 test scans.
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
