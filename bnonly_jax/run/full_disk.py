"""A full disk is told once, in one line, whatever Orbax and its stores make of it."""

from collections.abc import Iterator
import contextlib
import errno
import logging
import os
import sys

from etils import epath

from bnonly_jax.config import UserError


@contextlib.contextmanager
def told(folder: epath.Path, given: str = '', remedy: str = (
    'The newest whole checkpoint there stays; make room, and the same command goes on from it.')
         ) -> Iterator[None]:
  """Turns an OSError about a folder, such as that of a full disk, and no other, into a UserError.

  Args:
    folder: that is written into.
    given: how the user has named it; '' is by --workdir.
    remedy: what is to be done.

  Raises:
    UserError: the folder cannot be written.
  """
  try:
    yield
  except OSError as error:
    about_it = (str(error.filename).startswith(os.fspath(folder)) if error.filename
                else error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG))
    if not about_it:
      raise
    raise UserError(f'{given or f"--workdir={folder}"} cannot be written'
                    f' ({error.strerror or error}). {remedy}') from error


def _is_full(error):
  text = str(error)
  return os.strerror(errno.ENOSPC) in text or 'RESOURCE_EXHAUSTED' in text


def _speaks_of_something_else(record):
  return not (record.exc_info and _is_full(record.exc_info[1]))


@contextlib.contextmanager
def as_os_error() -> Iterator[None]:
  """Raises whatever says that the disk is full as OSError, and all else as it is."""
  try:
    yield
  except Exception as error:
    if not _is_full(error):
      raise
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error


@contextlib.contextmanager
def quietly() -> Iterator[None]:
  """Keeps a full disk, which is raised, from being logged as well, in each thread that meets it.

  Left out are absl's log records of an exception that says the disk is full. TensorStore's threads
  then report besides that the event loop that waited for them is closed; as that comes before it is
  known why, these reports are held back, and come out at the end if the disk is not full.
  """
  log, before, held = logging.getLogger('absl'), sys.unraisablehook, []

  def hook(report):
    if str(report.exc_value) == 'Event loop is closed':
      held.append(report)
    else:
      before(report)

  log.addFilter(_speaks_of_something_else)
  sys.unraisablehook = hook
  try:
    yield
  except BaseException as error:
    if _is_full(error):  # filter and hook stay: some threads report after this
      raise
    _let_out(log, before, held)
    raise
  _let_out(log, before, held)


def _let_out(log, before, held):
  log.removeFilter(_speaks_of_something_else)
  sys.unraisablehook = before
  for report in held:
    before(report)
