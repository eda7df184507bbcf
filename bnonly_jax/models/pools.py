"""Pools as PyTorch has them."""

import flax.linen as nn
import jax

from bnonly_jax.config import UserError


def _after(side, size, stride):
  """Pixels after the last row, so that windows begin all over the image: PyTorch's ceil_mode."""
  return max(-(-(side - size) // stride) * stride + size - side, 0)


def max_pool(x: jax.Array, size: int = 3, stride: int = 2, ceil: bool = False) -> jax.Array:
  """The largest of each window, without padding; with `ceil` padded after the last row and column.

  Args:
    x: [N, H, W, C].
    size: of the windows.
    stride: between them.
    ceil: whether windows that reach beyond the image count.
  """
  pads = [(0, _after(side, size, stride) if ceil else 0) for side in x.shape[1:3]]
  return nn.max_pool(x, (size, size), (stride, stride), pads)


def average_pool(x: jax.Array, size: int, stride: int, pad: int = 0, ceil: bool = False
                 ) -> jax.Array:
  """The mean of each window's pixels within the image: count_include_pad=False.

  Args:
    x: [N, H, W, C].
    size: of the windows.
    stride: between them.
    pad: pixels on every side.
    ceil: as for `max_pool`.
  """
  pads = [(pad, pad + (_after(side + 2 * pad, size, stride) if ceil else 0))
          for side in x.shape[1:3]]
  # Flax divides by float32 counts.
  return nn.avg_pool(x, (size, size), (stride, stride), pads,
                     count_include_pad=False).astype(x.dtype)


def require_four(images: jax.Array, network: str) -> None:
  """Raises UserError if four max pools of two leave nothing of images [N, H, W, C]."""
  if min(images.shape[1:3]) < 16:
    raise UserError(f'config.network is {network}, and the images have'
                    f' {images.shape[1]}x{images.shape[2]} pixels; allowed are 16x16 and more.'
                    ' Choose a cifar_resnet, or other data.')
