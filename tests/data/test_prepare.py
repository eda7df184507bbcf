import gzip
import hashlib
import importlib.util
import io
import pathlib
import shutil
import signal
import subprocess
import sys
import tarfile
import time

from conftest import data_config
from conftest import load
import numpy as np
from PIL import Image
import pytest

from bnonly_jax import data
from bnonly_jax.config import UserError
from bnonly_jax.data import archives
from bnonly_jax.data import cifar10_jpeg
from bnonly_jax.data import prepare
from bnonly_jax.data import streamed

ROOT = pathlib.Path(__file__).parents[2]
SHARED = ROOT.parent / 'shared/data/cifar10-jpeg.tar.xz'
FASHION = pathlib.Path('/usr/share/datasets/fashion-mnist')


def test_the_embedded_data_set(data_dir):
  config = data_config('digits', data_dir)
  info = data.find(config)
  assert info.path.is_dir()
  train, test = load(config)
  for split, count in ((train, info.train_images), (test, info.test_images)):
    assert split.images.shape == (count, *info.image_shape) and split.images.dtype == np.uint8
    assert split.labels.shape == (count,) and set(split.labels) == set(range(10))
  # The file's first scan is a zero, its first row 0 0 5 13 9 1 0 0 of 16.
  assert train.labels[:5].tolist() == [0, 1, 2, 3, 4]
  np.testing.assert_array_equal(train.images[0, 0, :, 0], [0, 0, 80, 207, 143, 16, 0, 0])
  assert abs(train.images.mean() / 255 - 0.305) < 1e-3
  assert abs(train.images.std() / 255 - 0.376) < 1e-3


def test_a_folder_that_cannot_hold_the_data_is_an_error(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(UserError, match='cannot hold the data set digits'):
    prepare.prepare('digits', str(tmp_path / 'file'))


def test_what_an_interrupted_preparation_leaves_does_not_count(data_dir, tmp_path):
  shutil.copytree(data_dir / 'digits/1.0.0', tmp_path / 'digits/incomplete.ABC_1.0.0')
  assert data.versions('digits', tmp_path) == []
  prepare.prepare('digits', str(tmp_path))
  assert [path.name for path in data.versions('digits', tmp_path)] == ['1.0.0']


def test_preparing_again_changes_nothing(data_dir):
  files = {p: p.stat().st_mtime_ns for p in data_dir.rglob('*.array_record*')}
  prepare.prepare('digits', str(data_dir))
  assert files == {p: p.stat().st_mtime_ns for p in data_dir.rglob('*.array_record*')} and files


def jpeg(value, size=(32, 32)):
  file = io.BytesIO()
  Image.fromarray(np.full((*size, 3), value, np.uint8)).save(file, 'JPEG')
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
  prepare.prepare('cifar10_jpeg', str(tmp_path / 'data'), str(source))
  config = data_config('cifar10_jpeg', tmp_path / 'data')
  info = data.find(config)
  assert (info.image_shape, info.classes) == ((32, 32, 3), 10)
  assert (info.train_images, info.test_images) == (30, 20)
  train, test = load(config)
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
    data.find(data_config('cifar10_jpeg', tmp_path / 'data'))


@pytest.mark.parametrize('name, message', [
    ('cifar10_jpeg', '--source is missing'), ('cifar11', 'Check the spelling')])
def test_what_cannot_be_prepared_says_what_to_do(tmp_path, name, message):
  with pytest.raises(UserError, match=message):
    prepare.prepare(name, str(tmp_path))


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.exists(), reason='needs ../shared/data/cifar10-jpeg.tar.xz')
def test_the_whole_of_cifar10_jpeg(tmp_path):
  prepare.prepare('cifar10_jpeg', str(tmp_path), str(SHARED))
  train, test = load(data_config('cifar10_jpeg', tmp_path))
  np.testing.assert_array_equal(np.bincount(train.labels), [5000] * 10)
  np.testing.assert_array_equal(np.bincount(test.labels), [1000] * 10)


