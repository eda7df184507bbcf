import os
import pathlib
import shutil
import subprocess
import sys

from conftest import data_config
from conftest import write_folder
import pytest

from bnonly_jax import data
from bnonly_jax.config import UserError
from bnonly_jax.data import sets


def test_the_newest_version_counts(data_dir, tmp_path):
  for version in ('1.9.0', '1.10.0'):
    shutil.copytree(data_dir / 'digits/1.0.0', tmp_path / 'mine' / version)
  assert data.find(data_config('mine', tmp_path)).path.name == '1.10.0'


@pytest.mark.parametrize('name', ['cifar10', '', '../cifar10', 'a/b', '/data/cifar10', '*'])
def test_a_data_set_that_is_not_prepared_is_an_error_with_the_command(data_dir, name):
  with pytest.raises(UserError, match='not prepared in .*digits.*data.prepare --dataset='):
    data.find(data_config(name, data_dir))


def test_another_file_format_is_an_error(tmp_path):
  folder = tmp_path / 'cifar10' / '3.0.2'
  folder.mkdir(parents=True)
  (folder / 'dataset_info.json').write_text('{"name": "cifar10", "fileFormat": "tfrecord"}')
  with pytest.raises(UserError, match='as tfrecord; allowed is array_record'):
    data.find(data_config('cifar10', tmp_path))


@pytest.mark.parametrize('limit', [2.0, 0.0])  # resident, streamed
def test_a_run_does_not_touch_tensorflow(data_dir, tmp_path, limit):
  # A tensorflow that fails when it is imported comes before any that is installed.
  (tmp_path / 'tensorflow.py').write_text('raise AssertionError("TensorFlow was imported")')
  root = pathlib.Path(__file__).parents[2]
  done = subprocess.run(
      [sys.executable, '-m', 'bnonly_jax.main', '--config=configs/digits.py:resnet8',
       f'--config.data.dir={data_dir}', '--config.epochs=1', '--config.batch_size=1437',
       f'--config.data.resident_limit={limit}',
       f'--workdir={tmp_path / "run"}'],
      cwd=root, env={**os.environ, 'PYTHONPATH': str(tmp_path), 'XLA_FLAGS': ''},
      capture_output=True, text=True, check=False)
  assert done.returncode == 0 and 'test accuracy' in done.stdout, done.stderr


def test_a_folder_of_images_by_class(tmp_path):
  write_folder(tmp_path)
  config = data_config(f'folder:{tmp_path}', image_size=24, eval_resize=28)
  info = data.find(config)
  assert info.class_names == ('ant', 'bee', 'cat') and info.classes == 3
  assert (info.train_images, info.test_images, info.test_split) == (40, 11, 'test')
  assert info.image_shape == (24, 24, 3)
  split = sets.open_split(info, 'train')
  names = [path.parent.name for path in split.paths]
  assert names == sorted(names) and [info.class_names[label] for label in split.labels] == names
  # Another file there is another version of the data set.
  (tmp_path / 'train/ant/new.jpg').write_bytes(b'')
  assert data.find(config).version != info.version


def test_channels_follow_the_config(data_dir):
  assert data.find(data_config('digits', data_dir)).image_shape == (8, 8, 1)
  assert data.find(data_config('digits', data_dir, channels=3)).image_shape == (8, 8, 3)


def remove(path):
  shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.parametrize('change, fields, message', [
    (lambda p: remove(p / 'train'), {}, r'holds test and not train. Needed are train/CLASS/\*'),
    (lambda p: remove(p / 'test'), {}, 'needed is one to test on'),
    (lambda p: (p / 'train/dog').mkdir(), {}, r'class folder .*/train/dog holds no image'),
    (lambda p: (p / 'test/dog').mkdir(), {}, r'has the class dog, and .*/train has not'),
    (lambda p: [remove(f) for f in (p / 'test').glob('*/*')], {},
     r'/test holds no image in a class folder; there is: nothing. Needed'),
    (lambda p: [remove(f) for f in p.glob('*/*')], {},
     r'/train holds no image in a class folder; there is: nothing. Needed'),
    (lambda p: None, {'test_split': 'val'}, "data.test_split is 'val'; allowed is test"),
    (lambda p: (p / 'train/ant/00.jpg').write_bytes(b'GIF89a'), {'image_size': 0},
     r'ant/00.jpg: neither JPEG nor PNG')])
def test_a_wrong_folder_is_an_error(tmp_path, change, fields, message):
  write_folder(tmp_path)
  change(tmp_path)
  fields = {'image_size': 24, **fields}
  with pytest.raises(UserError, match=message):
    data.find(data_config(f'folder:{tmp_path}', **fields))


def test_the_split_to_test_on_can_be_named(tmp_path):
  write_folder(tmp_path)
  (tmp_path / 'test').rename(tmp_path / 'validation')
  config = data_config(f'folder:{tmp_path}', image_size=24)
  assert data.find(config).test_split == 'validation'
  (tmp_path / 'validation').rename(tmp_path / 'other')
  config.data.test_split = 'other'
  assert data.find(config).test_images == 11


@pytest.mark.parametrize('limit, size, resident', [(2.0, 0, True), (1e-4, 0, False),
                                                   (2.0, 24, False)])
def test_what_fits_is_resident(data_dir, limit, size, resident):
  config = data_config('digits', data_dir, resident_limit=limit, image_size=size)
  # 1,797 images of 64 bytes are 1.07e-4 GiB.
  assert data.is_resident(config, data.find(config)) == resident
