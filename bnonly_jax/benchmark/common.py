"""What the benchmarks share: medians, new processes, the compiled step, tables."""

from collections.abc import Callable
from collections.abc import Sequence
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from typing import Any

import jax
import ml_collections
import numpy as np

from bnonly_jax import data
from bnonly_jax import describe
from bnonly_jax import optimizer
from bnonly_jax import steps
from bnonly_jax import train
from bnonly_jax.data import augment

REPEATS = 7


def median_seconds(call: Callable[[], Any]) -> float:
  """Returns the median time of seven calls after a first one."""
  return interleaved_seconds([call])[0]


def interleaved_seconds(calls: Sequence[Callable[[], Any]]) -> list[float]:
  """Returns the median time of each of the calls, made in turn: seven times after a first one."""
  seconds = [[] for _ in calls]
  for repeat in range(REPEATS + 1):
    for call, times in zip(calls, seconds, strict=True):
      start = time.perf_counter()
      call()
      if repeat:
        times.append(time.perf_counter() - start)
  return [sorted(times)[REPEATS // 2] for times in seconds]


def child(call: Callable[[ml_collections.ConfigDict], Any], config: ml_collections.ConfigDict,
          cores: Sequence[int] | None = None, devices: int = 0) -> tuple[float, Any]:
  """Runs a function of this package in a new process.

  Args:
    call: the function.
    config: its argument.
    cores: which ones the process has; None: all.
    devices: number of simulated ones; 0: as this process.

  Returns:
    Seconds from the start of the process to its answer, and the answer, as JSON holds it.
  """
  code = ('import json, os, sys\n'
          'cores = json.loads(sys.argv[3])\n'
          'if cores: os.sched_setaffinity(0, cores)\n'
          'import ml_collections\n'
          'from bnonly_jax import command_line\n'
          'command_line.keep_freed_memory()\n'
          'config = ml_collections.ConfigDict(json.loads(sys.argv[2]))\n'
          'import importlib\n'
          'module, _, name = sys.argv[1].rpartition(".")\n'
          'print(json.dumps(getattr(importlib.import_module(module), name)(config)), flush=True)')
  # What this process has compiled would make the new one's start look short.
  environment = {**os.environ, 'JAX_ENABLE_COMPILATION_CACHE': 'false'}
  if devices:
    environment.update(JAX_PLATFORMS='cpu', XLA_FLAGS=(
        f'{os.environ.get("XLA_FLAGS", "")} --xla_force_host_platform_device_count={devices}'))
  start = time.perf_counter()
  with tempfile.TemporaryFile('w+') as said, subprocess.Popen(
      [sys.executable, '-c', code, f'{call.__module__}.{call.__name__}', config.to_json(),
       json.dumps(cores)],
      stdout=subprocess.PIPE, stderr=said, text=True, env=environment) as process:
    line = process.stdout.readline()
    seconds = time.perf_counter() - start  # without the process's end
    if process.wait():
      said.seek(0)
      raise RuntimeError(said.read())
  return seconds, json.loads(line)


def steps_a_call(config: ml_collections.ConfigDict) -> int:
  """Returns how many training steps a run of this config makes in one call on these devices."""
  return config.steps_per_call if steps.loops_pay() else 1


def training_step(config: ml_collections.ConfigDict
                  ) -> tuple[Callable[[], jax.stages.Lowered], Callable[[], None]]:
  """Builds the training step for all devices, on random images, so that no data set is needed.

  Returns:
    A function that lowers it for the compiler, and one that makes `steps_a_call(config)` steps in
    one call, compiling it first.
  """
  planned = train.plan(config, describe.find_or_assume(config)[0])
  rate = optimizer.schedule(config.optimizer, config.batch_size, 100, 10)
  tx = optimizer.create(config.optimizer, rate, planned.mask)
  devices = jax.local_device_count()
  state, frozen = steps.stack([
      steps.create_state(train.draw_variables(config, planned), planned.mask, tx)
  ] * config.replicates)
  state, frozen = steps.place((state, steps.store(frozen, config.compute_dtype)), devices)
  step = steps.train_step(planned.network, tx, rate, 0, 0, False,
                          augment.normaliser(config.data.mean, config.data.std,
                                             config.compute_dtype), config.replicates)
  images = np.random.default_rng(0).integers(
      0, 256, (config.batch_size, *planned.info.image_shape), np.uint8)
  whole, batch = None, data.Images(images, np.zeros(config.batch_size, np.int32))
  together = [n for n in (config.replicates, steps_a_call(config)) if n > 1]
  if together:  # these choose from one data set
    whole, batch = steps.place(batch, devices), np.arange(config.batch_size, dtype=np.int32)
    for number in together:
      batch = np.stack([batch] * number, -1)
  batch = next(steps.feed([batch], devices))

  def run():
    nonlocal state
    state, _ = jax.block_until_ready(step(state, frozen, whole, batch))

  return lambda: step.lower(state, frozen, whole, batch), run


def step_seconds(config: ml_collections.ConfigDict) -> float:
  """Returns the median time of a training step."""
  return median_seconds(training_step(config)[1]) / steps_a_call(config)


def all_reduced_bytes(config: ml_collections.ConfigDict) -> int:
  """Returns how many bytes each device puts into the all-reduces of the compiled step."""
  lower, _ = training_step(config)
  return all_reduced_bytes_of(lower().compile().as_text())


def all_reduced_bytes_of(program: str) -> int:
  """Sums the operands of the all-reduces in a program's text; one in a loop counts once."""
  sizes = {'pred': 1, 's32': 4, 'u32': 4, 'bf16': 2, 'f16': 2, 'f32': 4, 'f64': 8}
  total = 0
  for line in program.splitlines():
    found = re.match(r'\s*(?:ROOT )?\S+ = (.*?) all-reduce(?:-start)?\(', line)
    for kind, shape in re.findall(r'(\w+)\[([\d,]*)\]', found[1]) if found else ():
      total += sizes[kind] * math.prod(int(n) for n in shape.split(',') if n)
  return total
