"""The checks of a config that need nothing but its fields."""

import math

import ml_collections

from bnonly_jax.config import default_config
from bnonly_jax.config import flat
from bnonly_jax.config import require
from bnonly_jax.config import settings
from bnonly_jax.config import UserError

_POSITIVE = ('replicates', 'epochs', 'batch_size', 'eval_batch_size', 'steps_per_call', 'log_every',
             'eval_every', 'checkpoint_every', 'checkpoint_keep', 'temperature', 'data.std',
             'data.crop_ratio')
_NOT_NEGATIVE = ('batchnorm_images', 'unroll', 'data.pad', 'data.image_size', 'data.workers',
                 'data.resident_limit', 'weight_rank',
                 'optimizer.learning_rate', 'optimizer.weight_decay',
                 'optimizer.warmup_epochs', 'optimizer.reference_batch_size',
                 'optimizer.gradient_noise', 'optimizer.gradient_noise_decay',
                 'checkpoint_every_steps', 'checkpoint_every_minutes', 'checkpoint_keep_every')


def validate(config: ml_collections.ConfigDict) -> None:
  """Checks what the fields alone can tell.

  Raises:
    UserError: a field is missing, of another type or out of range.
  """
  if 'points' in config:
    raise UserError('--config is a sweep, of many runs. Train them by bnonly_jax.sweep:'
                    ' python -m bnonly_jax.sweep --config=... --workdir=...')
  defaults, given = flat(default_config()), flat(config)
  if given.keys() != defaults.keys():
    names = ', '.join(sorted(given.keys() ^ defaults.keys()))
    raise UserError(f'the config has other fields than bnonly_jax.config.default_config(): {names}.'
                    ' Start from default_config() and change its fields.')

  def check(field, allowed, rule):
    values = given[field] if isinstance(given[field], list) else [given[field]]
    require(config, field, allowed, all(isinstance(v, int | float) and rule(v) for v in values))

  for field in _POSITIVE:
    check(field, 'a number above 0', lambda v: v > 0)
  for field in _NOT_NEGATIVE:
    check(field, '0 or more', lambda v: v >= 0)
  check('steps_per_call', f'up to config.log_every = {config.log_every}, at whose lines calls end',
        lambda v: v <= config.log_every)
  check('seed', '0 to 2147483647', lambda v: 0 <= v < 2**31)
  require(config, 'replicates', '1 with config.data.random_labels: give each seed a run of its own',
          config.replicates == 1 or not config.data.random_labels)
  require(config, 'seed', f'up to 2147483648 less the {config.replicates} replicates',
          config.seed + config.replicates <= 2**31)
  require(config, 'compute_dtype', 'float32 or bfloat16',
          config.compute_dtype in ('float32', 'bfloat16'))
  require(config, 'matmul_precision', 'default, high or highest',
          config.matmul_precision in ('default', 'high', 'highest'))
  require(config, 'remat', 'none or block', config.remat in ('none', 'block'))
  check('label_smoothing', 'at least 0 and below 1', lambda v: 0 <= v < 1)
  check('distill', '0 to 1', lambda v: 0 <= v <= 1)
  _validate_weights(config, check)
  _validate_data(config, check)
  _validate_optimizer(config, check)


def _validate_weights(config, check):
  check('weight_sparsity', 'at least 0 and below 1', lambda v: 0 <= v < 1)
  require(config, 'weight_sparsity_layers', 'uniform or erk',
          config.weight_sparsity_layers in ('uniform', 'erk'))
  require(config, 'weight_sparsity', '0 with random:K in config.train: of the weights that stay,'
          ' output channels have different numbers', not config.weight_sparsity
          or config.train.strip().startswith('[') or 'random:' not in config.train)
  require(config, 'weight_rank', '0 with config.weight_sparsity, whose zeros raise the rank',
          not (config.weight_rank and config.weight_sparsity))
  require(config, 'weight_start', 'he_normal with config.weight_rank, whose factors are normal',
          not config.weight_rank or config.weight_start == 'he_normal')
  require(config, 'weight_bits', '0, 1, 2, 4, 8, e4m3 or e5m2',
          config.weight_bits in ('0', '1', '2', '4', '8', 'e4m3', 'e5m2'))
  require(config, 'weight_rank', '0 with config.weight_bits, which raise the rank',
          not config.weight_rank or config.weight_bits == '0')
  for field in ('weight_sparsity', 'weight_rank'):
    require(config, field, '0 with config.init_from, which says itself what weights are',
            not (config[field] and config.init_from))


def _validate_data(config, check):
  check('data.subsample', 'above 0 and up to 1', lambda v: 0 < v <= 1)
  check('data.random_labels', '0 to 1', lambda v: 0 <= v <= 1)
  require(config, 'data.channels', '0, 1 or 3', config.data.channels in (0, 1, 3))
  require(config, 'data.worker_kind', 'threads or processes',
          config.data.worker_kind in ('threads', 'processes'))
  require(config, 'data.bad_images', 'stop or skip', config.data.bad_images in ('stop', 'skip'))
  check('data.crop_area', 'a smaller and a larger share of the area, above 0 and up to 1',
        lambda v: 0 < v <= 1)
  for field in ('crop_area', 'crop_ratio'):
    require(config, f'data.{field}', 'two numbers, the smaller first',
            len(config.data[field]) == 2 and config.data[field][0] <= config.data[field][1])
  require(config, 'data.eval_resize', f'at least config.data.image_size = {config.data.image_size}',
          config.data.eval_resize >= config.data.image_size)
  check('data.mean', 'numbers', lambda v: True)
  settings(config, 'data.augment')


def _validate_optimizer(config, check):
  require(config, 'optimizer.name', 'sgd, adamw or lion',
          config.optimizer.name in ('sgd', 'adamw', 'lion'))
  require(config, 'optimizer.schedule', 'steps, cosine or constant',
          config.optimizer.schedule in ('steps', 'cosine', 'constant'))
  rates = settings(config, 'optimizer.rates')
  require(config, 'optimizer.rates', 'group=rate, each rate one number above 0',
          all(len(rate) == 1 and 0 < rate[0] < math.inf for rate in rates.values()))
  require(config, 'optimizer.learning_rate', 'a number above 0 with config.optimizer.rates',
          not rates or config.optimizer.learning_rate > 0)
  check('optimizer.momentum', 'at least 0 and below 1', lambda v: 0 <= v < 1)
  check('optimizer.drops', 'fractions of the run, between 0 and 1', lambda v: 0 < v < 1)
  check('optimizer.drop_factor', 'a number above 0', lambda v: v > 0)
  check('optimizer.warmup_epochs', f'at most config.epochs = {config.epochs}',
        lambda v: v <= config.epochs)
