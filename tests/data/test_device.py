import hashlib

import jax.numpy as jnp
import numpy as np
import pytest

from bnonly_jax import seeds
from bnonly_jax.data import device

IMAGES = np.random.default_rng(0).integers(1, 256, (500, 6, 7, 3)).astype(np.uint8)


def draws(step, positions, pad):
  bits = np.asarray(seeds.image_bits(3, jnp.int32(step), positions, 3))
  return bits[:, :2] % (2 * pad + 1), bits[:, 2] & 1


@pytest.mark.parametrize('backend', ['cpu', 'tpu'])
@pytest.mark.parametrize('pad, flip', [(2, True), (2, False), (0, True), (0, False)])
def test_crops_and_flips_equal_a_plain_loop(pad, flip, backend):
  positions = np.arange(500, dtype=np.int32)
  padded = np.pad(IMAGES, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
  out = device.crop_and_flip(jnp.asarray(IMAGES), 3, jnp.int32(7), positions, pad, flip, backend)
  offsets, mirrored = draws(7, positions, pad)
  for image, (top, left), mirror, got in zip(padded, offsets, mirrored, out, strict=True):
    expected = image[top:top + 6, left:left + 7]
    np.testing.assert_array_equal(got, expected[:, ::-1] if mirror and flip else expected)


@pytest.mark.parametrize('backend', ['cpu', 'tpu'])
def test_images_stay_what_they_were_from_version_to_version(backend):
  out = device.crop_and_flip(jnp.asarray(IMAGES), 3, jnp.int32(7), np.arange(500, dtype=np.int32),
                             2, True, backend)
  assert hashlib.sha256(np.asarray(out).tobytes()).hexdigest() == (
      '57751bee1fa41a988dce63dd9edb0b710913154e1e05497d03a8b2df674fbc63')


def test_ten_thousand_draws_are_uniform():
  offsets, mirrored = draws(0, np.arange(10_000, dtype=np.int32), 4)
  # Six standard deviations of a binomial count.
  assert abs(int(mirrored.sum()) - 5000) < 6 * 50
  for axis in (0, 1):
    counts = np.bincount(offsets[:, axis], minlength=9)
    assert len(counts) == 9 and np.all(abs(counts - 10_000 / 9) < 6 * np.sqrt(10_000 * 8 / 81))
  assert abs(np.corrcoef(offsets.T)[0, 1]) < 0.06


def test_draws_depend_on_seed_step_and_position_alone():
  positions = np.arange(8, dtype=np.int32)
  whole = seeds.image_bits(0, jnp.int32(5), positions, 3)
  np.testing.assert_array_equal(whole[4:], seeds.image_bits(0, jnp.int32(5), positions[4:], 3))
  assert np.all(whole != seeds.image_bits(0, jnp.int32(6), positions, 3))
  assert np.all(whole != seeds.image_bits(1, jnp.int32(5), positions, 3))


@pytest.mark.parametrize('mean, std', [((0.1, 0.5, 0.9), (0.2, 0.3, 0.4)), ((0.5,), (0.25,))])
def test_normalisation(mean, std):
  out = device.normalise(jnp.asarray(IMAGES), device.Preparation((6, 7, 3), mean=mean, std=std))
  np.testing.assert_allclose(out, (IMAGES / 255 - mean) / std, rtol=1e-5, atol=1e-6)
  assert out.dtype == jnp.float32
