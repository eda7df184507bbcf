import hashlib

import conftest
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bnonly_jax import experiment
from bnonly_jax import seeds
from bnonly_jax.config import default_config
from bnonly_jax.config import UserError
from bnonly_jax.data import augment
from bnonly_jax.data.sets import Images

IMAGES = np.random.default_rng(0).integers(1, 256, (500, 6, 7, 3)).astype(np.uint8)
POSITIONS = np.arange(500, dtype=np.int32)


def draws(step, positions, pad):
  bits = np.asarray(seeds.image_bits(3, jnp.int32(step), positions, 3))
  return bits[:, :2] % (2 * pad + 1), bits[:, 2] & 1


@pytest.mark.parametrize('backend', ['cpu', 'tpu'])
@pytest.mark.parametrize('pad, flip', [(2, True), (2, False), (0, True), (0, False)])
def test_crops_and_flips_equal_a_plain_loop(pad, flip, backend):
  positions = np.arange(500, dtype=np.int32)
  padded = np.pad(IMAGES, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
  out = augment.crop_and_flip(jnp.asarray(IMAGES), 3, jnp.int32(7), positions, pad, flip, backend)
  offsets, mirrored = draws(7, positions, pad)
  for image, (top, left), mirror, got in zip(padded, offsets, mirrored, out, strict=True):
    expected = image[top:top + 6, left:left + 7]
    np.testing.assert_array_equal(got, expected[:, ::-1] if mirror and flip else expected)


@pytest.mark.parametrize('backend', ['cpu', 'tpu'])
def test_images_stay_what_they_were_from_version_to_version(backend):
  out = augment.crop_and_flip(jnp.asarray(IMAGES), 3, jnp.int32(7), np.arange(500, dtype=np.int32),
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


def preparation(names, shape=(6, 7, 3), **fields):
  config = default_config()
  config.data.update(augment=names, **fields)
  return augment.preparation(config, shape)


@pytest.mark.parametrize('names, fields, expected', [
    ('pad_crop,flip', {}, dict(pad=4, flip=True)), ('', {}, {}), ('flip', {}, dict(flip=True)),
    ('pad_crop,flip', dict(pad=0), dict(flip=True)),  # as config files before `augment` have it
    ('pad_crop,flip', dict(pad=1, flip=False), dict(pad=1)),
    ('cutout', {}, dict(cutout=3)), (' cutout = 2, mixup', {}, dict(cutout=2, mixup=1.0)),
    ('randaugment', {}, dict(operations=2, magnitude=9.0)),
    ('mixup=0.2,randaugment=1:5', {}, dict(mixup=0.2, operations=1, magnitude=5.0))])
def test_what_is_named_is_done(names, fields, expected):
  default = dict(pad=0, flip=False, operations=0, magnitude=0, cutout=0, mixup=0)
  found = preparation(names, **fields)._asdict()
  assert {name: found[name] for name in default} == {**default, **expected}


@pytest.mark.parametrize('names, message', [
    ('cutmix', "some of pad_crop, flip, randaugment, cutout, mixup, and not 'cutmix'"),
    ('flip=1', 'flip alone'), ('pad_crop=4', 'pad_crop alone .config.data.pad'),
    ('cutout=0', 'cutout alone or as cutout=SIDE'), ('cutout=2.5', 'cutout=SIDE'),
    ('mixup=0', 'mixup=ALPHA'), ('mixup=1:1', 'mixup=ALPHA'),
    ('randaugment=2', 'randaugment=N:M'), ('randaugment=2:11', 'magnitude M up to 10')])
def test_a_wrong_name_or_number_is_told_with_what_is_allowed(names, message):
  config = conftest.pattern_config(**{'data.augment': names})
  with pytest.raises(UserError, match=f'config.data.augment is {names!r}; allowed is .*{message}'):
    experiment.build(config, conftest.PATTERNS)


def test_cutout_paints_one_square_of_which_a_part_may_lie_outside():
  out = np.asarray(augment.cutout(jnp.asarray(IMAGES), 3, jnp.int32(7), POSITIONS, 4,
                                  (0.0, 0.5, 1.0)))
  bits = np.asarray(seeds.image_bits(3, jnp.int32(7), POSITIONS, 2, 'cutout'))
  areas = []
  for image, got, (row, column) in zip(IMAGES, out, bits % [6, 7], strict=True):
    expected = image.copy()
    expected[max(row - 2, 0):row + 2, max(column - 2, 0):column + 2] = 0, 128, 255
    np.testing.assert_array_equal(got, expected)
    areas.append(np.sum(np.all(got == [0, 128, 255], -1)))
  assert max(areas) == 16 and min(areas) < 16


@pytest.mark.parametrize('alpha', [0.2, 1.0, 3.0])
def test_shares_are_the_larger_ones_of_a_beta_distribution(alpha):
  share = np.asarray(augment.shares(0, jnp.int32(0), np.arange(20_000, dtype=np.int32), alpha))
  x = np.random.default_rng(0).beta(alpha, alpha, 20_000)
  assert share.min() >= 128 and share.max() <= 256 and share.dtype == np.int32
  # Six standard deviations of a mean of differences, and half a 256th.
  assert abs(share.mean() / 256 - np.maximum(x, 1 - x).mean()) < 6 * 0.2 / np.sqrt(20_000) + 0.002


def test_mixup_mixes_each_image_with_the_next_and_says_how_much():
  batch = Images(jnp.asarray(IMAGES), jnp.arange(500, dtype=jnp.int32))
  images, mixed = augment.augment(batch, 0, jnp.int32(0), POSITIONS, preparation('mixup'))
  share = np.asarray(augment.shares(0, jnp.int32(0), POSITIONS, 1.0))
  np.testing.assert_array_equal(mixed.share, share)
  np.testing.assert_array_equal(mixed.labels, np.roll(np.arange(500), -1))
  part = share[:, None, None, None] / 256
  expected = part * IMAGES + (1 - part) * np.roll(IMAGES, -1, 0)
  np.testing.assert_allclose(images, expected, atol=0.51)


def test_the_number_of_devices_changes_no_bit():
  made = preparation('pad_crop,flip,randaugment,cutout,mixup', (8, 8, 3))
  images = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 3)).astype(np.uint8)
  labels = np.arange(64, dtype=np.int32)

  def one(devices):
    def augmented(images, labels):
      positions = jax.lax.axis_index('batch') * len(labels) + jnp.arange(len(labels))
      return augment.augment(Images(images, labels), 0, jnp.int32(3), positions, made,
                             devices=devices)

    shared = [x.reshape(devices, -1, *x.shape[1:]) for x in (images, labels)]
    out = jax.pmap(augmented, axis_name='batch', devices=jax.devices()[:devices])(*shared)
    return [np.asarray(x).reshape(64, -1) for x in jax.tree.leaves(out)]

  alone = one(1)
  assert np.mean(alone[0] != images.reshape(64, -1)) > 0.05
  for devices in (2, 4):
    for a, b in zip(one(devices), alone, strict=True):
      np.testing.assert_array_equal(a, b)


def test_what_one_augmentation_draws_is_not_what_another_does():
  words = [np.asarray(seeds.image_bits(0, jnp.int32(5), POSITIONS, 1, name)).ravel()
           for name in ('', 'cutout', 'mixup', 'randaugment/0', 'randaugment/1')]
  correlation = np.corrcoef(np.float64(words))
  assert np.all(abs(correlation - np.eye(len(words))) < 6 / np.sqrt(500))
