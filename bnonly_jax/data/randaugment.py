"""RandAugment (arXiv 1909.13719) on a device: its operations but equalize, which would need a
histogram of each image. Ranges are torchvision's; shears and rotations are about the centre.
"""

import jax
import jax.numpy as jnp
import numpy as np

from bnonly_jax import seeds

MAGNITUDES = 10
OPERATIONS = ('identity', 'shear_x', 'shear_y', 'translate_x', 'translate_y', 'rotate',
              'brightness', 'contrast', 'color', 'sharpness', 'posterize', 'solarize',
              'autocontrast')
_BLENDS = OPERATIONS.index('brightness'), OPERATIONS.index('sharpness')


def randaugment(images: jax.Array, seed: int | jax.Array, step: jax.Array, positions: jax.Array,
                operations: int, magnitude: float) -> jax.Array:
  """Does so many operations one after the other to each image, each drawn from OPERATIONS.

  Args:
    images: uint8 [N, H, W, C].
    seed: the experiment's.
    step: int32 scalar.
    positions: int32 [N], each image's place in the global batch.
    operations: how many.
    magnitude: of all of them, 0 to MAGNITUDES.

  Returns:
    uint8 [N, H, W, C].
  """
  for i in range(operations):
    bits = seeds.image_bits(seed, step, positions, 2, f'randaugment/{i}')
    which = (bits[:, 0] % len(OPERATIONS)).astype(jnp.int32)
    images = operate(images, which, (bits[:, 1] & 1).astype(jnp.int32), magnitude)
  return images


def operate(images: jax.Array, which: jax.Array, sign: jax.Array, magnitude: float) -> jax.Array:
  """Does one operation to each image.

  Args:
    images: uint8 [N, H, W, C].
    which: int32 [N], places in OPERATIONS.
    sign: int32 [N], 0 or 1: to which side, or whether less or more.
    magnitude: 0 to MAGNITUDES.

  Returns:
    uint8 [N, H, W, C].
  """
  strength = magnitude / MAGNITUDES
  images = _move(images, which, sign, strength).astype(jnp.int32)
  which, sign = (x[:, None, None, None] for x in (which, sign))
  is_a = lambda name: which == OPERATIONS.index(name)
  # PIL's enhancements, away from a poorer image or towards it: d + f (x - d), f in 256ths.
  grey = _grey(images)
  size = grey[0].size
  mean = (jnp.sum(grey, (1, 2, 3), keepdims=True) + size // 2) // size
  poorer = jnp.select([is_a('contrast'), is_a('color'), is_a('sharpness')],
                      [jnp.broadcast_to(mean, images.shape), jnp.broadcast_to(grey, images.shape),
                       _smooth(images)], 0)
  change = round(256 * 0.9 * strength) * (1 - 2 * sign)
  blends = (which >= _BLENDS[0]) & (which <= _BLENDS[1])
  blended = (256 * images + jnp.where(blends, change, 0) * (images - poorer) + 128) >> 8
  images = jnp.clip(blended, 0, 255)
  low, high = (reduce(images, (1, 2), keepdims=True) for reduce in (jnp.min, jnp.max))
  stretched = jnp.where(high > low, 255 * (images - low) // jnp.maximum(high - low, 1), images)
  bits = round(4 * strength)  # that posterize takes away
  return jnp.select(
      [is_a('posterize'), is_a('solarize'), is_a('autocontrast')],
      [images >> bits << bits,
       jnp.where(images >= round(256 * (1 - strength)), 255 - images, images), stretched],
      images).astype(jnp.uint8)


def _move(images, which, sign, strength):
  """Each pixel from where a table says that it comes from; from outside, black."""
  number, height, width, channels = images.shape
  table = jnp.asarray(_sources(height, width, strength).reshape(-1, height * width))
  black = jnp.zeros((number, 1, channels), images.dtype)
  pixels = jnp.concatenate([images.reshape(number, -1, channels), black], 1)
  last_moving = OPERATIONS.index('rotate')
  index = table[jnp.where(which > last_moving, 0, 2 * which + sign)]
  return jnp.take_along_axis(pixels, index[..., None], 1).reshape(images.shape)


def _sources(height, width, strength):
  """int32 [2 * moving operations, H, W]: where in the flattened image, H * W being outside."""
  shear, angle, shift = 0.3 * strength, np.pi / 6 * strength, 150 / 331 * strength
  tables = []
  for name in OPERATIONS[:OPERATIONS.index('rotate') + 1]:
    for sign in (1, -1):
      # From an output pixel's row and column, seen from the centre, to those in the image.
      matrix, offset = np.eye(2), np.zeros(2)
      if name == 'shear_x':
        matrix[1, 0] = sign * shear
      elif name == 'shear_y':
        matrix[0, 1] = sign * shear
      elif name == 'translate_x':
        offset[1] = sign * np.trunc(shift * width)
      elif name == 'translate_y':
        offset[0] = sign * np.trunc(shift * height)
      elif name == 'rotate':
        sine, cosine = np.sin(sign * angle), np.cos(angle)
        matrix = np.array([[cosine, sine], [-sine, cosine]])
      centre = np.array([height - 1, width - 1]) / 2
      places = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing='ij'), -1)
      rows, columns = np.moveaxis(
          np.floor((places - centre) @ matrix.T + centre + offset + 0.5).astype(int), -1, 0)
      inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
      tables.append(np.where(inside, rows * width + columns, height * width))
  return np.stack(tables).astype(np.int32)


def _grey(images):
  """PIL's grey, int32 [N, H, W, 1]."""
  if images.shape[-1] == 1:
    return images
  return jnp.sum(images * np.int32([299, 587, 114]).reshape(1, 1, 1, 3), -1, keepdims=True) // 1000


def _smooth(images):
  """PIL's SMOOTH: five times a pixel and its eight neighbours, by 13; the border stays."""
  height, width = images.shape[1:3]
  total = 4 * images[:, 1:-1, 1:-1]
  for top in range(3):
    for left in range(3):
      total += images[:, top:height - 2 + top, left:width - 2 + left]
  return images.at[:, 1:-1, 1:-1].set((total + 6) // 13)
