import io
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import time

import numpy as np
from PIL import Image
import pytest

from bnonly_jax import data
from bnonly_jax.config import UserError
from bnonly_jax.data import cifar10_jpeg
from bnonly_jax.data import prepare

SHARED = pathlib.Path(__file__).parents[3] / 'shared/data/cifar10-jpeg.tar.xz'


def test_the_embedded_data_set(data_dir):
  info = data.find('digits', str(data_dir))
  assert info.path.is_dir()
  train, test = data.load(info.path)
  for split, count in ((train, info.train_images), (test, info.test_images)):
    assert split.images.shape == (count, *info.image_shape) and split.images.dtype == np.uint8
    assert split.labels.shape == (count,) and set(split.labels) == set(range(10))
  # The file's first scan is a zero, its first row 0 0 5 13 9 1 0 0 of 16.
  assert train.labels[:5].tolist() == [0, 1, 2, 3, 4]
  np.testing.assert_array_equal(train.images[0, 0, :, 0], [0, 0, 80, 207, 143, 16, 0, 0])
  assert abs(train.images.mean() / 255 - 0.305) < 1e-3
  assert abs(train.images.std() / 255 - 0.376) < 1e-3


def test_preparing_takes_less_than_a_second(tmp_path):
  seconds = []
  for attempt in range(2):  # the first imports TFDS
    start = time.perf_counter()
    prepare.prepare('digits', str(tmp_path / str(attempt)))
    seconds.append(time.perf_counter() - start)
  assert min(seconds) < 1


