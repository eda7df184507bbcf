"""From image files to a trained network's classes: decoded and resized as in evaluation."""

from collections.abc import Iterator
from collections.abc import Sequence
import csv
import io
import pathlib
import sys

import jax
import numpy as np

from bnonly_jax.config import UserError
from bnonly_jax.data import decode
from bnonly_jax.data import records
from bnonly_jax.export import loading
from bnonly_jax.export import network
from bnonly_jax.export.network import Trained

_BATCH = 64  # images


def image_files(paths: Sequence[str]) -> list[pathlib.Path]:
  """Returns the files themselves and, of folders, all images in them and below.

  Raises:
    UserError: one is not there, or a folder holds no image.
  """
  files = []
  for path in map(pathlib.Path, paths):
    found = [path]
    if path.is_dir():
      found = sorted(p for p in path.rglob('*') if p.suffix.lower() in records.IMAGE_SUFFIXES)
    if not found or not path.exists():
      raise UserError(f'{path} {"holds no image" if path.exists() else "is not there"}; allowed are'
                      f' files {", ".join(records.IMAGE_SUFFIXES)} and folders that hold some.')
    files += found
  return files


def read_image(path: pathlib.Path, trained: Trained) -> np.ndarray:
  """Returns an image file as the network takes it: resized, cut to the centre, uint8 [H, W, C].

  Where evaluation takes images as they are, because all have one size, one of this size stays as
  it is, and the shorter side of another becomes the longer side of what the network takes.

  Raises:
    BadImage: it cannot be read or decoded, or is no JPEG or PNG of 8 bits a channel.
  """
  wanted = network.preprocessing(trained)
  form = decode.Form(*trained.info.image_shape, (None, None, 3), wanted['shorter_side'],
                     (1.0, 1.0), (1.0, 1.0))
  try:
    return decode.centre_crop(path.read_bytes(), form)
  except OSError as error:
    raise decode.BadImage(error.strerror or str(error)) from error


def probabilities(trained: Trained, files: Sequence[pathlib.Path]
                  ) -> Iterator[tuple[pathlib.Path, np.ndarray | decode.BadImage]]:
  """Yields for each file the probability of every class, float32 [classes], or what is wrong."""
  program = jax.jit(network.classifier(trained))
  variables = jax.device_put(trained.variables)
  for start in range(0, len(files), _BATCH):
    batch = np.zeros((min(_BATCH, len(files)), *trained.info.image_shape), np.uint8)
    some, wrong = files[start:start + _BATCH], {}
    for i, path in enumerate(some):
      try:
        batch[i] = read_image(path, trained)
      except decode.BadImage as rule:
        wrong[i] = rule
    found = np.asarray(jax.nn.softmax(program(variables, batch)))
    yield from ((path, wrong.get(i, found[i])) for i, path in enumerate(some))


def predict(net: str, images: Sequence[str], top: int = 5, data_dir: str = '',
            trust_code: bool = False) -> int:
  """Prints the classes of images, most probable first: lines for files, CSV with a folder.

  Args:
    net: a file of `export seed`, or the folder of a run.
    images: files and folders.
    top: how many classes.
    data_dir: for a run's folder: that of the prepared data sets, which know the classes' names.
    trust_code: for a file: whether the network may be code that is imported.

  Returns:
    How many images are bad; a line on standard error tells each.

  Raises:
    UserError: as `loading.open_network` and `image_files`.
  """
  files = image_files(images)
  trained = loading.open_network(net, data_dir=data_dir, trust_code=trust_code)
  names, as_csv = trained.info.class_names, any(pathlib.Path(path).is_dir() for path in images)
  top, bad = min(top, len(names)), 0
  if as_csv:
    print(_csv('file', *(f'{what}{i + 1}' for i in range(top) for what in ('class', 'share'))))
  for path, found in probabilities(trained, files):
    if isinstance(found, decode.BadImage):
      print(f'{path}: left out: {found}', file=sys.stderr)
      bad += 1
      continue
    best = [(names[i], f'{found[i]:.4f}') for i in np.argsort(-found, kind='stable')[:top]]
    if as_csv:
      print(_csv(path, *(value for pair in best for value in pair)))
    else:
      print(f'{path}: {", ".join(f"{name} {share}" for name, share in best)}')
  return bad


def _csv(*values):
  line = io.StringIO()
  csv.writer(line, lineterminator='').writerow(values)
  return line.getvalue()
