"""Both sources of images: what is resident and what is streamed."""

import hashlib
import shutil

from conftest import data_config
from conftest import train_and_die
from conftest import write_folder
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bnonly_jax import data
from bnonly_jax import train
from bnonly_jax.config import UserError
from bnonly_jax.data import augment
from bnonly_jax.data import batches
from bnonly_jax.data import decode
from bnonly_jax.data import device
from bnonly_jax.data import records
from bnonly_jax.data import resident
from bnonly_jax.data import sets
from bnonly_jax.data import streamed
from bnonly_jax.run import reading

STEPS = 7  # over the border of two epochs


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  root = tmp_path_factory.mktemp('folder')
  write_folder(root / 'mixed')
  write_folder(root / 'equal', one_size=True)
  return root


def folder_config(path, **fields):
  config = data_config(f'folder:{path}', eval_resize=28, **fields)
  config.update(batch_size=8, eval_batch_size=4, epochs=2, network='cifar_resnet8', log_every=1)
  return config


def taken(way, config, start=0, process=0, processes=1, number=STEPS):
  """Returns images and labels of the batches that a process takes, as they reach the step."""
  info = data.find(config)
  source, found = way.open_source(config, info, process, processes), []
  for batch, _ in source.train_batches(start):
    found.append(device.look_up(source.train_set, batch, info.image_shape))
    if len(found) == number:
      return found


def hashes(taken_batches):
  return [hashlib.sha256(b''.join(np.ascontiguousarray(x).tobytes() for x in batch)).hexdigest()
          for batch in taken_batches]


@pytest.mark.parametrize('way, image_size', [(resident, 0), (streamed, 0), (streamed, 24)])
def test_a_batch_depends_on_seed_and_step_alone(folder, way, image_size):
  config = folder_config(folder / ('mixed' if image_size else 'equal'), image_size=image_size,
                         subsample=0.9, random_labels=0.5)
  whole = taken(way, config)
  assert len(set(hashes(whole))) == STEPS
  assert whole[0].images.shape == (8, *[image_size or 32] * 2, 3)
  # After a resume.
  assert hashes(taken(way, config, start=5, number=2)) == hashes(whole)[5:7]
  # Two processes.
  halves = [taken(way, config, process=process, processes=2) for process in (0, 1)]
  joined = [data.Images(*map(np.concatenate, zip(*pair, strict=True)))
            for pair in zip(*halves, strict=True)]
  assert hashes(joined) == hashes(whole)
  # Any number of workers; another seed.
  for workers in (1, 3):
    config.data.workers = workers
    assert hashes(taken(way, config)) == hashes(whole)
  config.seed = 1
  assert not set(hashes(taken(way, config))) & set(hashes(whole))


def test_resident_and_streamed_see_the_same_images(folder):
  config = folder_config(folder / 'equal', subsample=0.9, random_labels=0.5)
  assert hashes(taken(resident, config)) == hashes(taken(streamed, config))


def test_workers_can_be_processes(folder):
  config = folder_config(folder / 'mixed', image_size=24)
  whole = hashes(taken(streamed, config))
  config.data.update(worker_kind='processes', workers=2)
  assert hashes(taken(streamed, config, start=2, number=5)) == whole[2:]


