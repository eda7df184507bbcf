r"""Runs what is missing of a sweep: all the runs of a figure, one folder each.

  python -m bnonly_jax.sweep --config=configs/figures/main_depth.py:short --workdir=DIR \
      [--status | --list | --dry_run] [--only=EXPRESSION] [--task=I --tasks=N] \
      [--config.base.FIELD=VALUE ...]

A run lies in DIR/NETWORK-SELECTION.../seedS, and figures that need the same run share it. The same
command again goes on after a kill. A run that fails is left behind, told at the end, and tried
again by the next command. The figures: python -m bnonly_jax.figures.
"""

import hashlib
import math
import os
import re
import time
import traceback
from typing import Any
from typing import NamedTuple

from absl import flags
from etils import epath
import ml_collections

from bnonly_jax import command_line
from bnonly_jax import sweep_config
from bnonly_jax.config import default_config
from bnonly_jax.config import flat
from bnonly_jax.config import UserError
from bnonly_jax.config import validate
from bnonly_jax.run import workdir as workdir_lib

STATES = ('done', 'diverged', 'running', 'stopped', 'failed', 'other', 'missing')


class Run(NamedTuple):
  """One run of a sweep."""
  name: str
  point: sweep_config.Point
  config: ml_collections.ConfigDict
  workdir: epath.Path

  @property
  def point_name(self) -> str:
    """What the runs of all seeds at its point have in common."""
    return self.name.rpartition('/')[0]


class Progress(NamedTuple):
  """How far a run is."""
  state: str  # one of STATES; other: the folder holds another experiment
  steps: int = 0  # training steps done
  seconds: float = 0.0  # spent on them
  result: dict[str, Any] | None = None  # result.json


def runs(config: ml_collections.ConfigDict, workdir: str | os.PathLike,
         only: str = '') -> list[Run]:
  """Returns the runs of a sweep, seed by seed and point by point; a run of two points comes once.

  Args:
    config: the sweep's, of `sweep_config.sweep`.
    workdir: the folder of all runs.
    only: a regular expression; the runs in whose name it is found.

  Raises:
    UserError: a run's config is none, or no run is left.

  Example:
    >>> [run.name for run in runs(config, 'runs/depth', only='resnet14.*seed0')]
    ['cifar_resnet14-batchnorm/seed0', 'cifar_resnet14-all/seed0', ...]
  """
  check(config)
  try:
    expression = re.compile(only)
  except re.error as error:
    raise UserError(f'--only={only}: no regular expression ({error}). Allowed is as'
                    ' --only=resnet14-batchnorm.') from error
  together, found, names = config.base.replicates, {}, []
  if together < 1 or config.seeds % together:
    raise UserError(f'config.base.replicates is {together}; allowed is a divisor of config.seeds ='
                    f' {config.seeds}. Set --config.base.replicates=... or --config.seeds=...')
  for seed in range(config.base.seed, config.base.seed + config.seeds, together):
    for point in config.points:
      run_config = _config_of(config, point, seed)
      validate(run_config)
      names.append(f'{point_name(config, point)}/seed{seed}')
      if expression.search(names[-1]):
        found.setdefault(names[-1], Run(names[-1], point, run_config,
                                        workdir_lib.path(workdir) / names[-1]))
  if not found:
    raise UserError(f'--only={only} is found in no run. There are'
                    f' {", ".join(dict.fromkeys(names)) or "none"}.')
  return list(found.values())


def _config_of(config, point, seed):
  run_config = config.base.copy_and_resolve_references()
  try:
    run_config.update_from_flattened_dict({**point.changes, 'seed': seed})
  except (KeyError, TypeError, ValueError) as error:
    raise UserError(f'the point {point.line!r} at {point.x!r} changes {point.changes}: {error}.'
                    ' Allowed are the fields of bnonly_jax.config.default_config().') from error
  return run_config


