"""What a training step does to images on the device before it normalises them: crop, flip,
RandAugment, cutout, mixup.

All of it is uint8 to uint8 in whole numbers, and every draw follows from the seed, the step and the
image's position in the global batch: devices of any number and kind make the same images.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import scipy.special

from bnonly_jax import config as config_lib
from bnonly_jax import seeds
from bnonly_jax.data import device
from bnonly_jax.data import randaugment
from bnonly_jax.data.sets import Images

# The numbers of an augmentation that is named alone. Those of RandAugment are timm's usual ones,
# that of mixup is the paper's for CIFAR-10 (arXiv 1710.09412). Cutout's is half the image's side,
# the paper's for CIFAR-10 (arXiv 1708.04552).
_ALONE = {'pad_crop': (), 'flip': (), 'randaugment': (2.0, 9.0), 'cutout': (), 'mixup': (1.0,)}
# What may follow a name, in words and as a rule for the numbers.
_ALLOWED = {
    'pad_crop': ('alone (config.data.pad says how far)', lambda n: not n),
    'flip': ('alone', lambda n: not n),
    'randaugment': ('alone or as randaugment=N:M, N = 1, 2, ... operations of magnitude M up to'
                    f' {randaugment.MAGNITUDES}',
                    lambda n: len(n) == 2 and n[0] >= 1 and n[0] % 1 == 0
                    and 0 <= n[1] <= randaugment.MAGNITUDES),
    'cutout': ('alone or as cutout=SIDE, in pixels, 1, 2, ...',
               lambda n: not n or len(n) == 1 and n[0] >= 1 and n[0] % 1 == 0),
    'mixup': ('alone or as mixup=ALPHA, above 0 and up to 100',
              lambda n: len(n) == 1 and 0 < n[0] <= 100),
}


def named(config: ml_collections.ConfigDict) -> dict[str, tuple[float, ...]]:
  """Returns the numbers of each augmentation that a config names, by name.

  Raises:
    UserError: there is none of that name, or none with such numbers.
  """
  found = {}
  for name, numbers in config_lib.settings(config, 'data.augment').items():
    config_lib.require(config, 'data.augment', f'some of {", ".join(_ALONE)}, and not {name!r}',
                       name in _ALONE)
    found[name] = numbers or _ALONE[name]
    words, rule = _ALLOWED[name]
    config_lib.require(config, 'data.augment', f'{name} {words}', rule(found[name]))
  return found


def preparation(config: ml_collections.ConfigDict,
                image_shape: tuple[int, int, int]) -> device.Preparation:
  """Returns what a config makes of images of this shape (height, width, channels).

  Raises:
    UserError: as `named`, or randaugment is for images of 1 or 3 channels.
  """
  found = named(config)
  channels = image_shape[2]
  config_lib.require(config, 'data.augment',
                     f'without randaugment, which is for 1 or 3 channels and not {channels}',
                     'randaugment' not in found or channels in (1, 3))
  operations, magnitude = found.get('randaugment', (0, 0.0))
  half = (min(image_shape[:2]) // 2,)
  return device.Preparation(
      image_shape,
      pad=config.data.pad if 'pad_crop' in found else 0,
      flip=config.data.flip and 'flip' in found,
      mean=tuple(config.data.mean), std=tuple(config.data.std), dtype=config.compute_dtype,
      operations=int(operations), magnitude=magnitude,
      cutout=int((found['cutout'] or half)[0]) if 'cutout' in found else 0,
      mixup=found.get('mixup', (0.0,))[0])


class Mixed(NamedTuple):
  """What mixup put into each image besides the image itself."""
  labels: jax.Array  # int32 [N], of the other image
  share: jax.Array  # int32 [N], the image's own, 128 to 256 of 256


def augment(batch: Images, seed: int | jax.Array, step: jax.Array, positions: jax.Array,
            preparation: device.Preparation, backend: str = 'cpu', devices: int = 1
            ) -> tuple[jax.Array, Mixed | None]:
  """Augments the images of a device.

  Args:
    batch: uint8 [N, H, W, C] and int32 [N].
    seed: the experiment's.
    step: int32 scalar.
    positions: int32 [N], each image's place in the global batch.
    preparation: what to do.
    backend: for which it is to be fast: cpu, or any other. The images are the same.
    devices: that share the global batch, along the axis `device.AXIS` if there are several.

  Returns:
    uint8 [N, H, W, C]; and, with mixup, whose label counts besides the batch's.
  """
  images = crop_and_flip(batch.images, seed, step, positions, preparation.pad, preparation.flip,
                         backend)
  if preparation.operations:
    images = randaugment.randaugment(images, seed, step, positions, preparation.operations,
                                     preparation.magnitude)
  if preparation.cutout:
    images = cutout(images, seed, step, positions, preparation.cutout, preparation.mean)
  if not preparation.mixup:
    return images, None
  others, labels = (_following(x, devices) for x in (images, batch.labels))
  share = shares(seed, step, positions, preparation.mixup)
  part = share[:, None, None, None]
  images = (part * images.astype(jnp.int32) + (256 - part) * others.astype(jnp.int32) + 128) >> 8
  return images.astype(jnp.uint8), Mixed(labels, share)


def crop_and_flip(images: jax.Array, seed: int | jax.Array, step: jax.Array, positions: jax.Array,
                  pad: int, flip: bool, backend: str = 'cpu') -> jax.Array:
  """Pads images, crops them at random to their old size, and mirrors each with probability 1/2.

  Args:
    images: uint8 [N, H, W, C].
    seed: the experiment's.
    step: int32 scalar.
    positions: int32 [N], each image's place in the global batch.
    pad: pixels of black on each side.
    flip: whether to mirror at all.
    backend: for which it is to be fast: cpu, or any other. The images are the same.

  Returns:
    uint8 [N, H, W, C].
  """
  if not pad and not flip:
    return images
  bits = seeds.image_bits(seed, step, positions, 3)
  offsets = (bits[:, :2] % (2 * pad + 1)).astype(jnp.int32)
  if pad:
    images = (_crop_by_slices if backend == 'cpu' else _crop_by_selects)(images, offsets, pad)
  if flip:
    mirrored = (bits[:, 2] & 1).astype(bool)
    images = jnp.where(mirrored[:, None, None, None], images[:, :, ::-1], images)
  return images


def _crop_by_slices(images, offsets, pad):
  padded = jnp.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
  return jax.vmap(lambda image, offset: jax.lax.dynamic_slice(
      image, [*offset, jnp.int32(0)], images.shape[1:]))(padded, offsets)


def _crop_by_selects(images, offsets, pad):
  """Every shift of all images at once, of which each image takes its own: no loop over images."""
  for axis, offset in ((1, offsets[:, 0]), (2, offsets[:, 1])):
    size = images.shape[axis]
    widths = [(pad, pad) if i == axis else (0, 0) for i in range(4)]
    padded, offset = jnp.pad(images, widths), offset[:, None, None, None]
    images = jax.lax.slice_in_dim(padded, 0, size, axis=axis)
    for i in range(1, 2 * pad + 1):
      images = jnp.where(offset == i, jax.lax.slice_in_dim(padded, i, i + size, axis=axis), images)
  return images


def cutout(images: jax.Array, seed: int | jax.Array, step: jax.Array, positions: jax.Array,
           side: int, mean: tuple[float, ...]) -> jax.Array:
  """Paints a square of `side` pixels of each image in the mean colour (arXiv 1708.04552).

  Its centre may be any pixel, so that a part of it can lie outside. Other arguments, and what is
  returned, are those of `crop_and_flip`; mean is the preparation's.
  """
  bits = seeds.image_bits(seed, step, positions, 2, 'cutout')

  def inside(axis):
    size = images.shape[1 + axis]
    first = (bits[:, axis] % size).astype(jnp.int32)[:, None] - side // 2
    place = jnp.arange(size)[None]
    return (place >= first) & (place < first + side)

  hidden = inside(0)[:, :, None, None] & inside(1)[:, None, :, None]
  colour = np.round(255 * np.asarray(mean)).astype(np.uint8).reshape(1, 1, 1, -1)
  return jnp.where(hidden, colour, images)


def shares(seed: int | jax.Array, step: jax.Array, positions: jax.Array, alpha: float) -> jax.Array:
  """Draws how much of itself each image keeps in mixup (arXiv 1710.09412).

  That is max(x, 1 - x), x from Beta(alpha, alpha): an image and its neighbour in a shuffled batch
  may change places, and the label that is kept counts at least half.

  Returns:
    int32 [N], 128 to 256: the share in 256ths.
  """
  # The quantiles of a thousand equally likely draws, so that there is nothing to round on a device.
  upper = scipy.special.betaincinv(alpha, alpha, 0.5 + (np.arange(1024) + 0.5) / 2048)
  bits = seeds.image_bits(seed, step, positions, 1, 'mixup')[:, 0]
  return jnp.asarray(np.round(256 * upper).astype(np.int32))[bits % 1024]


def _following(x, devices):
  """What each next place of the global batch holds; after the last comes the first."""
  after = x[:1]
  if devices > 1:
    after = jax.lax.ppermute(after, device.AXIS, [(i, (i - 1) % devices) for i in range(devices)])
  return jnp.concatenate([x[1:], after])
