"""VoVNet (Lee et al. 2019, arXiv 1904.09730) as VoVNet.pytorch 039d9dc has it, and with eSE."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from bnonly_jax.models import attention
from bnonly_jax.models import from_torch
from bnonly_jax.models import layers
from bnonly_jax.models import pools


class Sizes(NamedTuple):
  """Of the four stages: channels of their 3x3 convolutions, of their outputs, number of modules."""
  convs: tuple[int, ...]
  outputs: tuple[int, ...]
  modules: tuple[int, ...]
  depth: int = 5  # 3x3 convolutions in a module
  stem: tuple[int, int, int] = (64, 64, 128)


_WIDE = (128, 160, 192, 224), (256, 512, 768, 1024)
_SLIM = (64, 80, 96, 112)
SIZES = {'27s': Sizes(_SLIM, (128, 256, 384, 512), (1, 1, 1, 1)),
         '39': Sizes(*_WIDE, (1, 1, 2, 2)), '57': Sizes(*_WIDE, (1, 1, 4, 3)),
         '19s': Sizes(_SLIM, (112, 256, 384, 512), (1, 1, 1, 1), 3)}


class Module(nn.Module):
  """One-shot aggregation: a chain of convolutions, all put together by a last one.

  Attributes:
    features: channels of each 3x3 convolution, of the output, and how many of the former.
    parts: of the network.
    identity: whether the input is added.
  """
  features: tuple[int, int, int]
  parts: layers.Parts
  identity: bool = True

  @nn.compact
  def __call__(self, x: jax.Array, _=None) -> tuple[jax.Array, None]:
    width, output, depth = self.features
    outputs = [x]
    for i in range(depth):
      outputs.append(layers.conv_norm(outputs[-1], f'layer{i + 1}', width, 3, self.parts))
    y = layers.conv_norm(jnp.concatenate(outputs, -1), 'concat', output, 1, self.parts)
    if self.parts.attention:
      y = self.parts.attention(name='attention')(y)
    return y + x if self.identity else y, None


class VoVNet(nn.Module):
  """Three 3x3 convolutions, four stages of one-shot aggregation, global average pool, dense.

  Attributes:
    sizes: as in SIZES.
    classes: number of logits.
    style: how it computes. Its attention is in every module, as in VoVNetV2's code for detectron2.
    ese: whether eSE (VoVNetV2, arXiv 1911.06667) is in the last module of each stage, as in timm's
      ese_vovnet.
    cifar: for 32x32 images, a form of ours: without strides in the stem.
  """
  sizes: Sizes
  classes: int = 1000
  style: layers.Style = layers.Style()
  ese: bool = False
  cifar: bool = False

  @nn.compact
  def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
    """Maps normalised images [N, H, W, C] to logits [N, classes]."""
    parts, x = layers.parts(self.style, train), images
    attentions = attention.make(self.style.attention, 4)
    strides = (1, 1, 1) if self.cifar else (2, 1, 2)
    for i, features in enumerate(self.sizes.stem):
      x = layers.conv_norm(x, f'stem{i + 1}', features, 3, parts, strides[i])
    for i, (width, output, modules) in enumerate(zip(*self.sizes[:3], strict=True)):
      if i:
        x = pools.max_pool(x, ceil=True)
      x = self._stage(x, f'stage{i + 1}', (width, output, self.sizes.depth), modules,
                      parts._replace(attention=attentions[i]))
    return layers.Output(self.classes, name='output')(x)

  def _stage(self, x, name, features, modules, parts):
    block = nn.remat(Module) if self.style.remat else Module
    ends = parts._replace(attention=attention.ESE) if self.ese else parts
    x, _ = block(features, ends if modules == 1 else parts, False, name=f'{name}_first')(x)
    apart = self.ese and modules > 1
    x = layers.equal_blocks(x, f'{name}_stack', block, modules - 1 - apart, features, parts,
                            self.style)
    if apart:
      x, _ = block(features, ends, name=f'{name}_block{modules}')(x)
    return x

  def torch_module(self, module: str, block: int) -> str:
    """Returns the name of a module in VoVNet.pytorch, or with eSE in timm's ese_vovnet."""
    top, _, part = module.partition('/')
    if top == 'output':
      return 'head.fc' if self.ese else 'classifier'
    if not part:
      name, kind = top.split('_')
      place = int(name[-1]) - 1
      return (f'stem.{place}.{from_torch.TIMM[kind]}' if self.ese
              else f'stem.stem_{place + 1}/{kind}')
    stage, number = from_torch.torch_block(top, block, apart=True)
    name, _, kind = part.partition('_')
    place = int(name[5:]) - 1 if name.startswith('layer') else 0
    if self.ese:
      start = f'stages.{stage - 1}.blocks.{number}'
      layer = 'conv_concat' if name == 'concat' else f'conv_mid.{place}'
      return f'{start}.{layer}.{from_torch.TIMM[kind]}' if kind else f'{start}.attn.fc'
    osa = f'OSA{stage + 1}_{number + 1}'
    start = f'stage{stage + 1}.{osa}'
    if not kind:  # of attention, as VoVNetV2's code for detectron2 has it
      return f'{start}.{part.replace("attention/", "ese.")}'
    return (f'{start}.concat.{osa}_concat/{kind}' if name == 'concat'
            else f'{start}.layers.{place}.{osa}_{place}/{kind}')
