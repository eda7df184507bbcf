"""One run, from a config to a workdir: read it from top to bottom."""

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import itertools
import pathlib
from typing import Any
from typing import NamedTuple

from etils import epath
import jax
import ml_collections
import numpy as np

from bnonly_jax import config as config_lib
from bnonly_jax import data
from bnonly_jax import experiment
from bnonly_jax import masks
from bnonly_jax import steps
from bnonly_jax.config import UserError
from bnonly_jax.data import arrays
from bnonly_jax.data import device
from bnonly_jax.data import prepare
from bnonly_jax.experiment import Experiment
from bnonly_jax.models import own
from bnonly_jax.run import checkpoint
from bnonly_jax.run import full_disk
from bnonly_jax.run import metrics
from bnonly_jax.run import origin as origin_lib
from bnonly_jax.run import plots
from bnonly_jax.run import processes
from bnonly_jax.run import result as result_lib
from bnonly_jax.run import signals
from bnonly_jax.run import teachers as teachers_lib
from bnonly_jax.run import trace
from bnonly_jax.run import workdir as workdir_lib
from bnonly_jax.run.agenda import Agenda


def train_and_evaluate(config: ml_collections.ConfigDict, workdir: str | pathlib.Path,
                       profile: bool = False,
                       on_metrics: Callable[[int, dict[str, Any]], None] | None = None,
                       network: Callable[..., Any] | None = None,
                       train_set: tuple[Any, Any] | None = None,
                       test_set: tuple[Any, Any] | None = None) -> dict[str, Any]:
  """Trains what the config selects, or goes on with the run that the workdir holds.

  Args:
    config: fields as in `config.default_config`.
    workdir: a folder that is new, empty, or holds a run with the same config.
    profile: whether to write a trace of some steps (`trace.STEPS`) into workdir/profile.
    on_metrics: called in the main process with the step and the values of each line of
      metrics.jsonl, once it is written.
    network: make(classes=...), in place of config.network: docs/networks.md says what it must do.
    train_set: images, uint8 [N, H, W, C], and labels, whole numbers [N] from 0, instead of the data
      set that config.data.name says. In several processes all give the same.
    test_set: with train_set.

  Returns:
    What workdir/result.json holds; see docs/workdir.md.

  Raises:
    UserError: the config or the workdir does not allow the run; nothing has been written into the
      workdir then. Or the workdir cannot be written any more, or an image is bad.
    SystemExit, KeyboardInterrupt: SIGTERM or Ctrl-C came; a checkpoint has been written.
  """
  # 1. All that can be wrong is found before anything is written or compiled.
  workdir = workdir_lib.path(workdir)
  metrics.console.quiet = not processes.is_main()
  config, info, given = arrays.instead(own.instead(config, network), train_set, test_set)
  run = experiment.build(config, info)
  facts = {**config_lib.flat(config), 'data.version': run.info.version}
  processes.require_equal('config', facts)
  finished = processes.on_main(lambda: workdir_lib.check(workdir, facts))
  if finished:
    metrics.console.print(f'{workdir} holds this run, finished.')
    result_lib.report(finished, workdir)
    return finished
  origin = origin_lib.find(run, workdir, facts)
  taught = teachers_lib.join(run, workdir, facts)
  state, frozen = experiment.start(run, origin.variables)
  start_gammas = plots.gammas(run.parameters, state.trainable, frozen)
  if config.data.name == 'digits':
    prepare.prepare('digits', config.data.dir)
  if profile:
    trace.require_local(workdir)

  # 2. The run becomes the workdir's, says what trains, trains, and concludes.
  with contextlib.ExitStack() as lock:
    _claim(taught, workdir, lock, facts, origin)
    with full_disk.told(workdir):
      source = experiment.open_source(run, given)
      state, frozen, diverged_step = _train(taught, workdir, source, state, frozen, profile,
                                            on_metrics)
      end_gammas = plots.gammas(run.parameters, *jax.device_get((state.trainable, frozen)))
      result = processes.on_main(lambda: result_lib.conclude(
          run, workdir, diverged_step, start_gammas, end_gammas))
  result_lib.report(result, workdir)
  return result