def test_a_folder_that_cannot_hold_the_data_is_an_error(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(UserError, match='cannot hold the data set digits'):
    prepare.prepare('digits', str(tmp_path / 'file'))


def test_what_an_interrupted_preparation_leaves_does_not_count(data_dir, tmp_path):
  shutil.copytree(data_dir / 'digits/1.0.0', tmp_path / 'digits/incomplete.ABC_1.0.0')
  assert data.versions('digits', tmp_path) == []
  prepare.prepare('digits', str(tmp_path))
  assert [path.name for path in data.versions('digits', tmp_path)] == ['1.0.0']


def test_the_newest_version_counts(data_dir, tmp_path):
  for version in ('1.9.0', '1.10.0'):
    shutil.copytree(data_dir / 'digits/1.0.0', tmp_path / 'mine' / version)
  assert data.find('mine', str(tmp_path)).path.name == '1.10.0'


def test_preparing_again_changes_nothing(data_dir):
  files = {p: p.stat().st_mtime_ns for p in data_dir.rglob('*.array_record*')}
  prepare.prepare('digits', str(data_dir))
  assert files == {p: p.stat().st_mtime_ns for p in data_dir.rglob('*.array_record*')} and files


def jpeg(value):
  file = io.BytesIO()
  Image.fromarray(np.full((32, 32, 3), value, np.uint8)).save(file, 'JPEG')
  return file.getvalue()


def write_source(root):
  for split, count in (('train', 3), ('test', 2)):
    for label, name in enumerate(cifar10_jpeg._CLASSES):
      (root / split / name).mkdir(parents=True)
      for i in range(count):
        (root / split / name / f'{i:04}.jpg').write_bytes(jpeg(10 * label + i))


@pytest.mark.parametrize('packed', ['', '.tar', '.tar.xz'])
def test_cifar10_jpeg_is_read_from_a_folder_or_a_tar(tmp_path, packed):
  source = tmp_path / 'cifar'
  write_source(source)
  if packed:
    with tarfile.open(tmp_path / f'cifar{packed}', f'w:{packed[5:]}') as archive:
      archive.add(source, 'cifar')
    source = tmp_path / f'cifar{packed}'
  info = prepare.prepare('cifar10_jpeg', str(tmp_path / 'data'), str(source))
  assert info[1:] == ((32, 32, 3), 10, 30, 20)
  train, test = data.load(info.path)
  for split, count in ((train, 3), (test, 2)):
    np.testing.assert_array_equal(np.bincount(split.labels), [count] * 10)
    # Grey images survive JPEG: each label has its own.
    np.testing.assert_array_equal(split.images[:, 0, 0, 0] // 10, split.labels)


@pytest.mark.parametrize('make, message', [
    (lambda p: None, 'does not exist'),
    (lambda p: p.mkdir(), 'without train/<class>'),
    (lambda p: p.write_bytes(b'no tar'), 'cannot be read')])
def test_a_wrong_source_is_an_error_and_leaves_nothing_prepared(tmp_path, make, message):
  make(tmp_path / 'source')
  with pytest.raises(UserError, match=message):
    prepare.prepare('cifar10_jpeg', str(tmp_path / 'data'), str(tmp_path / 'source'))
  with pytest.raises(UserError, match='not prepared'):
    data.find('cifar10_jpeg', str(tmp_path / 'data'))


@pytest.mark.parametrize('name, message', [
    ('cifar10_jpeg', '--source is missing'), ('cifar11', 'Check the spelling')])
def test_what_cannot_be_prepared_says_what_to_do(tmp_path, name, message):
  with pytest.raises(UserError, match=message):
    prepare.prepare(name, str(tmp_path))


@pytest.mark.parametrize('name', ['cifar10', '', '../cifar10', 'a/b', '/data/cifar10', '*'])
def test_a_data_set_that_is_not_prepared_is_an_error_with_the_command(data_dir, name):
  with pytest.raises(UserError, match='not prepared in .*digits.*data.prepare --dataset='):
    data.find(name, str(data_dir))


def test_another_file_format_is_an_error(tmp_path):
  folder = tmp_path / 'cifar10' / '3.0.2'
  folder.mkdir(parents=True)
  (folder / 'dataset_info.json').write_text('{"name": "cifar10", "fileFormat": "tfrecord"}')
  with pytest.raises(UserError, match='as tfrecord; allowed is array_record'):
    data.find('cifar10', str(tmp_path))


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.exists(), reason='needs ../shared/data/cifar10-jpeg.tar.xz')
def test_the_whole_of_cifar10_jpeg(tmp_path):
  info = prepare.prepare('cifar10_jpeg', str(tmp_path), str(SHARED))
  assert info[1:] == ((32, 32, 3), 10, 50_000, 10_000)
  train, test = data.load(info.path)
  np.testing.assert_array_equal(np.bincount(train.labels), [5000] * 10)
  np.testing.assert_array_equal(np.bincount(test.labels), [1000] * 10)


def test_an_epoch_takes_every_image_once_but_the_rest():
  order = {}
  epochs = [np.concatenate([data.train_indices(0, 15 * epoch + i, 1000, 64, order)
                            for i in range(15)]) for epoch in (0, 1)]
  for indices in epochs:
    assert len(set(indices)) == 15 * 64 and indices.dtype == np.int32
    assert indices.min() >= 0 and indices.max() < 1000
  assert np.any(epochs[0] != epochs[1])
  assert len(order) == 1


def test_a_batch_depends_on_seed_and_step_alone():
  batch = data.train_indices(0, 20, 1000, 64, {})
  order = {}
  for step in (3, 40, 20):
    again = data.train_indices(0, step, 1000, 64, order)
  np.testing.assert_array_equal(batch, again)
  assert np.any(batch != data.train_indices(1, 20, 1000, 64, {}))


@pytest.mark.parametrize('images, batch_size', [(37, 8), (32, 8), (5, 8), (10_000, 500)])
def test_evaluation_weighs_every_image_once(images, batch_size):
  batches = data.eval_batches(images, batch_size)
  assert all(index.shape == weight.shape == (batch_size,) for index, weight in batches)
  index, weight = (np.concatenate(parts) for parts in zip(*batches, strict=True))
  np.testing.assert_array_equal(index[weight == 1], np.arange(images))
  assert set(index[weight == 0]) <= {0} and weight.sum() == images


def test_a_run_does_not_touch_tensorflow(data_dir, tmp_path):
  # A tensorflow that fails when it is imported comes before any that is installed.
  (tmp_path / 'tensorflow.py').write_text('raise AssertionError("TensorFlow was imported")')
  root = pathlib.Path(__file__).parents[2]
  done = subprocess.run(
      [sys.executable, '-m', 'bnonly_jax.main', '--config=configs/digits.py:resnet8',
       f'--config.data.dir={data_dir}', '--config.epochs=1', '--config.batch_size=1437',
       f'--workdir={tmp_path / "run"}'],
      cwd=root, env={**os.environ, 'PYTHONPATH': str(tmp_path), 'XLA_FLAGS': ''},
      capture_output=True, text=True, check=False)
  assert done.returncode == 0 and 'test accuracy' in done.stdout, done.stderr


def numbered(count):
  return data.Images(np.arange(count, dtype=np.uint8).reshape(-1, 1, 1, 1),
                     (np.arange(count) % 10).astype(np.int32))


def test_a_subsample_is_chosen_by_the_seed_and_keeps_pairs_and_order():
  whole = numbered(200)
  part, other = (data.subsample(whole, 50, seed) for seed in (0, 1))
  images = part.images.ravel()
  assert len(images) == 50 and np.all(np.diff(images.astype(int)) > 0)
  np.testing.assert_array_equal(part.labels, images % 10)
  assert np.any(images != other.images.ravel())
  np.testing.assert_array_equal(data.subsample(whole, 200, 0).images, whole.images)


def test_random_labels_replace_their_share_uniformly():
  whole = numbered(10_000)
  half, all_of_them = (data.randomise_labels(whole, share, 10, 0) for share in (0.5, 1.0))
  changed = np.mean(half.labels != whole.labels)
  assert abs(changed - 0.5 * 0.9) < 6 * np.sqrt(0.09 * 0.5 / 10_000)
  counts = np.bincount(all_of_them.labels, minlength=10)
  assert len(counts) == 10 and np.all(abs(counts - 1000) < 6 * np.sqrt(1000 * 0.9))
  # What half replaces, all replaces by the same.
  differ = half.labels != whole.labels
  np.testing.assert_array_equal(half.labels[differ], all_of_them.labels[differ])
  np.testing.assert_array_equal(data.randomise_labels(whole, 0.0, 10, 0).labels, whole.labels)
  assert np.any(all_of_them.labels != data.randomise_labels(whole, 1.0, 10, 1).labels)
