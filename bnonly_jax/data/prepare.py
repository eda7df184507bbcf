"""Prepares a data set: python -m bnonly_jax.data.prepare --dataset=NAME --source=PATH.

digits needs nothing. cifar10_jpeg reads train/<class>/*.jpg and test/<class>/*.jpg from the folder
or tar given as --source. Any other name is TFDS's: its official archives are taken from the folder
--source, where they lie under their own names; only with --download is the network asked for those
that are missing. This needs TensorFlow once.
"""

import contextlib
import importlib.util
import pathlib
import tempfile

from absl import flags

from bnonly_jax import command_line
from bnonly_jax.config import UserError
from bnonly_jax.data import archives
from bnonly_jax.data import records
from bnonly_jax.data import sets


def prepare(name: str, data_dir: str = '', source: str = '', download: bool = False
            ) -> pathlib.Path:
  """Writes a data set as ArrayRecord, unless it is there already.

  Args:
    name: digits, cifar10_jpeg, or a name that TFDS knows.
    data_dir: the folder of prepared data sets; '' stands for TFDS's own.
    source: where the data lies: a folder or tar for cifar10_jpeg, a folder of archives for others.
    download: whether the network may be asked for archives that are missing.

  Returns:
    The folder of the prepared data set.

  Raises:
    UserError: it is prepared in another format, an archive is missing or wrong, TensorFlow is
      needed and missing, or TFDS knows no such name.
  """
  root = sets.directory(data_dir)
  if not sets.versions(name, root):
    kwargs = {'data_dir': root, 'file_format': 'array_record'}
    if name == 'digits':
      _prepare_digits(root, kwargs)
    elif name == 'cifar10_jpeg':
      _prepare_cifar10_jpeg(source, kwargs)
    else:
      _prepare_stock(name, source, download, kwargs)
  path = sets.newest_version(name, root)
  sets.require_array_record(path, 'Then prepare it again.')
  return path


def _prepare_digits(root, kwargs):
  import tensorflow_datasets as tfds

  from bnonly_jax.data.digits import Digits
  tfds.disable_progress_bar()
  try:
    with contextlib.redirect_stdout(None):  # TFDS speaks of a download, and there is none
      Digits(**kwargs).download_and_prepare()
  except OSError as error:
    if not sets.versions('digits', root):  # else another run was faster
      raise UserError(f'{root} cannot hold the data set digits ({error}). Name another'
                      ' folder with --config.data.dir=...') from error


def _prepare_cifar10_jpeg(source, kwargs):
  if not source:
    raise UserError('--source is missing: cifar10_jpeg is read from a folder or tar with'
                    ' train/<class>/*.jpg and test/<class>/*.jpg. Add --source=PATH.')
  if not pathlib.Path(source).expanduser().exists():
    raise UserError(f'--source is {source!r}, which does not exist. Name the folder or tar.')
  from bnonly_jax.data.cifar10_jpeg import Cifar10Jpeg
  Cifar10Jpeg(source=source, **kwargs).download_and_prepare()


def _prepare_stock(name, source, download, kwargs):
  import tensorflow_datasets as tfds
  from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError
  folder = pathlib.Path(source).expanduser()
  if source and not folder.is_dir():
    raise UserError(f'--source is {source!r}; allowed is a folder that holds the official'
                    ' archives under their own names.')
  if name.split('/')[0] not in tfds.list_builders(with_community_datasets=False):
    raise UserError(f'--dataset is {name!r}; allowed are digits, cifar10_jpeg and the names at'
                    ' https://www.tensorflow.org/datasets/catalog. Check the spelling.')
  family, _, config = name.partition('/')
  configs = sorted(tfds.builder_cls(family).builder_configs)
  if config not in (configs or ['']):
    allowed = ', '.join(f'{family}/{known}' for known in configs) or family
    raise UserError(f'--dataset is {name!r}; allowed are {allowed}. Choose one.')
  builder = tfds.builder(name, **kwargs)
  if not {'image', 'label'} <= set(builder.info.features):
    raise UserError(f'--dataset is {name!r}, with features {", ".join(builder.info.features)};'
                    ' needed are image and label. Choose an image classification data set.')
  wanted = archives.wanted(builder)
  there = [source != '' and (folder / archive.name).exists() for archive in wanted]
  manual = builder.MANUAL_DOWNLOAD_INSTRUCTIONS
  if not (all(there) if wanted else source) and (manual or not download):
    lines = [f'  {"there  " if found else "missing"}  {archive.name} ({archive.size:,} bytes)'
             for archive, found in zip(wanted, there, strict=True)]
    raise UserError(
        f'{name} is prepared from its official archives, and {there.count(False)} of {len(wanted)}'
        f' are not in {source or "a folder given as --source"}:\n' + '\n'.join(lines)
        + (f'\n{" ".join(manual.split())}' if manual else '\nOr add --download.'))
  if importlib.util.find_spec('tensorflow') is None:
    raise UserError(f'--dataset is {name!r}, whose preparation needs TensorFlow once (training'
                    " does not). Install it: pip install -e '.[prepare]'")
  kwargs['data_dir'].mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=kwargs['data_dir'], prefix='.archives') as staged:
    if source:
      archives.stage(wanted, folder, pathlib.Path(staged))
    config = tfds.download.DownloadConfig(
        manual_dir=staged if wanted else source, extract_dir=pathlib.Path(staged) / 'extracted',
        try_download_gcs=False)
    try:
      builder.download_and_prepare(download_config=config)
    except (OSError, AssertionError, NonMatchingChecksumError) as error:
      raise UserError(f'{name} cannot be prepared from {source or "the network"}:'
                      f' {" ".join(str(error).split())} Put the official archives into a folder'
                      ' and give it as --source.') from error


def main() -> None:
  try:
    path = prepare(_DATASET.value, _DATA_DIR.value, _SOURCE.value, _DOWNLOAD.value)
  except OSError as error:
    raise UserError(f'{sets.directory(_DATA_DIR.value)} cannot be written ({error}). Make room, or'
                    ' name another folder with --data_dir.') from error
  info = records.open_builder(path).info
  splits = ', '.join(f'{split} {info.splits[split].num_examples:,}' for split in info.splits)
  shape = 'x'.join(str(n or '?') for n in info.features['image'].shape)
  print(f'{_DATASET.value}: {splits} images of {shape}, {info.features["label"].num_classes}'
        f' classes, in {path}')


if __name__ == '__main__':
  _DATASET = flags.DEFINE_string('dataset', None, 'digits, cifar10_jpeg, or a TFDS name.')
  _SOURCE = flags.DEFINE_string('source', '', 'Folder or tar that holds the data, or a folder of'
                                ' official archives.')
  _DOWNLOAD = flags.DEFINE_bool('download', False, 'Whether to ask the network for archives that'
                                ' are not in --source.')
  _DATA_DIR = flags.DEFINE_string('data_dir', '', 'Folder for prepared data sets; the default is'
                                  " TFDS's: $TFDS_DATA_DIR or ~/tensorflow_datasets.")
  command_line.run(main, lambda: '' if _DATASET.value else
                   '--dataset=NAME is needed: digits, cifar10_jpeg or a TFDS name. Try'
                   ' --dataset=cifar10 --download, or --help.',
                   interrupted='stopped; nothing counts as prepared')
