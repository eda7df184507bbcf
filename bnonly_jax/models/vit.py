"""Vision Transformers (Dosovitskiy et al. 2020, arXiv 2010.11929) in DeiT's sizes (2012.12877)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from bnonly_jax.config import UserError
from bnonly_jax.models import layers
from bnonly_jax.models.norm import wide

FEATURES = {'tiny': 192, 'small': 384}
HEAD = 64  # features a head
EPSILON = 1e-6  # timm's, of the LayerNorms


class SelfAttention(nn.Module):
  """Multi-head self-attention over tokens [N, L, C], heads of HEAD features."""
  is_attention = True

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    n, length, features = x.shape
    qkv = nn.Dense(3 * features, dtype=x.dtype, name='qkv')(x)
    q, k, v = jnp.moveaxis(qkv.reshape(n, length, 3, -1, min(HEAD, features)), 2, 0)
    scores = jnp.einsum('nqhd,nkhd->nhqk', q, k) * q.shape[-1] ** -0.5
    weights = jax.nn.softmax(wide(scores), -1).astype(x.dtype)
    y = jnp.einsum('nhqk,nkhd->nqhd', weights, v).reshape(x.shape)
    return nn.Dense(features, dtype=x.dtype, name='proj')(y)


class Block(nn.Module):
  """Attention and two dense layers, each after a norm and added. Returns a pair, for a scan."""
  features: int
  parts: layers.Parts

  @nn.compact
  def __call__(self, x: jax.Array, _=None) -> tuple[jax.Array, None]:
    norm = self.parts.norm
    x = x + SelfAttention(name='attn')(norm('norm1')(x, relu=False))
    y = nn.Dense(4 * self.features, dtype=x.dtype, name='fc1')(norm('norm2')(x, relu=False))
    y = jax.nn.gelu(y, approximate=False)
    return x + nn.Dense(self.features, dtype=x.dtype, name='fc2')(y), None


class ViT(nn.Module):
  """Patches, a class token, learned positions, blocks, LayerNorm, dense on the class token.

  Attributes:
    features: of each token.
    blocks: how many.
    classes: number of logits.
    style: how it computes. Its norm `batch`, the default, means the network's own: LayerNorm.
  """
  features: int
  blocks: int = 12
  classes: int = 1000
  style: layers.Style = layers.Style()

  @nn.compact
  def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
    """Maps normalised images [N, H, W, C] to logits [N, classes].

    Raises:
      UserError: patches do not fill the images.
    """
    norm = 'layer_channels' if self.style.norm == 'batch' else self.style.norm
    parts = layers.parts(self.style._replace(norm=norm), train, epsilon=EPSILON)
    patch = 4 if min(images.shape[1:3]) < 64 else 16
    if any(side % patch for side in images.shape[1:3]):
      raise UserError(f'config.network is a vit with patches of {patch}x{patch}, and the images'
                      f' have {images.shape[1]}x{images.shape[2]} pixels; allowed are multiples of'
                      f' {patch}. Set --config.data.image_size=...')
    x = parts.conv(self.features, patch, patch, bias=True, padding='VALID', name='patch')(images)
    x = x.reshape(x.shape[0], -1, self.features)
    start = nn.initializers.normal(0.02)
    token = self.param('cls_token', start, (1, 1, self.features)).astype(x.dtype)
    positions = self.param('pos_embed', start, (1, x.shape[1] + 1, self.features)).astype(x.dtype)
    x = jnp.concatenate([jnp.broadcast_to(token, (x.shape[0], 1, self.features)), x], 1) + positions
    block = nn.remat(Block) if self.style.remat else Block
    x = layers.equal_blocks(x, 'stage1_stack', block, self.blocks, self.features, parts, self.style)
    x = parts.norm('norm')(x[:, 0], relu=False)
    return layers.Output(self.classes, name='output')(x)

  def torch_module(self, module: str, block: int) -> str:
    """Returns the name of a module in timm's vision_transformer.py."""
    top, _, part = module.partition('/')
    if not part:
      return {'': '', 'patch': 'patch_embed.proj', 'norm': 'norm', 'output': 'head'}[top]
    part = part.replace('/', '.')
    return f'blocks.{block}.{f"mlp.{part}" if part.startswith("fc") else part}'
