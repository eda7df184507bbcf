"""Images on the devices: how resident ones lie there, look-up and normalisation."""

import collections
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec
import numpy as np

from bnonly_jax.data.sets import Images

AXIS = 'batch'  # of the devices
# A TPU keeps the last axis of an array in rows of so many numbers. With whole rows an image is read
# where it lies; else the compiler lays the whole data set out anew, in every step.
_ROW = 128


class Preparation(NamedTuple):
  """What a step makes of images before the network sees them.

  Attributes:
    image_shape: height, width, channels.
    pad: pixels of black on every side, before the crop at random to the old size.
    flip: whether to mirror half of the images.
    mean: subtracted from pixels in [0, 1]; one number a channel, or one for all.
    std: divides what is left; as mean.
    dtype: of what the network is given.
    operations: of RandAugment, on each image.
    magnitude: of these, 0 to 10.
    cutout: side in pixels of the square that is painted over; 0: none.
    mixup: alpha of the Beta distribution of shares; 0: none is mixed.
  """
  image_shape: tuple[int, int, int]
  pad: int = 0
  flip: bool = False
  mean: tuple[float, ...] = (0.0,)
  std: tuple[float, ...] = (1.0,)
  dtype: str = 'float32'
  operations: int = 0
  magnitude: float = 0.0
  cutout: int = 0
  mixup: float = 0.0


def row_size(image_shape: tuple[int, int, int]) -> int:
  """Returns how many bytes a resident image takes on a device."""
  return -(-int(np.prod(image_shape)) // _ROW) * _ROW


def rows(images: np.ndarray) -> np.ndarray:
  """Lays images uint8 [N, H, W, C] out as they lie on a device: uint8 [N, `row_size`]."""
  flat = images.reshape(len(images), -1)
  return np.pad(flat, ((0, 0), (0, row_size(images.shape[1:]) - flat.shape[1])))


def look_up(whole: Images | None, batch: Any, image_shape: tuple[int, int, int]) -> Images:
  """Returns the images of a batch.

  Args:
    whole: the resident set, images as `rows` lays them out; None: streamed.
    batch: int32 [n], which of them; or, streamed, the images themselves.
    image_shape: height, width, channels.

  Returns:
    uint8 [n, H, W, C] and int32 [n].
  """
  if whole is None:
    return batch
  flat = whole.images[batch][:, :int(np.prod(image_shape))]
  return Images(flat.reshape(-1, *image_shape), whole.labels[batch])


def normalise(images: jax.Array, preparation: Preparation) -> jax.Array:
  """Returns (pixel / 255 - mean) / std of uint8 [N, H, W, C], in the preparation's dtype."""
  mean, std = np.asarray(preparation.mean), np.asarray(preparation.std)
  scale, shift = (np.float32(x).reshape(1, 1, 1, -1) for x in (1 / (255 * std), -mean / std))
  return (images.astype(jnp.float32) * scale + shift).astype(preparation.dtype)


def place(tree: Any, devices: Sequence[jax.Device]) -> Any:
  """Puts a tree whole on each of the devices, where the steps take it without a copy."""
  return jax.device_put(tree, NamedSharding(Mesh(devices, (AXIS,)), PartitionSpec()))


def send_ahead(batches: Iterable[Any], devices: Sequence[jax.Device]) -> Iterator[Any]:
  """Yields batches spread over the devices, the next already on its way there.

  Args:
    batches: trees of NumPy arrays [n, ...], n a multiple of the devices; plain numbers stay.
    devices: of this process.
  """
  sharding = NamedSharding(Mesh(devices, (AXIS,)), PartitionSpec(AXIS))

  def send(x):
    if not np.ndim(x):
      return x
    return jax.device_put(x.reshape(len(devices), -1, *x.shape[1:]), sharding)

  ahead = collections.deque()
  for batch in batches:
    ahead.append(jax.tree.map(send, batch))
    if len(ahead) > 1:
      yield ahead.popleft()
  yield from ahead
