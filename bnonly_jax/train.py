"""One run, from a config to a workdir: read it from top to bottom."""

import contextlib
import functools
import importlib.metadata
import itertools
import os
import pathlib
import platform
import time
from typing import Any
from typing import NamedTuple

from etils import epath
import flax.linen as nn
import jax
import ml_collections
import numpy as np

from bnonly_jax import config as config_lib
from bnonly_jax import data
from bnonly_jax import masks
from bnonly_jax import models
from bnonly_jax import optimizer
from bnonly_jax import steps
from bnonly_jax.config import UserError
from bnonly_jax.data import augment
from bnonly_jax.data import prepare
from bnonly_jax.data import resident
from bnonly_jax.data import streamed
from bnonly_jax.models import from_torch
from bnonly_jax.run import checkpoint
from bnonly_jax.run import metrics
from bnonly_jax.run import plots
from bnonly_jax.run import processes
from bnonly_jax.run import signals
from bnonly_jax.run import workdir as workdir_lib

PROFILED = range(10, 60)  # steps of this process, the first being 0
# What an evaluation sums up, and what metrics and result call the mean over images: that of all
# replicates, and the list of each one's.
EVALUATED = (('loss', 'test_loss', 'test_losses'),
             ('correct', 'test_accuracy', 'test_accuracies'),
             ('correct_top5', 'test_top5_accuracy', 'test_top5_accuracies'))


class Plan(NamedTuple):
  """What a config describes, before anything is drawn, compiled or written."""
  info: data.Info
  network: nn.Module
  shapes: dict[str, Any]  # of the network's variables
  mask: dict[str, Any]


def plan(config: ml_collections.ConfigDict, info: data.Info | None = None) -> Plan:
  """Looks up and checks what a config describes.

  Args:
    config: fields as in `config.default_config`.
    info: the data set's, if it is not to be looked up.

  Raises:
    UserError: the config is not that of a run on this machine.
  """
  config_lib.validate(config)
  info = info or data.find(config)
  info = info._replace(train_images=round(config.data.subsample * info.train_images))
  channels, devices = info.image_shape[-1], jax.device_count()
  require = functools.partial(config_lib.require, config)
  require('batch_size', f'a multiple of the {devices} devices', config.batch_size % devices == 0)
  require('batch_size', f'up to the {info.train_images} training images in use',
          config.batch_size <= info.train_images)
  for field in ('mean', 'std'):
    require(f'data.{field}', f'one number or one for each of the {channels} channel(s)',
            len(config.data[field]) in (1, channels))
  for field, choices in (('norm', models.NORMS), ('weight_start', models.WEIGHT_STARTS),
                         ('norm_start', models.NORM_STARTS)):
    require(field, ', '.join(choices), config[field] in choices)
  for field in ('replicates', 'steps_per_call'):
    require(field, '1 where the data are streamed',
            config[field] == 1 or data.is_resident(config, info))
  network = models.create(config.network, info.classes, config.norm,
                          steps.AXIS if config.sync_batchnorm else None,
                          config.remat == 'block')
  shapes = models.variable_shapes(network, info.image_shape)
  return Plan(info, network, shapes, masks.make_mask(config.train, shapes['params'], config.seed))


def open_feed(config: ml_collections.ConfigDict, info: data.Info) -> data.Feed:
  """Opens a prepared data set, resident or streamed.

  Raises:
    UserError: a bad image, in a resident set.
  """
  way = resident if data.is_resident(config, info) else streamed
  return way.open_feed(config, info, jax.process_index(), jax.process_count())


def draw_variables(config: ml_collections.ConfigDict, planned: Plan,
                   replicate: int = 0) -> dict[str, Any]:
  """Returns the variables that a replicate starts from: drawn, or read from config.init_from.

  Raises:
    UserError: config.init_from cannot be read or does not fit the network.
  """
  if config.init_from:
    return from_torch.convert(from_torch.read(config.init_from), planned.network, planned.shapes)
  return models.initialise(planned.network, planned.info.image_shape,
                           config.seed + replicate, config.weight_start, config.norm_start)


