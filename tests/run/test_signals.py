"""What watches for signals while a run trains."""

import os
import signal
import time

from bnonly_jax.run import signals


def test_signals_of_the_callers_own_stop_nothing():
  seen = []
  before = signal.signal(signal.SIGUSR1, lambda *_: seen.append('own'))
  try:
    with signals.watch() as stop:
      os.kill(os.getpid(), signal.SIGUSR1)  # before training it would end this process
      stop.training = True
      os.kill(os.getpid(), signal.SIGUSR1)
      os.kill(os.getpid(), signal.SIGTERM)
      end = time.monotonic() + 10
      while not stop.signal and time.monotonic() < end:
        time.sleep(0.01)
      assert seen == ['own', 'own'] and stop.signal == signal.SIGTERM
  finally:
    signal.signal(signal.SIGUSR1, before)