@pytest.mark.parametrize('way', [resident, streamed])
def test_the_step_sees_the_same_images_on_any_number_of_devices(folder, way):
  config = folder_config(folder / 'equal')
  info, seen = data.find(config), []
  for devices in (1, 2, 4):
    source = way.open_source(config, info)

    def augmented(batch, step, train_set=source.train_set):
      whole = train_set and jax.tree.map(jnp.asarray, train_set)
      images, labels = device.look_up(whole, batch, info.image_shape)
      positions = jax.lax.axis_index('batch') * len(labels) + jnp.arange(len(labels))
      return augment.crop_and_flip(images, 0, step, positions, 2, True), labels

    step = jax.pmap(augmented, axis_name='batch', in_axes=(0, None))
    sent = device.send_ahead(source.train_batches(0), jax.devices()[:devices])
    out = [step(batch, jnp.int32(0)) for (batch, _), _ in zip(sent, range(3), strict=False)]
    assert out[0][0].shape == (devices, 8 // devices, 32, 32, 3)
    seen.append(hashes([[np.asarray(x).reshape(8, -1) for x in pair] for pair in out]))
  assert seen[0] == seen[1] == seen[2]


def test_evaluation_has_every_image_once(folder):
  config = folder_config(folder / 'mixed', image_size=24)
  info = data.find(config)
  sources = [streamed.open_source(config, info, process, 2) for process in (0, 1)]
  pairs = [list(source.eval_batches(4)) for source in sources]
  labels = np.concatenate([batch.labels[weight == 1] for part in pairs for batch, weight in part])
  np.testing.assert_array_equal(np.bincount(labels), [4, 4, 3])
  split = sets.open_split(info, 'test')
  first = pairs[0][0][0].images[0]
  np.testing.assert_array_equal(first, decode.centre_crop(split.read([0])[0][0],
                                                          sets.form(config, info)))


def spoil(folder, tmp_path, split, number):
  """Copies the folder and cuts short a few images of a split."""
  target = tmp_path / 'spoilt'
  if not target.exists():
    shutil.copytree(folder, target)
  paths = sorted((target / split).glob('*/*.jpg'))[3:3 + number]
  for path in paths:
    path.write_bytes(path.read_bytes()[:-50])
  return target, paths


@pytest.mark.parametrize('way, image_size', [(resident, 0), (streamed, 0), (streamed, 24)])
@pytest.mark.parametrize('split', ['train', 'test'])
def test_a_bad_image_stops_training_and_is_named(folder, tmp_path, way, image_size, split):
  root, (bad, *_) = spoil(folder / ('mixed' if image_size else 'equal'), tmp_path, split, 1)
  config = folder_config(root, image_size=image_size)
  with pytest.raises(UserError, match=f'{bad}: JPEG that ends before its last pixel; .*=skip'):
    source = way.open_source(config, data.find(config))
    list(source.train_batches(0)) if split == 'train' else list(source.eval_batches(4))


@pytest.mark.parametrize('way', [resident, streamed])
def test_skipped_images_are_counted_and_every_process_keeps_in_step(folder, tmp_path, way, capsys):
  root, _ = spoil(folder / 'equal', tmp_path, 'train', 2)
  root, _ = spoil(folder / 'equal', tmp_path, 'test', 3)
  config = folder_config(root, bad_images='skip')
  info = data.find(config)
  whole, good = taken(way, config, number=5), taken(way, folder_config(folder / 'equal'), number=5)
  # The next good image takes the place of a bad one, and nothing else changes.
  order = np.concatenate([batches.train_indices(0, step, 40, 8) for step in range(5)])
  images, expected = (np.concatenate([b.images for b in part]) for part in (whole, good))
  place = {index: i for i, index in enumerate(order)}
  for index in range(40):
    source = 5 if index in (3, 4) else index
    np.testing.assert_array_equal(images[place[index]], expected[place[source]])
  halves = [taken(way, config, process=process, processes=2, number=5) for process in (0, 1)]
  joined = [data.Images(*map(np.concatenate, zip(*pair, strict=True)))
            for pair in zip(*halves, strict=True)]
  assert hashes(joined) == hashes(whole)
  source = way.open_source(config, info)
  assert sum(weight.sum() for _, weight in source.eval_batches(4)) == 11 - 3
  said = capsys.readouterr().out
  assert 'bad images of test left out: 3' in said
  if way is resident:
    assert 'bad images of train replaced: 2' in said
  else:
    assert sum(bad for (_, bad), _ in zip(source.train_batches(0), range(5), strict=False)) == 2


def test_a_file_that_went_away_is_named(folder, tmp_path):
  shutil.copytree(folder / 'mixed', tmp_path / 'images')
  config = folder_config(tmp_path / 'images', image_size=24)
  source = streamed.open_source(config, data.find(config))
  gone = sorted((tmp_path / 'images/train').glob('*/*.jpg'))[7]
  gone.unlink()
  with pytest.raises(UserError, match=f'the image {gone} cannot be read .No such file'):
    list(source.train_batches(0))


def test_what_keeps_the_decoders_from_working_is_told(folder, monkeypatch):
  def fail(*_):
    raise OSError(24, 'Too many open files')

  config = folder_config(folder / 'mixed', image_size=24)
  monkeypatch.setattr(decode, 'random_crop', fail)
  with pytest.raises(UserError, match='threads cannot decode side by side .*Too many.*workers=1'):
    next(streamed.open_source(config, data.find(config)).train_batches(0))


def test_no_good_test_image_is_an_error(folder, tmp_path):
  root, _ = spoil(folder / 'equal', tmp_path, 'test', 8)
  for path in sorted((root / 'test').glob('*/*.jpg'))[:3]:
    path.write_bytes(b'no image')
  config = folder_config(root, bad_images='skip')
  with pytest.raises(UserError, match='no image of the split test .* is good'):
    train.train_and_evaluate(config, tmp_path / 'run')


def test_a_label_out_of_range_is_bad(folder):
  info = data.find(folder_config(folder / 'equal'))
  split = sets.open_split(info, 'train')
  split = records.Folder(split.paths, [*split.labels[:5], 7, -1, *split.labels[7:]])
  images = np.zeros((8, 32, 32, 3), np.uint8)
  form = decode.Form(32, 32, 3, (32, 32, 3), 0, (), ())
  labels, bad = records.read_images(split, range(8), 3, lambda file, _: decode.whole(file, form),
                                    images, replace=True)
  assert [image.rule for image in bad] == [
      'label 7, of 3 classes from 0', 'label -1, of 3 classes from 0'] + [
          'label -1, of 3 classes from 0']
  assert labels[5] == labels[6] == split.labels[7]


def test_a_set_of_bad_images_ends(folder):
  split = records.Folder([*(folder / 'equal/train/ant').glob('*')] * 20, [9] * 280)
  with pytest.raises(UserError, match='100 images in a row are bad'):
    records.read_images(split, [0], 3, lambda *_: None, np.zeros((1, 8, 8, 3)), replace=True)


@pytest.mark.slow
def test_a_streamed_run_ends_with_the_same_bits_after_a_kill(folder, tmp_path):
  config = folder_config(folder / 'mixed', image_size=16)
  expected = train.train_and_evaluate(config, tmp_path / 'straight')
  train_and_die(config, tmp_path / 'killed', 7)
  config.data.workers = 3  # which may change
  result = train.train_and_evaluate(config, tmp_path / 'killed')
  assert result['test_loss'] == expected['test_loss'] and result['test_images'] == 11
  lines = [[{k: v for k, v in line.items() if not k.startswith('time')}
            for line in reading.lines(tmp_path / name)] for name in ('straight', 'killed')]
  assert lines[0] == lines[1] and len(lines[0]) == 13


def test_fewer_test_images_than_devices_are_counted_exactly(folder, tmp_path):
  write_folder(tmp_path / 'few', one_size=True)
  for path in sorted((tmp_path / 'few/test').glob('*/*.jpg'))[3:]:
    path.unlink()
  config = folder_config(tmp_path / 'few')
  config.epochs = 1
  result = train.train_and_evaluate(config, tmp_path / 'run')
  assert jax.device_count() == 4 and result['test_images'] == 3
  assert round(result['test_accuracy'] * 3, 3) in (0, 1, 2, 3)
