"""What a run tells people while it goes on: metrics.jsonl, TensorBoard events, the terminal."""

from collections.abc import Callable
from collections.abc import Sequence
import json
import math
import os
import time
from typing import Any

from etils import epath
import jax
import numpy as np
import rich.box
import rich.console
import rich.progress
import rich.table
import tensorboardX

from bnonly_jax import masks
from bnonly_jax.run import lines
from bnonly_jax.run import reading

# What is printed has names and paths of the user's: [...] and :...: are no markup.
console = rich.console.Console(markup=False, emoji=False, highlight=False, soft_wrap=True)


def print_table(rows: list[masks.GroupRow]) -> None:
  """Prints the parameter table: what trains, what is frozen."""
  table = rich.table.Table(box=rich.box.SIMPLE)
  for column in ('group', 'tensors', 'parameters', 'share', 'trained'):
    table.add_column(column, justify='left' if column == 'group' else 'right')
  total = masks.total(rows)
  for row in rows:
    table.add_row(row.group, f'{row.tensors:,}', f'{row.parameters:,}',
                  f'{row.parameters / total:.2%}', f'{row.trained:,}' if row.trained else 'frozen')
  trained = sum(row.trained for row in rows)
  table.add_section()
  table.add_row('all', f'{sum(row.tensors for row in rows):,}', f'{total:,}',
                '100.00%', f'{trained:,} ({trained / total:.2%})')
  console.print(table)


