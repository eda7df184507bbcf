"""SimpleNet (HasanPour et al. 2016, arXiv 1608.06037) in the form of SimpleNet_Pytorch 4334c57."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from bnonly_jax.models import layers
from bnonly_jax.models import pools

# Channels of the thirteen convolutions; 0: a max pool. The eleventh and twelfth are 1x1.
CHANNELS = {
    '310k': (64, 32, 32, 32, 0, 32, 32, 64, 0, 64, 64, 0, 128, 256, 64, 0, 64),
    '460k': (32, 32, 32, 64, 0, 64, 64, 64, 0, 64, 64, 0, 96, 96, 96, 0, 100),
    '5m': (64, 128, 128, 128, 0, 128, 128, 256, 0, 256, 256, 0, 512, 2048, 256, 0, 256)}


class SimpleNet(nn.Module):
  """Thirteen convolutions with biases and norms, four max pools, global max pool, dense.

  Attributes:
    channels: as in CHANNELS.
    classes: number of logits.
    style: how it computes.
  """
  channels: tuple[int, ...]
  classes: int = 10
  style: layers.Style = layers.Style()

  @nn.compact
  def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
    """Maps normalised images [N, H, W, C] to logits [N, classes].

    Raises:
      UserError: the images have less than 16 pixels a side, and nothing is left after four pools.
    """
    pools.require_four(images, 'a simplenet')
    parts = layers.parts(self.style, train, keep=0.95)
    x, number = images, 0
    for features in self.channels:
      if not features:
        x = pools.max_pool(x, 2)
        continue
      number += 1
      size = 1 if number in (11, 12) else 3
      x = parts.conv(features, size, bias=True, name=f'conv{number}')(x)
      x = parts.norm(f'norm{number}')(x)
    return layers.Output(self.classes, jnp.max, name='output')(x)

  def torch_module(self, module: str, block: int) -> str:
    """Returns the name of a module in SimpleNet_Pytorch."""
    if module == 'output':
      return 'classifier'
    kind, number = module[:4], int(module[4:])
    places = [i for i, features in enumerate(self.channels) if features]
    pooled = places[number - 1] - (number - 1)
    # There each convolution has a norm, a ReLU and a dropout, and each pool stands alone.
    return f'features.{4 * (number - 1) + pooled + (kind == "norm")}'
