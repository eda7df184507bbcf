"""The records of a split by number: a file's bytes and a label, not yet decoded."""

import collections
from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
import os
import pathlib
from typing import Any
from typing import NamedTuple

import numpy as np

from bnonly_jax.config import UserError
from bnonly_jax.data.decode import BadImage

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png')  # as tfds.ImageFolder
_OF_THE_SYSTEM = ('thumbs.db', 'desktop.ini')  # what Windows leaves in a folder that is looked at


@dataclasses.dataclass(frozen=True)
class Folder:
  """A split of a plain folder: its image files, class by class, each class sorted by name."""
  paths: list[pathlib.Path]
  labels: list[int]
  left_out: collections.Counter[str] = dataclasses.field(
      default_factory=collections.Counter)  # files that are no such images, by what they are

  def __len__(self) -> int:
    return len(self.paths)

  def read(self, indices: Sequence[int]) -> list[tuple[bytes, int]]:
    """Returns encoded image and label of each.

    Raises:
      UserError: a file cannot be read.
    """
    try:
      return [(self.paths[i].read_bytes(), self.labels[i]) for i in indices]
    except OSError as error:
      raise UserError(f'the image {error.filename} cannot be read ({error.strerror}). Put the file'
                      ' back, or give yourself the right to read it, and the same command goes on.'
                      ) from error

  def name(self, index: int) -> str:
    """Says which record it is, for messages."""
    return str(self.paths[index])


@dataclasses.dataclass(frozen=True)
class ArrayRecords:
  """A split of a prepared TFDS data set, in its own order."""
  source: object  # tfds.data_source of raw records
  title: str

  def __len__(self) -> int:
    return len(self.source)

  def read(self, indices: Sequence[int]) -> list[tuple[bytes, int]]:
    """Returns encoded image and label of each; in bulk three times faster than one by one.

    Raises:
      UserError: a file is gone, damaged or cannot be read.
    """
    # Parsed here, since TFDS's own parser takes seven times as long: more than the decoding.
    from tensorflow_datasets.proto import tf_example_pb2
    examples = []
    try:
      records = self.source.__getitems__(list(indices))
    except (OSError, RuntimeError) as error:  # ArrayRecord's readers raise the latter for all
      raise UserError(f'the data set {self.title} cannot be read: {first_line(error)}. Put the file'
                      ' back, or move the folder away and prepare the data set again; then the same'
                      ' command goes on.') from error
    for record in records:
      feature = tf_example_pb2.Example.FromString(record).features.feature
      examples.append((feature['image'].bytes_list.value[0],
                       int(feature['label'].int64_list.value[0])))
    return examples

  def name(self, index: int) -> str:
    """Says which record it is, for messages."""
    return f'record {index} of {self.title}'


def open_builder(path: pathlib.Path) -> Any:
  """Opens the data set that is prepared in a folder: a TFDS builder, which prepares nothing.

  Raises:
    UserError: the folder does not hold a whole one.
  """
  import tensorflow_datasets as tfds
  try:
    return tfds.builder_from_directory(path)
  except Exception as error:  # TFDS and its parsers raise whatever they like
    raise UserError(f'{path} holds no whole data set: {first_line(error)}. Move that folder away'
                    ' and prepare the data set again: python -m bnonly_jax.data.prepare --help'
                    ) from error


