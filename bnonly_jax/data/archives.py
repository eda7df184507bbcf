"""The official archives of TFDS's data sets: which ones a set wants, and whether a file is one."""

import contextlib
import hashlib
import os
import pathlib
import struct
from typing import Any
from typing import NamedTuple

from bnonly_jax.config import UserError

# When Zalando packed Fashion-MNIST's four files (2017-08-31). Debian's package has them without
# this time and without their names; with both, TFDS's checksums come out.
_GZIP_TIMES = (1504176606, 1504176627)
_GZIP_NAMED = 8  # flag FNAME of RFC 1952


class Archive(NamedTuple):
  """One that TFDS registers."""
  name: str
  size: int  # bytes
  sha256: str


class _Recorder:
  """Stands in for TFDS's download manager, to learn what a builder asks it for."""

  def __init__(self):
    self.urls = []
    self.manual_dir = '/nowhere'

  def download(self, urls):
    """Records the addresses in a tree, and returns it with paths that do not exist."""
    if isinstance(urls, dict):
      return {name: self.download(value) for name, value in urls.items()}
    if isinstance(urls, list | tuple):
      return [self.download(value) for value in urls]
    self.urls.append(getattr(urls, 'url', urls))
    return '/nowhere'

  download_and_extract = download

  def extract(self, paths):
    return paths

  def iter_archive(self, path):
    return iter(())


def wanted(builder: Any) -> list[Archive]:
  """Returns the archives that a TFDS builder is made from, without touching the network."""
  recorder = _Recorder()
  if not builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
    with contextlib.suppress(Exception):  # builders that look into what they asked for
      builder._split_generators(recorder)
  known = builder.url_infos or {}
  return [Archive(known[url].filename or os.path.basename(url), int(known[url].size),
                  known[url].checksum)
          for url in dict.fromkeys(recorder.urls or known) if url in known]


def stage(archives: list[Archive], source: pathlib.Path, folder: pathlib.Path) -> None:
  """Checks the archives that are in `source` and links them into a folder.

  A gzip file whose header lacks name and time, as Debian packs Fashion-MNIST, is completed.

  Raises:
    UserError: a file has another checksum than the official archive of its name.
  """
  for archive in archives:
    path = source / archive.name
    if not path.exists():
      continue
    print(f'checking {path}', flush=True)
    found = _sha256(path)
    if found == archive.sha256:
      (folder / archive.name).symlink_to(path.absolute())
      continue
    completed = _complete_gzip(path, archive)
    if completed is None:
      raise UserError(f'{path} is not the official archive: its sha256 is {found}'
                      f' ({path.stat().st_size:,} bytes), that of the official one'
                      f' {archive.sha256} ({archive.size:,} bytes). Get it again.')
    (folder / archive.name).write_bytes(completed)
    print(f'{path} is the official archive but for the name and the time in its gzip header:'
          ' completed, and the checksum is right')


def _complete_gzip(path, archive):
  """Returns the official archive's bytes if the file differs from it by its gzip header alone."""
  name = archive.name.removesuffix('.gz').encode() + b'\0'
  if path.stat().st_size + len(name) != archive.size:
    return None
  packed = path.read_bytes()
  if packed[:4] != b'\x1f\x8b\x08\0':
    return None
  for time in _GZIP_TIMES:
    whole = (packed[:3] + struct.pack('<BI', _GZIP_NAMED, time) + packed[8:10] + name + packed[10:])
    if hashlib.sha256(whole).hexdigest() == archive.sha256:
      return whole
  return None


def _sha256(path):
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()
