"""What the networks are made of: convolution, output layer, residual blocks, stages of blocks."""

from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Sequence
import functools
import math
import re
from typing import Any
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bnonly_jax.models.conv import convolve
from bnonly_jax.models.norm import EPSILON
from bnonly_jax.models.norm import GroupNorm
from bnonly_jax.models.norm import InstanceBatchNorm
from bnonly_jax.models.norm import KEEP
from bnonly_jax.models.norm import make_norm
from bnonly_jax.models.norm import NoNorm
from bnonly_jax.models.norm import Statistics
from bnonly_jax.models.norm import wide
from bnonly_jax.models.pools import average_pool

he_normal = nn.initializers.variance_scaling(2.0, 'fan_in', 'normal')


# Up to how many equal blocks of a stage are computed without a loop.
_UNROLLED = 18


class Style(NamedTuple):
  """How a network computes, whatever its architecture.

  Attributes:
    norm: which norm, one of `norm.KINDS`.
    attention: after the last norm of each block, as `attention.make` reads it.
    statistics: over which images BatchNorm takes its statistics.
    remat: whether residual blocks are computed again in the backward pass instead of saved.
    backend: for which it is to be fast: cpu, gpu or tpu.
    unroll: how many equal blocks one turn of a loop over them holds; 0: `unrolled` chooses.
  """
  norm: str = 'batch'
  statistics: Statistics = Statistics()
  remat: bool = False
  backend: str = 'cpu'
  unroll: int = 0
  attention: str = 'none'


def unrolled(style: Style, blocks: int) -> int:
  """Returns how many of a stage's equal blocks one turn of the loop over them holds.

  A loop writes all that it saves into stacks and reads it out of them; without one, the program
  and the time to compile it grow with depth.
  """
  if style.unroll:
    return min(style.unroll, blocks)
  return blocks if blocks <= _UNROLLED else 1


class Parts(NamedTuple):
  """What makes a network's convolutions, as `Conv`, and its norms, given their names.

  Attributes:
    conv: a convolution.
    norm: a norm.
    stem_norm: that of the stem.
    first_norm: the first of a block; None: as the others.
    attention: that of a block; None: there is none.
    end_norm: what follows a block's addition, before its ReLU; None: nothing.
  """
  conv: Callable[..., nn.Module]
  norm: Callable[[str], nn.Module]
  stem_norm: Callable[[str], nn.Module]
  first_norm: Callable[[str], nn.Module] | None = None
  attention: Callable[[], nn.Module] | None = None
  end_norm: Callable[[str], nn.Module] | None = None


def parts(style: Style, train: bool, epsilon: float = EPSILON, keep: float = KEEP) -> Parts:
  """Returns the parts of a network of this style, in training or evaluation."""
  norm = make_norm(style.norm, train, style.statistics, style.backend, epsilon, keep)
  stem_norm = (lambda name: GroupNorm(1, name=name)) if style.norm == 'ibn_b' else norm
  return Parts(functools.partial(Conv, backend=style.backend), norm, stem_norm)


def conv_norm(x: jax.Array, name: str, features: int, size: int | tuple[int, int], parts: Parts,
              stride: int = 1, padding: str = 'SAME') -> jax.Array:
  """A convolution, a norm and a ReLU, as modules '{name}_conv' and '{name}_norm'."""
  y = parts.conv(features, size, stride, padding=padding, name=f'{name}_conv')(x)
  return parts.norm(f'{name}_norm')(y)


def last_norm(name: str, y: jax.Array, residual: jax.Array, parts: Parts) -> jax.Array:
  """The end of a block: its last norm, attention, addition, what else there is, ReLU."""
  if parts.attention:
    y = parts.attention(name='attention')(parts.norm(name)(y, relu=False))
    y = NoNorm(name='sum')(y, residual, relu=not parts.end_norm)
  else:
    y = parts.norm(name)(y, residual=residual, relu=not parts.end_norm)
  return parts.end_norm('end_norm')(y) if parts.end_norm else y


