"""A trace of some steps, for Perfetto or XProf."""

import contextlib
import os
from typing import Any

from etils import epath
import jax

from bnonly_jax.config import UserError
from bnonly_jax.run import workdir as workdir_lib

STEPS = range(10, 60)  # of this process, the first being 0


def require_local(workdir: epath.Path) -> None:
  """Raises UserError where a workdir lies in a bucket: a trace is written to local folders only."""
  if workdir_lib.is_remote(workdir):
    raise UserError(f'--profile with --workdir={workdir}: traces are written to local folders only.'
                    ' Leave one of them out.')


class Trace:
  """Records the steps STEPS into a folder; without a folder it does nothing."""

  def __init__(self, folder: epath.Path | None, start_step: int):
    self._folder, self._start_step, self._opened = folder, start_step, contextlib.ExitStack()

  def before(self, step: int, state: Any) -> None:
    """Is told of a step before it is made, with the state that it is to change."""
    if self._folder is None or step - self._start_step not in (STEPS.start, STEPS.stop):
      return
    if step - self._start_step == STEPS.start:
      self._opened.enter_context(jax.profiler.trace(os.fspath(self._folder),
                                                    create_perfetto_trace=True))
    else:
      jax.block_until_ready(state)
      self._opened.close()

  def close(self) -> None:
    """Ends a trace that is going on."""
    self._opened.close()
