import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bnonly_jax import masks
from bnonly_jax import models
from bnonly_jax.config import UserError

# BatchNorm, output, shortcut, total; computed from the architecture and equal to open_lth's tests.
COUNTS = {
    'cifar_resnet14': (1120, 650, 2560, 175258),
    'cifar_resnet32': (2464, 650, 2560, 466906),
    'cifar_resnet56': (4256, 650, 2560, 855770),
    'cifar_resnet110': (8288, 650, 2560, 1730714),
    'cifar_resnet218': (16352, 650, 2560, 3480602),
    'cifar_resnet434': (32480, 650, 2560, 6980378),
    'cifar_resnet866': (64736, 650, 2560, 13979930),
    'cifar_resnet14x2': (2240, 1290, 10240, 696618),
    'cifar_resnet14x4': (4480, 2570, 40960, 2777674),
    'cifar_resnet14x8': (8960, 5130, 163840, 11093130),
    'cifar_resnet14x16': (17920, 10250, 655360, 44337418),
    'cifar_resnet14x32': (35840, 20490, 2621440, 177279498),
    'imagenet_resnet18': (9600, 513000, 172032, 11689512),
    'imagenet_resnet34': (17024, 513000, 172032, 21797672),
    'imagenet_resnet50': (53120, 2049000, 2768896, 25557032),
    'imagenet_resnet101': (105344, 2049000, 2768896, 44549160),
    'imagenet_resnet152': (151424, 2049000, 2768896, 60192808),
    'imagenet_resnet200': (176000, 2049000, 2768896, 64673832),
    'cifar_vgg11': (5504, 5130, 0, 9231114),
    'cifar_vgg13': (5888, 5130, 0, 9416010),
    'cifar_vgg16': (8448, 5130, 0, 14728266),
    'cifar_vgg19': (11008, 5130, 0, 20040522),
}


def look(name, norm='batch'):
  large = name.startswith('imagenet')
  network = models.create(name, 1000 if large else 10, models.Style(norm))
  return models.look(network, (224, 224, 3) if large else (32, 32, 3))


@pytest.mark.parametrize('name', COUNTS)
def test_the_parameter_counts_are_the_papers(name):
  _, parameters = look(name)
  size = {row.group: row.parameters for row in masks.table(parameters)}
  batchnorm = size['gamma'] + size['beta']
  assert (batchnorm, size['output'], size['shortcut'], sum(size.values())) == COUNTS[name]
  assert size['gamma'] == size['beta']
  # Two weights of every channel of every convolution are as many as gammas and betas.
  two = (masks.table(parameters, masks.make_mask('random:2', parameters))
         if sum(size.values()) < 5e7 else ())
  assert sum(row.trained for row in two) == (batchnorm if two else 0)


def test_width_multiplies_the_channels_of_imagenet_networks_too():
  kernel = look('imagenet_resnet18x2')[0]['params']['stem_conv']['kernel']
  assert kernel.shape == (7, 7, 3, 128)


@pytest.mark.parametrize('name', [
    'resnet14', 'cifar_resnet', 'cifar_resnet15', 'cifar_resnet2', 'cifar_resnet14x0', 'vgg', '',
    'cifar_resnet14x2x2', 'cifar_resnet-14', 'imagenet_resnet14', 'cifar_vgg14', 'cifar_vgg16x2'])
def test_an_unknown_network_is_an_error_that_lists_the_families(name):
  with pytest.raises(UserError) as error:
    models.create(name, 10)
  for text in (f'config.network is {name!r}', 'N = 6 D + 2', 'imagenet_resnetN', '18, 34, 50',
               'cifar_vggN with N in 11, 13, 16, 19'):
    assert text in str(error.value)


def test_images_too_small_for_vgg_are_an_error():
  with pytest.raises(UserError, match='images have 8x8 pixels; allowed are 16x16'):
    models.variable_shapes(models.create('cifar_vgg11', 10), (8, 8, 1))


@pytest.mark.parametrize('norm, groups', [
    ('batch', {'gamma', 'beta'}), ('group', {'gamma', 'beta'}), ('layer', {'gamma', 'beta'}),
    ('none', set())])
def test_every_norm_has_the_affine_parameters_of_batchnorm_or_none(norm, groups):
  variables, parameters = look('cifar_resnet14', norm)
  size = {row.group: row.parameters for row in masks.table(parameters)}
  assert {group for group in ('gamma', 'beta') if size[group]} == groups
  assert size['gamma'] in (0, 560)
  assert bool(variables['batch_stats']) == (norm == 'batch')
  if norm == 'none':
    with pytest.raises(UserError, match='this network has no batchnorm'):
      masks.make_mask('batchnorm', parameters)


@pytest.mark.parametrize('norm', ['group', 'layer', 'none'])
def test_norms_of_single_images_do_not_look_at_the_batch(norm):
  network = models.create('cifar_resnet8', 10, models.Style(norm))
  variables = models.initialise(network, (8, 8, 3), 0)
  images = np.float32(np.random.default_rng(0).standard_normal((4, 8, 8, 3)))
  whole = network.apply(variables, images, train=True)
  np.testing.assert_allclose(whole[:1], network.apply(variables, images[:1]), rtol=1e-4, atol=1e-5)
  assert jax.tree.leaves(variables['batch_stats']) == [] and whole.dtype == jnp.float32


@pytest.mark.parametrize('name', ['cifar_resnet14', 'imagenet_resnet50x1'])
def test_remat_changes_neither_names_nor_gradients(name):
  plain, remat = (models.create(name, 10, models.Style(remat=choice)) for choice in (False, True))
  shape = (32, 32, 3)
  variables = models.initialise(plain, shape, 0)
  images = np.random.default_rng(0).normal(size=(4, *shape)).astype(np.float32)

  def loss(params, network):
    logits, _ = network.apply({**variables, 'params': params}, images, train=True,
                              mutable=['batch_stats'])
    return jnp.mean(jnp.square(logits - 1))

  if name.startswith('imagenet'):  # its 64.7 million weights are no part of the claim
    assert jax.tree.structure(models.variable_shapes(remat, shape)) == jax.tree.structure(
        models.variable_shapes(plain, shape))
    return
  first, second = (jax.jit(jax.grad(loss), static_argnums=1)(variables['params'], network)
                   for network in (plain, remat))
  for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_a_network_without_blocks_cannot_save_memory_by_them():
  with pytest.raises(UserError, match='has no residual blocks'):
    models.create('cifar_vgg11', 10, models.Style(remat=True))
