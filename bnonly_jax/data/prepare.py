"""Prepares a data set: python -m bnonly_jax.data.prepare --dataset=NAME [--source=PATH].

digits needs nothing. cifar10_jpeg reads train/<class>/*.jpg and test/<class>/*.jpg from the folder
or tar given as --source. Any other name is TFDS's: its archives are downloaded, or taken from the
folder --source if they lie there under their official names; this needs TensorFlow once.
"""

import contextlib
import importlib.util
import pathlib
import sys

from absl import app
from absl import flags

from bnonly_jax import data
from bnonly_jax.config import UserError


def prepare(name: str, data_dir: str = '', source: str = '') -> data.Info:
  """Writes a data set as ArrayRecord, unless it is there already.

  Args:
    name: digits, cifar10_jpeg, or a name that TFDS knows.
    data_dir: the folder of prepared data sets; '' stands for TFDS's own.
    source: where the data lies: a folder or tar for cifar10_jpeg, a folder of archives for others.

  Raises:
    UserError: it is prepared in another format, the source is missing or wrong, TensorFlow is
      needed and missing, or TFDS knows no such name.
  """
  root = data.directory(data_dir)
  if data.versions(name, root):
    return data.find(name, data_dir)
  kwargs = {'data_dir': root, 'file_format': 'array_record'}
  if name == 'cifar10_jpeg' and not source:
    raise UserError('--source is missing: cifar10_jpeg is read from a folder or tar with'
                    ' train/<class>/*.jpg and test/<class>/*.jpg. Add --source=PATH.')
  if name == 'cifar10_jpeg' and not pathlib.Path(source).expanduser().exists():
    raise UserError(f'--source is {source!r}, which does not exist. Name the folder or tar.')
  import tensorflow_datasets as tfds
  if name == 'digits':
    from bnonly_jax.data.digits import Digits
    tfds.disable_progress_bar()
    try:
      with contextlib.redirect_stdout(None):  # TFDS speaks of a download, and there is none
        Digits(**kwargs).download_and_prepare()
    except OSError as error:
      if not data.versions(name, root):  # else another run was faster
        raise UserError(f'{root} cannot hold the data set digits ({error}). Name another'
                        ' folder with --config.data.dir=...') from error
  elif name == 'cifar10_jpeg':
    from bnonly_jax.data.cifar10_jpeg import Cifar10Jpeg
    Cifar10Jpeg(source=source, **kwargs).download_and_prepare()
  else:
    if name.split('/')[0] not in tfds.list_builders(with_community_datasets=False):
      raise UserError(f'--dataset is {name!r}; allowed are digits, cifar10_jpeg and the names at'
                      ' https://www.tensorflow.org/datasets/catalog. Check the spelling.')
    from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError
    if importlib.util.find_spec('tensorflow') is None:
      raise UserError(f'--dataset is {name!r}, whose preparation needs TensorFlow once (training'
                      " does not). Install it: pip install -e '.[prepare]'")
    if source and not pathlib.Path(source).is_dir():
      raise UserError(f'--source is {source!r}; allowed is a folder that holds the official'
                      ' archives under their own names.')
    try:
      download = tfds.download.DownloadConfig(manual_dir=source or None, try_download_gcs=False)
      tfds.builder(name, **kwargs).download_and_prepare(download_config=download)
    except (OSError, AssertionError, NonMatchingChecksumError) as error:
      raise UserError(f'{name} cannot be prepared from {source or "the network"}:'
                      f' {" ".join(str(error).split())} Put the official archives into a folder'
                      ' and give it as --source.') from error
  return data.find(name, data_dir)


def main(arguments: list[str]) -> None:
  if arguments[1:]:
    sys.exit(f'error: {arguments[1]!r} is no flag. Allowed are --dataset, --source and --data_dir.')
  try:
    info = prepare(_DATASET.value, _DATA_DIR.value, _SOURCE.value)
  except UserError as error:
    sys.exit(f'error: {error}')
  print(f'{_DATASET.value}: {info.train_images:,} training and {info.test_images:,} test images of'
        f' {"x".join(map(str, info.image_shape))}, {info.classes} classes, in {info.path}')


if __name__ == '__main__':
  _DATASET = flags.DEFINE_string('dataset', None, 'digits, cifar10_jpeg, or a TFDS name.',
                                 required=True)
  _SOURCE = flags.DEFINE_string('source', '', 'Folder or tar that holds the data, or a folder of'
                                ' official archives; without it TFDS downloads.')
  _DATA_DIR = flags.DEFINE_string('data_dir', '', 'Folder for prepared data sets; the default is'
                                  " TFDS's: $TFDS_DATA_DIR or ~/tensorflow_datasets.")
  app.run(main)
