"""The CIFAR ResNet of He et al. 2015 (arXiv 1512.03385, section 4.2)."""

import flax.linen as nn
import jax

from bnonly_jax.models import layers


class CifarResNet(nn.Module):
  """3x3 convolution, three stages of basic blocks, global average pool, dense; depth 6 blocks + 2.

  Attributes:
    blocks: D, the number of basic blocks in a stage.
    width: W, 16 in the paper's family of depths. The stages have W, 2W and 4W channels, the second
      and third begin with stride 2.
    classes: number of logits.
    style: how it computes.
  """
  blocks: int
  width: int = 16
  classes: int = 10
  style: layers.Style = layers.Style()

  @nn.compact
  def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
    """Maps normalised images [N, H, W, C] to logits [N, classes]."""
    parts = layers.parts(self.style, train)
    x = parts.norm('stem_norm')(parts.conv(self.width, name='stem_conv')(images))
    for i in range(3):
      x = layers.stage(x, f'stage{i + 1}', layers.BasicBlock, self.blocks, self.width * 2 ** i,
                       parts, stride=2 if i else 1, remat=self.style.remat)
    return layers.Output(self.classes, name='output')(x)
