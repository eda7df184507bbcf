"""A network of one's own, a small ResNet with Flax's layers; its BatchNorm alone trains.

  python -m bnonly_jax.main --config=configs/own_network.py --workdir=runs/own

46 to 73 seconds on two busy CPU cores. Of the test scans 0.678, 0.597 and 0.681 (seeds 0, 1, 2).
"""

import flax.linen as nn
import ml_collections

from bnonly_jax.config import default_config


class Network(nn.Module):
  classes: int

  @nn.compact
  def __call__(self, images, train):
    def norm(x):  # over the images of all devices, with the averages of this package's own
      return nn.BatchNorm(not train, momentum=0.9, epsilon=1e-5, axis_name='batch')(x)

    x = nn.relu(norm(nn.Conv(32, (3, 3))(images)))
    for _ in range(4):
      x += norm(nn.Conv(32, (3, 3))(nn.relu(norm(nn.Conv(32, (3, 3))(x)))))
      x = nn.relu(x)
    return nn.Dense(self.classes)(x.mean((1, 2)))


def make(classes: int) -> nn.Module:
  return Network(classes)


def get_config() -> ml_collections.ConfigDict:
  config = default_config()
  config.network = 'configs.own_network:make'
  config.data.update(name='digits', pad=1, flip=False, mean=(0.305,), std=(0.376,))
  config.epochs = 40
  return config