def print_columns(head: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
  """Prints columns, the first flush left."""
  widths = [max(map(len, column)) for column in zip(head, *lines, strict=True)]
  for line in (head, *lines):
    console.print('  '.join(
        cell.rjust(width) if i else cell.ljust(width)
        for i, (cell, width) in enumerate(zip(line, widths, strict=True))))


def spread(accuracies: list[float] | None) -> str:
  """Returns between what the replicates' accuracies lie, as text; '' of a single one."""
  if len(accuracies or ()) < 2:
    return ''
  return f' ({min(accuracies):.4f} to {max(accuracies):.4f})'


class Diverged(Exception):
  """The training loss of a step is not finite, or the state after it."""

  def __init__(self, step: int):
    super().__init__(f'the training loss is not finite at step {step}')
    self.step = step


class Writer:
  """Appends scalars to workdir/metrics.jsonl and to TensorBoard events in workdir/tensorboard.

  Lines after `start_step`, which a killed run may have left, go: they will be written again. The
  events are written anew from the lines that stay. A number that is not finite becomes null. Each
  line that is written is also handed to `on_metrics`, as its step and the rest by name.
  """

  def __init__(self, workdir: epath.Path, start_step: int,
               on_metrics: Callable[[int, dict[str, Any]], None] | None = None):
    self._on_metrics = on_metrics
    workdir = epath.Path(workdir)
    kept = [line for line in reading.lines(workdir) if start_step and line['step'] <= start_step]
    if (workdir / 'tensorboard').exists():
      (workdir / 'tensorboard').rmtree()
    self._events = tensorboardX.SummaryWriter(os.fspath(workdir / 'tensorboard'))
    self._file = lines.Lines(workdir / 'metrics.jsonl', ''.join(map(_text, kept)))
    for line in kept:
      self._add_events(line)

  def write(self, step: int, scalars: dict[str, float | list[float]]) -> None:
    """Writes one line, on a disk at once: a killed process loses none of the lines before.

    Lists, which hold a number for each replicate, go to metrics.jsonl alone.
    """
    line = {'step': step, **{name: _finite(value) for name, value in scalars.items()}}
    self._file.append(_text(line))
    self._add_events(line)
    if self._on_metrics:
      self._on_metrics(step, {name: value for name, value in line.items() if name != 'step'})

  def flush(self) -> None:
    """Returns when all lines are in the workdir, a bucket too.

    Raises:
      OSError: they cannot be written.
    """
    self._file.flush()

  def _add_events(self, line):
    for name, value in line.items():
      if name != 'step' and isinstance(value, int | float):
        self._events.add_scalar(name.replace('_', '/', 1), value, line['step'])

  def close(self) -> None:
    self._events.close()
    self._file.close()


def _text(line):
  return json.dumps(line) + '\n'


def _finite(value):
  if isinstance(value, list):
    return [_finite(one) for one in value]
  return value if value is not None and math.isfinite(value) else None


def evaluated(workdir: epath.Path, step: int) -> bool:
  """Whether metrics.jsonl has the evaluation after a step."""
  return any(line['step'] == step and 'test_accuracy' in line for line in reading.lines(workdir))


class TrainLog:
  """Gathers the metrics of training steps and turns those since the last line into the next.

  Nothing here waits for the device until `flush`. Without a writer (in all but the main process)
  nothing is written or shown.
  """

  def __init__(self, writer: Writer | None, steps: int, steps_per_epoch: int, batch_size: int,
               log_every: int, start_step: int, pending: list[dict[str, float]]):
    self._writer, self._steps, self._steps_per_epoch = writer, steps, steps_per_epoch
    self._batch_size, self._log_every = batch_size, log_every
    self._pending, self._step, self._rate = list(pending), start_step, None
    self._epoch = []  # the steps' metrics since the last evaluation
    self._progress = rich.progress.Progress(
        rich.progress.TextColumn('epoch {task.fields[epoch]}'), rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(), rich.progress.TextColumn('{task.fields[status]}'),
        console=console, transient=True, disable=not (console.is_terminal and writer))
    self._task = self._progress.add_task('', total=steps, completed=start_step, epoch='', status='')
    self._progress.start()
    self.restart_clock()

  @property
  def line_due(self) -> bool:
    """Whether the steps gathered so far make a line."""
    return bool(self._pending) and self._step % self._steps_per_epoch % self._log_every == 0

  def restart_clock(self) -> None:
    """Leaves the steps and the time until now (compiling, evaluating) out of the speed."""
    self._clock, self._timed = time.perf_counter(), 0

  def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
    """Takes the metrics of the steps that bring the count to `step`: of one, or vectors of several.

    Those of the steps before have been added.
    """
    self._pending.append(metrics)
    self._step = step
    self._timed += np.size(metrics['loss'])
    self._progress.update(self._task, completed=step, status=self._status(),
                          epoch=f'{step / self._steps_per_epoch:.1f}')

  def pending(self) -> list[dict[str, float]]:
    """Waits for the steps gathered so far and returns their metrics.

    Raises:
      Diverged: the loss of one is not finite.
    """
    # Also as floats of Python: JSON keeps their bits.
    self._pending = [dict(zip(call, map(float, values), strict=True))
                     for call in jax.device_get(self._pending)
                     for values in zip(*map(np.ravel, call.values()), strict=True)]
    for i, step in enumerate(self._pending):
      if not math.isfinite(step['loss']):
        raise Diverged(self._step - len(self._pending) + i + 1)
    return self._pending

  def flush(self) -> None:
    """Waits for the steps gathered so far and writes their mean.

    Raises:
      Diverged: the loss of one is not finite; nothing is written then.
    """
    if not self._pending:
      return
    values = self.pending()
    mean = {f'train_{name}': float(np.mean([v[name] for v in values], dtype=np.float64))
            for name in values[0]}
    times = {}
    if self._timed:
      seconds = time.perf_counter() - self._clock
      self._rate = self._timed * self._batch_size / seconds
      times = {'time_seconds': seconds, 'time_images_per_second': self._rate}
    self.restart_clock()
    if self._writer:
      self._writer.write(self._step, {'epoch': self._step / self._steps_per_epoch, **mean, **times})
    self._epoch += values
    self._pending = []

  def print_epoch(self, evaluation: dict[str, float | list[float]]) -> None:
    """Prints an evaluation beside the mean of training since the one before."""
    epoch, epochs = self._step // self._steps_per_epoch, self._steps // self._steps_per_epoch
    train = ''
    if self._epoch:  # else the run goes on after the epoch's last step
      loss, accuracy = (np.mean([v[name] for v in self._epoch]) for name in ('loss', 'accuracy'))
      train = f'train loss {loss:.3f} accuracy {accuracy:.4f}  '
    self._epoch = []
    console.print(f'epoch {epoch}/{epochs}  {train}test loss {evaluation["test_loss"]:.3f} accuracy'
                  f' {evaluation["test_accuracy"]:.4f}{spread(evaluation.get("test_accuracies"))}'
                  f'  {self._status()}')

  def _status(self):
    if self._rate is None:
      return ''
    left = round((self._steps - self._step) * self._batch_size / self._rate)
    return f'{self._rate:,.0f} images/s  {left // 3600}:{left // 60 % 60:02}:{left % 60:02} left'

  def close(self) -> None:
    self._progress.stop()
