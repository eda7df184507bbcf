"""The ImageNet ResNets in torchvision's form (torchvision/models/resnet.py; He et al. 2015)."""

import flax.linen as nn
import jax

from bnonly_jax.models import attention
from bnonly_jax.models import from_torch
from bnonly_jax.models import layers

# Blocks in each of the four stages, by depth; 200 as in He et al. 2016 (arXiv 1603.05027) and
# open_lth's models/imagenet_resnet.py. Depth 18 and 34 have basic blocks, the others bottlenecks.
STAGES = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3),
          152: (3, 8, 36, 3), 200: (3, 24, 36, 3)}


class ImageNetResNet(nn.Module):
  """7x7 convolution of stride 2, 3x3 max pool of stride 2, four stages, global average pool, dense.

  Attributes:
    depth: a key of STAGES.
    width: channels of the first stage's 3x3 convolutions, 64 in the paper.
    classes: number of logits.
    style: how it computes.
  """
  depth: int
  width: int = 64
  classes: int = 1000
  style: layers.Style = layers.Style()

  @nn.compact
  def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
    """Maps normalised images [N, H, W, C] to logits [N, classes]."""
    parts = layers.parts(self.style, train)
    attentions = attention.make(self.style.attention, 4)
    block = layers.BasicBlock if self.depth < 50 else layers.Bottleneck
    x = parts.stem_norm('stem_norm')(parts.conv(self.width, 7, 2, name='stem_conv')(images))
    x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
    for i, blocks in enumerate(STAGES[self.depth]):
      x = layers.stage(x, f'stage{i + 1}', block, blocks, self.width * 2 ** i,
                       parts._replace(attention=attentions[i]), stride=2 if i else 1,
                       style=self.style, last=i == 3)
    return layers.Output(self.classes, name='output')(x)

  def torch_module(self, module: str, block: int) -> str:
    """Returns the name of a module in torchvision's models/resnet.py."""
    top, _, part = module.partition('/')
    if not part:
      return {'stem_conv': 'conv1', 'stem_norm': 'bn1', 'output': 'fc'}[top]
    apart = self.depth >= 50 or not top.startswith('stage1')
    stage, number = from_torch.torch_block(top, block, apart)
    return f'layer{stage}.{number}.{from_torch.torch_part(part)}'
