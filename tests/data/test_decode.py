import io
import struct
import zlib

import cv2
import numpy as np
from PIL import Image
import pytest

from bnonly_jax.data import decode

# 60 rows and 90 columns: red grows to the right, green downwards.
GRADIENT = np.stack([np.tile(np.linspace(0, 250, 90), (60, 1)),
                     np.tile(np.linspace(0, 250, 60)[:, None], (1, 90)),
                     np.full((60, 90), 40)], -1).astype(np.uint8)


def encoded(pixels, form='PNG', **options):
  file = io.BytesIO()
  (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(file, form,
                                                                                **options)
  return file.getvalue()


def form(height, width, channels=3, stored=(None, None, 3), eval_resize=256):
  return decode.Form(height, width, channels, stored, eval_resize, (0.1, 1.0), (0.8, 1.25))


@pytest.mark.parametrize('options', [{'form': 'PNG'}, {'form': 'JPEG', 'quality': 95},
                                     {'form': 'JPEG', 'progressive': True, 'quality': 95}])
@pytest.mark.parametrize('channels', [1, 3])
def test_header_and_pixels(options, channels):
  pixels = GRADIENT if channels == 3 else GRADIENT[..., 0]
  file = encoded(pixels, **options)
  assert decode.read_header(file) == (60, 90, channels)
  out = decode.whole(file, form(60, 90, channels, (60, 90, channels)))
  assert out.shape == (60, 90, channels) and out.dtype == np.uint8
  tolerance = 0 if options['form'] == 'PNG' else 8
  assert np.max(abs(out.astype(int) - pixels.reshape(out.shape))) <= tolerance


def test_grey_becomes_colour_and_colour_grey():
  grey = encoded(GRADIENT[..., 0])
  colour = decode.whole(grey, form(60, 90, 3))
  np.testing.assert_array_equal(colour, np.repeat(GRADIENT[..., :1], 3, -1))
  out = decode.whole(encoded(GRADIENT), form(60, 90, 1))
  luma = GRADIENT @ [0.299, 0.587, 0.114]  # ITU-R BT.601
  assert out.shape == (60, 90, 1) and np.max(abs(out[..., 0] - luma)) < 2


def test_orientation_marks_are_ignored_as_tensorflow_does():
  exif = Image.Exif()
  exif[0x0112] = 6  # to be turned by a quarter
  file = encoded(GRADIENT, 'JPEG', exif=exif)
  assert decode.whole(file, form(60, 90)).shape == (60, 90, 3)


def png_of(bits, colour):
  rows = b''.join(b'\0' + bytes(8 * bits) for _ in range(4))
  def chunk(name, content):
    return (struct.pack('>I', len(content)) + name + content
            + struct.pack('>I', zlib.crc32(name + content)))
  header = struct.pack('>IIBBBBB', 4, 4, bits, colour, 0, 0, 0)
  return (b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header)
          + chunk(b'IDAT', zlib.compress(rows)) + chunk(b'IEND', b''))


THUMBNAIL = encoded(GRADIENT[::4, ::4], 'JPEG')
EXIF = Image.Exif()
EXIF[0x010e] = 'x' * 300
BAD = {
    'truncated JPEG': (encoded(GRADIENT, 'JPEG')[:-100], 'JPEG that ends before its last pixel'),
    'truncated progressive JPEG': (encoded(GRADIENT, 'JPEG', progressive=True)[:-60],
                                   'JPEG that ends before its last pixel'),
    'truncated after a thumbnail': (
        (file := encoded(GRADIENT, 'JPEG'))[:2] + b'\xff\xe1'
        + struct.pack('>H', len(THUMBNAIL) + 2) + THUMBNAIL + file[2:-200],
        'JPEG that ends before its last pixel'),
    'JPEG header alone': (encoded(GRADIENT, 'JPEG')[:20], 'JPEG without a frame'),
    'truncated PNG': (encoded(GRADIENT)[:-40], 'PNG that ends before its last pixel'),
    'text': (b'<html>404</html>', 'neither JPEG nor PNG'),
    'empty': (b'', 'neither JPEG nor PNG'),
    'GIF': (encoded(GRADIENT, 'GIF'), 'neither JPEG nor PNG'),
    'CMYK': (encoded(Image.fromarray(GRADIENT).convert('CMYK'), 'JPEG'), r'4 channels \(CMYK\)'),
    '16 bits': (encoded(GRADIENT[..., 0].astype(np.uint16) * 256), '16 bits a channel'),
    '16 bits colour': (png_of(16, 2), '16 bits a channel'),
    'alpha': (encoded(Image.fromarray(GRADIENT).convert('RGBA')), r'4 channels \(alpha\)'),
    'grey with alpha': (encoded(Image.fromarray(GRADIENT).convert('LA')), r'2 channels \(alpha\)'),
    'broken pixels': (encoded(GRADIENT)[:100] + b'IEND', 'cannot be decoded'),
}


