"""What happens to images on the device: random crop, flip, normalisation."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from bnonly_jax import seeds


def crop_and_flip(images: jax.Array, seed: int, step: jax.Array, positions: jax.Array, pad: int,
                  flip: bool) -> jax.Array:
  """Crops padded images at random to their old size and mirrors each with probability 1/2.

  Args:
    images: uint8 [N, H + 2 pad, W + 2 pad, C].
    seed: the experiment's.
    step: int32 scalar.
    positions: int32 [N], each image's place in the global batch.
    pad: pixels of padding on each side.
    flip: whether to mirror at all.

  Returns:
    uint8 [N, H, W, C].
  """
  if not pad and not flip:
    return images
  bits = seeds.image_bits(seed, step, positions, 3)
  height, width, channels = images.shape[1] - 2 * pad, images.shape[2] - 2 * pad, images.shape[3]
  offsets = (bits[:, :2] % (2 * pad + 1)).astype(jnp.int32)
  images = jax.vmap(lambda image, offset: jax.lax.dynamic_slice(
      image, [*offset, jnp.int32(0)], (height, width, channels)))(images, offsets)
  if flip:
    mirrored = (bits[:, 2] & 1).astype(bool)
    images = jnp.where(mirrored[:, None, None, None], images[:, :, ::-1], images)
  return images


def normaliser(mean: tuple[float, ...], std: tuple[float, ...], dtype: str = 'float32'
               ) -> Callable[[jax.Array], jax.Array]:
  """Returns the function from uint8 [..., C] to (pixel / 255 - mean) / std, in a dtype."""
  scale = np.float32(1 / (255 * np.asarray(std)))
  shift = np.float32(-np.asarray(mean) / np.asarray(std))
  return lambda images: (images.astype(jnp.float32) * scale + shift).astype(dtype)