def open_array_records(path: pathlib.Path, split: str) -> ArrayRecords:
  """Opens a split of the data set that is prepared in a folder.

  Raises:
    UserError: as `open_builder`.
  """
  import tensorflow_datasets as tfds
  source = open_builder(path).as_data_source(
      split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
  return ArrayRecords(source, f'{path}, {split}')


def first_line(error: Exception) -> str:
  """Returns the first line of what an error says, for messages."""
  return (str(error).strip() or type(error).__name__).splitlines()[0][:300].rstrip('.')


def open_folder(path: pathlib.Path, split: str, classes: Sequence[str]) -> Folder:
  """Lists a split of a folder PATH/SPLIT/CLASS/*.jpg, .jpeg or .png (tfds.ImageFolder's layout).

  Hidden files and folders count for nothing.

  Raises:
    UserError: a folder cannot be read.
  """
  paths, labels, left_out = [], [], collections.Counter()
  for _, kind in _files(path / split)[0]:
    left_out[f'{kind} outside the class folders'] += 1
  for label, name in enumerate(classes):
    files, folders = _files(path / split / name)
    images = sorted(file for file, kind in files if kind in IMAGE_SUFFIXES)
    paths += images
    labels += [label] * len(images)
    left_out.update(kind for _, kind in files if kind not in IMAGE_SUFFIXES)
    while folders:
      deeper, more = _files(folders.pop())
      folders += more
      left_out.update(f'{kind} in deeper folders' for _, kind in deeper)
  return Folder(paths, labels, left_out)


def class_folders(path: pathlib.Path) -> list[str]:
  """Returns the names of the folders in a folder, sorted; hidden ones and those of a file are none.

  Raises:
    UserError: it cannot be read.
  """
  return sorted(folder.name for folder in _files(path)[1])


def _files(path):
  """The files of a folder with the kind of each, and its folders; none if there is no folder."""
  files, folders = [], []
  try:
    with os.scandir(path) as entries:
      for entry in entries:
        if not entry.name.startswith('.') and entry.name.lower() not in _OF_THE_SYSTEM:
          inside = path / entry.name
          if entry.is_dir():
            folders.append(inside)
          else:
            files.append((inside, inside.suffix.lower() or 'without a suffix'))
  except (FileNotFoundError, NotADirectoryError):
    pass
  except OSError as error:
    raise UserError(f'{path} of the data set cannot be read ({error.strerror}). Give yourself the'
                    ' right to read it, or choose another --config.data.name.') from error
  return files, folders


class Bad(NamedTuple):
  """An image that cannot be taken."""
  position: int  # where in the batch
  record: str
  rule: str


def read_images(records: Folder | ArrayRecords, indices: Sequence[int], classes: int,
                decode_at: Callable[[bytes, int], np.ndarray], images: np.ndarray,
                replace: bool) -> tuple[np.ndarray, list[Bad]]:
  """Decodes records into an array.

  Args:
    records: of the split.
    indices: which ones.
    classes: labels must be below.
    decode_at: from the bytes of an image and its place among the indices to its pixels.
    images: uint8 [len(indices), H, W, C], written to.
    replace: a bad image's place is taken by the next good one in the split's order, so that every
      batch keeps its size; else it is left as it is, with label 0.

  Returns:
    Labels int32 [len(indices)], and the bad images.

  Raises:
    UserError: 100 images in a row are bad.
  """
  labels, bad = np.zeros(len(indices), np.int32), []
  for position, (index, example) in enumerate(
      zip(indices, records.read(indices), strict=True)):
    for _ in range(100):
      data, label = example
      try:
        if not 0 <= label < classes:
          raise BadImage(f'label {label}, of {classes} classes from 0')
        images[position] = decode_at(data, position)
        labels[position] = label
        break
      except BadImage as rule:
        bad.append(Bad(position, records.name(index), str(rule)))
      if not replace:
        break
      index = (index + 1) % len(records)
      example, = records.read([index])
    else:
      raise UserError(f'100 images in a row are bad, the last {bad[-1].record}: {bad[-1].rule}.'
                      ' Look at them: the data set may be another than it says.')
  return labels, bad


def refuse(bad: Sequence[Bad]) -> None:
  """Raises:
    UserError: for the first bad image, if there is one.
  """
  if bad:
    raise UserError(f'{bad[0].record}: {bad[0].rule}; allowed are labels in range and JPEG or PNG'
                    ' of 8 bits a channel, grey or colour, of the size that the data set says'
                    ' (images of many sizes need --config.data.image_size). Repair or remove it,'
                    ' or leave such images out: --config.data.bad_images=skip')


def report(split: str, what: str, bad: Sequence[Bad]) -> None:
  """Prints how many images of a split were skipped, and the first of them."""
  if bad:
    rules = [f'{record}: {rule}' for record, rule in dict.fromkeys(image[1:] for image in bad)]
    print(f'bad images of {split} {what}: {len(rules)}'
          f' ({"; ".join(rules[:3])}{"; ..." if len(rules) > 3 else ""})')
