"""The CIFAR ResNet of He et al. 2015 (arXiv 1512.03385, section 4.2).

3x3 convolution, three stages of D basic blocks with W, 2W and 4W channels, global average pool,
dense. The first block of stages 2 and 3 has stride 2 and a 1x1 convolution with BatchNorm as its
shortcut. The equal blocks of a stage are one block, scanned over stacked parameters, so that the
time to compile does not grow with depth.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from bnonly_jax.models.conv import conv
from bnonly_jax.models.norm import BatchNorm

he_normal = nn.initializers.variance_scaling(2.0, 'fan_in', 'normal')


class Conv(nn.Module):
  """A square convolution without bias, padded as PyTorch pads it."""
  features: int
  size: int = 3
  stride: int = 1

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    kernel = self.param('kernel', he_normal, (self.size, self.size, x.shape[-1], self.features))
    return conv(x, kernel, self.stride)


class Output(nn.Module):
  """The last, dense layer. Its bias is U(-1/sqrt(fan_in), 1/sqrt(fan_in)), PyTorch's default."""
  classes: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    bound = x.shape[-1] ** -0.5
    kernel = self.param('kernel', he_normal, (x.shape[-1], self.classes))
    bias = self.param(
        'bias', lambda key, shape: jax.random.uniform(key, shape, minval=-bound, maxval=bound),
        (self.classes,))
    return x @ kernel + bias


class Block(nn.Module):
  """conv-BN-ReLU-conv-BN, add, ReLU. Returns a pair, as a scan's body does."""
  features: int
  norm: Callable[..., nn.Module]
  stride: int = 1

  @nn.compact
  def __call__(self, x: jax.Array, _=None) -> tuple[jax.Array, None]:
    y = Conv(self.features, stride=self.stride, name='conv1')(x)
    y = self.norm(name='norm1')(y)
    y = Conv(self.features, name='conv2')(y)
    if self.stride > 1 or x.shape[-1] != self.features:
      x = Conv(self.features, 1, self.stride, name='shortcut_conv')(x)
      x = self.norm(name='shortcut_norm')(x, relu=False)
    return self.norm(name='norm2')(y, residual=x), None


class CifarResNet(nn.Module):
  """Depth 6 * blocks + 2.

  Attributes:
    blocks: D, the number of basic blocks in a stage.
    width: W, the channels of the first stage; 16 in the paper's family of depths.
    classes: number of logits.
    sync_axis: the axis of devices over which BatchNorm takes its statistics, or None.
  """
  blocks: int
  width: int = 16
  classes: int = 10
  sync_axis: str | None = None

  @nn.compact
  def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
    """Maps normalised images [N, H, W, C] to logits [N, classes]."""
    def norm(name):
      return BatchNorm(train, self.sync_axis, name=name)

    x = norm('stem_norm')(Conv(self.width, name='stem_conv')(images))
    for stage in (1, 2, 3):
      features = self.width * 2 ** (stage - 1)
      equal_blocks = self.blocks
      if stage > 1:
        x, _ = Block(features, norm, stride=2, name=f'stage{stage}_first')(x)
        equal_blocks -= 1
      if equal_blocks:
        stacked = nn.scan(Block, variable_axes={'params': 0, 'batch_stats': 0},
                          split_rngs={'params': True}, length=equal_blocks)
        x, _ = stacked(features, norm, name=f'stage{stage}_stack')(x, None)
    return Output(self.classes, name='output')(jnp.mean(x, (1, 2)))
