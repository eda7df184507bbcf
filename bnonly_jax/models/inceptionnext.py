"""InceptionNeXt (Yu et al. 2023, arXiv 2303.16900) in the form of its code, 3f9769c."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from bnonly_jax.models import layers
from bnonly_jax.models.norm import ChannelNorm
from bnonly_jax.models.norm import wide


class Sizes(NamedTuple):
  """Channels and blocks of the four stages; the band kernels' length; channels a branch's one."""
  features: tuple[int, ...]
  blocks: tuple[int, ...]
  band: int = 11
  share: int = 8


SIZES = {'atto': Sizes((40, 80, 160, 320), (2, 2, 6, 2), 9, 4),
         'tiny': Sizes((96, 192, 384, 768), (3, 3, 9, 3)),
         'small': Sizes((96, 192, 384, 768), (3, 3, 27, 3)),
         'base': Sizes((128, 256, 512, 1024), (3, 3, 27, 3))}


class Block(nn.Module):
  """Depthwise convolutions of some channels, norm, two 1x1 convolutions, layer scale, addition.

  Attributes:
    features: channels, those of a depthwise branch, the bands' length, and how many times as many
      channels lie between the 1x1 convolutions.
    parts: of the network.
  """
  features: tuple[int, int, int, int]
  parts: layers.Parts

  @nn.compact
  def __call__(self, x: jax.Array, _=None) -> tuple[jax.Array, None]:
    features, branch, band, ratio = self.features
    conv = self.parts.conv
    rest = features - 3 * branch
    branches = [x[..., :rest]]
    for i, (name, size) in enumerate((('hw', (3, 3)), ('w', (1, band)), ('h', (band, 1)))):
      start = rest + i * branch
      branches.append(conv(branch, size, bias=True, depthwise=True, name=f'dwconv_{name}')(
          x[..., start:start + branch]))
    y = self.parts.norm('norm')(jnp.concatenate(branches, -1), relu=False)
    y = jax.nn.gelu(conv(ratio * features, 1, bias=True, name='fc1')(y), approximate=False)
    y = conv(features, 1, bias=True, name='fc2')(y)
    # The code starts it at 1e-6; frozen there, it would make every block inert.
    scale = self.param('layer_scale', nn.initializers.ones, (features,)).astype(x.dtype)
    return x + y * scale[None, None, None], None


class InceptionNeXt(nn.Module):
  """Patches, four stages of blocks, global average pool, two dense layers with a LayerNorm between.

  Attributes:
    sizes: as in SIZES.
    classes: number of logits.
    style: how it computes.
    patch: of the stem: 4, or 2 for 32x32 images, a form of ours.
  """
  sizes: Sizes
  classes: int = 1000
  style: layers.Style = layers.Style()
  patch: int = 4

  @nn.compact
  def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
    """Maps normalised images [N, H, W, C] to logits [N, classes]."""
    parts, sizes = layers.parts(self.style, train), self.sizes
    block = nn.remat(Block) if self.style.remat else Block
    patches = lambda name, x, features, size: parts.conv(
        features, size, size, bias=True, padding='VALID', name=name)(x)
    x = parts.norm('stem_norm')(
        patches('stem_conv', images, sizes.features[0], self.patch), relu=False)
    for i, (features, blocks) in enumerate(zip(sizes.features, sizes.blocks, strict=True)):
      if i:
        x = patches(f'down{i}_conv', parts.norm(f'down{i}_norm')(x, relu=False), features, 2)
      x = layers.equal_blocks(
          x, f'stage{i + 1}_stack', block, blocks,
          (features, features // sizes.share, sizes.band, 3 if i == 3 else 4), parts, self.style)
    x = nn.Dense(3 * sizes.features[-1], name='head_dense')(jnp.mean(wide(x), (1, 2)))
    x = ChannelNorm('layer', 1e-6, name='head_norm')(jax.nn.gelu(x, approximate=False), relu=False)
    return layers.Output(self.classes, name='output')(x)

  def torch_module(self, module: str, block: int) -> str:
    """Returns the name of a module in InceptionNeXt's code and timm's."""
    top, _, part = module.partition('/')
    if top.startswith('stage'):
      where = ('mlp.' if part.startswith('fc') else 'token_mixer.' if part.startswith('dw') else '')
      return f'stages.{int(top[5]) - 1}.blocks.{block}.{where}{part}'.rstrip('.')
    if top.startswith('down'):
      return f'stages.{top[4]}.downsample.{int(top.endswith("conv"))}'
    return {'stem_conv': 'stem.0', 'stem_norm': 'stem.1', 'head_dense': 'head.fc1',
            'head_norm': 'head.norm', 'output': 'head.fc2'}[top]