def check(config: ml_collections.ConfigDict) -> None:
  """Checks what a sweep's config has besides its runs.

  Raises:
    UserError: it is no sweep's, or a field is out of range.
  """
  if 'base' not in config or 'points' not in config:
    raise UserError('--config is that of a single run; needed is a sweep\'s, as those in'
                    ' configs/figures. For a single run: python -m bnonly_jax.main.')
  panels = {**sweep_config.RESULTS, **sweep_config.ANALYSES}
  for panel in config.panels:
    if panel not in panels:
      raise UserError(f'config.panels has {panel!r}; allowed are {", ".join(panels)}.')
  if config.seeds < 1:
    raise UserError(f'config.seeds is {config.seeds}; allowed is 1 or more. Set --config.seeds=...')


def share(config: ml_collections.ConfigDict, workdir: str | os.PathLike, only: str, task: int,
          tasks: int) -> list[Run]:
  """Returns every tasks-th of the runs, from the task-th on: tasks share none.

  Raises:
    UserError: as `runs`, or there is no such task, or no run for it.
  """
  if not 0 <= task < tasks:
    raise UserError(f'--task={task} with --tasks={tasks}; allowed is a task from 0 to --tasks less'
                    ' one. Give the first one --task=0.')
  found = runs(config, workdir, only)
  if task >= len(found):
    raise UserError(f'--task={task} with --tasks={tasks}: there are {len(found)} runs, none is left'
                    ' for it. Give --tasks no more than that.')
  if tasks > 1:  # a point's runs cost the same: dealt out in turn, so do the shares
    found.sort(key=lambda run: run.point_name)
  return found[task::tasks]


def point_name(config: ml_collections.ConfigDict, point: sweep_config.Point) -> str:
  """Names a point's runs by network, selection and what else it changes in config.base."""
  changes = {'network': config.base.network, 'train': config.base.train, **point.changes}
  others = [f'{field.rpartition(".")[2]}={value}' for field, value in sorted(changes.items())
            if field not in ('network', 'train')]
  name = '-'.join([changes['network'], changes['train'].replace('random:', 'random'), *others])
  plain = re.sub(r'[^\w.+=-]', '', name)
  # What a folder's name cannot hold still tells two points apart.
  return plain if plain == name else f'{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}'


def progress(run: Run) -> Progress:
  """Looks up how far a run is; nothing is written."""
  from bnonly_jax.run import metrics
  lines = metrics.read(run.workdir) if run.workdir.exists() else []
  steps = max((line['step'] for line in lines), default=0)
  seconds = sum(line.get('time_seconds') or 0 for line in lines)
  facts, held, result = flat(run.config), run.workdir / 'config.json', run.workdir / 'result.json'
  if held.exists():
    there = {**flat(default_config()), **workdir_lib.read_json(held)}
    if workdir_lib.differences(there, facts, facts):
      return Progress('other')
  if result.exists():
    result = workdir_lib.read_json(result)
    if result['diverged'] or result['epochs'] == run.config.epochs:
      return Progress('diverged' if result['diverged'] else 'done', steps, seconds, result)
  if workdir_lib.is_locked(run.workdir):
    return Progress('running', steps, seconds)
  if _failure(run).exists():
    return Progress('failed', steps, seconds)
  return Progress('stopped' if steps else 'missing', steps, seconds)


def _failure(run):
  return run.workdir.parent / f'{run.workdir.name}_failure.txt'


