"""Inception-v4 (Szegedy et al. 2016, arXiv 1602.07261) in timm's form.

The public networks of TensorFlow have no gamma here, only a beta: `train: beta` is that.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from bnonly_jax.config import UserError
from bnonly_jax.models import from_torch
from bnonly_jax.models import layers
from bnonly_jax.models import pools

EPSILON = 1e-3
# Each branch's convolutions: name, channels, size, and for some stride and padding.
_VALID = (2, 'VALID')
_MIXED = ((('branch0_0', 64, 1), ('branch0_1', 96, 3, 1, 'VALID')),
          (('branch1_0', 64, 1), ('branch1_1', 64, (1, 7)), ('branch1_2', 64, (7, 1)),
           ('branch1_3', 96, 3, 1, 'VALID')))
_A = ((('branch0', 96, 1),), (('branch1_0', 64, 1), ('branch1_1', 96, 3)),
      (('branch2_0', 64, 1), ('branch2_1', 96, 3), ('branch2_2', 96, 3)), (('branch3_1', 96, 1),))
_TO_B = ((('branch0', 384, 3, *_VALID),),
         (('branch1_0', 192, 1), ('branch1_1', 224, 3), ('branch1_2', 256, 3, *_VALID)))
_B = ((('branch0', 384, 1),),
      (('branch1_0', 192, 1), ('branch1_1', 224, (1, 7)), ('branch1_2', 256, (7, 1))),
      (('branch2_0', 192, 1), ('branch2_1', 192, (7, 1)), ('branch2_2', 224, (1, 7)),
       ('branch2_3', 224, (7, 1)), ('branch2_4', 256, (1, 7))), (('branch3_1', 128, 1),))
_TO_C = ((('branch0_0', 192, 1), ('branch0_1', 192, 3, *_VALID)),
         (('branch1_0', 256, 1), ('branch1_1', 256, (1, 7)), ('branch1_2', 320, (7, 1)),
          ('branch1_3', 320, 3, *_VALID)))


class InceptionV4(nn.Module):
  """A stem, four, seven and three equal blocks with reductions between, global average pool, dense.

  Attributes:
    shrink: by what all channels are divided; 1 in the paper.
    classes: number of logits.
    style: how it computes.
  """
  shrink: int = 1
  classes: int = 1000
  style: layers.Style = layers.Style()

  @nn.compact
  def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
    """Maps normalised images [N, H, W, C] to logits [N, classes].

    Raises:
      UserError: the images have less than 75 pixels a side, and nothing is left.
    """
    if min(images.shape[1:3]) < 75:
      raise UserError(f'config.network is inception_v4, and the images have {images.shape[1]}x'
                      f'{images.shape[2]} pixels; allowed are 75x75 and more. Set'
                      ' --config.data.image_size=299 and --config.data.eval_resize to no less, or'
                      ' choose another network.')
    parts = layers.parts(self.style, train, EPSILON)
    x = chain(images, (('stem1', 32, 3, *_VALID), ('stem2', 32, 3, 1, 'VALID'), ('stem3', 64, 3)),
              parts, self.shrink)
    x = jnp.concatenate([pools.max_pool(x), chain(x, (('stem4', 96, 3, *_VALID),), parts,
                                                  self.shrink)], -1)
    x = Branches('mixed', parts, self.shrink, name='stem5')(x)
    x = jnp.concatenate([chain(x, (('stem6', 192, 3, *_VALID),), parts, self.shrink),
                         pools.max_pool(x)], -1)
    for i, (block, blocks, reduction) in enumerate(((BlockA, 4, 'to_b'), (BlockB, 7, 'to_c'),
                                                    (BlockC, 3, ''))):
      block = nn.remat(block) if self.style.remat else block
      x = layers.equal_blocks(x, f'stage{i + 1}_stack', block, blocks, self.shrink, parts,
                              self.style)
      if reduction:
        y = Branches(reduction, parts, self.shrink, name=f'reduction{i + 1}')(x)
        x = jnp.concatenate([y, pools.max_pool(x)], -1)
    return layers.Output(self.classes, name='output')(x)

  def torch_module(self, module: str, block: int) -> str:
    """Returns the name of a module in timm's inception_v4.py."""
    if module == 'output':
      return 'last_linear'
    path, _, kind = module.rpartition('_')
    kind = from_torch.TIMM[kind]
    top, _, branch = path.partition('/')
    if not branch:
      number = int(top[4:]) - 1
      return f'features.{number}.{"conv." if number in (3, 5) else ""}{kind}'
    first = {'stem5': 4, 'stage1_stack': 6, 'reduction1': 10, 'stage2_stack': 11, 'reduction2': 18,
             'stage3_stack': 19}[top]
    if top != 'stage3_stack' or branch.startswith('branch3'):
      branch = branch.replace('_', '.')
    return f'features.{first + block}.{branch}.{kind}'


def chain(x: jax.Array, convolutions: tuple, parts: layers.Parts, shrink: int) -> jax.Array:
  """Applies convolutions, each with norm and ReLU, one after the other."""
  for name, features, size, *rest in convolutions:
    x = layers.conv_norm(x, name, features // shrink, size, parts, *rest)
  return x


def branches(x: jax.Array, chains: tuple, parts: layers.Parts, shrink: int) -> jax.Array:
  """Puts together what chains of convolutions make of an image; a fourth one begins with a pool."""
  inputs = [x, x, x, pools.average_pool(x, 3, 1, 1)][:len(chains)]
  return jnp.concatenate([chain(y, convolutions, parts, shrink)
                          for y, convolutions in zip(inputs, chains, strict=True)], -1)


class Branches(nn.Module):
  """The branches of a reduction, or of the stem, but for its pool."""
  kind: str
  parts: layers.Parts
  shrink: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    chains = {'mixed': _MIXED, 'to_b': _TO_B, 'to_c': _TO_C}[self.kind]
    return branches(x, chains, self.parts, self.shrink)


class BlockA(nn.Module):
  """1x1 and 3x3 convolutions. Returns a pair, as a scan's body does."""
  shrink: int
  parts: layers.Parts

  @nn.compact
  def __call__(self, x: jax.Array, _=None) -> tuple[jax.Array, None]:
    return branches(x, _A, self.parts, self.shrink), None


class BlockB(nn.Module):
  """1x1, 1x7 and 7x1 convolutions. Returns a pair, as a scan's body does."""
  shrink: int
  parts: layers.Parts

  @nn.compact
  def __call__(self, x: jax.Array, _=None) -> tuple[jax.Array, None]:
    return branches(x, _B, self.parts, self.shrink), None


class BlockC(nn.Module):
  """Branches that fork into 1x3 and 3x1 convolutions. Returns a pair, as a scan's body does."""
  shrink: int
  parts: layers.Parts

  @nn.compact
  def __call__(self, x: jax.Array, _=None) -> tuple[jax.Array, None]:
    run = lambda x, *convolutions: chain(x, convolutions, self.parts, self.shrink)
    fork = lambda x, name: [run(x, (f'{name}a', 256, (1, 3))), run(x, (f'{name}b', 256, (3, 1)))]
    straight = run(x, ('branch0', 256, 1))
    short = fork(run(x, ('branch1_0', 384, 1)), 'branch1_1')
    long = fork(run(x, ('branch2_0', 384, 1), ('branch2_1', 448, (3, 1)),
                    ('branch2_2', 512, (1, 3))), 'branch2_3')
    pooled = run(pools.average_pool(x, 3, 1, 1), ('branch3_1', 256, 1))
    return jnp.concatenate([straight, *short, *long, pooled], -1), None
