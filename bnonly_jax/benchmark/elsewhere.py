"""`benchmark step --on=...`: what a step would cost on devices that are not there.

The real steps are compiled for them, and what the compiler says of the programs is added up. These
are estimates: they rank forms of a program, and are no measurement.
"""

from collections.abc import Callable
from collections.abc import Sequence
import contextlib
import time
from typing import Any

import jax
import ml_collections
import numpy as np

from bnonly_jax import data
from bnonly_jax import experiment
from bnonly_jax.benchmark import common
from bnonly_jax.benchmark import flax_peer
from bnonly_jax.benchmark import program
from bnonly_jax.benchmark import targets
from bnonly_jax.config import UserError
from bnonly_jax.data import device
from bnonly_jax.experiment import Experiment
from bnonly_jax.run import metrics

LARGEST = 10


def measure(config: ml_collections.ConfigDict, against: str, on: str) -> dict[str, Any]:
  """Compiles the steps of a config for a target, prints and returns what they would cost there.

  Args:
    config: of the run; a data set that is not prepared counts as CIFAR-10's or ImageNet's size.
    against: another selection whose training step is compiled too; 'flax' for that of the same
      network as one would write it in Flax; '' for none.
    on: a name that `targets.find` knows.

  Returns:
    `on`, `device`, `devices`, `memory`, `clock` and their sources, `versions`, `network`, `batch`,
    `compute_dtype`, `train`; in `estimates` what `estimate` gives for each selection, for `flax`
    and for `evaluation`; and `ratio` of the first selection to the other, or to flax.

  Raises:
    UserError: as `targets.find`, `experiment.build` and `flax_peer.network`.
  """
  target = targets.find(on)
  if against == 'torch':
    raise UserError('--against is torch, and --on compiles what JAX compiles; allowed is another'
                    ' selection, flax, or nothing. Set --against=flax.')
  run = common.built(config, target.devices)
  others = {}
  if against == 'flax':
    flax_peer.network(run)  # a network that is not written there is told before anything compiles
    others['flax'] = lambda: flax_peer.lower(run)
  elif against not in ('', config.train):
    with common.told_as_against(against):
      other = common.built(ml_collections.ConfigDict({**config.to_dict(), 'train': against}),
                           target.devices)
    others[against] = lambda: lower_training(other)
  print_head(config, target)
  found = {config.train: estimate(lambda: lower_training(run), target, run.steps_a_call),
           **{name: estimate(lower, target, run.steps_a_call if name != 'flax' else 1)
              for name, lower in others.items()},
           'evaluation': estimate(lambda: lower_evaluation(run), target, trains=False)}
  for name, row in found.items():
    row['beside'] = 0 if name == 'flax' else beside(run, name == 'evaluation')
    row['fits'] = fits(row, target)
  whole = {'on': on, 'device': target.kind, 'devices': len(target.devices),
           'memory': target.memory, 'memory_source': target.memory_source,
           'clock': target.clock, 'clock_source': target.clock_source,
           'versions': target.versions, 'network': config.network, 'batch': config.batch_size,
           'compute_dtype': config.compute_dtype, 'train': config.train, 'estimates': found}
  if others:
    first, second = found[config.train], found[next(iter(others))]
    whole['ratio'] = {name: value / second[name] for name, value in first.items()
                      if type(value) in (int, float) and second.get(name)}
  _print(whole)
  return whole


def print_fit(config: ml_collections.ConfigDict, on: str) -> None:
  """Compiles the steps for a target and prints whether they fit into its memory.

  Raises:
    UserError: as `targets.find` and `experiment.build`.
  """
  target = targets.find(on)
  run = common.built(config, target.devices)
  print_head(config, target)
  rows = {'training': estimate(lambda: lower_training(run), target),
          'evaluation': estimate(lambda: lower_evaluation(run), target)}
  for name, row in rows.items():
    row['beside'] = beside(run, name == 'evaluation')
    row['fits'] = fits(row, target)
  _print_columns(rows, _MEMORY, {})


def lower_training(run: Experiment) -> jax.stages.Lowered:
  """Lowers a call of the training step: as many steps as a run makes in one."""
  return run.train_step.lower(*experiment.train_arguments(run, run.steps_a_call))


