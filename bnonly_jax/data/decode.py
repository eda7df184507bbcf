"""From the bytes of a JPEG or PNG to pixels, and the rules by which an image is bad."""

import struct
from typing import NamedTuple

import cv2
import numpy as np

cv2.setNumThreads(0)  # images are decoded side by side, each by one thread


class BadImage(ValueError):
  """The rule that an image breaks, in a few words."""


class Form(NamedTuple):
  """What the network is fed with."""
  height: int
  width: int
  channels: int  # 1 or 3
  stored: tuple[int | None, int | None, int]  # size that images must have, and channels at most
  eval_resize: int  # for evaluation: the shorter side, before the central crop
  area: tuple[float, float]  # of a random crop, as shares of the image's
  ratio: tuple[float, float]  # of a random crop's width to its height


def read_header(data: bytes) -> tuple[int, int, int]:
  """Returns height, width and channels (1 or 3) of a JPEG or PNG file without decoding it.

  OpenCV would turn any of what is refused here into plausible pixels without a word.

  Raises:
    BadImage: it is neither, cut short, not of 8 bits, or has other channels.
  """
  if data[:3] == b'\xff\xd8\xff':
    height, width, channels, bits = _jpeg_frame(data)
    # Neither marker can occur within the coded pixels; a thumbnail's come before the image's.
    if data[-2:] != b'\xff\xd9' and data.rfind(b'\xff\xd9') < data.rfind(b'\xff\xda'):
      raise BadImage('JPEG that ends before its last pixel')
    if channels == 4:
      raise BadImage('JPEG of 4 channels (CMYK)')
  elif data[:8] == b'\x89PNG\r\n\x1a\n' and len(data) > 32:
    width, height, bits, colour = struct.unpack('>IIBB', data[16:26])
    if data.rfind(b'IEND') < 0:
      raise BadImage('PNG that ends before its last pixel')
    if colour & 4:
      raise BadImage(f'PNG of {2 if colour == 4 else 4} channels (alpha)')
    channels = 3 if colour & 2 else 1
  else:
    raise BadImage('neither JPEG nor PNG')
  if bits > 8:
    raise BadImage(f'{bits} bits a channel')
  if channels not in (1, 3) or not height or not width:
    raise BadImage(f'{height}x{width} pixels of {channels} channels')
  return height, width, channels


def _jpeg_frame(data):
  """Returns height, width, channels and bits from the first start-of-frame segment (T.81, B.2)."""
  place = 2
  while place + 10 <= len(data) and data[place] == 0xff:
    marker = data[place + 1]
    if marker == 0xff:  # fill byte
      place += 1
    elif 0xc0 <= marker <= 0xcf and marker not in (0xc4, 0xc8, 0xcc):
      bits, height, width, channels = struct.unpack('>BHHB', data[place + 4:place + 10])
      return height, width, channels, bits
    else:
      place += 2 + int.from_bytes(data[place + 2:place + 4], 'big')
  raise BadImage('JPEG without a frame')


_FLAGS = {  # by channels and by how much the decoder shrinks
    (1, 1): cv2.IMREAD_GRAYSCALE, (1, 2): cv2.IMREAD_REDUCED_GRAYSCALE_2,
    (1, 4): cv2.IMREAD_REDUCED_GRAYSCALE_4, (1, 8): cv2.IMREAD_REDUCED_GRAYSCALE_8,
    (3, 1): cv2.IMREAD_COLOR_RGB, (3, 2): cv2.IMREAD_REDUCED_COLOR_2,
    (3, 4): cv2.IMREAD_REDUCED_COLOR_4, (3, 8): cv2.IMREAD_REDUCED_COLOR_8}


def _pixels(data, channels, reduction=1):
  try:
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8),
                          _FLAGS[channels, reduction] | cv2.IMREAD_IGNORE_ORIENTATION)
  except cv2.error as error:
    raise BadImage(f'cannot be decoded ({error.err})') from error
  if pixels is None:
    raise BadImage('cannot be decoded')
  if channels == 3 and reduction > 1:  # there is no such flag in the order red, green, blue
    pixels = pixels[..., ::-1]
  return pixels


