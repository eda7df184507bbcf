"""Being asked to stop: SIGTERM and Ctrl-C let the step end, and a checkpoint be written."""

from collections.abc import Iterator
import contextlib
import os
import signal
import threading

import jax

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stop:
  """Whether the run was asked to stop."""

  def __init__(self):
    self.signal = 0
    self.training = False  # from the end of the first step on; until then nothing would be lost

  def leave(self) -> None:
    """Ends the run as the signal asks for.

    Raises:
      KeyboardInterrupt: it was Ctrl-C.
      SystemExit: with code 143, as a shell reports SIGTERM.
    """
    if self.signal == signal.SIGINT:
      raise KeyboardInterrupt
    raise SystemExit(128 + signal.SIGTERM)


@contextlib.contextmanager
def watch() -> Iterator[Stop]:
  """Watches for signals, also while the compiler or the device keeps Python from running.

  Before training starts a signal ends the process at once. Outside the main thread nothing is
  watched. Where several processes train together JAX itself watches for SIGTERM, and tells all of
  them at one step (`processes.preempted`); Ctrl-C then counts as SIGTERM.
  """
  stop = Stop()
  if threading.current_thread() is not threading.main_thread():
    yield stop
    return
  if jax.process_count() > 1:
    signal.signal(signal.SIGINT, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    yield stop
    return
  reader, writer = os.pipe()
  os.set_blocking(writer, False)

  def listen():
    while (number := os.read(reader, 1)) != b'\0':
      if number[0] not in _SIGNALS:
        continue  # the caller's own handler has it
      if stop.signal or not stop.training:
        os._exit(128 + number[0])
      stop.signal = number[0]
      print('asked to stop: the step ends and a checkpoint is written; once more stops at once',
            flush=True)

  before = {number: signal.signal(number, lambda *_: None) for number in _SIGNALS}
  wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
  thread = threading.Thread(target=listen, daemon=True)
  thread.start()
  try:
    yield stop
  finally:
    signal.set_wakeup_fd(wakeup)
    for number, handler in before.items():
      signal.signal(number, handler)
    os.write(writer, b'\0')
    thread.join()
    os.close(reader)
    os.close(writer)
