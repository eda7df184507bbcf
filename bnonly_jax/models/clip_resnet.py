"""The ResNets of CLIP's image encoder (Radford et al. 2021, arXiv 2103.00020; CLIP d05afc4)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from bnonly_jax.models import attention
from bnonly_jax.models import from_torch
from bnonly_jax.models import layers
from bnonly_jax.models import pools
from bnonly_jax.models.norm import wide

STAGES = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
HEAD = 64  # features a head of the attention pool: 32 heads of 2,048


class AttentionPool(nn.Module):
  """What the image's mean, as a query, finds in the mean and the pixels: [N, H, W, C] to [N, C].

  It is without the last projection, which is the network's output layer.
  """
  is_attention = True

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = wide(x).reshape(x.shape[0], -1, x.shape[-1])
    x = jnp.concatenate([jnp.mean(x, 1, keepdims=True), x], 1)
    n, length, features = x.shape
    x = x + self.param('positional_embedding', nn.initializers.normal(features ** -0.5),
                       (length, features))[None]
    heads = lambda name, x: nn.Dense(features, name=name)(x).reshape(
        *x.shape[:-1], -1, min(HEAD, features))
    q, k, v = heads('q_proj', x[:, 0]), heads('k_proj', x), heads('v_proj', x)
    weights = jax.nn.softmax(jnp.einsum('nhd,nkhd->nhk', q, k) * q.shape[-1] ** -0.5, -1)
    return jnp.einsum('nhk,nkhd->nhd', weights, v).reshape(n, features)


class ClipResNet(nn.Module):
  """Three 3x3 convolutions, average pool, four stages of bottlenecks, attention pool, dense.

  Attributes:
    stages: blocks in each.
    width: channels of the first stage's 3x3 convolutions.
    classes: number of logits: of the attention pool's last projection.
    style: how it computes.
    gap: whether a global average pool and a dense layer end it instead.
    cifar: for 32x32 images, a form of ours: without stride and pool in the stem.
  """
  stages: tuple[int, ...]
  width: int = 64
  classes: int = 1000
  style: layers.Style = layers.Style()
  gap: bool = False
  cifar: bool = False

  @nn.compact
  def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
    """Maps normalised images [N, H, W, C] to logits [N, classes]."""
    parts, x = layers.parts(self.style, train), images
    attentions = attention.make(self.style.attention, 4)
    for i, features in enumerate((self.width // 2, self.width // 2, self.width)):
      stride = 1 if i or self.cifar else 2
      conv = parts.conv(features, 3, stride, name=f'stem_conv{i + 1}')
      x = (parts.norm if i else parts.stem_norm)(f'stem_norm{i + 1}')(conv(x))
    x = x if self.cifar else pools.average_pool(x, 2, 2)
    for i, blocks in enumerate(self.stages):
      x = layers.stage(x, f'stage{i + 1}', layers.PooledBottleneck, blocks, self.width * 2 ** i,
                       parts._replace(attention=attentions[i]), stride=2 if i else 1,
                       style=self.style, last=i == 3)
    if not self.gap:
      x = AttentionPool(name='attnpool')(x)
    return layers.Output(self.classes, name='output')(x)

  def torch_module(self, module: str, block: int) -> str:
    """Returns the name of a module in CLIP's model.py, below `visual`; with `gap`, in timm."""
    top, _, part = module.partition('/')
    if self.gap:
      return self._timm_module(top, part, block)
    if top == 'output':
      return 'attnpool.c_proj'
    if top == 'attnpool':
      return f'attnpool.{part}'.rstrip('.')
    if not part:
      return top.removeprefix('stem_').replace('norm', 'bn')
    stage, number = from_torch.torch_block(top, block, apart=True)
    return f'layer{stage}.{number}.{from_torch.torch_part(part)}'

  def _timm_module(self, top, part, block):
    """The name in timm's resnet50_clip_gap."""
    if top == 'output':
      return 'head.fc'
    name, _, kind = (part or top.removeprefix('stem_')).partition('_')
    if not part:
      return f'stem.conv{name[-1]}.{from_torch.TIMM[name[:-1]]}'
    stage, number = from_torch.torch_block(top, block, apart=True)
    start = f'stages.{stage - 1}.{number}'
    if name == 'shortcut':
      return f'{start}.shortcut.conv.{from_torch.TIMM[kind]}'
    if name[:-1] not in from_torch.TIMM:  # attention
      return f'{start}.{from_torch.torch_part(part)}'
    size = {'1': '1x1', '2': 'kxk', '3': '1x1'}[name[-1]]
    return f'{start}.conv{name[-1]}_{size}.{from_torch.TIMM[name[:-1]]}'
