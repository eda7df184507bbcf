"""ResNet-RS (Bello et al. 2021, arXiv 2103.07579) in timm's form."""

import flax.linen as nn
import jax

from bnonly_jax.models import attention
from bnonly_jax.models import from_torch
from bnonly_jax.models import layers

# Blocks in each of the four stages, by depth (the paper's table of depths).
STAGES = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3), 200: (3, 24, 36, 3),
          270: (4, 29, 53, 4), 350: (4, 36, 72, 4), 420: (4, 44, 87, 4)}


class ResNetRS(nn.Module):
  """Three 3x3 convolutions, one of stride 2 for a max pool, four stages of bottlenecks with SE.

  Attributes:
    stages: blocks in each.
    width: channels of the first stage's 3x3 convolutions.
    classes: number of logits.
    style: how it computes. Its attention `none`, the default, means the network's own: `se`.
    cifar: for 32x32 images, a form of ours: without strides before the second stage.
  """
  stages: tuple[int, ...]
  width: int = 64
  classes: int = 1000
  style: layers.Style = layers.Style()
  cifar: bool = False

  @nn.compact
  def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
    """Maps normalised images [N, H, W, C] to logits [N, classes]."""
    parts, x = layers.parts(self.style, train), images
    own = 'se' if self.style.attention == 'none' else self.style.attention
    attentions, stride = attention.make(own, 4), 1 if self.cifar else 2
    stem = ((self.width // 2, stride), (self.width // 2, 1), (self.width, 1), (self.width, stride))
    for i, (features, stride) in enumerate(stem):
      conv, norm = parts.conv(features, 3, stride, name=f'stem_conv{i + 1}'), parts.norm
      x = (norm if i else parts.stem_norm)(f'stem_norm{i + 1}')(conv(x))
    for i, blocks in enumerate(self.stages):
      x = layers.stage(x, f'stage{i + 1}', layers.PooledShortcut, blocks, self.width * 2 ** i,
                       parts._replace(attention=attentions[i]), stride=2 if i else 1,
                       style=self.style, last=i == 3)
    return layers.Output(self.classes, name='output')(x)

  def torch_module(self, module: str, block: int) -> str:
    """Returns the name of a module in timm's resnet.py."""
    top, _, part = module.partition('/')
    if not part:
      return {'stem_conv1': 'conv1.0', 'stem_norm1': 'conv1.1', 'stem_conv2': 'conv1.3',
              'stem_norm2': 'conv1.4', 'stem_conv3': 'conv1.6', 'stem_norm3': 'bn1',
              'stem_conv4': 'maxpool.0', 'stem_norm4': 'maxpool.1', 'output': 'fc'}[top]
    stage, number = from_torch.torch_block(top, block, apart=True)
    # There a pool, or an identity in its place, comes first in the shortcut.
    return f'layer{stage}.{number}.{from_torch.torch_part(part, first=1)}'
