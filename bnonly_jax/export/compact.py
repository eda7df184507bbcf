"""A trained network without the features that are off: smaller, and the same logits."""

import functools
import json
import os
import pathlib
import time
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy

from bnonly_jax import analysis
from bnonly_jax import describe
from bnonly_jax import steps
from bnonly_jax.config import UserError
from bnonly_jax.export import loading
from bnonly_jax.export import network
from bnonly_jax.export import plain
from bnonly_jax.export import prune
from bnonly_jax.export.network import Trained
from bnonly_jax.run import metrics

_FORMAT = 1
_BATCH, _CALLS = 100, 30  # images in a timed call; calls of each network


def compact(trained: Trained, threshold: float, backend: str = 'cpu') -> Trained:
  """Returns a network as plain convolutions, without the features whose abs(gamma) is small.

  Its logits are those of the network whose gammas below the threshold are 0, up to rounding. What
  it computes is float32 throughout.

  Args:
    trained: a network of `models` with BatchNorm.
    threshold: 0 removes nothing but what has a gamma of 0.
    backend: for which it is to be fast: cpu, gpu or tpu.

  Raises:
    UserError: it is another network.
  """
  nodes, tensors = plain.fold(trained, threshold)
  nodes, tensors = prune.prune(nodes, tensors, trained.info.image_shape)
  return trained._replace(
      network=plain.Plain(nodes, backend), variables={'params': tensors},
      preparation=trained.preparation._replace(dtype='float32'))


def write(small: Trained, output: str | pathlib.Path, threshold: float) -> None:
  """Writes what `compact` returned: tensors in the safetensors format, `network` in its metadata.

  Raises:
    UserError: the file cannot be written.
  """
  about = {'format': _FORMAT, 'from': small.config.network, 'step': small.step,
           'threshold': threshold, 'preprocessing': network.preprocessing(small),
           'class_names': list(small.info.class_names), 'nodes': small.network.nodes}
  with network.written(output) as path:
    safetensors.numpy.save_file(small.variables['params'], path, {'network': json.dumps(about)})


def read(path: str | os.PathLike) -> tuple[plain.Plain, dict[str, Any], dict[str, Any]]:
  """Reads what `write` wrote.

    net, variables, about = compact.read('net.compact')
    logits = net.apply(variables, images)  # normalised as about['preprocessing'] says

  Raises:
    UserError: it is no such file.
  """
  try:
    with safetensors.safe_open(path, 'numpy') as file:
      about = json.loads((file.metadata() or {})['network'])
      params = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if about['format'] != _FORMAT:
      raise ValueError(f'format {about["format"]}')
    return plain.Plain(about['nodes']), {'params': params}, about
  except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
    raise UserError(f'{path} is no compact network ({type(error).__name__}: {error}). Write it by'
                    ' python -m bnonly_jax.export compact.') from error


def accuracy(loaded: analysis.Loaded, small: Trained) -> float:
  """Evaluates a compact network on the test set of the run that it is from.

  Raises:
    UserError: as `analysis.evaluate`.
  """
  run = loaded.experiment
  step = steps.eval_step(small.network, small.preparation, run.target)
  of_small = loaded._replace(experiment=run._replace(eval_step=step),
                             variables={**small.variables, 'batch_stats': {}})
  return analysis.evaluate(of_small, small.variables['params'])[0]['test_accuracy']


def sizes(trained: Trained) -> tuple[int, int]:
  """Returns how many numbers a network has, running statistics too, and its FLOPs an image."""
  image = jax.ShapeDtypeStruct((1, *trained.info.image_shape), np.float32)
  apply = functools.partial(trained.network.apply, train=False)
  flops, _ = describe.cost(jax.make_jaxpr(apply)(trained.variables, image).jaxpr)
  return sum(leaf.size for leaf in jax.tree.leaves(trained.variables)), flops


def milliseconds(networks: list[Trained]) -> list[float]:
  """Measures how long each network takes for an image, in batches, by turns: the fastest call.

  What else the machine does makes calls slower, never faster.
  """
  images = np.zeros((_BATCH, *networks[0].info.image_shape), np.uint8)
  calls, times = [], [[] for _ in networks]
  target = steps.Target((jax.devices()[0],), jax.default_backend())
  for trained in networks:
    variables = jax.device_put(trained.variables)
    program = steps.compiled(
        jax.jit(network.classifier(trained)).lower(variables, images), target)
    jax.block_until_ready(program(variables, images))
    calls.append(lambda program=program, variables=variables: program(variables, images))
  for _ in range(_CALLS):
    for call, found in zip(calls, times, strict=True):
      start = time.perf_counter()
      jax.block_until_ready(call())
      found.append((time.perf_counter() - start) / _BATCH * 1000)
  return [min(found) for found in times]


def export(source: str, output: str, step: int | None = None, data_dir: str = '',
           replicate: int = 0, threshold: float = 0.01) -> None:
  """Writes a network without its small gammas, and prints what that does at each threshold.

  The accuracy is told of a run alone: with a file of `export seed` there is no test set.

  Raises:
    UserError: as `loading.open_network`, `analysis.evaluate` and `compact`, or the file cannot be
      written.
  """
  loaded = None if loading.is_file(source) else analysis.load(source, step, data_dir, replicate)
  trained = network.of_run(loaded, replicate) if loaded else loading.load(source)
  thresholds = sorted({0.0, *analysis.THRESHOLDS, threshold})
  networks = [trained, *(compact(trained, t, jax.default_backend()) for t in thresholds)]
  write(networks[1 + thresholds.index(threshold)], output, threshold)
  accuracies = ['-'] * len(networks)
  if loaded:
    before, = analysis.evaluate(loaded, loaded.variables['params'])
    accuracies = [f'{share:.4f}' for share in (
        before['test_accuracy'], *(accuracy(loaded, small) for small in networks[1:]))]
  rows = [[what, f'{numbers:,}', f'{flops:,}', f'{took:.4f}', right]
          for what, (numbers, flops), took, right in zip(
              ['as trained', *(f'{t:g}' for t in thresholds)], map(sizes, networks),
              milliseconds(networks), accuracies, strict=True)]
  metrics.print_columns(('threshold', 'numbers', 'FLOPs', 'ms an image', 'test accuracy'), rows)
  size = pathlib.Path(output).expanduser().stat().st_size
  metrics.console.print(f'{output}: {size:,} bytes, threshold {threshold:g}; ms an image: the'
                        f' fastest of {_CALLS} batches of {_BATCH} on'
                        f' {jax.devices()[0].device_kind}')