def lower_evaluation(run: Experiment) -> jax.stages.Lowered:
  """Lowers the evaluation step."""
  state, frozen, whole, *_ = experiment.train_arguments(run)
  shape, info, devices = jax.ShapeDtypeStruct, run.info, len(run.target.devices)
  share = (devices, run.eval_batch_size // devices)
  batch = shape(share, np.int32)
  if whole is None:
    batch = data.Images(shape((*share, *info.image_shape), np.uint8), batch)
  else:
    size = device.row_size(info.image_shape)
    whole = data.Images(shape((info.test_images, size), np.uint8),
                        shape((info.test_images,), np.int32))
  return run.eval_step.lower(state, frozen, whole, (batch, shape(share, np.float32)))


def beside(run: Experiment, evaluation: bool) -> int:
  """Returns the bytes that lie on each device during a step without being its arguments.

  While it trains that is a resident test set, while it evaluates the training set and the
  optimizer's state.
  """
  state, _, whole, *_ = experiment.train_arguments(run)
  if whole is None:
    images = 0
  else:
    images = run.info.train_images if evaluation else run.info.test_images
  optimizer = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state.opt_state))
  return images * (device.row_size(run.info.image_shape) + 4) + (optimizer if evaluation else 0)


def fits(row: dict[str, Any], target: targets.Target) -> bool | None:
  """Returns whether a step and what lies beside it fit into a device; None: its size is unknown."""
  if 'told' in row:
    return False
  return None if target.memory is None else row['peak'] + row['beside'] <= target.memory


def estimate(lower: Callable[[], jax.stages.Lowered], target: targets.Target, steps: int = 1,
             trains: bool = True) -> dict[str, Any]:
  """Compiles a program and adds up what its compiler says of it.

  Args:
    lower: gives the program.
    target: that it is lowered for.
    steps: how many it makes in a call, by which all but memory and seconds is divided.
    trains: whether it has a backward pass.

  Returns:
    `lower_seconds` and `compile_seconds`; of a program that does not fit only `told` besides, what
    the compiler says of it. Else what `common.memory` gives, `all_reduces`, `all_reduced` bytes
    that each device puts into them, and `stages`. Of a TPU `cycles`, `milliseconds`, for each stage
    too, and the `largest` operations; of a GPU `kernels`, `bytes`, for each stage too, and `kinds`.
  """
  start = time.perf_counter()
  lowered = lower()
  row = {'lower_seconds': time.perf_counter() - start}
  start = time.perf_counter()
  try:
    with _without_cache():
      compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    told = targets.out_of_memory(error)
    if not told:
      raise
    return {**row, 'compile_seconds': time.perf_counter() - start, 'told': told}
  row.update(compile_seconds=time.perf_counter() - start, **common.memory(compiled))
  parsed = program.parse(compiled.as_text())
  runs = list(program.runs(parsed))
  row['all_reduces'], row['all_reduced'] = (x / steps for x in program.reduced(runs, parsed))
  tpu = target.kind.startswith('TPU')
  return {**row, **(_cycles(runs, target, steps, trains) if tpu else
                    _kernels(runs, parsed, steps, trains))}


@contextlib.contextmanager
def _without_cache():
  """Nothing that was compiled before is taken, so that the seconds are those of compiling."""
  before = jax.config.jax_enable_compilation_cache
  jax.config.update('jax_enable_compilation_cache', False)
  try:
    yield
  finally:
    jax.config.update('jax_enable_compilation_cache', before)


def _cycles(runs: Sequence[program.Run], target, steps, trains):
  """A TPU's cycles a step: of the whole, of each stage, and of the largest operations."""
  def both(cycles):
    return {'cycles': cycles / steps, **({'milliseconds': cycles / steps / target.clock * 1e3}
                                         if target.clock else {})}

  costs = [(run.operation.cycles * run.times, run) for run in runs if run.operation.cycles]
  stages = dict.fromkeys(program.STAGES, 0)
  for cycles, run in costs:
    stages[program.stage(run.operation, trains)] += cycles
  largest = sorted(costs, key=lambda pair: -pair[0])[:LARGEST]
  return {**both(sum(cycles for cycles, _ in costs)),
          'stages': {name: both(cycles) for name, cycles in stages.items()},
          'largest': [{**both(cycles), 'times': run.times / steps,
                       'stage': program.stage(run.operation, trains),
                       'shape': program.largest(run.operation.shape),
                       'scope': run.operation.scope}
                      for cycles, run in largest]}


