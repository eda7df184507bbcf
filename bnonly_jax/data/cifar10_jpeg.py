"""CIFAR-10 as JPEG files: near to, but not, CIFAR-10, since the pixels went through the codec."""

import io
import pathlib
import tarfile

import tensorflow_datasets as tfds

from bnonly_jax.config import UserError

_CLASSES = ('airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship',
            'truck')
_LAYOUT = 'train/<class>/*.jpg and test/<class>/*.jpg, in a folder or a .tar, .tar.gz or .tar.xz'


class Cifar10Jpeg(tfds.core.GeneratorBasedBuilder):
  """Reads train/<class>/*.jpg and test/<class>/*.jpg of 32x32 colour from a folder or a tar."""

  VERSION = tfds.core.Version('1.0.0')

  def __init__(self, *, source: str = '', **kwargs):
    super().__init__(**kwargs)
    self._source = source

  def _info(self) -> tfds.core.DatasetInfo:
    return self.dataset_info_from_configs(
        description=__doc__,
        homepage='https://www.cs.toronto.edu/~kriz/cifar.html',
        features=tfds.features.FeaturesDict({
            'image': tfds.features.Image(shape=(32, 32, 3), encoding_format='jpeg'),
            'label': tfds.features.ClassLabel(names=_CLASSES)}),
        supervised_keys=('image', 'label'))

  def _split_generators(self, dl_manager):
    files = _read(self._source)
    for split in ('train', 'test'):
      if not any(name.startswith(f'{split}/') for name in files):
        raise UserError(f'--source is {self._source!r}, without {split}/<class>/*.jpg. Allowed is'
                        f' {_LAYOUT}; the classes are {", ".join(_CLASSES)}.')
    return {split: self._generate_examples(files, split) for split in ('train', 'test')}

  def _generate_examples(self, files, split):
    for name in sorted(files):
      if name.startswith(f'{split}/'):
        yield name, {'image': io.BytesIO(files[name]), 'label': name.split('/')[1]}


def _read(source: str) -> dict[str, bytes]:
  """Returns the JPEG files of known classes by their last three path components."""
  def wanted(path):
    name = '/'.join(path.split('/')[-3:])
    parts = name.split('/')
    return name if len(parts) == 3 and parts[1] in _CLASSES and name.endswith('.jpg') else None

  path = pathlib.Path(source).expanduser()
  if path.is_dir():
    found = ((wanted(p.relative_to(path).as_posix()), p) for p in path.rglob('*.jpg'))
    return {name: p.read_bytes() for name, p in found if name}
  try:
    with tarfile.open(path, 'r|*') as archive:
      found = ((wanted(m.name), m) for m in archive if m.isfile())
      return {name: archive.extractfile(m).read() for name, m in found if name}
  except (OSError, tarfile.TarError) as error:
    raise UserError(f'--source is {source!r}, which cannot be read ({error}). Allowed is {_LAYOUT}.'
                    ) from error
