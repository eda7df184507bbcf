"""RandAugment's operations against Pillow's."""

import jax.numpy as jnp
import numpy as np
from PIL import Image
from PIL import ImageEnhance
from PIL import ImageOps
import pytest

from bnonly_jax.config import default_config
from bnonly_jax.config import UserError
from bnonly_jax.data import augment
from bnonly_jax.data import randaugment
from bnonly_jax.data.randaugment import OPERATIONS

# Smooth patterns, of which no channel uses all values.
IMAGES = np.stack([np.asarray(Image.fromarray(
    np.random.default_rng(seed).integers(20, 220, (4, 4, 3), np.uint8)).resize((18, 16)))
                   for seed in range(6)])


def operated(name, sign, magnitude, images=IMAGES):
  full = lambda value: jnp.full(len(images), value, jnp.int32)
  return np.asarray(randaugment.operate(jnp.asarray(images), full(OPERATIONS.index(name)),
                                        full(sign), magnitude))


def shifted(image, **by):
  """Pillow's affine transform about the centre, of the pixels' centres."""
  a, b, c, d, e, f = (by.get(name, float(name in 'ae')) for name in 'abcdef')
  x, y = image.width / 2, image.height / 2
  return image.transform(image.size, Image.Transform.AFFINE,
                         (a, b, c + x - a * x - b * y, d, e, f + y - d * x - e * y),
                         Image.Resampling.NEAREST)


# With magnitude 5 and sign s (1 or -1).
PILLOW = {
    'identity': lambda image, s: image,
    'shear_x': lambda image, s: shifted(image, b=0.15 * s),
    'shear_y': lambda image, s: shifted(image, d=0.15 * s),
    'translate_x': lambda image, s: shifted(image, c=4.0 * s),  # 75/331 of 18 pixels
    'translate_y': lambda image, s: shifted(image, f=3.0 * s),
    'rotate': lambda image, s: image.rotate(15 * s),
    'brightness': lambda image, s: ImageEnhance.Brightness(image).enhance(1 + 0.45 * s),
    'contrast': lambda image, s: ImageEnhance.Contrast(image).enhance(1 + 0.45 * s),
    'color': lambda image, s: ImageEnhance.Color(image).enhance(1 + 0.45 * s),
    'sharpness': lambda image, s: ImageEnhance.Sharpness(image).enhance(1 + 0.45 * s),
    'posterize': lambda image, s: ImageOps.posterize(image, 6),
    'solarize': lambda image, s: ImageOps.solarize(image, 128),
    'autocontrast': lambda image, s: ImageOps.autocontrast(image),
}


@pytest.mark.parametrize('name', OPERATIONS)
def test_operations_are_pillows(name):
  for sign in (0, 1):
    got = operated(name, sign, 5)
    expected = np.stack([PILLOW[name](Image.fromarray(image), 1 - 2 * sign) for image in IMAGES])
    # Pillow rounds otherwise, and takes a neighbour where a source lies between two pixels.
    far = abs(got.astype(int) - expected) > 2
    assert np.mean(far) < 0.02, (name, sign)
    assert name == 'identity' or np.mean(abs(got.astype(int) - IMAGES) > 2) > 0.03


def test_magnitude_0_and_the_identity_change_nothing():
  for name in OPERATIONS:
    if name != 'autocontrast':
      np.testing.assert_array_equal(operated(name, 1, 0), IMAGES, err_msg=name)
  np.testing.assert_array_equal(operated('identity', 1, 10), IMAGES)


@pytest.mark.parametrize('name', OPERATIONS)
def test_grey_images_too(name):
  grey = IMAGES[..., :1]
  got, expected = operated(name, 0, 9, grey), operated(name, 0, 9, np.repeat(grey, 3, -1))
  assert np.max(abs(got.astype(int) - expected[..., :1])) <= 1


def test_every_operation_is_drawn_and_one_after_the_other():
  images = jnp.asarray(np.repeat(IMAGES[:1], 600, 0))
  positions = np.arange(600, dtype=np.int32)
  once, twice = (np.asarray(randaugment.randaugment(images, 0, jnp.int32(0), positions, n, 9.0))
                 for n in (1, 2))
  # Seven operations have two sides (colour and translations count as such), three have one.
  assert len(np.unique(once.reshape(600, -1), axis=0)) == 1 + 2 * 9 + 3
  assert len(np.unique(twice.reshape(600, -1), axis=0)) > 100


def test_it_is_for_grey_and_colour():
  config = default_config()
  config.data.augment = 'randaugment'
  for channels in (1, 3):
    assert augment.preparation(config, (8, 8, channels)).operations == 2
  with pytest.raises(UserError, match='which is for 1 or 3 channels and not 4'):
    augment.preparation(config, (8, 8, 4))
