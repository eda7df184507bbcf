"""A run to export, and networks of random numbers that need none."""

import functools
import pathlib
from typing import Any

import jax
import numpy as np
from tiny import tiny_config

from bnonly_jax import analysis
from bnonly_jax import data
from bnonly_jax import experiment
from bnonly_jax import masks
from bnonly_jax import train
from bnonly_jax.config import default_config
from bnonly_jax.export import network
from bnonly_jax.export.network import Trained


@functools.cache
def trained_run(data_dir: pathlib.Path) -> pathlib.Path:
  """Returns the folder of a run of a ResNet-8."""
  folder = data_dir.parent / f'{data_dir.name}_export'
  train.train_and_evaluate(tiny_config(data_dir, epochs=1), folder)
  return folder


def run_without_training(selection: str, folder: pathlib.Path, name: str = 'cifar_resnet8',
                         seed: int = 0, **fields: Any) -> analysis.Loaded:
  """Returns what `analysis.load` would of a run whose trained weights are a little off their start.

  No run, no compilation.
  """
  config = default_config()
  config.update(network=name, train=selection, seed=seed, **fields)
  info = data.Info(None, '', (32, 32, 3), (32, 32, 3), tuple('0123456789'), 50_000, 10_000, 'test')
  run = experiment.build(config, info, jax.devices()[:1])
  variables = experiment.draw_variables(run, seed)
  mask = masks.of_config(config, run.parameters, seed)
  trainable, frozen = masks.partition(variables['params'], mask)
  params = masks.merge(jax.tree.map(lambda x: x + np.float32(0.1), trainable), frozen)
  return analysis.Loaded(folder, config, run, 7, {**variables, 'params': jax.device_get(params)})


@functools.cache
def random_network(name: str, side: int, channels: int = 3) -> Trained:
  """Returns a network with norms of all sizes, a third of whose gammas are below 0.01."""
  config = default_config()
  config.update(network=name, batch_size=4)
  info = data.Info(None, '', (side, side, channels), (side, side, channels), tuple('abcdefg'), 4, 4,
                   'test')
  built = experiment.build(config, info, jax.devices()[:1])
  rng = np.random.default_rng(0)

  def craft(path, leaf):
    leaf_name = path[-1].key
    sizes = {'scale': rng.choice([-1, 1], leaf.shape) * np.where(
                 rng.random(leaf.shape) < 1 / 3, 0.005, rng.uniform(0.3, 1, leaf.shape)),
             'bias': rng.normal(0, 0.5, leaf.shape), 'mean': rng.normal(0, 0.3, leaf.shape),
             'var': rng.uniform(0.5, 2, leaf.shape)}
    return np.float32(sizes.get(leaf_name, leaf))

  variables = jax.tree_util.tree_map_with_path(craft, experiment.draw_variables(built, 0))
  return Trained(built.network, variables, config, built.info,
                 built.preparation._replace(pad=0, flip=False), 0)


def logits(trained: Trained, number: int = 4) -> np.ndarray:
  """Returns the logits of random images, compiled."""
  images = np.random.default_rng(1).integers(0, 256, (number, *trained.info.image_shape), np.uint8)
  return np.asarray(jax.jit(network.classifier(trained))(trained.variables, images))
