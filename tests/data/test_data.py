import os
import pathlib
import shutil
import subprocess
import sys
import types

from conftest import data_config
from conftest import write_folder
import pytest

from bnonly_jax import data
from bnonly_jax.config import UserError
from bnonly_jax.data import records
from bnonly_jax.data import resident as resident_lib
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


@pytest.mark.parametrize('limit', [  # streamed, resident
    0.0, pytest.param(2.0, marks=pytest.mark.slow)])
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


@pytest.mark.parametrize('name, message', [
    ('cifar10', r"pip install -e '\.\[prepare\]'.*data.prepare --dataset=cifar10 --download"),
    ('imagenet2012', r'data.prepare --dataset=imagenet2012 --source=DIR --data_dir='),
    ('imagenet_resized/8x8', r'--dataset=imagenet_resized/8x8 --download'),
    ('cfar10', r'Did you mean cifar10\? Allowed are folder:PATH, digits, and what'),
    ('cifar10_jpeg', r'--dataset=cifar10_jpeg --source=PATH')])
def test_a_data_set_that_is_not_there_is_told_with_its_way_in(tmp_path, name, message):
  with pytest.raises(UserError, match=message):
    data.find(data_config(name, tmp_path))


def test_a_folder_without_its_prefix_is_recognised(tmp_path):
  with pytest.raises(UserError, match=f'--config.data.name=folder:{tmp_path}$'):
    data.find(data_config(str(tmp_path), tmp_path))


def test_what_there_is_and_what_is_left_out_is_counted(data_dir, tmp_path):
  assert sets.summary(data.find(data_config('digits', data_dir))) == (
      f'data in {data_dir}/digits/1.0.0: train: 1,437 images in 10 classes; test: 360 images')
  write_folder(tmp_path)
  config = data_config(f'folder:{tmp_path}', image_size=24)
  clean = data.find(config)
  assert sets.summary(clean) == (
      f'data in {tmp_path}: train: 40 images in 3 classes; test: 11 images')
  (tmp_path / 'train/ant/deep').mkdir()
  (tmp_path / 'train/.ipynb_checkpoints').mkdir()
  for name in ('ant/a.webp', 'bee/b.WEBP', 'ant/note.txt', 'c.jpg', 'ant/deep/d.png', 'ant/LICENSE',
               'ant/.DS_Store', 'ant/Thumbs.db', 'bee/._00.jpg', 'ant/deep/.e.jpg'):
    (tmp_path / 'train' / name).write_bytes(b'')
  (tmp_path / 'test/ant/a.webp').write_bytes(b'')
  info = data.find(config)
  assert sets.summary(info) == (
      f'data in {tmp_path}: train: 40 images in 3 classes; test: 11 images; left out: 3 .webp,'
      f' 1 .jpg outside the class folders, {info.left_out.partition("folders, ")[2]}'
      ' (allowed are .jpg, .jpeg, .png in class folders)')
  assert sorted(info.left_out.partition('folders, ')[2].split(', ')) == [
      '1 .png in deeper folders', '1 .txt', '1 without a suffix']
  assert info.version == clean.version


@pytest.mark.parametrize('features, message', [
    (dict(image=(8, 8, 1), label=('one',)), r'of one class only \(one\); needed are two'),
    (dict(image=(8, 8, 1), label=()), 'needed are image, label .a class. and train. Choose'),
    (dict(image=(8, 8), label=('a', 'b')), 'needed are image, label .a class. and train. Choose'),
    (dict(image=(8, 8, 1)), 'needed are image, label .a class. and train. Choose')])
def test_a_prepared_set_that_is_no_classification_of_images_is_an_error(
    data_dir, tmp_path, monkeypatch, features, message):
  features = {name: types.SimpleNamespace(shape=value, names=value)
              for name, value in features.items()}
  splits = {name: types.SimpleNamespace(num_examples=9) for name in ('train', 'test')}
  monkeypatch.setattr(records, 'open_builder', lambda path: types.SimpleNamespace(
      info=types.SimpleNamespace(features=features, splits=splits)))
  shutil.copytree(data_dir / 'digits/1.0.0', tmp_path / 'other/1.0.0')
  with pytest.raises(UserError, match=message):
    data.find(data_config('other', tmp_path))


@pytest.mark.parametrize('spoil, message', [
    (lambda p: next(p.glob('*train*')).unlink(), 'train cannot be read: .*No such file.*Put the'),
    (lambda p: next(p.glob('*train*')).write_bytes(b'x' * 99), 'train cannot be read: .*64KB'),
    (lambda p: (p / 'features.json').unlink(), 'holds no whole data set: .*Move that folder away'),
    (lambda p: (p / 'dataset_info.json').write_text('{'), 'dataset_info.json cannot be read')])
def test_a_damaged_prepared_set_is_told_as_that(data_dir, tmp_path, spoil, message):
  shutil.copytree(data_dir / 'digits/1.0.0', tmp_path / 'mine/1.0.0')
  spoil(tmp_path / 'mine/1.0.0')
  with pytest.raises(UserError, match=message) as error:
    sets.open_split(data.find(data_config('mine', tmp_path)), 'train').read([0])
  assert '\n' not in str(error.value)


def test_a_folder_that_may_not_be_read_is_told_as_that(tmp_path, monkeypatch):
  def refuse(path):
    raise PermissionError(13, 'Permission denied', str(path))

  write_folder(tmp_path)
  monkeypatch.setattr(records.os, 'scandir', refuse)
  with pytest.raises(UserError, match=r'of the data set cannot be read \(Permission denied\)'):
    data.find(data_config(f'folder:{tmp_path}', image_size=24))


def remove(path):
  shutil.rmtree(path) if path.is_dir() else path.unlink()


def loose(split):
  """Puts the images of a split out of their class folders."""
  for path in [*split.glob('*/*')]:
    path.rename(split / path.name)
  for path in [p for p in split.iterdir() if p.is_dir()]:
    path.rmdir()


@pytest.mark.parametrize('change, fields, message', [
    (lambda p: remove(p / 'train'), {}, r'holds test and not train. Needed are train/CLASS/\*'),
    (remove, {}, r', but /.* is no folder. Needed are train/CLASS/\*'),
    (lambda p: remove(p / 'test'), {}, r'splits train; needed is one to test on: test, validation'
     r' or val. Needed are train/CLASS/\* and test/CLASS/\* in it, a folder for each class'),
    (lambda p: (p / 'test').rename(p / 'dev'), {}, 'If it is dev, set --config.data.test_split'),
    (lambda p: loose(p / 'train'), {},
     '/train holds no image in a class folder; there is: 40 .jpg outside the class folders. N'),
    (lambda p: loose(p / 'test'), {}, 'there is: 11 .jpg outside the class folders. Needed are'),
    (lambda p: [remove(f) for f in [*p.glob('*/ant'), *p.glob('*/bee')]], {},
     r'of one class only \(cat\); needed are two or more'),
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
  assert resident_lib.is_resident(config, data.find(config)) == resident
