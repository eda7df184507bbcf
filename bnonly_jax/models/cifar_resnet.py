"""The CIFAR ResNet of He et al. 2015 (arXiv 1512.03385, section 4.2)."""

import itertools

import flax.linen as nn
import jax

from bnonly_jax.models import attention
from bnonly_jax.models import from_torch
from bnonly_jax.models import layers


class CifarResNet(nn.Module):
  """3x3 convolution, three stages of basic blocks, global average pool, dense; depth 6 blocks + 2.

  Attributes:
    blocks: D, the number of basic blocks in a stage, or that of each stage.
    width: W, 16 in the paper's family of depths. The stages have W, 2W and 4W channels, the second
      and third begin with stride 2.
    classes: number of logits.
    style: how it computes.
  """
  blocks: int | tuple[int, int, int]
  width: int = 16
  classes: int = 10
  style: layers.Style = layers.Style()

  @property
  def stages(self) -> tuple[int, ...]:
    """Blocks in each stage."""
    return (self.blocks,) * 3 if isinstance(self.blocks, int) else self.blocks

  @nn.compact
  def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
    """Maps normalised images [N, H, W, C] to logits [N, classes]."""
    parts = layers.parts(self.style, train)
    attentions = attention.make(self.style.attention, 3)
    x = parts.stem_norm('stem_norm')(parts.conv(self.width, name='stem_conv')(images))
    for i, blocks in enumerate(self.stages):
      x = layers.stage(x, f'stage{i + 1}', layers.BasicBlock, blocks, self.width * 2 ** i,
                       parts._replace(attention=attentions[i]), stride=2 if i else 1,
                       style=self.style, last=i == 2)
    return layers.Output(self.classes, name='output')(x)

  def torch_module(self, module: str, block: int) -> str:
    """Returns the name of a module in open_lth's models/cifar_resnet.py."""
    top, _, part = module.partition('/')
    if not part:
      return {'stem_conv': 'conv', 'stem_norm': 'bn', 'output': 'fc'}[top]
    stage, number = from_torch.torch_block(top, block, apart=not top.startswith('stage1'))
    before = list(itertools.accumulate(self.stages, initial=0))[stage - 1]
    return f'blocks.{before + number}.{from_torch.torch_part(part, "shortcut")}'