def _kernels(runs: Sequence[program.Run], parsed, steps, trains):
  """A GPU's kernels and bytes a step: of the whole, of each stage, and by kind."""
  none = lambda: {'kernels': 0, 'bytes': 0}
  whole, stages, kinds = none(), {name: none() for name in program.STAGES}, {}
  for run in runs:
    operation = run.operation
    moved = program.moved(run, parsed) * run.times / steps
    for row in (whole, stages[program.stage(operation, trains)],
                kinds.setdefault(program.kernel(operation), none())):
      row['kernels'] += run.times / steps
      row['bytes'] += moved
  return {**whole, 'stages': stages,
          'kinds': dict(sorted(kinds.items(), key=lambda pair: -pair[1]['bytes']))}


def print_head(config: ml_collections.ConfigDict, target: targets.Target) -> None:
  """Prints what is compiled for what, and that all that follows is an estimate."""
  versions = ', '.join(f'{name} {version}' for name, version in target.versions.items())
  memory = f'{target.memory / 2**30:.1f} GiB' if target.memory else 'unknown'
  lines = [f'{config.network}, batch {config.batch_size}, {config.compute_dtype}, compiled for'
           f' {target.name}: {len(target.devices)} {target.kind} device(s), which are not there.',
           f"All of this is the compiler's estimate ({versions}); nothing was run or measured.",
           f'memory of a device: {memory} ({target.memory_source})']
  if target.clock:
    lines.append(f'clock: {target.clock / 1e9:.2f} GHz ({target.clock_source})')
  for line in lines:
    metrics.console.print(line)


_MEMORY = {'arguments': ('MB', 1e-6), 'temporary': ('MB', 1e-6), 'peak': ('MB', 1e-6),
           'beside': ('MB', 1e-6), 'lower_seconds': ('', 1), 'compile_seconds': ('', 1)}
_COST = {'cycles': ('', 1), 'milliseconds': ('', 1), 'kernels': ('', 1), 'bytes': ('MB', 1e-6)}
_REDUCED = {'all_reduces': ('', 1), 'all_reduced': ('kB', 1e-3)}


def _print(whole):
  rows, ratio = whole['estimates'], whole.get('ratio', {})
  _print_columns(rows, {**_MEMORY, **_REDUCED, **_COST}, ratio)
  for unit in ('milliseconds', 'cycles', 'kernels', 'bytes'):
    stages = {name: {stage: row['stages'][stage][unit] for stage in row['stages']}
              for name, row in rows.items() if unit in row}
    if stages and not (unit == 'cycles' and whole['clock']):
      metrics.console.print(f'{_COST[unit][0] or unit} of a step, by stage:')
      _print_columns(stages, dict.fromkeys(program.STAGES, ('', _COST[unit][1])), {})
  for name, row in rows.items():
    if 'largest' in row:
      metrics.console.print(f'the largest operations, {name} (cycles, times, stage, shape, where):')
      for each in row['largest']:
        metrics.console.print(f'  {each["cycles"]:>11,.0f} {each["times"]:>4g}  {each["stage"]:9}'
                              f' {each["shape"]:22}'
                              f' {each["scope"][-60:]}')
    elif 'kinds' in row:
      metrics.console.print(f'kernels by kind, {name} (kernels, MB):')
      for kind, each in list(row['kinds'].items())[:LARGEST]:
        metrics.console.print(f'  {each["kernels"]:>7,.4g} {each["bytes"] / 1e6:>10,.4g}  {kind}')
  if whole['device'].startswith('TPU'):
    metrics.console.print('All-reduces and copies between memories have no estimate: cycles are'
                          ' without them.')


def _print_columns(rows, units, ratio):
  """Prints a line for each figure that any of the rows has, a column for each row."""
  lines = []
  if all('fits' in row for row in rows.values()):
    words = {True: 'yes', False: 'no', None: 'unknown'}
    lines.append(('fits', *(words[row['fits']] for row in rows.values()), *([''] * bool(ratio))))
  for name, (unit, factor) in units.items():
    if any(name in row for row in rows.values()):
      lines.append((f'{name.replace("_", " ")} {unit}'.strip(),
                    *(f'{row[name] * factor:,.4g}' if name in row else ''
                      for row in rows.values()),
                    *([f'{ratio[name]:.2f}' if name in ratio else ''] if ratio else [])))
  metrics.print_columns(('', *rows, *(['ratio'] if ratio else [])), lines)
  for name, row in rows.items():
    if 'told' in row:
      metrics.console.print(f'{name}: {row["told"]}')
