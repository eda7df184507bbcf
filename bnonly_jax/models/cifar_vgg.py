"""VGG for CIFAR with norms and convolution biases, as open_lth's models/cifar_vgg.py has it."""

import flax.linen as nn
import jax

from bnonly_jax.models import layers
from bnonly_jax.models import pools

# Convolutions in each of the five groups between the max pools (Simonyan and Zisserman 2014).
GROUPS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


class CifarVGG(nn.Module):
  """3x3 convolutions of 64 to 512 channels, four max pools, global average pool, dense.

  Attributes:
    depth: a key of GROUPS.
    classes: number of logits.
    style: how it computes.
  """
  depth: int
  classes: int = 10
  style: layers.Style = layers.Style()

  @nn.compact
  def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
    """Maps normalised images [N, H, W, C] to logits [N, classes]; 32x32 end as 2x2.

    Raises:
      UserError: the images have less than 16 pixels a side, and nothing is left after four pools.
    """
    pools.require_four(images, f'cifar_vgg{self.depth}')
    parts = layers.parts(self.style, train)
    x, count = images, 0
    for i, convolutions in enumerate(GROUPS[self.depth]):
      if i:
        x = nn.max_pool(x, (2, 2), (2, 2))
      for _ in range(convolutions):
        count += 1
        x = parts.conv(min(64 * 2 ** i, 512), bias=True, name=f'conv{count}')(x)
        x = parts.norm(f'norm{count}')(x)
    return layers.Output(self.classes, name='output')(x)

  def torch_module(self, module: str, block: int) -> str:
    """Returns the name of a module in open_lth's models/cifar_vgg.py."""
    if module == 'output':
      return 'fc'
    kind, number = module[:4], int(module[4:])
    # PyTorch counts the max pools between the groups of convolutions, too.
    before = sum(number > sum(GROUPS[self.depth][:i + 1]) for i in range(4))
    return f'layers.{number - 1 + before}.{"bn" if kind == "norm" else "conv"}'