@pytest.mark.parametrize('name, files', [
    ('cifar10', ['cifar-10-binary.tar.gz']), ('cifar100', ['cifar-100-binary.tar.gz']),
    ('svhn_cropped', ['train_32x32.mat', 'test_32x32.mat', 'extra_32x32.mat']),
    ('mnist', ['train-images-idx3-ubyte.gz', 't10k-labels-idx1-ubyte.gz']),
    ('fashion_mnist', ['train-images-idx3-ubyte.gz', 't10k-labels-idx1-ubyte.gz']),
    ('imagenet2012', ['ILSVRC2012_img_train.tar', 'ILSVRC2012_img_val.tar']),
    ('imagenette/160px-v2', ['imagenette2-160.tgz']),
    ('imagenet_resized/32x32', ['Imagenet32_train_npz.zip', 'Imagenet32_val_npz.zip']),
    ('imagenet_resized/64x64', ['Imagenet64_train_part1_npz.zip', 'Imagenet64_train_part2_npz.zip'])
])
def test_missing_archives_are_named_at_once_without_the_network(tmp_path, monkeypatch, name, files):
  monkeypatch.setattr('socket.socket.connect', lambda *_: pytest.fail('asked the network'))
  (tmp_path / files[0]).write_bytes(b'')
  if len(files) == 1:
    (tmp_path / files[0]).unlink()
  with pytest.raises(UserError, match='prepared from its official archives') as error:
    prepare.prepare(name, str(tmp_path / 'data'), str(tmp_path))
  for file in files:
    state = 'there  ' if (tmp_path / file).exists() else 'missing'
    assert f'  {state}  {file} (' in str(error.value)
  assert '8x8' not in str(error.value) and not (tmp_path / 'data').exists()


def test_a_set_of_several_configs_asks_for_one(tmp_path):
  with pytest.raises(UserError, match='allowed are imagenet_resized/16x16'):
    prepare.prepare('imagenet_resized', str(tmp_path))


def test_a_set_without_configs_has_none_to_ask_for(tmp_path):
  with pytest.raises(UserError, match="--dataset is 'mnist/foo'; allowed are mnist. Choose"):
    prepare.prepare('mnist/foo', str(tmp_path))


def test_a_set_without_images_is_refused_before_it_is_asked_for(tmp_path):
  with pytest.raises(UserError, match='features .*description; needed are image and label'):
    prepare.prepare('ag_news_subset', str(tmp_path), download=True)


def test_a_wrong_archive_is_named_with_both_checksums(tmp_path):
  (tmp_path / 'a.gz').write_bytes(gzip.compress(b'wrong'))
  archive = archives.Archive('a.gz', 10, 'f' * 64)
  with pytest.raises(UserError, match='is not the official archive') as error:
    archives.stage([archive], tmp_path, tmp_path)
  found = hashlib.sha256((tmp_path / 'a.gz').read_bytes()).hexdigest()
  assert found in str(error.value) and 'f' * 64 in str(error.value)


@pytest.mark.parametrize('content, right', [(b'pixels', True), (b'pixelz', False)])
def test_a_gzip_file_without_name_and_time_is_completed(tmp_path, capsys, content, right):
  official = bytearray(gzip.compress(b'pixels', mtime=archives._GZIP_TIMES[1]))
  official[3] = 8
  official[10:10] = b'a\0'
  archive = archives.Archive('a.gz', len(official), hashlib.sha256(official).hexdigest())
  (tmp_path / 'a.gz').write_bytes(gzip.compress(content, mtime=1234))
  (tmp_path / 'staged').mkdir()
  if not right:
    with pytest.raises(UserError, match='is not the official archive'):
      archives.stage([archive], tmp_path, tmp_path / 'staged')
    return
  archives.stage([archive], tmp_path, tmp_path / 'staged')
  assert (tmp_path / 'staged/a.gz').read_bytes() == bytes(official)
  assert 'completed, and the checksum is right' in capsys.readouterr().out


needs_tensorflow = pytest.mark.skipif(
    importlib.util.find_spec('tensorflow') is None,
    reason="needs TensorFlow, to prepare: pip install -e '.[prepare]'")
needs_fashion = pytest.mark.skipif(
    not FASHION.is_dir(), reason=f'needs {FASHION}: Debian\'s package dataset-fashion-mnist')


@needs_fashion
def test_fashion_mnist_of_debian_is_the_official_one(tmp_path, capsys):
  tfds = pytest.importorskip('tensorflow_datasets')
  builder = tfds.builder('fashion_mnist', data_dir=tmp_path, file_format='array_record')
  wanted = archives.wanted(builder)
  archives.stage(wanted, FASHION, tmp_path)
  assert len(wanted) == 4
  for archive in wanted:
    content = (tmp_path / archive.name).read_bytes()
    assert hashlib.sha256(content).hexdigest() == archive.sha256
    assert gzip.decompress(content) == gzip.decompress((FASHION / archive.name).read_bytes())


