"""Four simulated devices for every test, and what several tests share."""

import os

os.environ['JAX_PLATFORMS'] = os.environ.get('JAX_PLATFORMS', 'cpu')
os.environ['XLA_FLAGS'] = (os.environ.get('XLA_FLAGS', '')
                           + ' --xla_force_host_platform_device_count=4')

import functools
import pathlib
from typing import Any
from typing import NamedTuple

import jax
import numpy as np
from PIL import Image
import pytest

from bnonly_jax import data
from bnonly_jax import masks
from bnonly_jax import models
from bnonly_jax import optimizer
from bnonly_jax import steps
from bnonly_jax import train
from bnonly_jax.config import default_config
from bnonly_jax.data import augment
from bnonly_jax.data import batches
from bnonly_jax.data import prepare
from bnonly_jax.data import resident
from bnonly_jax.run import metrics

BATCH = 64


class Setup(NamedTuple):
  """A tiny network with everything that a training step takes."""
  network: Any
  variables: Any
  mask: Any
  state: steps.State
  frozen: Any
  train_set: data.Images
  train_step: Any
  eval_step: Any

  def run(self, number, devices, state=None):
    """Trains, and returns state and frozen half off the device, and the metrics of each step."""
    state, frozen, train_set = steps.place(
        (self.state if state is None else state, self.frozen, self.train_set), devices)
    history = []
    for step in range(int(state.step), int(state.step) + number):
      index = batches.train_indices(0, step, len(self.train_set.labels), BATCH)
      state, metrics = self.train_step(state, frozen, train_set, index.reshape(devices, -1))
      history.append(jax.device_get(metrics))
    return jax.device_get(state), jax.device_get(frozen), history


def pad_images(images: np.ndarray, pad: int) -> np.ndarray:
  """Puts `pad` black pixels on every side of images [N, H, W, C], as a resident set has them."""
  return np.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))


@functools.cache
def pattern_images() -> data.Images:
  """256 images of random patterns, 8x8 grey and padded by one pixel; the label is the pattern's."""
  rng = np.random.default_rng(0)
  labels = rng.integers(0, 10, 256).astype(np.int32)
  patterns, noise = rng.integers(0, 200, (10, 8, 8, 1)), rng.integers(0, 56, (256, 8, 8, 1))
  return data.Images(pad_images(np.uint8(patterns[labels] + noise), 1), labels)


@functools.cache
def make_setup(selection: str = 'batchnorm', sync: bool = False, chosen: int = 0,
               double: bool = False, **optimizer_fields: float) -> Setup:
  """Builds the ResNet-8 setup; `chosen` > 0 trains besides that many weights of the stem."""
  config = default_config().optimizer
  config.update(optimizer_fields)
  network = models.create('cifar_resnet8', 10, sync_axis=steps.AXIS if sync else None)
  variables = models.initialise(network, (8, 8, 1), 0)
  variables = jax.tree.map(np.float64, variables) if double else variables
  mask = masks.make_mask(selection, variables['params'])
  if chosen:
    stem = np.zeros(variables['params']['stem_conv']['kernel'].shape, bool)
    stem.reshape(-1)[np.arange(chosen) * 3 + 1] = True
    mask['stem_conv']['kernel'] = stem
  rate = optimizer.schedule(config, 128, 100, 10)
  tx = optimizer.create(config, rate, mask)
  # On the host: what is on a device is gone after a step, which takes it over.
  state, frozen = jax.device_get(steps.create_state(variables, mask, tx))
  normalise = augment.normaliser((0.5,), (0.25,))
  if double:
    single = normalise
    normalise = lambda images: single(images).astype(np.float64)
  return Setup(network, variables, mask, state, frozen, pattern_images(),
               steps.train_step(network, tx, rate, 0, 1, True, normalise),
               steps.eval_step(network, normalise))


def data_config(name: str, data_dir: Any = '', **fields: Any) -> Any:
  """Returns a config with the data set `name` of a folder, and fields of config.data."""
  config = default_config()
  config.data.update(name=name, dir=str(data_dir), pad=0, **fields)
  return config


def write_folder(root: pathlib.Path, one_size: bool = False) -> None:
  """Writes 40 training and 11 test images in three classes, each of a random pattern."""
  rng = np.random.default_rng(0)
  for split, count in (('train', 40), ('test', 11)):
    for i in range(count):
      path = root / split / ('ant', 'bee', 'cat')[i % 3] / f'{i:02}.jpg'
      path.parent.mkdir(parents=True, exist_ok=True)
      height, width = (32, 32) if one_size else rng.integers(30, 90, 2)
      pattern = rng.integers(0, 256, (4, 4, 3), np.uint8)
      Image.fromarray(pattern).resize((width, height)).save(path, quality=90)


def load(config: Any) -> tuple[data.Images, data.Images]:
  """Returns training and test set as they are kept on the device."""
  feed = resident.open_feed(config, data.find(config))
  return feed.train_set, feed.test_set


class Killed(BaseException):
  """Ends a run as a kill does: nothing catches it."""


def train_and_die(config: Any, workdir: pathlib.Path, at_step: int) -> None:
  """Trains until the metrics of a step arrive, and dies there."""
  real = metrics.TrainLog.add

  def killing(log, step, values):
    if step == at_step:
      raise Killed
    real(log, step, values)

  with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
    patch.setattr(metrics.TrainLog, 'add', killing)
    train.train_and_evaluate(config, workdir)


@pytest.fixture(scope='session')
def data_dir(tmp_path_factory):
  """A folder with the embedded data set prepared."""
  root = tmp_path_factory.mktemp('data')
  prepare.prepare('digits', str(root))
  return root