def train_and_evaluate(config: ml_collections.ConfigDict, workdir: str | pathlib.Path,
                       profile: bool = False) -> dict[str, Any]:
  """Trains what the config selects, or goes on with the run that the workdir holds.

  Args:
    config: fields as in `config.default_config`.
    workdir: a folder that is new, empty, or holds a run with the same config.
    profile: whether to write a trace of the steps PROFILED after the first into workdir/profile.

  Returns:
    What workdir/result.json holds; see the README.

  Raises:
    UserError: the config or the workdir does not allow the run; nothing has been written into the
      workdir then. Or the workdir cannot be written any more, or an image is bad.
    SystemExit, KeyboardInterrupt: SIGTERM or Ctrl-C came; a checkpoint has been written.
  """
  # 1. All that can be wrong is found before anything is written or compiled.
  workdir = workdir_lib.path(workdir)
  metrics.console.quiet = not processes.is_main()
  planned = plan(config)
  facts = {**config_lib.flat(config), 'data.version': planned.info.version,
           'devices': 'any' if config.sync_batchnorm else jax.device_count()}
  processes.require_equal('config', facts)
  finished = processes.on_main(lambda: workdir_lib.check(workdir, facts))
  if finished:
    metrics.console.print(f'{workdir} holds this run, finished.')
    report(finished, workdir)
    return finished
  variables = [draw_variables(config, planned, i) for i in range(config.replicates)]
  if config.data.name == 'digits':
    prepare.prepare('digits', config.data.dir)

  # 2. The run becomes the workdir's, and says what trains.
  table = masks.table(planned.shapes['params'], planned.mask)
  if profile and workdir_lib.is_remote(workdir):
    raise UserError(f'--profile with --workdir={workdir}: traces are written to local folders only.'
                    ' Leave one of them out.')
  rows = [{**row._asdict(), 'trains': row.trains, 'share': row.parameters / masks.total(table)}
          for row in table]
  with contextlib.ExitStack() as lock:
    processes.on_main(lambda: workdir_lib.claim(workdir, lock, {
        'config.json': facts, 'parameters.json': rows}))
    processes.require_shared(workdir)
    try:
      return _run(config, workdir, planned, variables, table, profile)
    except OSError as error:
      reason = error.strerror or error
      raise UserError(f'--workdir={workdir} cannot be written ({reason}). The newest whole'
                      ' checkpoint there stays; make room, and the same command goes on from it.'
                      ) from error


