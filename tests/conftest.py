"""Four simulated devices for every test, and what several tests share."""

import os

os.environ['JAX_PLATFORMS'] = os.environ.get('JAX_PLATFORMS', 'cpu')
# Of tiny networks the time to compile counts: less of it, and what is compiled once stays for other
# workers, for the processes that tests start and for the next time (programs that call oneDNN would
# not).
os.environ['XLA_FLAGS'] = ' '.join([
    os.environ.get('XLA_FLAGS', ''), '--xla_backend_optimization_level=1',
    '--xla_cpu_experimental_onednn_custom_call=false',
    f'--xla_force_host_platform_device_count={os.environ.get("DEVICES", "4")}'])
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.1'

import functools
import pathlib
from typing import Any
from typing import NamedTuple

import jax
import numpy as np
from PIL import Image
import pytest
from tiny import tiny_config

from bnonly_jax import command_line
from bnonly_jax import data
from bnonly_jax import experiment
from bnonly_jax import optimizer
from bnonly_jax import steps
from bnonly_jax import train
from bnonly_jax.config import default_config
from bnonly_jax.config import flat
from bnonly_jax.data import batches
from bnonly_jax.data import device
from bnonly_jax.data import prepare
from bnonly_jax.data import resident
from bnonly_jax.experiment import Experiment
from bnonly_jax.run import checkpoint
from bnonly_jax.run import metrics
from bnonly_jax.run import workdir as workdir_lib

BATCH = 64
# For processes that tests start, which have one device.
XLA_FLAGS = os.environ['XLA_FLAGS'].rpartition('--xla_force_host')[0]
jax.config.update('jax_numpy_rank_promotion', 'raise')
command_line.keep_compiled_programs()


class Setup(NamedTuple):
  """A tiny network on pattern_images() with everything that a training step takes."""
  experiment: Experiment
  variables: Any
  mask: Any
  state: steps.State
  frozen: Any
  train_set: data.Images

  def place(self, state=None):
    """Puts state, frozen half, training set and seed on the devices."""
    state = self.state if state is None else state
    dtype = np.result_type(*jax.tree.leaves(self.variables['params']))
    frozen = steps.lay_out(self.frozen, dtype, self.experiment.target.backend)
    return device.place((state, frozen, self.train_set, np.int32(0)),
                        self.experiment.target.local)

  def index(self, step):
    """Returns which images a step takes, one row a device of this process."""
    index = batches.train_indices(0, step, len(self.train_set.labels), BATCH)
    own = batches.own_slice(index, jax.process_index(), jax.process_count())
    return own.reshape(len(self.experiment.target.local), -1)

  def run(self, number, state=None):
    """Trains, and returns state and frozen half off the device, and the metrics of each step."""
    state, frozen, train_set, seed = self.place(state)
    history = []
    for step in range(int(state.step), int(state.step) + number):
      state, metrics = self.experiment.train_step(state, frozen, train_set, self.index(step), seed)
      history.append(jax.device_get(metrics))
    return jax.device_get(state), jax.device_get(frozen), history


@functools.cache
def pattern_images() -> data.Images:
  """256 images of random patterns, 8x8 grey, as they lie on a device, labelled by the pattern."""
  rng = np.random.default_rng(0)
  labels = rng.integers(0, 10, 256).astype(np.int32)
  patterns, noise = rng.integers(0, 200, (10, 8, 8, 1)), rng.integers(0, 56, (256, 8, 8, 1))
  return data.Images(device.rows(np.uint8(patterns[labels] + noise)), labels)


PATTERNS = data.Info(None, '', (8, 8, 1), (8, 8, 1), tuple('0123456789'), 256, 256, 'test')


def pattern_config(selection: str = 'batchnorm', **fields: Any) -> Any:
  """Returns the config of the ResNet-8 setup, with other fields by dotted name."""
  config = default_config()
  config.update(network='cifar_resnet8', train=selection, batch_size=BATCH, epochs=25)
  config.data.update(pad=1, mean=(0.5,), std=(0.25,))
  config.update_from_flattened_dict(fields)
  return config


@functools.cache
def make_setup(selection: str = 'batchnorm', devices: int = 1, chosen: int = 0,
               double: bool = False, backend: str = '', **fields: Any) -> Setup:
  """Builds the ResNet-8 setup; `chosen` > 0 trains besides that many weights of the stem."""
  config = pattern_config(selection, **fields)
  run = experiment.build(config, PATTERNS, jax.devices()[:devices], backend)
  variables, mask = experiment.draw_variables(run, config.seed), run.mask
  if double:
    variables = jax.tree.map(np.float64, variables)
    run = run._replace(preparation=run.preparation._replace(dtype='float64'))
  if chosen:  # a mask by hand, for the default optimizer
    stem = np.zeros(variables['params']['stem_conv']['kernel'].shape, bool)
    stem.reshape(-1)[np.arange(chosen) * 3 + 1] = True
    mask = {**mask, 'stem_conv': {'kernel': stem}}
    run = run._replace(tx=optimizer.create(config.optimizer, run.learning_rate, mask))
  if double or chosen:
    run = run._replace(train_step=steps.train_step(
        run.network, run.tx, run.learning_rate, run.preparation, run.target,
        *experiment.step_options(config)))
  # On the host: what is on a device is gone after a step, which takes it over.
  state, frozen = jax.device_get(steps.create_state(variables, mask, run.tx))
  return Setup(run, variables, mask, state, frozen, pattern_images())


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


def load(config: Any) -> list[data.Images]:
  """Returns training and test set as they are kept on the device, as images [N, H, W, C]."""
  info = data.find(config)
  source = resident.open_source(config, info)
  return [device.look_up(whole, np.arange(len(whole.labels)), info.image_shape)
          for whole in (source.train_set, source.test_set)]


def write_run(config, folder, value):
  """Writes what a run leaves whose trained parameters have become `value`; returns its start."""
  folder, run = workdir_lib.path(folder), experiment.build(config)
  folder.mkdir(parents=True, exist_ok=True)
  variables = experiment.draw_variables(run, config.seed)
  state, frozen = experiment.start(run)
  state = state._replace(trainable=jax.tree.map(lambda x: np.full_like(x, value), state.trainable))
  workdir_lib.write_json(folder / 'config.json', {**flat(config), 'data.version': '1.0.0'})
  checkpoint.keep(folder / 'frozen', frozen)
  with checkpoint.open_checkpointer(folder, 1) as checkpointer:
    checkpoint.save(checkpointer, 0, state)
  return variables['params']


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


@pytest.fixture(scope='module')
def tiny_run(data_dir, tmp_path_factory):
  """Folder and result of a run that has ended; tests leave both as they are."""
  workdir = tmp_path_factory.mktemp('run')
  return workdir, train.train_and_evaluate(tiny_config(data_dir), workdir)