def _claim(taught: teachers_lib.Taught, workdir: epath.Path, lock: contextlib.ExitStack,
           facts: dict[str, Any], origin: origin_lib.Origin) -> None:
  """Makes the workdir the run's, which keeps there what it starts from and who teaches it.

  Prints what is trained on what, from which start.
  """
  run = taught.run
  table = masks.table(run.parameters, run.mask)
  processes.on_main(lambda: workdir_lib.claim(workdir, lock, {
      'config.json': facts, 'parameters.json': masks.as_json(table),
      **({'start.json': origin.record} if origin.record else {}),
      **({teachers_lib.RECORD: taught.record} if taught.record else {})}))
  processes.require_shared(workdir)
  with full_disk.told(workdir):
    origin_lib.keep(workdir, origin)
    teachers_lib.keep(workdir, taught)
  config, devices = run.config, run.target.devices
  seeds = f'seed {config.seed}' if config.replicates == 1 else (
      f'seeds {config.seed} to {run.seeds[-1]}')
  norm = '' if config.norm == 'batch' else f', norm {config.norm}'
  metrics.console.print(f'{config.network}{norm} on {config.data.name}: training {config.train},'
                        f' {seeds}, {len(devices)} {devices[0].device_kind} device(s)')
  if origin.record:
    metrics.console.print(origin_lib.told(origin.record))
  for record in taught.record:
    metrics.console.print(teachers_lib.told(record))
  metrics.console.print(data.summary(run.info))
  metrics.print_table(table)


class Placed(NamedTuple):
  """What the steps take besides the state, on the devices."""
  frozen: Any
  seed: jax.Array
  train_set: data.Images | None
  test_set: data.Images | None
  teachers: tuple[Any, ...]  # () without any


def _train(taught: teachers_lib.Taught, workdir: epath.Path, source: data.Source,
           state: steps.State, frozen: Any, profile: bool,
           on_metrics: Callable[[int, dict[str, Any]], None] | None
           ) -> tuple[steps.State, Any, int | None]:
  """Trains in a workdir that is claimed, from its newest checkpoint on.

  Returns:
    The state and the frozen half at the end, and the step that diverged, if any.
  """
  run, config, local = taught.run, taught.run.config, taught.run.target.local
  state, pending = _restore(run, workdir, state)
  start_step = int(state.step)
  frozen = checkpoint.keep(workdir / 'frozen', frozen)
  state, frozen, seed = experiment.place(run, state, frozen)
  placed = Placed(frozen, seed, *device.place(
      (source.train_set, source.test_set, (taught.variables,) if taught.record else ()), local))
  agenda = Agenda(config, run.steps_per_epoch)
  writer = metrics.Writer(workdir, start_step, on_metrics) if processes.is_main() else None
  log = metrics.TrainLog(writer, run.total_steps, run.steps_per_epoch,
                         config.batch_size * config.replicates, config.log_every, start_step,
                         pending)
  traced = trace.Trace(workdir / 'profile' if profile and processes.is_main() else None,
                       start_step)
  ends = (trace.STEPS.start, trace.STEPS.stop) if profile else ()
  calls = agenda.calls(start_step, run.steps_a_call, tuple(start_step + end for end in ends))
  with contextlib.ExitStack() as opened:
    stop = opened.enter_context(signals.watch())
    saver = opened.enter_context(checkpoint.open_saver(
        workdir, start_step, config.checkpoint_keep,
        config.checkpoint_keep_every * run.steps_per_epoch))
    batches = device.send_ahead(_batches(source, calls, start_step), local)
    for thing in (log, batches, traced, *([writer] if writer else [])):
      opened.enter_context(contextlib.closing(thing))
    tools = Tools(source, agenda, log, writer, saver, stop, traced)
    if agenda.evaluation(start_step) and not processes.on_main(
        lambda: metrics.evaluated(workdir, start_step)):
      _evaluate(run, tools, state, placed, start_step)
    return _loop(run, tools, state, placed, batches)


