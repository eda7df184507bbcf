"""Attention and norms as axes of the residual networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bnonly_jax import masks
from bnonly_jax import models
from bnonly_jax.config import UserError
from bnonly_jax.models import attention
from bnonly_jax.models import layers
from bnonly_jax.models import norm


def look(name, size=32, classes=1000, **style):
  return models.look(models.create(name, classes, models.Style(**style)), (size, size, 3))[1]


def size(parameters, selection):
  rows = masks.table(parameters, masks.make_mask(selection, parameters))
  return sum(row.trained for row in rows)


# Of ECANet's models, timm's resnet50 with eca, and IBN-Net's models, each built and counted.
@pytest.mark.parametrize('name, style, total, norms, attention_size', [
    ('imagenet_resnet50', {'attention': 'eca:3,5,5,7'}, 25_557_112, 53_120, 80),
    ('imagenet_resnet50', {'attention': 'eca'}, 25_557_118, 53_120, 86),
    ('imagenet_resnet18', {'attention': 'eca:3,3,3,3'}, 11_689_536, 9_600, 24),
    ('imagenet_resnet101', {'attention': 'eca:3,3,5,7'}, 44_549_317, 105_344, 157),
    ('imagenet_resnet50', {'norm': 'ibn_a'}, 25_557_032, 53_120, 0),
    ('imagenet_resnet50', {'norm': 'ibn_b'}, 25_558_568, 54_656, 0),
    ('imagenet_resnet18', {'norm': 'ibn_a'}, 11_689_512, 9_600, 0),
    ('imagenet_resnet18', {'norm': 'ibn_b'}, 11_689_896, 9_984, 0)])
def test_the_counts_are_those_of_the_public_code(name, style, total, norms, attention_size):
  parameters = look(name, **style)
  assert size(parameters, 'all') == total
  assert size(parameters, 'batchnorm') == norms
  assert (size(parameters, 'attention') if attention_size else 0) == attention_size


@pytest.mark.parametrize('name, style, instance', [
    ('imagenet_resnet50', 'ibn_a', 2_240), ('imagenet_resnet50', 'ibn_b', 1_664),
    ('imagenet_resnet18', 'ibn_a', 896), ('imagenet_resnet18', 'ibn_b', 512)])
def test_the_halves_of_ibn_are_chosen_apart(name, style, instance):
  parameters = look(name, norm=style)
  assert size(parameters, 'norm:instance') == instance
  assert size(parameters, 'norm:batch') == size(parameters, 'batchnorm') - instance
  with pytest.raises(UserError, match='no norm:instance'):
    look_batch = look(name)
    masks.make_mask('norm:instance', look_batch)


def test_eca_of_cifar_networks_has_three_weights_a_block():
  parameters = look('cifar_resnet20', classes=10, attention='eca')
  assert size(parameters, 'attention') == 27
  assert [attention.eca_size(c) for c in (16, 64, 128, 1024, 2048)] == [3, 3, 5, 5, 7]


@pytest.mark.parametrize('text', ['eca:3,5', 'eca:3,4,5', 'eca:', 'se:4,4', 'none:3', 'cbam', ''])
def test_a_wrong_attention_is_an_error_that_lists_what_is_allowed(text):
  with pytest.raises(UserError, match=r'config.attention is .* allowed are none, se'):
    look('cifar_resnet8', attention=text)


def test_a_network_without_residual_blocks_has_no_attention():
  with pytest.raises(UserError, match='has no residual blocks; allowed is none'):
    look('cifar_vgg11', attention='eca')


@pytest.mark.parametrize('style', [
    {'norm': 'ibn_a', 'attention': 'eca'}, {'norm': 'ibn_b', 'attention': 'se:2'},
    {'norm': 'instance', 'attention': 'ese'}, {'norm': 'layer_channels', 'attention': 'se'},
    {'norm': 'rms'}], ids=str)
def test_all_that_can_train_has_gradients(style, selection='all'):
  network = models.create('cifar_resnet8', 10, models.Style(**style))
  shape = (8, 8, 3)
  variables = models.initialise(network, shape, 0)
  parameters = models.look(network, shape)[1]
  trainable, frozen = masks.partition(variables['params'], masks.make_mask(selection, parameters))
  images = np.random.default_rng(0).standard_normal((4, *shape), np.float32)

  @jax.jit
  def gradients(trainable):
    def loss(trainable):
      logits, _ = network.apply({**variables, 'params': masks.merge(trainable, frozen)}, images,
                                train=True, mutable=['batch_stats'])
      return jnp.mean(jnp.square(logits - 1))
    return jax.grad(loss)(trainable)

  found = {name: np.asarray(value) for name, value in masks.flatten(gradients(trainable)).items()
           if value is not None}
  assert all(np.isfinite(value).all() for value in found.values())
  still = {name for name, value in found.items() if not value.any()}
  assert not still


def test_the_end_of_a_block_with_attention_tells_its_relu():
  network = models.create('cifar_resnet8', 10, models.Style(attention='eca'))
  variables = models.initialise(network, (8, 8, 3), 0)
  _, told = network.apply(variables, np.ones((2, 8, 8, 3), np.float32), mutable=['intermediates'])
  fired = layers.unstack({name.removesuffix('/fired'): value for name, (value, *_) in
                          masks.flatten(told['intermediates']).items()})
  ends = [name for name in fired if layers.adds_residual(name, fired)]
  assert ends == [f'stage{i}/block1/sum' for i in (1, 2, 3)]


@pytest.mark.parametrize('kind, axes', [('instance', (1, 2)), ('layer_channels', 3)])
def test_norms_of_one_image_are_those_of_the_textbook(kind, axes):
  y = np.random.default_rng(0).standard_normal((2, 3, 4, 6), np.float32)
  module = norm.make_norm(kind, False, norm.Statistics())('norm')
  scale, bias = np.arange(1, 7, dtype=np.float32), np.ones(6, np.float32)
  found = module.apply({'params': {'scale': scale, 'bias': bias}}, y, relu=False)
  wanted = (y - y.mean(axes, keepdims=True)) / np.sqrt(y.var(axes, keepdims=True) + 1e-5)
  np.testing.assert_allclose(found, wanted * scale[None, None, None] + 1, rtol=1e-4, atol=1e-5)


def test_rms_has_no_bias_and_takes_no_mean_away():
  y = np.random.default_rng(0).standard_normal((2, 5, 6), np.float32) + 3
  module = norm.make_norm('rms', False, norm.Statistics())('norm')
  found = module.apply({'params': {'scale': np.ones(6, np.float32)}}, y, relu=False)
  np.testing.assert_allclose(found, y / np.sqrt(np.mean(y ** 2, -1, keepdims=True) + 1e-5),
                             rtol=1e-5)