def torch_bias(fan_in: int) -> Callable[..., jax.Array]:
  """Returns PyTorch's default initialiser of a bias: U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""
  bound = fan_in ** -0.5
  return lambda key, shape: jax.random.uniform(key, shape, minval=-bound, maxval=bound)


class Conv(nn.Module):
  """A convolution in the images' dtype, padded as PyTorch pads it.

  Attributes:
    features: channels that it puts out.
    size: of the kernel, or its height and its width.
    stride: step in both directions.
    bias: whether it adds one.
    backend: for which it is to be fast.
    in_loop: whether it is in the body of a scan.
    padding: SAME or VALID, as `conv.convolve` has it.
    depthwise: whether each channel has a kernel of its own.
  """
  features: int
  size: int | tuple[int, int] = 3
  stride: int = 1
  bias: bool = False
  backend: str = 'cpu'
  in_loop: bool = False
  padding: str = 'SAME'
  depthwise: bool = False

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    size = (self.size, self.size) if isinstance(self.size, int) else self.size
    shape = (*size, 1 if self.depthwise else x.shape[-1], self.features)
    kernel = self.param('kernel', he_normal, shape).astype(x.dtype)
    y = convolve(x, kernel, self.stride, self.backend, self.in_loop, self.padding)
    if self.bias:
      bias = self.param('bias', torch_bias(math.prod(shape[:-1])), (self.features,))
      y = y + bias.astype(x.dtype)[None, None, None]
    return y


class Output(nn.Module):
  """Global average pool and the last, dense layer, in at least float32.

  Attributes:
    classes: number of logits.
    pool: over the image's pixels: the mean, or jnp.max. Of [N, C] there is nothing to pool.
  """
  classes: int
  pool: Callable[..., jax.Array] = jnp.mean

  @nn.compact
  def __call__(self, images: jax.Array) -> jax.Array:
    x = self.pool(wide(images), (1, 2)) if images.ndim == 4 else wide(images)
    if not self.is_initializing():
      self.sow('features', 'input', x)  # for who asks for 'features'; no step does
    kernel = self.param('kernel', he_normal, (x.shape[-1], self.classes))
    return x @ kernel + self.param('bias', torch_bias(x.shape[-1]), (self.classes,))[None]


class BasicBlock(nn.Module):
  """conv-norm-ReLU-conv-norm, add, ReLU. Returns a pair, as a scan's body does."""
  features: int
  parts: Parts
  stride: int = 1
  expansion = 1

  @nn.compact
  def __call__(self, x: jax.Array, _=None) -> tuple[jax.Array, None]:
    conv, norm, first_norm = self.parts.conv, self.parts.norm, self.parts.first_norm
    y = (first_norm or norm)('norm1')(conv(self.features, 3, self.stride, name='conv1')(x))
    y = conv(self.features, name='conv2')(y)
    residual = shortcut(x, self.features, self.stride, self.parts)
    return last_norm('norm2', y, residual, self.parts), None


class Bottleneck(nn.Module):
  """1x1, 3x3 (with the stride, as torchvision has it) and 1x1 to four times the channels."""
  features: int
  parts: Parts
  stride: int = 1
  expansion = 4
  pools = ''  # where average pools take the strides' place

  @nn.compact
  def __call__(self, x: jax.Array, _=None) -> tuple[jax.Array, None]:
    conv, norm, first_norm = self.parts.conv, self.parts.norm, self.parts.first_norm
    y = (first_norm or norm)('norm1')(conv(self.features, 1, name='conv1')(x))
    stride = 1 if self.pools == 'both' else self.stride
    y = norm('norm2')(conv(self.features, 3, stride, name='conv2')(y))
    if stride < self.stride:
      y = average_pool(y, self.stride, self.stride)
    y = conv(4 * self.features, 1, name='conv3')(y)
    residual = shortcut(x, 4 * self.features, self.stride, self.parts, bool(self.pools))
    return last_norm('norm3', y, residual, self.parts), None


class PooledShortcut(Bottleneck):
  """A bottleneck whose shortcut has an average pool and a convolution without stride."""
  pools = 'shortcut'


class PooledBottleneck(Bottleneck):
  """A bottleneck with average pools instead of strides, in the shortcut and after the 3x3."""
  pools = 'both'


def shortcut(x: jax.Array, features: int, stride: int, parts: Parts,
             pooled: bool = False) -> jax.Array:
  """The identity where the shape stays, else a 1x1 convolution and a norm of the calling block.

  With `pooled` an average pool takes the place of its stride.
  """
  if stride == 1 and x.shape[-1] == features:
    return x
  if pooled and stride > 1:
    x, stride = average_pool(x, stride, stride, ceil=True), 1
  y = parts.conv(features, 1, stride, name='shortcut_conv')(x)
  return parts.norm('shortcut_norm')(y, relu=False)


def is_stacked(name: str) -> bool:
  """Whether a variable of this name stacks, on its first axis, those of a stage's equal blocks."""
  return '_stack/' in name


def unstacked_names(name: str, lifts: Sequence[str], lengths: Sequence[int],
                    names: Collection[str]) -> list[str]:
  """Names what a stack of equal blocks holds, in its order; one name of what is no stack.

  Blocks count from 1: of 'layers/norm/scale', stacked over the module 'layers', come
  'layers/block1/norm/scale', ... Of this package's stages, whose first block may stand apart,
  'stage2_first/norm1/scale' becomes 'stage2/block1/norm1/scale', and 'stage2_stack/norm1/scale'
  'stage2/block2/norm1/scale' and so on.

  Args:
    name: of a variable or a module.
    lifts: the modules over whose equals it is stacked, the outermost first.
    lengths: of its first axes, one for each of lifts.
    names: of all variables.
  """
  stage, place, rest = re.fullmatch(r'(?:(stage\d+)_(first|stack|block\d+)/)?(.+)', name).groups()
  if place and place != 'stack':
    return [f'{stage}/{"block1" if place == "first" else place}/{rest}']
  offset = 1 + (place == 'stack' and any(n.startswith(f'{stage}_first/') for n in names))
  found = []
  for index in np.ndindex(*lengths):
    parts = name.split('/')
    for lift, i in reversed(list(zip(lifts, index, strict=True))):
      first = offset if lift == f'{stage}_stack' else 1
      parts.insert(len(lift.split('/')) if lift else 0, f'block{i + first}')
    found.append('/'.join(parts).replace(f'{stage}_stack/', f'{stage}/', 1))
  return found


