"""Networks of public code: their sizes, and a training step of each at a small width."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bnonly_jax import masks
from bnonly_jax import models
from bnonly_jax.config import UserError
from bnonly_jax.models import clip_resnet
from bnonly_jax.models import imagenet_resnetrs
from bnonly_jax.models import inception_v4
from bnonly_jax.models import inceptionnext
from bnonly_jax.models import simplenet
from bnonly_jax.models import vit
from bnonly_jax.models import vovnet

# Side, classes, all parameters, those of norms, norms: of the public networks, built and counted.
COUNTS = [
    ('simplenet_310k', 32, 10, 312_362, 1_856, 13), ('simplenet_310k', 32, 100, 318_212, 1_856, 13),
    ('simplenet_460k', 32, 10, 385_790, 1_736, 13), ('simplenet_460k', 32, 100, 394_880, 1_736, 13),
    ('simplenet_5m', 32, 10, 5_498_378, 9_088, 13), ('simplenet_5m', 32, 100, 5_521_508, 9_088, 13),
    ('vit_tiny', 224, 1000, 5_717_416, 9_600, 25), ('vit_small', 224, 1000, 22_050_664, 19_200, 25),
    ('vit_tiny', 32, 10, 5_362_762, 9_600, 25),
    ('vovnet27s', 64, 1000, 3_525_736, 6_592, 27), ('vovnet39', 64, 1000, 22_600_296, 20_416, 39),
    ('vovnet57', 64, 1000, 36_640_296, 31_616, 57),
    ('ese_vovnet39', 64, 1000, 24_568_936, 20_416, 39),
    ('ese_vovnet19s', 64, 1000, 3_166_136, 5_152, 19),
    ('imagenet_resnetrs50', 64, 1000, 35_691_912, 53_376, 56),
    ('imagenet_resnetrs101', 64, 1000, 63_618_696, 105_600, 107),
    ('imagenet_resnetrs152', 64, 1000, 86_621_576, 151_680, 158),
    ('imagenet_resnetrs200', 64, 1000, 93_209_992, 176_256, 206),
    ('imagenet_resnetrs270', 64, 1000, 129_861_448, 243_072, 278),
    ('imagenet_resnetrs350', 64, 1000, 163_956_168, 312_192, 356),
    ('imagenet_resnetrs420', 64, 1000, 191_891_656, 370_560, 425),
    ('clip_resnet50', 224, 1024, 38_316_896, 53_248, 55),
    ('clip_resnet50', 224, 1000, 38_267_720, 53_248, 55),
    ('clip_resnet50gap', 224, 1000, 23_527_264 + 2_049_000, 53_248, 55),
    ('clip_resnet101', 224, 512, 56_259_936, 105_472, 106),
    ('inceptionnext_atto', 64, 1000, 4_156_520, 6_240, 17),
    ('inceptionnext_tiny', 64, 1000, 28_055_680, 19_392, 23),
    ('inceptionnext_small', 64, 1000, 49_374_016, 33_216, 41),
    ('inceptionnext_base', 64, 1000, 86_672_136, 44_288, 41),
    ('inception_v4', 107, 1000, 42_679_816, 63_168, 149)]


@pytest.mark.parametrize('name, side, classes, total, norms, number', COUNTS)
def test_the_counts_are_those_of_the_public_code(name, side, classes, total, norms, number):
  parameters = models.look(models.create(name, classes), (side, side, 3))[1]
  rows = {row.group: row for row in masks.table(parameters)}
  assert sum(row.parameters for row in rows.values()) == total
  assert rows['gamma'].parameters + rows['beta'].parameters == norms
  assert rows['gamma'].tensors == rows['beta'].tensors == number


SMALL = {
    'simplenet': (simplenet.SimpleNet((8, 4, 4, 4, 0, 4, 4, 8, 0, 8, 8, 0, 8, 16, 8, 0, 8), 5), 16),
    'vit': (vit.ViT(16, 3, 5), 16),
    'vovnet': (vovnet.VoVNet(vovnet.Sizes((4,) * 4, (8,) * 4, (1, 2, 3, 1), 2, (4, 4, 8)), 5,
                             ese=True, cifar=True), 32),
    'resnetrs': (imagenet_resnetrs.ResNetRS((1, 3, 1, 1), 8, 5, cifar=True), 31),
    'clip': (clip_resnet.ClipResNet((1, 2, 1, 1), 8, 5, cifar=True), 32),
    'clip_gap': (clip_resnet.ClipResNet((1, 1, 1, 1), 8, 5, gap=True), 64),
    'inceptionnext': (inceptionnext.InceptionNeXt(
        inceptionnext.Sizes((16, 16, 24, 32), (1, 2, 1, 2), 5), 5, patch=2), 32),
    'inception_v4': (inception_v4.InceptionV4(16, 5), 75),
    'unequal': (models.create('cifar_resnet_1-2-3', 5), 8)}


_SLOW = ('inception_v4', 'inceptionnext', 'clip', 'clip_gap', 'resnetrs', 'vovnet', 'unequal',
         'vit')


@pytest.mark.parametrize('name', [pytest.param(name, marks=[pytest.mark.slow] * (name in _SLOW))
                                  for name in SMALL])
def test_a_step_moves_what_trains_and_nothing_else(name):
  network, side = SMALL[name]
  shape = (side, side, 3)
  variables = models.initialise(network, shape, 0)
  parameters = models.look(network, shape)[1]
  images = np.random.default_rng(0).standard_normal((4, *shape), np.float32)

  @jax.jit
  def gradients(trainable, frozen):
    def loss(trainable):
      params = masks.merge(trainable, frozen)
      logits, _ = network.apply({**variables, 'params': params}, images, train=True,
                                mutable=['batch_stats'])
      assert logits.dtype == jnp.float32
      return -jnp.mean(jax.nn.log_softmax(logits)[:, 0])
    return jax.grad(loss)(trainable)

  found = []
  for selection in ('batchnorm', 'all'):
    mask = masks.make_mask(selection, parameters)
    parts = masks.partition(variables['params'], mask)
    found.append({name: np.asarray(value) for name, value in
                  masks.flatten(gradients(*parts)).items() if value is not None})
  norms, everything = found
  assert set(norms) == {name for name, known in parameters.items()
                        if known.group in ('gamma', 'beta')}
  assert set(everything) == set(parameters)
  for name, value in norms.items():
    assert np.isfinite(value).all() and value.any(), name
    np.testing.assert_allclose(value, everything[name], rtol=1e-3, atol=1e-4)
  assert all(np.isfinite(value).all() for value in everything.values())


@pytest.mark.parametrize('name', SMALL)
def test_what_is_computed_in_bfloat16_ends_in_float32(name):
  network, side = SMALL[name]
  images = jax.ShapeDtypeStruct((2, side, side, 3), jnp.bfloat16)
  shapes = models.variable_shapes(network, (side, side, 3))
  logits, statistics = jax.eval_shape(
      lambda *given: network.apply(*given, train=True, mutable=['batch_stats']), shapes, images)
  assert {leaf.dtype for leaf in jax.tree.leaves((logits, statistics))} == {jnp.dtype('float32')}


@pytest.mark.parametrize('name', SMALL)
def test_it_can_be_exported_for_any_number_of_images(name):
  network, side = SMALL[name]
  number, = jax.export.symbolic_shape('n')
  images = jax.ShapeDtypeStruct((number, side, side, 3), jnp.float32)
  logits = jax.eval_shape(network.apply, models.variable_shapes(network, (side, side, 3)), images)
  assert logits.shape == (number, 5)


def test_starts_depend_on_the_seed_and_the_name_alone():
  network, side = SMALL['vit']
  first, again, other = (masks.flatten(models.initialise(network, (side, side, 3), seed)['params'])
                         for seed in (0, 0, 1))
  for name, value in first.items():
    np.testing.assert_array_equal(value, again[name])
    assert name.endswith(('bias', 'norm/scale')) or (value != other[name]).any()
  assert 0.01 < np.std(first['pos_embed']) < 0.03


@pytest.mark.parametrize('name, style, message', [
    ('vovnet39', {'norm': 'ibn_a'}, 'has no residual blocks; allowed is batch'),
    ('cifar_vgg11', {'norm': 'ibn_b'}, 'has no residual blocks; allowed is batch'),
    ('vit_tiny', {'norm': 'group'}, 'has tokens; allowed is layer_channels'),
    ('vit_tiny', {'attention': 'eca'}, 'has no residual blocks; allowed is none'),
    ('simplenet_5m', {'remat': True}, 'has no residual blocks; allowed is none')])
def test_what_a_network_lacks_is_an_error(name, style, message):
  with pytest.raises(UserError, match=message):
    models.create(name, 10, models.Style(**style))


@pytest.mark.parametrize('name, side, message', [
    ('simplenet_310k', 8, '16x16 and more'), ('inception_v4', 32, '75x75 and more'),
    ('vit_tiny', 30, 'multiples of 4'),
    ('cifar_inceptionnext_atto', 8, 'too small.*of 1x1 pixels')])
def test_images_that_do_not_fit_are_an_error(name, side, message):
  with pytest.raises(UserError, match=message):
    models.look(models.create(name, 10), (side, side, 3))


def test_groups_of_attention_and_the_output_layer():
  parameters = models.look(SMALL['clip'][0], (32, 32, 3))[1]
  groups = {name: known.group for name, known in parameters.items()}
  assert {groups[f'attnpool/{part}'] for part in (
      'q_proj/kernel', 'k_proj/bias', 'v_proj/kernel', 'positional_embedding')} == {'attention'}
  assert {group for name, group in groups.items() if name.startswith('output/')} == {'output'}
  parameters = models.look(SMALL['inceptionnext'][0], (32, 32, 3))[1]
  assert parameters['stage2_stack/layer_scale'].group == 'other'
  assert parameters['head_dense/kernel'].group == 'dense'


@pytest.mark.parametrize('name, side', [('imagenet_resnet50', 224), ('vit_tiny', 224),
                                        ('inception_v4', 299), ('cifar_vovnet39', 32),
                                        ('simplenet_5m', 32), ('my.file:make', 32)])
def test_without_a_data_set_images_are_of_the_size_a_network_is_made_for(name, side):
  assert models.image_size(name) == side


def test_groups_of_channels_that_a_layer_cannot_be_cut_into_are_an_error():
  with pytest.raises(UserError, match='groups of 8 channels, and a layer has 100'):
    models.look(models.create('simplenet_460k', 10, models.Style('group')), (32, 32, 3))
