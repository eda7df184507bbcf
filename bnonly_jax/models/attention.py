"""Attention over channels: from each channel's mean over the image comes a factor of the channel.

Each sits in a block after the last norm, before the addition.
"""

from collections.abc import Callable
import functools
import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp

from bnonly_jax.config import UserError
from bnonly_jax.models.layers import he_normal
from bnonly_jax.models.norm import wide

KINDS = ('none', 'se', 'eca', 'ese')
ALLOWED = ('none, se, se:R with R = 1, 2, ... (channels a hidden unit; se alone is se:4), eca,'
           ' eca:K,K,... with an odd K for each stage (eca alone takes them from the channels), or'
           ' ese')


def make(text: str, stages: int) -> list[Callable[[], nn.Module] | None]:
  """Reads config.attention: what makes the attention of a block, for each stage; None: it has none.

  Raises:
    UserError: it is none of ALLOWED.
  """
  kind, _, numbers = text.partition(':')
  sizes = [int(n) for n in numbers.split(',')] if re.fullmatch(r'[1-9]\d*(,[1-9]\d*)*', numbers
                                                               ) else []
  right = {'none': not numbers, 'ese': not numbers, 'se': not numbers or len(sizes) == 1,
           'eca': not numbers or (len(sizes) == stages and all(size % 2 for size in sizes))}
  if not right.get(kind, False) or text.endswith(':'):
    raise UserError(f'config.attention is {text!r}; allowed are {ALLOWED}. This network has'
                    f' {stages} stages. Try --config.attention=eca.')
  if kind == 'eca':
    return [functools.partial(ECA, size) for size in sizes or [0] * stages]
  return [{'none': None, 'ese': ESE, 'se': functools.partial(SE, *sizes)}[kind]] * stages


def eca_size(channels: int) -> int:
  """Returns ECA's kernel size: the odd number by log2(C) / 2 + 1/2 (arXiv 1910.03151, section 3.3).

  It is at least 3, as in the official code (ECANet) where it is not set by hand.
  """
  size = int((math.log2(channels) + 1) / 2)
  return max(size if size % 2 else size + 1, 3)


class ECA(nn.Module):
  """Efficient channel attention (Wang et al. 2019, arXiv 1910.03151): a convolution over channels.

  Attributes:
    size: of the one kernel that all channels share; 0: by `eca_size`.
  """
  size: int = 0
  is_attention = True

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    means, channels = jnp.mean(wide(x), (1, 2)), x.shape[-1]
    size = self.size or eca_size(channels)
    kernel = self.param('kernel', he_normal, (size, 1, 1))
    padded = jnp.pad(means, ((0, 0), (size // 2, size // 2)))
    y = sum(kernel[i, 0, 0] * padded[:, i:i + channels] for i in range(size))
    return x * jax.nn.sigmoid(y)[:, None, None].astype(x.dtype)


class SE(nn.Module):
  """Squeeze and excitation (Hu et al. 2017, arXiv 1709.01507): two dense layers, ReLU and sigmoid.

  Attributes:
    reduction: channels a hidden unit: 4 as in ResNet-RS (arXiv 2103.07579); 16 in Hu et al.
  """
  reduction: int = 4
  is_attention = True

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    means, channels = jnp.mean(wide(x), (1, 2)), x.shape[-1]
    hidden = jax.nn.relu(PixelDense(max(channels // self.reduction, 1), name='fc1')(means))
    y = PixelDense(channels, name='fc2')(hidden)
    return x * jax.nn.sigmoid(y)[:, None, None].astype(x.dtype)


class ESE(nn.Module):
  """Effective squeeze and excitation (arXiv 1911.06667): one dense layer and a hard sigmoid."""
  is_attention = True

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    y = PixelDense(x.shape[-1], name='fc')(jnp.mean(wide(x), (1, 2)))
    return x * (jax.nn.relu6(y + 3) / 6)[:, None, None].astype(x.dtype)


class PixelDense(nn.Module):
  """A 1x1 convolution of one pixel [N, C]; its kernel is a convolution's: [1, 1, C, C_out]."""
  features: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    kernel = self.param('kernel', he_normal, (1, 1, x.shape[-1], self.features))
    bias = self.param('bias', nn.initializers.zeros, (self.features,))
    return x @ kernel[0, 0].astype(x.dtype) + bias.astype(x.dtype)[None]