def _run(config, workdir, planned, variables, table, profile):
  """Trains in a workdir that is claimed; returns the result."""
  info, network, _, mask = planned
  devices, here = jax.device_count(), jax.local_device_count()
  seeds = (f'seed {config.seed}' if config.replicates == 1 else
           f'seeds {config.seed} to {config.seed + config.replicates - 1}')
  norm = '' if config.norm == 'batch' else f', norm {config.norm}'
  metrics.console.print(f'{config.network}{norm} on {config.data.name}: training {config.train},'
                        f' {seeds}, {devices} {jax.devices()[0].device_kind} device(s)')
  metrics.print_table(table)

  # 3. State, frozen half, data and steps.
  steps_per_epoch = info.train_images // config.batch_size
  total_steps = config.epochs * steps_per_epoch
  learning_rate = optimizer.schedule(config.optimizer, config.batch_size, total_steps,
                                     steps_per_epoch)
  tx = optimizer.create(config.optimizer, learning_rate, mask)
  state, frozen = steps.stack([
      steps.create_state(start, masks.make_mask(config.train, start['params'], config.seed + i), tx)
      for i, start in enumerate(variables)])
  start_gammas = plots.gammas(*(start['params'] for start in variables))
  restored, pending, damage = checkpoint.restore(workdir, state)
  for line in damage:
    metrics.console.print(line)
  if restored is not None:
    state = restored
    metrics.console.print(f'going on after step {int(state.step)} of {total_steps}')
  start_step = int(state.step)
  processes.require_equal('checkpoint', start_step)
  frozen = checkpoint.keep_frozen(workdir, frozen)
  state, frozen = steps.place((state, steps.store(frozen, config.compute_dtype)), here)
  feed = open_feed(config, info)
  train_set, test_set = steps.place((feed.train_set, feed.test_set), here)
  normalise = augment.normaliser(config.data.mean, config.data.std, config.compute_dtype)
  train_step = steps.train_step(network, tx, learning_rate, config.seed, config.data.pad,
                                config.data.flip, normalise, config.replicates)
  eval_step = steps.eval_step(network, normalise, config.replicates)
  eval_batch_size = -(-config.eval_batch_size // devices) * devices

  # 4. The loop. The host reads the metrics of the steps before while the device works on the next.
  writer = metrics.Writer(workdir, start_step) if processes.is_main() else None
  log = metrics.TrainLog(writer, total_steps, steps_per_epoch,
                         config.batch_size * config.replicates, config.log_every, start_step,
                         pending)
  saved_at, saved_step, diverged_step = time.monotonic(), start_step, None

  def due(step):  # more than the next training step, perhaps
    return (step % steps_per_epoch % config.log_every == 0
            or config.checkpoint_every_steps and step % config.checkpoint_every_steps == 0
            or profile and step - start_step in (PROFILED.start, PROFILED.stop))

  def calls():
    step, batches = start_step, feed.train_batches(start_step)
    most = config.steps_per_call if steps.loops_pay() else 1
    while step < total_steps:
      number = 1 if any(map(due, range(step + 1, step + most))) else most
      taken, replaced = zip(*itertools.islice(batches, number), strict=True)
      yield step, number, np.stack(taken, -1) if number > 1 else taken[0], sum(replaced)
      step += number

  def every(epochs, step):
    epoch, rest = divmod(step, steps_per_epoch)
    return not rest and (epoch == config.epochs or epoch % epochs == 0)

  def save_due(step):
    minutes = config.checkpoint_every_minutes
    return (every(config.checkpoint_every, step)
            or config.checkpoint_every_steps and step % config.checkpoint_every_steps == 0
            or minutes and (log.due or step % steps_per_epoch == 0) and processes.on_main(
                lambda: time.monotonic() - saved_at >= 60 * minutes))

  def save(step):
    nonlocal saved_at, saved_step
    if log.due:  # else the line would be written before and after a restart
      log.flush()
    if writer:
      writer.flush()  # no checkpoint is ahead of its lines, in a bucket either
    if step != saved_step and not checkpoint.save(checkpointer, step, state, log.pending()):
      raise metrics.Diverged(step)
    saved_at, saved_step = time.monotonic(), step

  def evaluate(step):
    sums = []
    for batch in steps.feed(feed.eval_batches(eval_batch_size), here):
      sums.append(eval_step(state, frozen, test_set, batch))
      if stop.signal:
        save(step)
        stop.leave()
    total = {k: np.ravel(sum(np.asarray(s[k], np.float64) for s in sums)) for k in sums[0]}
    count = total.pop('count')
    if not count:
      raise UserError(f'no image of the split {info.test_split} of {config.data.name} is good;'
                      ' needed is at least one. Choose another --config.data.test_split.')
    evaluation = {}
    for sum_of, name, names in EVALUATED:
      if sum_of in total:
        values = (total[sum_of] / count).tolist()
        evaluation[name] = np.mean(values).item()
        if config.replicates > 1:
          evaluation[names] = values
    if count < info.test_images:
      evaluation['test_images_left_out'] = info.test_images - count.item()
    if writer:
      writer.write(step, {'epoch': step / steps_per_epoch, **evaluation})
    if step:
      log.print_epoch(evaluation)

  try:
    with contextlib.ExitStack() as opened:
      stop = opened.enter_context(signals.watch())
      checkpointer = opened.enter_context(checkpoint.open_checkpointer(
          workdir, config.checkpoint_keep, config.checkpoint_keep_every * steps_per_epoch))
      fed = steps.feed(calls(), here)
      for thing in (log, fed, *([writer] if writer else [])):
        opened.enter_context(contextlib.closing(thing))
      if every(config.eval_every, start_step) and not processes.on_main(
          lambda: metrics.evaluated(workdir, start_step)):
        evaluate(start_step)
      compiled, traced = set(), profile and processes.is_main()
      for step, number, batch, replaced in fed:
        if traced and step - start_step == PROFILED.start:
          trace = opened.enter_context(contextlib.ExitStack())
          trace.enter_context(jax.profiler.trace(os.fspath(workdir / 'profile'),
                                                 create_perfetto_trace=True))
        if traced and step - start_step == PROFILED.stop:
          jax.block_until_ready(state)
          trace.close()
        state, step_metrics = train_step(state, frozen, train_set, batch)
        if log.due:
          log.flush()
        if config.data.bad_images == 'skip' and train_set is None:
          step_metrics['images_replaced'] = replaced
        done = step + number
        log.add(done, step_metrics)
        if number not in compiled:
          jax.block_until_ready(step_metrics)  # the compiler's time is no training time
          log.restart_clock()
          compiled.add(number)
          stop.training = True
        if done % steps_per_epoch == 0:
          log.flush()
        stopping = stop.signal or processes.preempted()
        if stopping or save_due(done):
          save(done)
        if stopping:
          stop.leave()
        if every(config.eval_every, done):
          evaluate(done)
        if done % steps_per_epoch == 0:
          log.restart_clock()
  except metrics.Diverged as error:
    diverged_step = error.step

  # 5. The result, last: its presence says that all else is there.
  def conclude():
    title = f'{config.network}, {config.data.name}, training {config.train}'
    plots.accuracy_over_epochs(workdir, title)
    if start_gammas.size:
      end_gammas = plots.gammas(*jax.device_get((state.trainable, frozen)))
      plots.gamma_histogram(workdir, start_gammas, end_gammas, title)
    lines = metrics.read(workdir)
    start = next((x for x in lines if x['step'] == 0), {})  # lost, if someone edits the file
    final = {} if diverged_step else next(x for x in lines if x['step'] == total_steps
                                          and 'test_accuracy' in x)

    def each(line, name, names):  # a single replicate's lines have no lists
      return line.get(names, [line.get(name)] * config.replicates)

    columns = {'seed': range(config.seed, config.seed + config.replicates),
               **{name: each(final, name, names) for _, name, names in EVALUATED},
               'untrained_test_accuracy': each(start, 'test_accuracy', 'test_accuracies')}
    result = {
        **{name: final.get(name) for _, name, _ in EVALUATED},
        'untrained_test_accuracy': start.get('test_accuracy'),
        'replicates': [dict(zip(columns, row, strict=True))
                       for row in zip(*columns.values(), strict=True)],
        'diverged': diverged_step is not None,
        'diverged_step': diverged_step,
        'network': config.network,
        'train': config.train,
        'norm': config.norm,
        'parameters': masks.total(table),
        'trained_parameters': sum(row.trained for row in table),
        'data': config.data.name,
        'train_images': info.train_images,
        'test_images': info.test_images - round(final.get('test_images_left_out', 0)),
        'epochs': config.epochs,
        'steps': total_steps,
        'seed': config.seed,
        'seconds': sum(line.get('time_seconds', 0) for line in lines),
        'device_kind': jax.devices()[0].device_kind,
        'devices': devices,
        'processes': jax.process_count(),
        'versions': {'python': platform.python_version(), **{
            name: importlib.metadata.version(name) for name in ('jax', 'flax', 'optax')}},
        'finished': time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime()),
    }
    workdir_lib.write_json(workdir / 'result.json', result)
    return result

  result = processes.on_main(conclude)
  report(result, workdir)
  return result


def report(result: dict[str, Any], workdir: epath.Path) -> None:
  """Prints a run's result and where its plots are."""
  plots = [str(workdir / name) for name in ('accuracy.png', 'gamma.png')
           if (workdir / name).exists()]
  if result['diverged']:
    text = (f'diverged: step {result["diverged_step"]} of {result["steps"]} has a loss, or left a'
            ' state, that is not finite; the last checkpoint before it stays. A smaller'
            ' config.optimizer.learning_rate may help.\nThat was after')
  else:
    accuracies = [one['test_accuracy'] for one in result.get('replicates', [])]
    text = (f'test accuracy {result["test_accuracy"]:.4f}{metrics.spread(accuracies)} after'
            f' {result["epochs"]} epochs of')
    if result['test_loss'] is None:
      text = 'the test loss is not finite\n' + text
  untrained = result['untrained_test_accuracy']
  metrics.console.print(
      f'{text} training {result["trained_parameters"]:,} of {result["parameters"]:,} parameters'
      f' (untrained: {"not known" if untrained is None else f"{untrained:.4f}"})\n'
      f'plots: {"  ".join(plots)}')