def _checked_header(data, form):
  height, width, channels = read_header(data)
  expected = form.stored
  if channels > expected[2] or (expected[0] and (height, width) != expected[:2]):
    raise BadImage(f'{height}x{width} pixels of {channels} channel(s), where the data set has'
                   f' {"x".join(str(n) for n in expected[:2] if n) or "any size"} of {expected[2]}')
  return height, width


def whole(data: bytes, form: Form) -> np.ndarray:
  """Decodes an image of the data set's one size.

  Returns:
    uint8 [height, width, channels].

  Raises:
    BadImage: it is not a JPEG or PNG of that size with 8 bits a channel, or is cut short.
  """
  height, width = _checked_header(data, form)
  return _pixels(data, form.channels).reshape(height, width, form.channels)


def crop_region(generator: np.random.Generator, height: int, width: int,
                area: tuple[float, float], ratio: tuple[float, float]) -> tuple[int, int, int, int]:
  """Draws the region of a random resized crop, as torchvision's RandomResizedCrop does.

  Ten times a share of the area and (log-uniformly) a ratio are drawn, until such a region fits; if
  none does, it is the central one nearest to the allowed ratios.

  Returns:
    top, left, height, width in pixels.
  """
  for share, log_ratio, down, right in generator.random((10, 4)):
    pixels = height * width * (area[0] + share * (area[1] - area[0]))
    low, high = np.log(ratio)
    shape = np.exp(low + log_ratio * (high - low))
    crop_width, crop_height = round(np.sqrt(pixels * shape)), round(np.sqrt(pixels / shape))
    if 0 < crop_width <= width and 0 < crop_height <= height:
      return (int(down * (height - crop_height + 1)), int(right * (width - crop_width + 1)),
              crop_height, crop_width)
  crop_height, crop_width = height, width
  if width / height < ratio[0]:
    crop_height = round(width / ratio[0])
  elif width / height > ratio[1]:
    crop_width = round(height * ratio[1])
  return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def _reduction(shorter, wanted):
  """Returns by how much the decoder may shrink: never below the wanted size."""
  return next((r for r in (8, 4, 2) if shorter // r >= wanted), 1)


def random_crop(data: bytes, form: Form, generator: np.random.Generator) -> np.ndarray:
  """Decodes a random region of an image, resized to the form's height and width.

  The region is drawn before decoding, so that the decoder can shrink a large one as it goes.

  Returns:
    uint8 [form.height, form.width, channels].

  Raises:
    BadImage: it is not a JPEG or PNG with 8 bits a channel, or is cut short.
  """
  height, width = _checked_header(data, form)
  region = np.array(crop_region(generator, height, width, form.area, form.ratio))
  shrink = min(region[2] / form.height, region[3] / form.width)
  pixels = _pixels(data, form.channels, _reduction(shrink, 1))
  scale = np.array([pixels.shape[0] / height, pixels.shape[1] / width] * 2)
  top, left, crop_height, crop_width = np.rint(region * scale).astype(int)
  crop = pixels[top:top + max(crop_height, 1), left:left + max(crop_width, 1)]
  return _resize(crop, form.height, form.width, form.channels)


def centre_crop(data: bytes, form: Form) -> np.ndarray:
  """Decodes an image, resizes its shorter side to form.eval_resize and takes the centre.

  Returns:
    uint8 [form.height, form.width, channels].

  Raises:
    BadImage: it is not a JPEG or PNG with 8 bits a channel, or is cut short.
  """
  height, width = _checked_header(data, form)
  factor = form.eval_resize / min(height, width)
  height, width = max(round(height * factor), form.eval_resize), max(round(width * factor),
                                                                     form.eval_resize)
  pixels = _pixels(data, form.channels, _reduction(1 / factor, 1))
  pixels = _resize(pixels, height, width, form.channels)
  top, left = (height - form.height) // 2, (width - form.width) // 2
  return pixels[top:top + form.height, left:left + form.width]


def _resize(pixels, height, width, channels):
  pixels = cv2.resize(np.ascontiguousarray(pixels), (width, height),
                      interpolation=cv2.INTER_LINEAR)
  return pixels.reshape(height, width, channels)