def unstack(named: dict[str, Any], stacks: Collection[str] = ()) -> dict[str, Any]:
  """Takes stacks of equal blocks apart and puts layers in the network's order.

  Names become those of `unstacked_names`. Of the layers of a block, the shortcut's come last. Other
  names stay.

  Args:
    named: arrays by name, as `masks.flatten` has a network's variables.
    stacks: modules that are stacked, besides this package's stages.
  """
  unstacked = {}
  for name, value in named.items():
    own = [name.partition('/')[0]] if is_stacked(name) else []
    lifts = sorted({*own, *(s for s in stacks if not s or name.startswith(f'{s}/'))}, key=len)
    shape = value.shape[:len(lifts)]
    for index, block in zip(np.ndindex(*shape), unstacked_names(name, lifts, shape, named),
                            strict=True):
      unstacked[block] = value[index] if lifts else value

  def order(name):  # numbers by their size, and the stem before the stages
    return not name.startswith('stem'), [int(part) if part.isdigit() else part
                                         for part in re.split(r'(\d+)', name)]

  return {name: unstacked[name] for name in sorted(unstacked, key=order)}


def adds_residual(name: str, names: Collection[str]) -> bool:
  """Whether a ReLU's module, by its unstacked name among all of them, adds its block's residual."""
  block, _, number = name.rpartition('norm')
  if name.endswith('/sum') or f'{block}sum' in names:
    return name.endswith('/sum')
  return '/' in name and number.isdigit() and f'{block}norm{int(number) + 1}' not in names


def stage(x: jax.Array, name: str, block: type[nn.Module], blocks: int, features: int, parts: Parts,
          stride: int, style: Style, last: bool = False) -> jax.Array:
  """Applies the blocks of a stage: the first, if it changes the shape, then the equal ones.

  The equal blocks are one block scanned over stacked parameters and statistics, in a loop that is
  unrolled as far as `unrolled` says; the names are the same either way. With `style.remat` only the
  blocks' inputs are saved, and each block is computed again in the backward pass. Called from a
  compact method, whose module owns them.

  IBN's InstanceNorms (arXiv 1807.09441) are in all stages but the last (ibn_a: half of each block's
  first norm), or in the stem and at the end of the last block of the first two stages (ibn_b). That
  block then stands apart as '{name}_block{blocks}'.

  Args:
    x: [N, H, W, C].
    name: 'stage1', 'stage2', ...
    block: of which the stage is made, with `expansion`: channels that it puts out a feature.
    blocks: how many.
    features: of each block.
    parts: of the network.
    stride: of the first block.
    style: of the network.
    last: whether it is the network's last stage.
  """
  expansion = block.expansion
  if style.norm == 'ibn_a' and not last:
    parts = parts._replace(first_norm=lambda name: InstanceBatchNorm(parts.norm, name=name))
  ends_in_norm = style.norm == 'ibn_b' and name in ('stage1', 'stage2')
  end_parts = parts._replace(end_norm=lambda name: GroupNorm(1, name=name))
  if style.remat:
    block = nn.remat(block)
  if blocks > ends_in_norm and (stride > 1 or x.shape[-1] != expansion * features):
    x, _ = block(features, parts, stride, name=f'{name}_first')(x)
    x = equal_blocks(x, f'{name}_stack', block, blocks - 1 - ends_in_norm, features, parts, style)
  else:
    x = equal_blocks(x, f'{name}_stack', block, blocks - ends_in_norm, features, parts, style)
  if ends_in_norm:
    stride = stride if blocks == 1 else 1
    x, _ = block(features, end_parts, stride, name=f'{name}_block{blocks}')(x)
  return x


def equal_blocks(x: jax.Array, name: str, block: type[nn.Module], blocks: int, features: Any,
                 parts: Parts, style: Style) -> jax.Array:
  """Applies as many blocks as there are, stacked as one module of this name; see `stage`."""
  if not blocks:
    return x
  unroll = unrolled(style, blocks)
  if unroll < blocks:
    parts = parts._replace(conv=functools.partial(parts.conv, in_loop=True))
  stacked = nn.scan(block, variable_axes={'params': 0, 'batch_stats': 0, 'intermediates': 0},
                    split_rngs={'params': True}, length=blocks,
                    unroll=max(unroll, 2) if unroll == blocks else unroll)  # 1 would loop
  return stacked(features, parts, name=name)(x, None)[0]
