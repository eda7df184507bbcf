"""`benchmark step`: what a training step costs, for a selection and for another beside it."""

import re
import time
from typing import Any

import jax
import ml_collections

from bnonly_jax import describe
from bnonly_jax.benchmark import common
from bnonly_jax.benchmark.peaks import PEAKS


def first_step(config: ml_collections.ConfigDict) -> float:
  """Returns the seconds that the first step takes: tracing, compiling, running."""
  _, run = common.training_step(config)
  start = time.perf_counter()
  run()
  return time.perf_counter() - start


def costs(config: ml_collections.ConfigDict, lowered: jax.stages.Lowered) -> dict[str, Any]:
  """Returns what the compiled step says of itself.

  Returns:
    Bytes `temporary`, `arguments` and `peak` (both and the outputs that are not arguments given
    back) on one device, `flops` of the global batch, `convolutions` in the program (one in a loop
    counts once), `all_reduced` bytes, and `accessed` bytes by XLA's estimate.
  """
  compiled = lowered.compile()
  memory = compiled.memory_analysis()
  text = compiled.as_text()
  arguments, temporary = memory.argument_size_in_bytes, memory.temp_size_in_bytes
  new_outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
  return {
      'temporary': temporary, 'arguments': arguments,
      'peak': arguments + temporary + new_outputs,
      'flops': (describe.describe(config)['flops_step'] * config.batch_size
                * config.replicates),
      'convolutions': len(re.findall(r' convolution\(|custom_call_target="__cudnn\$conv', text)),
      'all_reduced': common.all_reduced_bytes_of(text),
      'accessed': (compiled.cost_analysis() or {}).get('bytes accessed', 0.0)}


def measure(config: ml_collections.ConfigDict, against: str = 'all') -> dict[str, Any]:
  """Measures the step of a config, and of the same with `against` trained, in turn.

  Args:
    config: of the run; a data set that is not prepared counts as CIFAR-10's or ImageNet's size.
    against: another selection, or '' for none.

  Returns:
    `device`, `devices`, `batch`, and for each selection what `costs` gives and `step_seconds`
    (the median of seven), `images_per_second` (of all replicates), `start_seconds` (from the start
    of a new process to the end of its first step) and `compile_seconds` (tracing included); `ratio`
    of the first to the second; on a device in PEAKS also `share_of_flops` and `share_of_memory` of
    what it can do.
  """
  selections = list(dict.fromkeys(s for s in (config.train, against) if s))
  built, result = {}, {}
  for selection in selections:
    config = ml_collections.ConfigDict(config.to_dict())
    config.train = selection
    lower, built[selection] = common.training_step(config)
    result[selection] = costs(config, lower())
  seconds = common.interleaved_seconds(list(built.values()))
  kind, devices = jax.devices()[0].device_kind, jax.local_device_count()
  for selection, step_seconds in zip(selections, seconds, strict=True):
    config.train = selection
    start_seconds, first = common.child(first_step, config)
    row = result[selection]
    row.update(step_seconds=step_seconds,
               images_per_second=config.batch_size * config.replicates / step_seconds,
               start_seconds=start_seconds, compile_seconds=first - step_seconds)
    if kind in PEAKS:
      row['share_of_flops'] = row['flops'] / devices / step_seconds / PEAKS[kind].flops
      row['share_of_memory'] = row['accessed'] / step_seconds / PEAKS[kind].memory
  whole = {'device': kind, 'devices': devices, 'batch': config.batch_size,
           'network': config.network, 'selections': result}
  if len(selections) == 2:
    first, second = result.values()
    whole['ratio'] = {name: first[name] / second[name] for name in first if second[name]}
  _print(whole)
  return whole


def _print(whole):
  units = {'step_seconds': ('ms', 1e3), 'start_seconds': ('s', 1), 'compile_seconds': ('s', 1),
           'temporary': ('MB', 1e-6), 'arguments': ('MB', 1e-6), 'peak': ('MB', 1e-6),
           'accessed': ('MB', 1e-6), 'flops': ('GFLOP', 1e-9), 'all_reduced': ('kB', 1e-3)}
  selections = whole['selections']
  print(f'{whole["network"]}, batch {whole["batch"]}, {whole["devices"]} {whole["device"]}'
        ' device(s)')
  lines = []
  for name in next(iter(selections.values())):
    unit, factor = units.get(name, ('', 1))
    ratio = whole.get('ratio', {}).get(name)
    lines.append((f'{name.replace("_", " ")} {unit}'.strip(),
                  *(f'{row[name] * factor:,.4g}' for row in selections.values()),
                  *([f'{ratio:.2f}' if ratio else ''] if 'ratio' in whole else [])))
  common.print_table(('', *selections, *(['ratio'] if 'ratio' in whole else [])), lines)
