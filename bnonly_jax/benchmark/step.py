"""`benchmark step`: what a training step costs, beside another's: see `measure`."""

import contextlib
import time
from typing import Any

import jax
import ml_collections

from bnonly_jax import describe
from bnonly_jax.benchmark import against_torch
from bnonly_jax.benchmark import common
from bnonly_jax.benchmark import flax_peer
from bnonly_jax.benchmark import program
from bnonly_jax.benchmark.peaks import PEAKS
from bnonly_jax.config import UserError
from bnonly_jax.run import metrics


def first_step(config: ml_collections.ConfigDict) -> float:
  """Returns the seconds that the first step takes: tracing, compiling, running."""
  _, call, _ = common.training_step(config)
  start = time.perf_counter()
  call()
  return time.perf_counter() - start


def costs(config: ml_collections.ConfigDict, compiled: jax.stages.Compiled) -> dict[str, Any]:
  """Returns what the compiled step says of itself.

  Returns:
    What `common.memory` gives, `flops` of the global batch, and what runs in a call: the number of
    `convolutions` and `all_reduced` bytes.
  """
  parsed = program.parse(compiled.as_text())
  found = list(program.runs(parsed))
  return {
      **common.memory(compiled),
      'flops': (describe.describe(config)['flops_step'] * config.batch_size
                * config.replicates),
      'convolutions': program.convolutions(found, parsed),
      'all_reduced': program.reduced(found, parsed)[1]}


def measure(config: ml_collections.ConfigDict, against: str = 'all',
            compile_limit: float = 0) -> dict[str, Any]:
  """Measures the step of a config, and of the same with `against` trained, in turn.

  Args:
    config: of the run; a data set that is not prepared counts as CIFAR-10's or ImageNet's size.
    against: another selection, 'torch' or 'flax' for their step of the same selection, or '' for
      none.
    compile_limit: seconds that torch.compile may take.

  Returns:
    `device`, `devices`, `jax`, `network`, `batch`, `compute_dtype`, and in `selections` for each,
    and for `flax`, what `costs` gives, `step_seconds` (the median of seven), `images_per_second`
    (of all replicates) and, on a device in PEAKS, `share_of_flops` and `share_of_memory` of what it
    can do: the latter by what convolutions and products read and write, so at the least.
    Against another selection also `start_seconds` (of a new process to the end of its first step)
    and `compile_seconds` (tracing included). Against PyTorch what `_torch_row` gives as `torch`.
    `ratio` is of the first to the second.
  """
  torch = against == 'torch'
  others = [] if against in ('', 'torch', config.train) else [against]
  if others and against != 'flax':
    with common.told_as_against(against):
      describe.describe(_training(config, against))
  with contextlib.ExitStack() as opened:
    peers = against_torch.start(config, compile_limit, opened) if torch else {}
    built, together, result = [], [], {}
    for name in (config.train, *others):
      if name == 'flax':
        compile_step, call = flax_peer.training_step(config)
        number = 1
      else:
        compile_step, call, number = common.training_step(_training(config, name))
      built.append(call)
      together.append(number)
      result[name] = costs(_training(config, config.train if name == 'flax' else name),
                           compile_step())
    if torch:
      errors = against_torch.wait_for_all(peers, compile_limit)
      seconds, number = _steps_in_turn(built[0], peers)
      seconds[0] /= together[0]
    else:
      seconds = [s / n for s, n in zip(common.interleaved_seconds(built), together, strict=True)]
  for (name, row), step_seconds in zip(result.items(), seconds, strict=False):
    row.update(_rates(_training(config, config.train if name == 'flax' else name), row,
                      step_seconds, start=not torch and 'flax' not in result))
  whole = {'device': jax.devices()[0].device_kind, 'devices': jax.local_device_count(),
           'jax': jax.__version__, 'network': config.network, 'batch': config.batch_size,
           'compute_dtype': config.compute_dtype, 'selections': result}
  if torch:
    whole.update(steps_a_measurement=number, torch=_torch_row(config, peers, seconds[1:], errors))
  rows = _rows(whole)
  if len(rows) == 2:
    first, second = rows.values()
    whole['ratio'] = {name: first[name] / second[name] for name in first if second.get(name)}
  _print(whole)
  return whole


def _training(config, selection):
  return ml_collections.ConfigDict({**config.to_dict(), 'train': selection})


