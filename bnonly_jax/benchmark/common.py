"""What the benchmarks share: medians, new processes, the compiled step, tables."""

from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from typing import Any

import jax
import ml_collections
import numpy as np

from bnonly_jax import data
from bnonly_jax import experiment
from bnonly_jax import steps
from bnonly_jax.benchmark import program
from bnonly_jax.config import UserError
from bnonly_jax.data import device
from bnonly_jax.experiment import Experiment
from bnonly_jax.run import teachers

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


def built(config: ml_collections.ConfigDict,
          devices: Sequence[jax.Device] | None = None) -> Experiment:
  """Builds an experiment, with or without its data set; devices are as for `experiment.build`."""
  return teachers.join(experiment.build(config, data.find_or_assume(config)[0], devices)).run


def training_step(config: ml_collections.ConfigDict
                  ) -> tuple[Callable[[], jax.stages.Compiled], Callable[[], None], int]:
  """Builds the training step for all devices, on random images, so that no data set is needed.

  Returns:
    A function that compiles it; one that makes as many steps in one call as a run does, compiling
    them first; and how many those are.
  """
  run = built(config)
  shapes = experiment.train_arguments(run, run.steps_a_call)
  state, frozen, seed = experiment.place(run, *experiment.start(run))
  random = np.random.default_rng(0)
  draw = lambda leaf: random.integers(0, 256 if leaf.dtype == np.uint8 else 10, leaf.shape,
                                      leaf.dtype)
  whole, batch = jax.tree.map(draw, shapes[2:4])
  local = run.target.local
  # What they teach does not change the time that it takes.
  taught_by = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes[5:])
  whole, taught_by = device.place((whole, taught_by), local)
  batch = next(device.send_ahead([jax.tree.map(
      lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), batch)], local))

  def call():
    nonlocal state
    state, _ = jax.block_until_ready(run.train_step(state, frozen, whole, batch, seed, *taught_by))

  compile_step = lambda: steps.compiled(run.train_step.lower(*shapes), run.target)
  return compile_step, call, run.steps_a_call


def step_seconds(config: ml_collections.ConfigDict) -> float:
  """Returns the median time of a training step."""
  _, call, number = training_step(config)
  return median_seconds(call) / number


@contextlib.contextmanager
def told_as_against(against: str) -> Iterator[None]:
  """Tells what is wrong with a selection as what it is here: the value of --against."""
  try:
    yield
  except UserError as error:
    text = str(error).replace('--config.train', '--against')
    text = text.replace(f'config.train is {against!r}', f'--against={against}')
    raise UserError(text.replace('config.train', '--against')) from error


def memory(compiled: jax.stages.Compiled) -> dict[str, int]:
  """Returns bytes on one device: `arguments`, `temporary` and `peak`.

  The peak is both and the outputs that are not arguments given back.
  """
  found = compiled.memory_analysis()
  arguments, temporary = found.argument_size_in_bytes, found.temp_size_in_bytes
  new_outputs = found.output_size_in_bytes - found.alias_size_in_bytes
  return {'arguments': arguments, 'temporary': temporary,
          'peak': arguments + temporary + new_outputs}


def all_reduced_bytes(config: ml_collections.ConfigDict) -> int:
  """Returns how many bytes each device puts into the all-reduces of the compiled step."""
  run = built(config)
  lowered = run.train_step.lower(*experiment.train_arguments(run))
  parsed = program.parse(lowered.compile().as_text())
  return program.reduced(list(program.runs(parsed)), parsed)[1]