def run_missing(config: ml_collections.ConfigDict, workdir: str | os.PathLike, only: str = '',
                task: int = 0, tasks: int = 1) -> list[Run]:
  """Trains what is not done of a sweep's runs, and analyses it where a panel asks for that.

  Args:
    config: the sweep's.
    workdir: the folder of all runs.
    only: as for `runs`.
    task: as for `share`.
    tasks: how many share the sweep; they need not know of each other.

  Returns:
    The runs that failed.

  Raises:
    UserError: before any run: a config cannot be run here, the folder cannot be.
      With several processes also the first run that fails.
    SystemExit, KeyboardInterrupt: as for `train_and_evaluate`; the same call goes on.
  """
  import jax

  from bnonly_jax import train
  from bnonly_jax.run import metrics
  from bnonly_jax.run import processes
  metrics.console.quiet = not processes.is_main()
  own = share(config, workdir, only, task, tasks)
  workdir_lib.check_folder(workdir_lib.path(workdir))
  for run in {run.point_name: run for run in own}.values():
    train.plan(run.config)
  failed = []
  for number, run in enumerate(own):
    state = processes.on_main(lambda run=run: progress(run).state)
    say = f'[{number + 1}/{len(own)}] {run.name}: '
    if state == 'running':
      metrics.console.print(f'{say}running elsewhere')
      continue
    try:
      if state not in ('done', 'diverged'):
        metrics.console.print(f'{say}{state}, starts at {time.strftime("%H:%M:%S")}')
        result = train.train_and_evaluate(run.config, run.workdir)
        state = 'diverged' if result['diverged'] else 'done'
      if state == 'done' and set(config.panels) & set(sweep_config.ANALYSES):
        _analyse(run)
      processes.on_main(lambda run=run: _failure(run).unlink(missing_ok=True))
    except Exception as error:
      if jax.process_count() > 1:
        raise  # the others may be inside the run, waiting for this process
      trained = state in ('done', 'diverged')  # then it is the analysis that failed
      if not trained and progress(run).state in ('running', 'done', 'diverged'):
        metrics.console.print(f'{say}running elsewhere')  # since a moment ago
        continue
      text = str(error) if isinstance(error, UserError) else traceback.format_exc()
      metrics.console.print(f'{say}failed: {text.strip().splitlines()[-1]}')
      try:
        _failure(run).parent.mkdir(parents=True, exist_ok=True)
        _failure(run).write_text(text + '\n')
      except OSError as full:
        raise UserError(f'--workdir={workdir} cannot be written ({full}), and {run.name} failed:'
                        f' {text.strip().splitlines()[-1]}') from full
      failed.append(run)
    jax.clear_caches()  # the next run compiles its own
  return failed


def _analyse(run):
  from bnonly_jax import analysis
  from bnonly_jax.run import processes
  there = processes.on_main(lambda: [found['seed'] for found in analyses(run)])
  for replicate in range(run.config.replicates):
    if run.config.seed + replicate not in there:
      analysis.analyse(run.workdir, replicate=replicate, data_dir=run.config.data.dir)


def analyses(run: Run) -> list[dict[str, Any]]:
  """Returns what the analysis of each of a run's replicates holds, of those made after its end."""
  result = progress(run).result
  files = sorted(run.workdir.glob('analysis*.json')) if result else []
  found = [workdir_lib.read_json(file) for file in files]
  return [one for one in found if one['step'] == result['steps']]


def print_status(config: ml_collections.ConfigDict, workdir: str | os.PathLike,
                 only: str = '') -> None:
  """Prints, point by point, how many runs are in which state, their accuracy and their time."""
  import numpy as np

  from bnonly_jax.run import metrics
  points, lines = {}, []
  for run in runs(config, workdir, only):
    points.setdefault(run.point_name, []).append(progress(run))
  for name, found in [*points.items(), ('all', sum(points.values(), []))]:
    states = [one.state for one in found]
    accuracies = [100 * seed['test_accuracy'] for one in found if one.state == 'done'
                  for seed in one.result.get('replicates', [one.result])]
    shown = f'{np.mean(accuracies):.2f}' if accuracies and name != 'all' else ''
    if shown and len(accuracies) > 1:
      shown += f' +- {np.std(accuracies, ddof=1):.2f}'
    lines.append([name, *(str(states.count(state) or '') for state in STATES), shown,
                  f'{sum(one.seconds for one in found) / 3600:.2f}'])
  metrics.print_columns(['runs', *STATES, 'test accuracy, %', 'hours'], lines)


def print_list(config: ml_collections.ConfigDict, workdir: str | os.PathLike, only: str = '',
               task: int = 0, tasks: int = 1) -> None:
  """Prints every run, its state, and what it changes in the base config."""
  from bnonly_jax.run import metrics
  for run in share(config, workdir, only, task, tasks):
    changes = '  '.join(f'{field}={value}' for field, value in run.point.changes.items())
    metrics.console.print(f'{run.name}  {progress(run).state}  {changes}')


