"""The runs of a sweep, the folder of each, and how far it is; nothing here writes."""

from collections.abc import Sequence
import hashlib
import os
import re
from typing import Any
from typing import NamedTuple

from etils import epath
import ml_collections

from bnonly_jax.config import flat
from bnonly_jax.config import UserError
from bnonly_jax.run import reading
from bnonly_jax.run import workdir as workdir_lib
from bnonly_jax.sweep import config as sweep_config
from bnonly_jax.validation import validate

STATES = ('done', 'diverged', 'running', 'stopped', 'failed', 'other', 'missing')
# What a run's config.json holds besides the config's fields: the sweep does not know them.
_FOUND_OUT = ('data.version',)


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

  @property
  def failure(self) -> epath.Path:
    """The file that says why it failed; there while the state is `failed`."""
    return self.workdir.parent / f'{self.workdir.name}_failure.txt'


class Progress(NamedTuple):
  """How far a run is."""
  state: str  # one of STATES; other: the folder holds another experiment
  steps: int = 0  # training steps done
  seconds: float = 0.0  # spent on them
  result: dict[str, Any] | None = None  # result.json
  data_version: str | None = None  # of the data set that it is trained on
  # Fields with their values in the folder and in the sweep: of the state `other` all that differ;
  # of `stopped` the epochs, if the run has finished after fewer.
  differences: tuple[str, ...] = ()
  damage: str = ''  # which file of a run that is `failed` cannot be read, in one line


def runs(config: ml_collections.ConfigDict, workdir: str | os.PathLike,
         only: str = '') -> list[Run]:
  """Returns the runs of a sweep, seed by seed and point by point; a run of two points comes once.

  Args:
    config: the sweep's, of `sweep.config.sweep`.
    workdir: the folder of all runs.
    only: a regular expression; the runs in whose name it is found.

  Raises:
    UserError: a run's config is none, or no run is left.

  Example:
    >>> [run.name for run in runs(config, 'runs/depth', only='resnet14.*seed0')]
    ['cifar_resnet14-batchnorm/seed0', 'cifar_resnet14-all/seed0', ...]
  """
  sweep_config.check(config)
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


def check_workdir(workdir: str | os.PathLike, may_be_new: bool = False) -> None:
  """Checks that a folder can be that of a sweep's runs.

  Raises:
    UserError: it is the folder of one run, or it is not there and may not be new, or may be and
      cannot be made or written.
  """
  path = workdir_lib.path(workdir)
  if may_be_new or workdir_lib.is_remote(path):
    workdir_lib.check_folder(path)
  if (path / 'config.json').exists():
    raise UserError(f'--workdir={workdir} is the folder of one run: it holds a config.json. Allowed'
                    ' is a folder in which each run of the sweep has one of its own. Give that one,'
                    ' or a new one.')
  if not may_be_new and not path.is_dir():
    raise UserError(f'--workdir={workdir}: there is no such folder; needed is that of a sweep\'s'
                    ' runs. `python -m bnonly_jax.sweep` with the same --config and --workdir makes'
                    ' it and trains them; for a look at what it would do, make it by mkdir.')


def progress(run: Run) -> Progress:
  """Looks up how far a run is."""
  steps, seconds, damage, version, shorter = 0, 0.0, '', None, ()
  try:
    lines = reading.lines(run.workdir) if run.workdir.exists() else []
    steps = max((line['step'] for line in lines), default=0)
    seconds = sum(line.get('time_seconds') or 0 for line in lines)
    there, result = _held(run)
    version = there.get('data.version')
    facts = flat(run.config)
    differences = workdir_lib.differences(
        there, facts, (there.keys() | facts.keys()) - set(_FOUND_OUT)) if there else ()
    if differences:
      return Progress('other', differences=tuple(differences))
    if result and (result['diverged'] or result['epochs'] == run.config.epochs):
      state = 'diverged' if result['diverged'] else 'done'
      return Progress(state, steps, seconds, result, version)
    if result:
      shorter = (f'epochs = {result["epochs"]} there and {run.config.epochs} here',)
  except UserError as error:
    damage = str(error)
  if workdir_lib.is_locked(run.workdir):  # whoever has it may just be replacing what was read
    return Progress('running', steps, seconds, data_version=version)
  if damage or run.failure.exists():
    return Progress('failed', steps, seconds, data_version=version, damage=damage)
  return Progress('stopped' if steps else 'missing', steps, seconds, data_version=version,
                  differences=shorter)


def _held(run):
  """What the folder of a run holds: its facts, and its result; {} and None of what is not there."""
  result = reading.result(run.workdir, 'Delete it, and the next sweep command writes it anew from'
                          ' the run\'s last checkpoint.')
  config = run.workdir / 'config.json'
  if not result and not config.exists():
    return {}, None
  # A result counts only beside the config that it is of.
  there = reading.values(config, (), f'Move the folder {run.workdir} away, and the next sweep'
                         ' command trains the run anew.')
  return workdir_lib.current(there), result


def analyses(run: Run) -> list[dict[str, Any]]:
  """Returns what the analysis of each of a run's replicates holds, of those made after its end.

  Raises:
    UserError: a file of one is damaged.
  """
  result = progress(run).result
  files = sorted(run.workdir.glob('analysis*.json')) if result else []
  remedy = 'Delete it, and the next sweep command analyses the run anew.'
  found = [reading.values(file, ('step',), remedy) for file in files]
  return [one for one in found if one['step'] == result['steps']]


def counts(found: Sequence[Progress]) -> str:
  """Says how many runs are in which state: '3 done, 1 missing'."""
  states = [one.state for one in found]
  return ', '.join(f'{states.count(state)} {state}' for state in STATES if state in states)


def unfit(found: Sequence[Progress]) -> str:
  """Says how many folders hold another run than the sweep's, and in what it differs, or ''."""
  said = []
  for state, what in (('other', 'of another experiment'),
                      ('stopped', 'finished after fewer epochs, from which they can go on')):
    some = [one for one in found if one.state == state and one.differences]
    fields = list(dict.fromkeys(text for one in some for text in one.differences))
    more = f' and {len(fields) - 5} more' if len(fields) > 5 else ''
    if some:
      said.append(f'{len(some)} of {len(found)} runs are {what}: {", ".join(fields[:5])}{more}')
  return '; '.join(said)
