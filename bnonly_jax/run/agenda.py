"""What is due after which training step. Steps are counted from the start of the experiment."""

from collections.abc import Iterator
from typing import NamedTuple

import ml_collections


class Agenda(NamedTuple):
  """What a config has done when, by the number of steps done.

  Attributes:
    config: fields as in `config.default_config`.
    steps_per_epoch: training steps.
  """
  config: ml_collections.ConfigDict
  steps_per_epoch: int

  def epoch_ends(self, step: int) -> bool:
    """Whether a step is the last of its epoch."""
    return step % self.steps_per_epoch == 0

  def line(self, step: int) -> bool:
    """Whether a line of training metrics ends at a step."""
    return step % self.steps_per_epoch % self.config.log_every == 0

  def evaluation(self, step: int) -> bool:
    """Whether an evaluation follows a step."""
    return self._every(self.config.eval_every, step)

  def checkpoint(self, step: int) -> bool:
    """Whether a checkpoint follows a step, whatever the clock says."""
    return self._every(self.config.checkpoint_every, step) or self._counted(step)

  def calls(self, start: int, most: int, ends: tuple[int, ...] = ()) -> Iterator[tuple[int, int]]:
    """Yields (step, number) of the calls of the training step: which comes first, and how many.

    They depend on the numbers of the steps alone, so that a restart makes the same ones.

    Args:
      start: steps done before the first call.
      most: steps of a call within which nothing is due; else it is one step.
      ends: steps at which a call must end besides.
    """
    step, total = start, self.config.epochs * self.steps_per_epoch
    while step < total:
      due = any(self.line(i) or self._counted(i) or i in ends for i in range(step + 1, step + most))
      number = 1 if due else most
      yield step, number
      step += number

  def _every(self, epochs, step):
    epoch, rest = divmod(step, self.steps_per_epoch)
    return not rest and (epoch == self.config.epochs or epoch % epochs == 0)

  def _counted(self, step):
    every = self.config.checkpoint_every_steps
    return bool(every) and step % every == 0
