r"""The paper's ImageNet recipe: BatchNorm only, 90 epochs, warm-up over 5, drops at 30, 60 and 80.

  python -m bnonly_jax.data.prepare --dataset=imagenet2012 --source=DIR   # once
  python -m bnonly_jax.main --config=configs/imagenet.py:resnet50 --workdir=runs/resnet50

or, with plain files PATH/train/CLASS/*.JPEG and PATH/val/CLASS/*.JPEG and nothing to prepare:

  python -m bnonly_jax.main --config=configs/imagenet.py:resnet50 --workdir=runs/resnet50 \
      --config.data.name=folder:PATH --config.data.test_split=val

Images are decoded as training goes. Training takes random crops, resized to 224x224; evaluation
takes the central 224x224 of the image, whose shorter side is resized to 256. The paper reports 32 %
top-5 accuracy for ResNet-200; nothing of that length has been run with this code, and how long it
takes is not known.
"""

import ml_collections

from bnonly_jax.config import imagenet_config


def get_config(network: str = 'resnet50') -> ml_collections.ConfigDict:
  """Args: network, resnetN or resnetNxK: N = 18, 34, 50, 101, 152 or 200, K times 64 channels."""
  config = imagenet_config()
  config.network = f'imagenet_{network}'
  return config
