"""Data sets that are given as arrays."""

import numpy as np
import pytest

from bnonly_jax.config import UserError
from bnonly_jax.data import arrays


def split(number=4, shape=(8, 8, 1), classes=2):
  rng = np.random.default_rng(number)
  return rng.integers(0, 256, (number, *shape), np.uint8), np.arange(number) % classes


def test_arrays_are_described_and_told_apart_by_their_values():
  info, splits = arrays.given(split(6), split(4))
  assert (info.train_images, info.test_images, info.image_shape) == (6, 4, (8, 8, 1))
  assert info.class_names == ('0', '1') and splits['train'].labels.dtype == np.int32
  other = split(4)
  other[0][0, 0, 0, 0] ^= 1
  assert arrays.given(split(6), other)[0].version != info.version
  assert arrays.given(split(6), split(4))[0].version == info.version


@pytest.mark.parametrize('train_set, test_set, message', [
    (None, split(), r'^train_set is NoneType; allowed is a pair of arrays. Give train_set=\('),
    ((split()[0] / 255, split()[1]), split(), r'^train_set has images float64 \[4, 8, 8, 1\]'),
    (split(), (split()[0][..., 0], split()[1]), r'^test_set has images uint8 \[4, 8, 8\]'),
    ((split()[0], split()[1][:3]), split(), r'labels allowed are whole numbers \[4\] from 0'),
    ((split()[0], split()[1] - 1), split(), 'labels allowed are whole numbers'),
    ((split()[0], split()[1] / 2), split(), r'labels float64 \[4\]; labels allowed'),
    (split(), split(shape=(9, 8, 1)), r'test_set are \(9, 8, 1\); allowed is \(8, 8, 1\)'),
    (split(), split(classes=3), 'needed are two classes or more in train_set, and no others'),
    (split(classes=1), split(classes=1), 'needed are two classes'),
    ((split()[0][:0], split()[1][:0]), split(), r'images uint8 \[0, 8, 8, 1\]')])
def test_what_is_no_data_set_is_told(train_set, test_set, message):
  with pytest.raises(UserError, match=message):
    arrays.given(train_set, test_set)