class Tools(NamedTuple):
  """What the loop works with."""
  source: data.Source
  agenda: Agenda
  log: metrics.TrainLog
  writer: metrics.Writer | None  # of the main process
  saver: checkpoint.Saver
  stop: signals.Stop
  trace: trace.Trace


def _loop(run: Experiment, tools: Tools, state: steps.State, placed: Placed,
          batches: Iterator[Any]) -> tuple[steps.State, Any, int | None]:
  """Makes the steps. The host reads the metrics of one while the device works on the next."""
  agenda, log, stop, compiled = tools.agenda, tools.log, tools.stop, set()
  try:
    for step, number, batch, replaced in batches:
      tools.trace.before(step, state)
      state, values = run.train_step(state, placed.frozen, placed.train_set, batch, placed.seed,
                                     *placed.teachers)
      if log.line_due:  # of the steps before
        log.flush()
      if placed.train_set is None and run.config.data.bad_images == 'skip':
        values['images_replaced'] = replaced
      done = step + number
      log.add(done, values)
      if number not in compiled:
        jax.block_until_ready(values)  # the compiler's time is no training time
        log.restart_clock()
        compiled.add(number)
        stop.training = True
      if agenda.epoch_ends(done):
        log.flush()
      stopping = stop.signal or processes.preempted()
      if stopping or _save_due(run, tools, done):
        _save(tools, done, state)
      if stopping:
        stop.leave()
      if agenda.evaluation(done):
        _evaluate(run, tools, state, placed, done)
      if agenda.epoch_ends(done):
        log.restart_clock()
  except metrics.Diverged as error:
    return state, placed.frozen, error.step
  return state, placed.frozen, None


def _restore(run, workdir, state):
  """The state of the newest checkpoint, or the given one, and the metrics that were pending."""
  restored, pending, damage = checkpoint.restore(workdir, state)
  for line in damage:
    metrics.console.print(line)
  if restored is not None:
    state = restored
    metrics.console.print(f'going on after step {int(state.step)} of {run.total_steps}')
  processes.require_equal('checkpoint', int(state.step))
  return state, pending


def _batches(source, calls, start_step):
  """Yields (step, number, batch, bad images replaced) of each call of the training step."""
  batches = source.train_batches(start_step)
  for step, number in calls:
    taken, replaced = zip(*itertools.islice(batches, number), strict=True)
    yield step, number, np.stack(taken, -1) if number > 1 else taken[0], sum(replaced)


def _save_due(run, tools, step):
  """Whether a checkpoint follows a step; by the clock, only where a line ends."""
  minutes, agenda = run.config.checkpoint_every_minutes, tools.agenda
  return agenda.checkpoint(step) or bool(
      minutes and (tools.log.line_due or agenda.epoch_ends(step))
      and processes.on_main(lambda: tools.saver.minutes >= minutes))


def _save(tools, step, state):
  """Writes a checkpoint. A line that is due comes before, else a restart would write it again."""
  if tools.log.line_due:
    tools.log.flush()
  if tools.writer:
    tools.writer.flush()  # no checkpoint is ahead of its lines, in a bucket either
  tools.saver.save(step, state, tools.log.pending())


def _evaluate(run: Experiment, tools: Tools, state: steps.State, placed: Placed, step: int) -> None:
  """Evaluates on the test set, writes and prints the metrics; leaves early if asked to stop."""
  sums = []
  for batch in device.send_ahead(tools.source.eval_batches(run.eval_batch_size), run.target.local):
    sums.append(run.eval_step(state, placed.frozen, placed.test_set, batch))
    if tools.stop.signal:
      _save(tools, step, state)
      tools.stop.leave()
  evaluation = result_lib.evaluation(jax.device_get(sums), run.info.test_images)
  if not evaluation:
    raise UserError(f'no image of the split {run.info.test_split} of {run.config.data.name} is'
                    ' good; needed is at least one. Choose another --config.data.test_split.')
  if tools.writer:
    tools.writer.write(step, {'epoch': step / run.steps_per_epoch, **evaluation})
  if step:
    tools.log.print_epoch(evaluation)
