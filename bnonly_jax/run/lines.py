"""A text file that grows line by line, on a disk or in a bucket."""

import contextlib
import errno
import os
import threading

from etils import epath

from bnonly_jax.run import workdir as workdir_lib

SECONDS = 5.0  # between two uploads


class Lines:
  """A file that lines are appended to.

  On a disk a line is written at once. An object of a bucket is only written whole: a thread does
  that every SECONDS, while training goes on, and `flush` and `close` at once.
  """

  def __init__(self, path: epath.Path, text: str):
    """Begins the file anew, with a text."""
    self._path, self._text, self._uploaded = path, text, text
    workdir_lib.write_text(path, text)
    self._file = None if workdir_lib.is_remote(path) else path.open('a')
    if not self._file:
      self._uploading, self._closing = threading.Lock(), threading.Event()
      self._thread = threading.Thread(target=self._upload, daemon=True)
      self._thread.start()

  def append(self, line: str) -> None:
    if self._file:
      self._file.write(line)
      self._file.flush()
    else:
      self._text += line

  def flush(self) -> None:
    """Returns when all lines are in the file.

    Raises:
      OSError: they cannot be uploaded.
    """
    if self._file:
      return
    with self._uploading:
      text = self._text
      if text == self._uploaded:
        return
      try:
        workdir_lib.write_text(self._path, text)
      except Exception as error:  # stores have errors of their own
        raise OSError(errno.EIO, f'{type(error).__name__}: {error}', os.fspath(self._path)
                      ) from error
      self._uploaded = text

  def _upload(self):
    while not self._closing.wait(SECONDS):
      with contextlib.suppress(OSError):  # tried again the next time; who calls flush is told
        self.flush()

  def close(self) -> None:
    """Flushes and closes the file; raises as `flush`."""
    if self._file:
      self._file.close()
      return
    self._closing.set()
    self._thread.join()
    self.flush()