def run_prepare(*arguments, **kwargs):
  return subprocess.Popen([sys.executable, '-m', 'bnonly_jax.data.prepare', *arguments], cwd=ROOT,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kwargs)


@pytest.mark.slow
@needs_tensorflow
@needs_fashion
def test_fashion_mnist_for_real_and_a_killed_preparation_counts_for_nothing(tmp_path):
  command = ['--dataset=fashion_mnist', f'--source={FASHION}', f'--data_dir={tmp_path}']
  killed = run_prepare(*command)
  while not list(tmp_path.glob('fashion_mnist/incomplete*/*')) and killed.poll() is None:
    time.sleep(0.05)
  killed.send_signal(signal.SIGKILL)
  killed.wait()
  config = data_config('fashion_mnist', tmp_path)
  with pytest.raises(UserError, match='which is not prepared'):
    data.find(config)
  done = run_prepare(*command)
  out, err = done.communicate()
  assert done.returncode == 0 and 'train 60,000, test 10,000 images of 28x28x1' in out, err
  train, test = load(config)
  # Against the files themselves; TFDS stores the records in an order of its own.
  for split, prefix in ((train, 'train'), (test, 't10k')):
    pixels = gzip.decompress((FASHION / f'{prefix}-images-idx3-ubyte.gz').read_bytes())[16:]
    labels = gzip.decompress((FASHION / f'{prefix}-labels-idx1-ubyte.gz').read_bytes())[8:]
    official = {(pixels[784 * i:784 * (i + 1)], label) for i, label in enumerate(labels)}
    ours = {(image.tobytes(), int(label)) for image, label in zip(*split, strict=True)}
    assert ours == official and len(split.labels) == len(labels)


def tar(files):
  out = io.BytesIO()
  with tarfile.open(fileobj=out, mode='w') as archive:
    for name, content in files.items():
      member = tarfile.TarInfo(name)
      member.size = len(content)
      archive.addfile(member, io.BytesIO(content))
  return out.getvalue()


@pytest.mark.slow
@needs_tensorflow
def test_imagenet_from_its_two_tars(tmp_path, monkeypatch):
  synsets = ('n01440764', 'n01443537', 'n15075141')
  train = tar({f'{synset}.tar': tar({f'{synset}_{i}.JPEG': jpeg(40 * i + 20, (60 + 9 * i, 70))
                                     for i in range(5)}) for synset in synsets})
  validation = tar({f'ILSVRC2012_val_{i + 1:08}.JPEG': jpeg(9 * i, (64, 80 + i))
                    for i in range(8)})
  wanted = []
  for name, content in (('train', train), ('val', validation)):
    (tmp_path / f'ILSVRC2012_img_{name}.tar').write_bytes(content)
    wanted.append(archives.Archive(f'ILSVRC2012_img_{name}.tar', len(content),
                                   hashlib.sha256(content).hexdigest()))
  with pytest.raises(UserError, match='ILSVRC2012_img_train.tar is not the official archive'):
    prepare.prepare('imagenet2012', str(tmp_path / 'data'), str(tmp_path))
  monkeypatch.setattr(archives, 'wanted', lambda builder: wanted)
  prepare.prepare('imagenet2012', str(tmp_path / 'data'), str(tmp_path))
  config = data_config('imagenet2012', tmp_path / 'data', image_size=32, eval_resize=40)
  config.update(batch_size=4, eval_batch_size=4, epochs=1)
  info = data.find(config)
  assert (info.train_images, info.test_images, info.classes) == (15, 8, 1000)
  assert info.test_split == 'validation' and info.image_shape == (32, 32, 3)
  source = streamed.open_source(config, info)
  names = [info.class_names[label] for images, _ in source.train_batches(0)
           for label in images.labels]
  assert len(names) == 12 and set(names) <= set(synsets)
  batches = list(source.eval_batches(4))
  assert sum(weight.sum() for _, weight in batches) == 8
  # The labels of the first eight validation images, in the order of their brightness.
  labels_file = pathlib.Path(sys.modules['tensorflow_datasets'].__file__).parent / (
      'datasets/imagenet2012/validation_labels.txt')
  official = labels_file.read_text().split()[:8]
  found = {int(image.mean() / 9 + 0.5): info.class_names[label] for images, _ in batches
           for image, label in zip(*images, strict=True)}
  assert [found[i] for i in range(8)] == official