def estimate(config: ml_collections.ConfigDict, workdir: str | os.PathLike, only: str = '',
             task: int = 0, tasks: int = 1) -> list[tuple[Run, Progress, float]]:
  """Estimates the seconds of training that are left of each run.

  A step takes as long as those that the point's runs have made in the workdir, or else as those of
  the other points by FLOPs; if there are none, the step of the first run is measured now.

  Returns:
    Runs in order, with how far they are and the seconds left.
  """
  import numpy as np

  from bnonly_jax import describe
  from bnonly_jax.benchmark import common
  planned = [(run, progress(run)) for run in share(config, workdir, only, task, tasks)]

  flops, measured = {}, {}
  for run, so_far in planned:
    if run.point_name not in flops:
      flops[run.point_name] = describe.describe(run.config)['flops_step'] * run.config.batch_size
    if so_far.seconds:
      steps, seconds = measured.get(run.point_name, (0, 0.0))
      measured[run.point_name] = steps + so_far.steps, seconds + so_far.seconds
  if not measured:
    run = planned[0][0]
    measured[run.point_name] = 1, common.step_seconds(run.config)
  rate = np.median([flops[name] * steps / seconds for name, (steps, seconds) in measured.items()])
  left = []
  for run, so_far in planned:
    images = round(describe.find_or_assume(run.config)[0].train_images
                   * run.config.data.subsample)
    steps_left = images // run.config.batch_size * run.config.epochs - so_far.steps
    steps, seconds = measured.get(run.point_name, (1, flops[run.point_name] / rate))
    finished = so_far.state in ('done', 'diverged')
    left.append((run, so_far, 0.0 if finished else max(steps_left, 0) * seconds / steps))
  return left


def print_estimate(planned: list[tuple[Run, Progress, float]]) -> None:
  """Prints what `estimate` returns."""
  from bnonly_jax.run import metrics
  for run, so_far, seconds in planned:
    metrics.console.print(f'{run.name}  {so_far.state}  {_duration(seconds)}')
  total = sum(seconds for _, _, seconds in planned)
  metrics.console.print(f'{len(planned)} runs; left to do: {_duration(total)} of training on this'
                        ' machine, by measured steps; compiling and evaluating come on top')


def _duration(seconds):
  minutes = math.ceil(seconds / 60)
  return f'{minutes // 60}:{minutes % 60:02} h'


def main() -> None:
  where = _CONFIG.value, _WORKDIR.value, _ONLY.value
  if _STATUS.value:
    print_status(*where)
  elif _LIST.value:
    print_list(*where, _TASK.value, _TASKS.value)
  elif _DRY_RUN.value:
    print_estimate(estimate(*where, _TASK.value, _TASKS.value))
  else:
    _JOIN()
    failed = run_missing(*where, _TASK.value, _TASKS.value)
    print_status(*where)
    if failed:
      raise UserError(f'{len(failed)} run(s) failed: {", ".join(run.name for run in failed)}.'
                      f' Reasons are in {_failure(failed[0])} and its like; the same command tries'
                      ' them again.')


if __name__ == '__main__':
  _CONFIG = command_line.define_config()
  _WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of all the runs.')
  _STATUS = flags.DEFINE_bool(
      'status', False, 'Show how many runs are done, running, failed, missing.')
  _LIST = flags.DEFINE_bool('list', False, 'Show the runs and their states.')
  _DRY_RUN = flags.DEFINE_bool('dry_run', False, 'Show the runs and the time that they will take.')
  _ONLY = flags.DEFINE_string(
      'only', '', 'A regular expression: only the runs in whose name it is found.')
  _TASK = flags.DEFINE_integer('task', 0, 'Which share of the runs is to be done, from 0.')
  _TASKS = flags.DEFINE_integer('tasks', 1, 'How many shares there are.')
  _JOIN = command_line.define_processes()
  command_line.run(
      main, lambda: '' if _CONFIG.value and _WORKDIR.value else
      '--config=FILE.py[:SCALE] and --workdir=DIR are both needed. Try --config='
      'configs/figures/main_depth.py:smoke --workdir=runs/smoke, or --help.',
      interrupted='stopped; the same command goes on', defaults=sweep_config.skeleton)
