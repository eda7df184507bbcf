import pytest

from bnonly_jax import config as config_lib
from bnonly_jax.validation import validate


def test_the_paper_recipe_is_the_default():
  config = config_lib.default_config()
  assert config.epochs == 160 and config.batch_size == 128
  assert config.optimizer.to_dict() == dict(
      name='sgd', learning_rate=0.1, rates='', momentum=0.9, weight_decay=1e-4, decay_norms=True,
      schedule='steps', drops=(0.5, 0.75), drop_factor=0.1, warmup_epochs=0.0,
      reference_batch_size=0, gradient_noise=0.0, gradient_noise_decay=0.55)
  assert config.data.augment == 'pad_crop,flip' and config.label_smoothing == 0
  assert config.teacher == '' and not config.log_dead


def test_a_typo_fails():
  with pytest.raises((AttributeError, KeyError)):
    config_lib.default_config().epoch = 3


def test_every_field_is_explained():
  lines = config_lib.describe().splitlines()
  for field in config_lib.flat(config_lib.default_config()):
    (place,) = [i for i, line in enumerate(lines) if line.startswith(f'  --config.{field}=')]
    assert lines[place - 1].startswith('  # '), field


@pytest.mark.parametrize('field, value', [
    ('epochs', 0), ('batch_size', -1), ('seed', -1), ('data.pad', -1), ('data.std', (0.1, 0.0)),
    ('optimizer.momentum', 1.0), ('optimizer.drops', (0.5, 1.5)), ('optimizer.drop_factor', 0.0),
    ('optimizer.warmup_epochs', 161.0), ('checkpoint_keep', 0), ('seed', 2**31),
    ('optimizer.drops', ('a',)), ('label_smoothing', 1.0), ('optimizer.name', 'adam'),
    ('optimizer.schedule', 'linear'), ('optimizer.rates', 'output'), ('optimizer.rates', 'conv=x'),
    ('optimizer.rates', 'conv=-1'), ('optimizer.rates', 'conv=1:2'),
    ('optimizer.rates', 'conv=1,conv=2'), ('data.augment', 'flip,flip'),
    ('data.augment', 'cutout=a'), ('optimizer.gradient_noise', -0.1),
    ('optimizer.gradient_noise_decay', -1.0), ('distill', 1.1), ('temperature', 0.0)])
def test_a_value_out_of_range_is_named_with_what_is_allowed(field, value):
  config = config_lib.default_config()
  config.update_from_flattened_dict({field: value})
  with pytest.raises(config_lib.UserError, match=f'config.{field} is .*; allowed is .*--config'):
    validate(config)


def test_the_default_is_valid():
  validate(config_lib.default_config())


def test_a_config_of_other_fields_is_an_error():
  config = config_lib.default_config()
  with config.unlocked():
    del config.data.pad
    config.more = 1
  with pytest.raises(config_lib.UserError, match='data.pad, more. Start from default_config'):
    validate(config)
