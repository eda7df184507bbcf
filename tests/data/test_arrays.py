"""Data sets that are given as arrays."""

import numpy as np
import pytest
from tiny import tiny_config
from tiny import without_times

from bnonly_jax import analysis
from bnonly_jax import experiment
from bnonly_jax import train
from bnonly_jax.config import default_config
from bnonly_jax.config import UserError
from bnonly_jax.data import arrays
from bnonly_jax.run import reading


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


def test_a_run_on_arrays_is_that_on_the_same_images_by_name(tiny_run, data_dir, tmp_path):
  config = tiny_config(data_dir)
  source = experiment.open_source(experiment.build(config))
  shape = (8, 8, 1)
  train_set, test_set = (
      (one.images[:, :64].reshape(-1, *shape), one.labels)
      for one in (source.train_set, source.test_set))
  result = train.train_and_evaluate(config, tmp_path, train_set=train_set, test_set=test_set)
  same = ('test_accuracy', 'test_loss', 'untrained_test_accuracy', 'parameters', 'train_images')
  assert {name: result[name] for name in same} == {name: tiny_run[1][name] for name in same}
  assert result['data'] == 'arrays'
  lines = [reading.lines(workdir) for workdir in (tmp_path, tiny_run[0])]
  assert without_times(lines[0]) == without_times(lines[1])
  # The same arrays again are the same run; others are another, and a command line has none.
  train.train_and_evaluate(config, tmp_path, train_set=train_set, test_set=test_set)
  changed = train_set[0] ^ 1, train_set[1]
  with pytest.raises(UserError, match='data.version'):
    train.train_and_evaluate(config, tmp_path, train_set=changed, test_set=test_set)
  with pytest.raises(UserError, match="is 'arrays': images that a Python program gives"):
    analysis.analyse(tmp_path)


def test_what_arrays_cannot_have_is_told(data_dir):
  info, _ = arrays.given(split(), split())
  config = default_config()
  config.data.test_split = 'validation'
  with pytest.raises(UserError, match="data.test_split is 'validation'; allowed is test or ''"):
    arrays.named(config, info)
  config.data.test_split = 'test'
  # Only the images in use are kept on the device.
  large = info._replace(train_images=2**20)
  config.data.update(resident_limit=0.05, subsample=0.1)
  assert arrays.named(config, large).data.name == 'arrays'
  config.data.subsample = 1.0
  with pytest.raises(UserError, match='take 0.1 GiB on each device'):
    arrays.named(config, large)
  config.data.image_size = 16
  with pytest.raises(UserError, match='data.image_size is 16; allowed is 0 with arrays'):
    arrays.named(config, info)
  config.data.update(image_size=0, resident_limit=0)
  with pytest.raises(UserError, match='take 0.0 GiB on each device, more than config.data.res'):
    arrays.named(config, info)
