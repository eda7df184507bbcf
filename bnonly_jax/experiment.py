"""From a config to all that training it takes: network, mask, optimizer, steps, shapes.

Nothing is drawn, compiled or computed by `build`. Training, `--describe`, the analysis and the
benchmarks all start here.
"""

from collections.abc import Sequence
import functools
import json
from typing import Any
from typing import NamedTuple

import flax.linen as nn
import flax.traverse_util
import jax
import ml_collections
import numpy as np
import optax

from bnonly_jax import config as config_lib
from bnonly_jax import data
from bnonly_jax import masks
from bnonly_jax import models
from bnonly_jax import optimizer
from bnonly_jax import steps
from bnonly_jax.config import UserError
from bnonly_jax.data import augment
from bnonly_jax.data import device
from bnonly_jax.data import resident
from bnonly_jax.data import streamed
from bnonly_jax.models import firing
from bnonly_jax.models import frozen_half
from bnonly_jax.objective import distillation
from bnonly_jax.validation import validate


class Experiment(NamedTuple):
  """What a config describes.

  Attributes:
    config: fields as in `config.default_config`.
    info: the data set's, train_images being the number in use.
    target: where the steps run.
    network: maps images to logits.
    shapes: of the network's variables.
    parameters: what is known of each parameter, by name.
    mask: what trains. Where the seed chooses weights it is that of seed 0: every seed has as many
      in each tensor.
    tx: the optimizer, masked.
    learning_rate: its schedule, by the number of the step.
    steps_per_epoch: training steps.
    total_steps: of the whole run.
    preparation: of the images, in training; evaluation takes its normalisation.
    state: shapes of the state, of all replicates.
    frozen: shapes of the frozen half, as it is drawn.
    train_step: see `steps.train_step`.
    eval_step: see `steps.eval_step`.
    firing_step: see `steps.firing_step`.
    teachers: shapes of the variables of those who teach, as the training step takes them last: one
      tuple of them all; () without teachers. `taught` puts them there.
  """
  config: ml_collections.ConfigDict
  info: data.Info
  target: steps.Target
  network: nn.Module
  shapes: dict[str, Any]
  parameters: dict[str, models.Parameter]
  mask: dict[str, Any]
  tx: optax.GradientTransformation
  learning_rate: optax.Schedule
  steps_per_epoch: int
  total_steps: int
  preparation: device.Preparation
  state: Any
  frozen: Any
  train_step: Any
  eval_step: Any
  firing_step: Any
  teachers: tuple[Any, ...] = ()

  @property
  def seeds(self) -> range:
    """Those of the replicates."""
    return range(self.config.seed, self.config.seed + self.config.replicates)

  @property
  def steps_a_call(self) -> int:
    """How many training steps are made in one call where nothing is due between them."""
    return self.config.steps_per_call if self.target.loops_pay else 1

  @property
  def eval_batch_size(self) -> int:
    """Images in an evaluation step: config.eval_batch_size, up to a multiple of the devices."""
    devices = len(self.target.devices)
    return -(-self.config.eval_batch_size // devices) * devices


def build(config: ml_collections.ConfigDict, info: data.Info | None = None,
          devices: Sequence[jax.Device] | None = None, backend: str = '') -> Experiment:
  """Builds an experiment, after checks of all that a config can get wrong.

  Experiments that differ in their start alone (seed, init_from), or in fields without influence on
  the state, have the very same steps, so that these compile once. What it builds is taught by the
  labels alone: `run.teachers.join` adds those that config.teacher names.

  Args:
    config: fields as in `config.default_config`.
    info: the data set's, if it is not to be looked up.
    devices: of all processes, others perhaps than this machine's; None: all there are.
    backend: for which the forms of computation are chosen: cpu, gpu or tpu; '' is the devices'.

  Raises:
    UserError: the config is not that of a run on these devices.
  """
  validate(config)
  # A wrong name is told before a data set that is not prepared.
  models.create(config.network, 1)
  augment.named(config)
  info = info or data.find(config)
  info = data.in_use(config, info)
  # Each process feeds one slice of a batch, to devices that lie side by side.
  devices = tuple(sorted(devices or jax.devices(), key=lambda d: (d.process_index, d.id)))
  target = steps.Target(devices, backend or devices[0].platform, config.matmul_precision)
  _check(config, info, len(devices))
  program = {name: value for name, value in config_lib.flat(config).items()
             if name not in (*config_lib.FREE, 'seed', 'init_from', 'teacher')}
  built = _build(json.dumps(program), info._replace(path=None), target)
  return built._replace(config=config, info=info)


def _check(config, info, devices):
  """Checks what the fields, the data set and the number of devices can tell together."""
  require = functools.partial(config_lib.require, config)
  require('batch_size', f'a multiple of the {devices} devices', config.batch_size % devices == 0)
  require('batch_size', f'up to the {info.train_images} training images in use',
          config.batch_size <= info.train_images)
  channels = info.image_shape[-1]
  for field in ('mean', 'std'):
    require(f'data.{field}', f'one number or one for each of the {channels} channel(s)',
            len(config.data[field]) in (1, channels))
  for field, choices in (('norm', models.NORMS), ('weight_start', models.WEIGHT_STARTS),
                         ('norm_start', models.NORM_STARTS)):
    require(field, ', '.join(choices), config[field] in choices)
  if models.is_own(config.network):
    for field, only in (('norm', 'batch'), ('attention', 'none'), ('remat', 'none'), ('unroll', 0),
                        ('batchnorm_images', 0)):
      require(field, f"{only} with a network of one's own, which says itself how it computes",
              config[field] == only)
  for field in ('replicates', 'steps_per_call'):
    require(field, '1 where the data are streamed',
            config[field] == 1 or resident.is_resident(config, info))


@functools.lru_cache(maxsize=64)  # points of a sweep, whose seeds take turns
def _build(fields, info, target):
  """Builds an experiment of seed 0 from its fields as JSON."""
  config = config_lib.default_config()
  config.update_from_flattened_dict(json.loads(fields))
  statistics = batchnorm_statistics(config, len(target.devices))
  network = create_network(config, info.classes, statistics, target.backend)
  if models.is_own(config.network):
    models.check_own(network, config.network, info.image_shape, info.classes, config.compute_dtype,
                     steps.AXIS)
  shapes, parameters = models.look(network, info.image_shape)
  if config.log_dead and not firing.tells(network, shapes, info.image_shape):
    raise UserError(f'config.log_dead is True, and config.network is {config.network!r}, of whose'
                    ' ReLUs none tells whether it fires; those at the end of norms of'
                    ' bnonly_jax.models.norm do. Set --config.log_dead=False')
  _check_kernels(config, parameters)
  mask = masks.of_config(config, parameters, seed=0)
  steps_per_epoch = info.train_images // config.batch_size
  total_steps = config.epochs * steps_per_epoch
  learning_rate = optimizer.schedule(config.optimizer, config.batch_size, total_steps,
                                     steps_per_epoch)
  groups = {name: known.group for name, known in parameters.items()}
  tx = optimizer.create(config.optimizer, learning_rate, mask, groups,
                        config_lib.settings(config, 'optimizer.rates'))
  preparation = augment.preparation(config, info.image_shape)
  coded = {**shapes, 'params': masks.code_kernels(shapes['params'], parameters, config, mask)}
  state, frozen = jax.eval_shape(lambda drawn: steps.create_state(drawn, mask, tx), coded)
  if config.replicates > 1:
    more = lambda leaf: jax.ShapeDtypeStruct((config.replicates, *leaf.shape), leaf.dtype)
    state, frozen = jax.tree.map(more, (state._replace(step=None), frozen))
    state = state._replace(step=jax.ShapeDtypeStruct((), np.int32))
  return Experiment(
      config, info, target, network, shapes, parameters, mask, tx, learning_rate, steps_per_epoch,
      total_steps, preparation, state, frozen,
      steps.train_step(network, tx, learning_rate, preparation, target, *step_options(config)),
      steps.eval_step(network, preparation, target, config.replicates),
      steps.firing_step(network, preparation, target))


def create_network(config: ml_collections.ConfigDict, classes: int,
                   statistics: models.Statistics, backend: str) -> nn.Module:
  """Creates the network of a config, as it computes on a backend."""
  return models.create(config.network, classes, models.Style(
      config.norm, statistics, config.remat == 'block', backend, config.unroll, config.attention))


def step_options(config: ml_collections.ConfigDict,
                 teaching: distillation.Teaching | None = None) -> tuple[Any, ...]:
  """Returns what `steps.train_step` takes besides the parts of an experiment."""
  noise = config.optimizer.gradient_noise, config.optimizer.gradient_noise_decay
  return config.replicates, config.label_smoothing, noise, config.log_dead, teaching


_taught_step = functools.lru_cache(maxsize=64)(steps.train_step)  # seeds share theirs, as in _build


def taught(experiment: Experiment, teachers: Sequence[distillation.Teacher],
           variables: Sequence[dict[str, Any]]) -> Experiment:
  """Returns an experiment whose training step learns from teachers too, if there are any.

  Args:
    experiment: as `build` returns it.
    teachers: who teaches.
    variables: of each; shapes will do.
  """
  if not teachers:
    return experiment
  run, config = experiment, experiment.config
  teaching = distillation.Teaching(tuple(teachers), config.distill, config.temperature)
  shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype),
                        tuple(variables))
  return run._replace(teachers=(shapes,), train_step=_taught_step(
      run.network, run.tx, run.learning_rate, run.preparation, run.target,
      *step_options(config, teaching)))


