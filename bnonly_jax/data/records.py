"""The records of a split by number: a file's bytes and a label, not yet decoded."""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
import pathlib
from typing import NamedTuple

import numpy as np

from bnonly_jax.config import UserError
from bnonly_jax.data.decode import BadImage

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png')  # as tfds.ImageFolder


@dataclasses.dataclass(frozen=True)
class Folder:
  """A split of a plain folder: its image files, class by class, each class sorted by name."""
  paths: list[pathlib.Path]
  labels: list[int]

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
      raise UserError(f'an image of the data set cannot be read: {error}. The folder has changed'
                      ' since the run began; put the file back, and the same command goes on.'
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
    """Returns encoded image and label of each; in bulk three times faster than one by one."""
    # Parsed here, since TFDS's own parser takes seven times as long: more than the decoding.
    from tensorflow_datasets.proto import tf_example_pb2
    examples = []
    for record in self.source.__getitems__(list(indices)):
      feature = tf_example_pb2.Example.FromString(record).features.feature
      examples.append((feature['image'].bytes_list.value[0],
                       int(feature['label'].int64_list.value[0])))
    return examples

  def name(self, index: int) -> str:
    """Says which record it is, for messages."""
    return f'record {index} of {self.title}'


def open_array_records(path: pathlib.Path, split: str) -> ArrayRecords:
  """Opens a split of the data set that is prepared in a folder."""
  import tensorflow_datasets as tfds
  source = tfds.builder_from_directory(path).as_data_source(
      split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
  return ArrayRecords(source, f'{path}, {split}')


def open_folder(path: pathlib.Path, split: str, classes: Sequence[str]) -> Folder:
  """Lists a split of a folder PATH/SPLIT/CLASS/*.jpg, .jpeg or .png (tfds.ImageFolder's layout)."""
  paths, labels = [], []
  for label, name in enumerate(classes):
    folder = path / split / name
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES) if (
        folder.is_dir()) else []
    paths += files
    labels += [label] * len(files)
  return Folder(paths, labels)


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