@pytest.mark.parametrize('what', BAD)
def test_a_bad_image_breaks_a_rule(what):
  file, rule = BAD[what]
  for call in (lambda: decode.whole(file, form(60, 90)),
               lambda: decode.centre_crop(file, form(8, 8)),
               lambda: decode.random_crop(file, form(8, 8), np.random.default_rng(0))):
    with pytest.raises(decode.BadImage, match=rule):
      call()


@pytest.mark.parametrize('stored', [(60, 91, 3), (60, 90, 1)])
def test_an_image_unlike_the_others_is_bad(stored):
  with pytest.raises(decode.BadImage, match=r'60x90 pixels of 3 channel\(s\), where the data set'):
    decode.whole(encoded(GRADIENT), form(60, 90, 3, stored))


def plain_region(draws, height, width, area, ratio):
  """torchvision's RandomResizedCrop.get_params, step by step on given draws."""
  for share, log_ratio, down, right in draws:
    target = height * width * ((1 - share) * area[0] + share * area[1])
    aspect = ratio[0] ** (1 - log_ratio) * ratio[1] ** log_ratio
    w, h = round((target * aspect) ** 0.5), round((target / aspect) ** 0.5)
    if 0 < w <= width and 0 < h <= height:
      return int(np.floor(down * (height - h + 1))), int(np.floor(right * (width - w + 1))), h, w
  if width / height < ratio[0]:
    w, h = width, round(width / ratio[0])
  elif width / height > ratio[1]:
    w, h = round(height * ratio[1]), height
  else:
    w, h = width, height
  return (height - h) // 2, (width - w) // 2, h, w


@pytest.mark.parametrize('height, width', [(375, 500), (20, 400), (400, 20), (1, 1), (32, 32)])
def test_crop_regions_equal_the_plain_rule_and_lie_inside(height, width):
  for seed in range(200):
    draws = np.random.default_rng(seed).random((10, 4))
    region = decode.crop_region(np.random.default_rng(seed), height, width, (0.1, 1.0), (0.8, 1.25))
    assert region == plain_region(draws, height, width, (0.1, 1.0), (0.8, 1.25))
    top, left, h, w = region
    assert top >= 0 and left >= 0 and h > 0 and w > 0 and top + h <= height and left + w <= width


def test_ten_thousand_regions_are_as_specified():
  # In a square, crops up to a share of 0.8 always fit: compare the conditional distribution.
  generator = np.random.default_rng(0)
  regions = np.array([decode.crop_region(generator, 1000, 1000, (0.1, 1.0), (0.8, 1.25))
                      for _ in range(10_000)])
  share = regions[:, 2] * regions[:, 3] / 1e6
  ratio = np.log(regions[:, 3] / regions[:, 2]) / np.log(1.25)
  small = share < 0.8
  # Six standard deviations of a uniform's mean and of a binomial count.
  number = small.sum()
  assert abs(share[small].mean() - 0.45) < 6 * 0.7 / np.sqrt(12 * number)
  assert abs(ratio[small].mean()) < 6 * 2 / np.sqrt(12 * number)
  for values, low, high in ((share[small], 0.1, 0.8), (ratio[small], -1, 1)):
    counts, _ = np.histogram(values, 10, (low, high))
    assert np.all(abs(counts - number / 10) < 6 * np.sqrt(number * 0.09))
  place = regions[:, 0] / (1000 - regions[:, 2] + 1)
  assert abs(place[small].mean() - 0.5) < 6 / np.sqrt(12 * number)


def test_a_random_crop_shows_the_region_that_was_drawn():
  file = encoded(Image.fromarray(GRADIENT).resize((900, 600), Image.Resampling.BILINEAR), 'JPEG',
                 quality=95)
  whole = cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
  for seed in range(20):  # some decoded at a half, a quarter or an eighth
    out = decode.random_crop(file, form(32, 32), np.random.default_rng(seed))
    top, left, h, w = decode.crop_region(np.random.default_rng(seed), 600, 900, (0.1, 1.0),
                                         (0.8, 1.25))
    plain = cv2.resize(np.ascontiguousarray(whole[top:top + h, left:left + w]), (32, 32),
                       interpolation=cv2.INTER_AREA)
    assert out.shape == (32, 32, 3) and np.max(abs(out.astype(int) - plain)) < 12


@pytest.mark.parametrize('size', [(600, 900), (900, 600), (64, 64), (40, 300), (300, 33)])
def test_the_centre_crop(size):
  height, width = size
  image = Image.fromarray(GRADIENT).resize((width, height), Image.Resampling.BILINEAR)
  out = decode.centre_crop(encoded(image), form(56, 56, eval_resize=64))
  factor = 64 / min(size)
  h, w = round(height * factor), round(width * factor)
  plain = np.asarray(image.resize((w, h), Image.Resampling.BOX if factor < 1 else
                                  Image.Resampling.BILINEAR))
  top, left = (h - 56) // 2, (w - 56) // 2
  assert out.shape == (56, 56, 3)
  assert np.max(abs(out.astype(int) - plain[top:top + 56, left:left + 56])) < 12