def _rates(config, row, step_seconds, start):
  """What the time of a step gives; with `start` also that of a new process to its first step."""
  found = {'step_seconds': step_seconds,
           'images_per_second': config.batch_size * config.replicates / step_seconds}
  if start:
    start_seconds, first = common.child(first_step, config)
    found.update(start_seconds=start_seconds, compile_seconds=first - step_seconds)
  kind, devices = jax.devices()[0].device_kind, jax.local_device_count()
  if kind in PEAKS:
    moved = describe.describe(config)['moved_step'] * config.replicates / devices
    found.update(share_of_flops=row['flops'] / devices / step_seconds / PEAKS[kind].flops,
                 share_of_memory=moved / step_seconds / PEAKS[kind].memory)
  return found


def _steps_in_turn(ours, peers):
  """The median seconds of our step and of each peer's, and how many steps were timed together.

  They are so many that the way of a request to another process does not count.
  """
  def repeat(number):
    for _ in range(number):
      ours()

  calls = [repeat, *peers.values()]
  try:
    first = []
    for call in calls:
      call(1)  # ours compiles
      start = time.perf_counter()
      call(1)
      first.append(time.perf_counter() - start)
    number = max(1, round(0.2 / min(first)))
    seconds = common.interleaved_seconds([lambda call=call: call(number) for call in calls])
  except against_torch.Failed as error:
    raise UserError(f'--against=torch: PyTorch failed: {error}. Try a smaller --config.batch_size,'
                    ' or --compile_limit=0.') from error
  return [s / number for s in seconds], number


def _torch_row(config, peers, seconds, errors):
  """What there is to say of PyTorch: of its fastest mode, and the step seconds of all.

  `threads` are those of a CPU, `peak` the most bytes that PyTorch held on a GPU.
  """
  by_mode = dict(zip(peers, seconds, strict=True))
  mode = min(by_mode, key=by_mode.get)
  said = peers[mode].answer
  gpu = said['peak'] is not None
  return {'mode': mode, 'step_seconds': by_mode[mode],
          'images_per_second': config.batch_size / by_mode[mode],
          **({'peak': said['peak']} if gpu else {'threads': said['threads']}),
          'version': said['version'], 'step_seconds_by_mode': by_mode, 'errors': errors,
          'precision_of_both': against_torch.precision(config),
          'allocators': (
              'JAX takes GPU memory as it needs it (XLA_PYTHON_CLIENT_PREALLOCATE=false), PyTorch'
              ' by its caching allocator' if gpu else
              'glibc keeps freed memory in both (mallopt, command_line.keep_freed_memory);'
              " PyTorch's threads wait as by OMP_WAIT_POLICY="
              f'{said["omp_wait_policy"]}')}


def _rows(whole):
  return {**whole['selections'], **({'torch': whole['torch']} if 'torch' in whole else {})}


def _print(whole):
  units = {'step_seconds': ('ms', 1e3), 'start_seconds': ('s', 1), 'compile_seconds': ('s', 1),
           'temporary': ('MB', 1e-6), 'arguments': ('MB', 1e-6), 'peak': ('MB', 1e-6),
           'flops': ('GFLOP', 1e-9), 'all_reduced': ('kB', 1e-3)}
  rows = _rows(whole)
  print(f'{whole["network"]}, batch {whole["batch"]}, {whole["devices"]} {whole["device"]}'
        ' device(s)')
  lines = []
  for name in next(iter(rows.values())):
    unit, factor = units.get(name, ('', 1))
    ratio = whole.get('ratio', {}).get(name)
    lines.append((f'{name.replace("_", " ")} {unit}'.strip(),
                  *(f'{row[name] * factor:,.4g}' if name in row else '' for row in rows.values()),
                  *([f'{ratio:.2f}' if ratio else ''] if 'ratio' in whole else [])))
  metrics.print_columns(('', *rows, *(['ratio'] if 'ratio' in whole else [])), lines)
  if 'torch' in whole:
    row = whole['torch']
    print(f'PyTorch {row["version"]}, channels_last, '
          + ', '.join(f'{mode} {1e3 * seconds:,.4g} ms'
                      for mode, seconds in row['step_seconds_by_mode'].items())
          + (f', {row["threads"]} threads' if 'threads' in row else '')
          + f'; both: {row["precision_of_both"]}; medians of {common.REPEATS} times'
          f' {whole["steps_a_measurement"]} step(s)\nmemory: {row["allocators"]}')
    for mode, error in row['errors'].items():
      print(f'PyTorch, {mode}: failed: {error}')