def _check_kernels(config, parameters):
  for field in ('weight_sparsity', 'weight_rank', 'weight_bits'):
    config_lib.require(config, field, f'0 with config.network = {config.network}, which has no'
                       ' convolutions',
                       config[field] in (0, '0') or frozen_half.kernels(parameters))


def batchnorm_statistics(config: ml_collections.ConfigDict, devices: int) -> models.Statistics:
  """Returns how BatchNorm takes its statistics over config.batchnorm_images, on so many devices.

  Raises:
    UserError: the global batch, or what each device has of it, cannot be cut into such groups.
  """
  batch, share = config.batch_size, config.batch_size // devices
  images = config.batchnorm_images or batch
  fitting = [n for n in range(1, batch + 1)
             if batch % n == 0 and (n % share == 0 or share % n == 0)]
  if config.norm not in models.WITH_BATCHNORM:
    return models.Statistics()
  if images not in fitting:
    nearest = [max((n for n in fitting if n < images), default=None),
               min((n for n in fitting if n > images), default=None)]
    allowed = ' and '.join(str(n) for n in nearest if n)
    raise UserError(
        f'config.batchnorm_images is {images}, into which a batch of {batch} images on {devices}'
        f' device(s), {share} each, cannot be cut; allowed are divisors of the batch that divide'
        f' {share} or are multiples of it, the nearest being {allowed}; 0 is the whole batch. Set'
        f' --config.batchnorm_images=...')
  if images <= share:
    return models.Statistics(parts=share // images)
  together = images // share
  groups = None if together == devices else tuple(
      tuple(range(first, first + together)) for first in range(0, devices, together))
  return models.Statistics(steps.AXIS, groups)


def draw_variables(experiment: Experiment, seed: int) -> dict[str, Any]:
  """Draws the variables that a replicate starts from, if it does not start from others'."""
  drawn = _draw(experiment, seed)
  return {**drawn, 'params': masks.code_kernels(drawn['params'], experiment.parameters,
                                                experiment.config)}


def _draw(experiment, seed):
  """The variables before there are codes of them."""
  config, parameters = experiment.config, experiment.parameters
  variables = models.initialise(experiment.network, experiment.info.image_shape, seed,
                                config.weight_start, config.norm_start)
  params = masks.flatten(variables['params'])
  if config.weight_rank:
    params = frozen_half.low_rank(params, parameters, config.weight_rank, seed)
  if config.weight_sparsity:
    params = frozen_half.sparsify(params, parameters, config.weight_sparsity,
                                  config.weight_sparsity_layers, seed)
  return {**variables, 'params': flax.traverse_util.unflatten_dict(params, sep='/')}


def start(experiment: Experiment, variables: Sequence[dict[str, Any]] | None = None
          ) -> tuple[steps.State, Any]:
  """Returns the state before the first step and the frozen half, on the host, of all replicates.

  Args:
    experiment: the run's.
    variables: what each replicate starts from; None: they are drawn.
  """
  config, parameters, starts = experiment.config, experiment.parameters, []
  for i, seed in enumerate(experiment.seeds):
    own = variables[i] if variables else _draw(experiment, seed)
    mask = masks.of_config(config, parameters, seed)
    own = {**own, 'params': masks.code_kernels(own['params'], parameters, config, mask)}
    starts.append(steps.create_state(own, mask, experiment.tx))
  return steps.stack(starts)


def place(experiment: Experiment, state: steps.State, frozen: Any
          ) -> tuple[steps.State, Any, jax.Array]:
  """Puts a state and a frozen half on the devices, as the steps take them, and the seed."""
  frozen = steps.lay_out(frozen, experiment.config.compute_dtype, experiment.target.backend)
  return device.place((state, frozen, np.int32(experiment.config.seed)), experiment.target.local)


def open_source(experiment: Experiment, given: dict[str, data.Images] | None = None
                ) -> data.Source:
  """Opens the experiment's data set, which must be prepared or given: resident or streamed.

  Args:
    experiment: on any devices.
    given: the splits, of a data set that is given as arrays (`data.arrays`).

  Raises:
    UserError: a bad image, in a resident set.
  """
  config, info = experiment.config, experiment.info
  place = jax.process_index(), jax.process_count()
  if given:
    return resident.open_source(config, info, *place, given)
  way = resident if resident.is_resident(config, info) else streamed
  return way.open_source(config, info, *place)


def train_arguments(experiment: Experiment, number: int = 1) -> tuple[Any, ...]:
  """Returns the shapes of what a call of the training step takes, to lower and compile it.

  Args:
    experiment: on any devices.
    number: steps in the call.
  """
  config, info, devices = experiment.config, experiment.info, len(experiment.target.devices)
  shape = jax.ShapeDtypeStruct
  share = (devices, config.batch_size // devices)
  if resident.is_resident(config, info):
    whole = data.Images(shape((info.train_images, device.row_size(info.image_shape)), np.uint8),
                        shape((info.train_images,), np.int32))
    batch = shape((*share, *(n for n in (config.replicates, number) if n > 1)), np.int32)
  else:
    whole = None
    batch = data.Images(shape((*share, *info.image_shape), np.uint8), shape(share, np.int32))
  frozen = jax.eval_shape(
      lambda tree: steps.lay_out(tree, config.compute_dtype, experiment.target.backend),
      experiment.frozen)
  return experiment.state, frozen, whole, batch, shape((), np.int32), *experiment.teachers
