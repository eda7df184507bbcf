import errno
import logging
import sys

import pytest

from bnonly_jax.run import full_disk

FULL = OSError(errno.ENOSPC, 'No space left on device')
OTHERS = ValueError('RESOURCE_EXHAUSTED: Error writing "x/c/0" in OCDBT database'), FULL


class Reported(Exception):
  """What Python reports where nobody can catch it, as sys.unraisablehook gets it."""

  def __init__(self, error):
    super().__init__(error)
    self.exc_value = error


@pytest.fixture
def shown(monkeypatch):
  """What reaches the terminal, of logs and of reports."""
  there, handler, log = [], logging.Handler(), logging.getLogger('absl')
  handler.emit = lambda record: there.append(record.getMessage())
  monkeypatch.setattr(sys, 'unraisablehook', lambda report: there.append(str(report.exc_value)))
  log.addHandler(handler)
  yield there
  log.removeHandler(handler)
  log.removeFilter(full_disk._speaks_of_something_else)


def speak(*errors):
  """As threads of Orbax and TensorStore do that meet these errors."""
  for error in errors:
    logging.getLogger('absl').error('a thread failed: %s', error,
                                    exc_info=(type(error), error, None))
    sys.unraisablehook(Reported(RuntimeError('Event loop is closed')))
  sys.unraisablehook(Reported(RuntimeError('another')))


@pytest.mark.parametrize('error', OTHERS)
def test_a_full_disk_is_raised_and_not_logged(shown, error):
  with (pytest.raises(OSError, match='No space left') as raised, full_disk.quietly(),
        full_disk.as_os_error()):
    speak(*OTHERS)
    raise error
  speak(error)  # a thread that is late
  assert raised.value.errno == errno.ENOSPC and shown == ['another', 'another']


@pytest.mark.parametrize('ends', [True, False])
def test_all_other_errors_are_shown(shown, ends):
  hook = sys.unraisablehook
  if ends:
    with full_disk.quietly(), full_disk.as_os_error():
      speak(ValueError('torn'))
  else:
    with pytest.raises(ValueError, match='torn'), full_disk.quietly(), full_disk.as_os_error():
      speak(ValueError('torn'))
      raise ValueError('torn')
  assert shown == ['a thread failed: torn', 'another', 'Event loop is closed']
  assert sys.unraisablehook is hook and not logging.getLogger('absl').filters
