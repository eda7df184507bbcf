"""The paper's ImageNet recipe: BatchNorm only, 90 epochs, warm-up over 5, drops at 30, 60 and 80.

  python -m bnonly_jax.main --config=configs/imagenet.py:resnet50 --describe

Training needs images of many sizes to be decoded as it goes, which is not there yet: what runs is
--describe, and data sets whose images have one size (--config.data.name=...). The paper reports
32 % top-5 accuracy for ResNet-200, BatchNorm only; nothing has been measured here.
"""

import ml_collections

from bnonly_jax.config import default_config


def get_config(network: str = 'resnet50') -> ml_collections.ConfigDict:
  """Args: network, resnetN or resnetNxK: N = 18, 34, 50, 101, 152 or 200, K times 64 channels."""
  config = default_config()
  config.network = f'imagenet_{network}'
  config.data.name = 'imagenet2012'
  config.data.pad = 0
  config.epochs = 90
  config.batch_size = 1024
  config.optimizer.learning_rate = 0.4
  config.optimizer.warmup_epochs = 5.0
  config.optimizer.drops = (30 / 90, 60 / 90, 80 / 90)
  return config
