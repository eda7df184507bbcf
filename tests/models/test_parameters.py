"""What is known of parameters: their groups by owner, stacks taken apart, order, fan-in."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from bnonly_jax import masks
from bnonly_jax import models
from bnonly_jax.config import UserError
from bnonly_jax.models import layers

SHAPE = (8, 8, 3)


class Mine(nn.Module):
  """A norm of one's own, by a name that does not tell."""
  is_norm = True

  @nn.compact
  def __call__(self, x):
    gamma = self.param('gamma', nn.initializers.ones, x.shape[-1:])
    extra = self.param('extra', nn.initializers.constant(3.0), ())
    return x * gamma.reshape((1,) * (x.ndim - 1) + (-1,)) * extra[(None,) * x.ndim]


class Mixer(nn.Module):
  @nn.compact
  def __call__(self, x, _):
    return x + nn.Dense(x.shape[-1])(nn.RMSNorm()(x)), None


class Convolve(nn.Module):
  @nn.compact
  def __call__(self, x, _):
    return nn.Conv(64, (3,), name='conv')(x), None


class Block(nn.Module):
  @nn.compact
  def __call__(self, x, _):
    y = nn.LayerNorm(name='first')(x)
    x = x + nn.MultiHeadDotProductAttention(2, normalize_qk=True, name='mix')(y, y)
    x, _ = stacked(Mixer, 3)(name='inner')(x, None)
    return x, None


def stacked(block, length):
  return nn.scan(nn.remat(block), variable_axes={'params': 0}, split_rngs={'params': True},
                 length=length)


class Transformer(nn.Module):
  """Setup and compact modules, a scan within a scan, remat, attention, places, a last norm."""

  def setup(self):
    self.places = self.param('places', nn.initializers.normal(0.1), (1, 16, 4))
    self.embed = nn.Conv(4, (2, 2), (2, 2))
    self.tokens = nn.Embed(5, 4)
    self.blocks = stacked(Block, 2)()
    self.end = Mine()
    self.classify = nn.Dense(10)

  def __call__(self, images, train=False):
    x = self.embed(images).reshape(images.shape[0], -1, 4)
    x = x + self.places + self.tokens(np.zeros((1, 16), np.int32))
    return self.classify(self.end(self.blocks(x, None)[0]).mean(1))


class Norms(nn.Module):
  """Every norm of Flax, under names that say nothing, and no layer named output."""

  @nn.compact
  def __call__(self, images, train=False):
    x = nn.Conv(8, (3, 3), name='shortcut')(nn.ConvTranspose(8, (3, 3), name='a')(images))
    x = nn.BatchNorm(use_running_average=not train, name='b')(x)
    x = nn.GroupNorm(4, name='c')(nn.InstanceNorm(name='d')(nn.LayerNorm(name='e')(x)))
    x = nn.RMSNorm(name='f')(x).mean((1, 2))
    return nn.Dense(10, name='g')(nn.Dense(8, name='h')(x))


TRANSFORMER = models.look(Transformer(), SHAPE)[1]
NORMS = models.look(Norms(), SHAPE)[1]


def groups(parameters):
  return {name: known.group for name, known in parameters.items()}


def test_groups_come_from_the_type_of_the_owner():
  found = groups(TRANSFORMER)
  assert found == {
      'places': 'other', 'embed/kernel': 'conv', 'embed/bias': 'conv',
      'tokens/embedding': 'embedding', 'end/gamma': 'gamma', 'end/extra': 'other',
      'classify/kernel': 'output', 'classify/bias': 'output',
      'blocks/first/scale': 'gamma', 'blocks/first/bias': 'beta',
      **{f'blocks/mix/{part}/{leaf}': 'attention' for part in ('query', 'key', 'value', 'out')
         for leaf in ('kernel', 'bias')},
      'blocks/mix/query_ln/scale': 'gamma', 'blocks/mix/key_ln/scale': 'gamma',
      'blocks/inner/RMSNorm_0/scale': 'gamma',
      'blocks/inner/Dense_0/kernel': 'dense', 'blocks/inner/Dense_0/bias': 'dense'}
  assert groups(NORMS) == {
      **{f'{norm}/scale': 'gamma' for norm in 'bcdef'},
      **{f'{norm}/bias': 'beta' for norm in 'bcde'},
      **{f'{name}/{leaf}': group for name, group in (
          ('a', 'conv'), ('shortcut', 'shortcut'), ('g', 'output'), ('h', 'dense'))
         for leaf in ('kernel', 'bias')}}


@pytest.mark.parametrize('kind, name', [
    ('batch', 'b'), ('group', 'c'), ('instance', 'd'), ('layer', 'e'), ('rms', 'f')])
def test_the_norms_of_one_kind_are_a_selection(kind, name):
  mask = masks.flatten(masks.make_mask(f'norm:{kind}', NORMS))
  assert {n for n, keep in mask.items() if keep} == {
      n for n in NORMS if n.startswith(f'{name}/')}
  less = masks.flatten(masks.make_mask(f'batchnorm-norm:{kind}', NORMS))
  assert sum(less.values()) == 9 - sum(mask.values())


def test_our_norms_have_a_kind_too():
  for norm, kind in (('batch', 'batch'), ('group', 'group'), ('layer', 'layer')):
    parameters = models.look(models.create('cifar_resnet8', 10, models.Style(norm)), SHAPE)[1]
    assert {known.norm for known in parameters.values() if known.norm} == {kind}
    with pytest.raises(UserError, match='this network has no norm:rms. It has gamma'):
      masks.make_mask('norm:rms', parameters)


def test_a_module_named_output_is_the_output_whatever_follows_it():
  class Named(nn.Module):
    @nn.compact
    def __call__(self, images, train=False):
      x = nn.Dense(10, name='output')(images.mean((1, 2)))
      return nn.Dense(10, name='after')(x)

  found = groups(models.look(Named(), SHAPE)[1])
  assert found['output/kernel'] == 'output' and found['after/kernel'] == 'dense'


def test_stacks_within_stacks_are_taken_apart_in_the_order_of_application():
  known = TRANSFORMER['blocks/inner/RMSNorm_0/scale']
  assert known.shape == (4,) and known.stack == (2, 3) and known.whole_shape == (2, 3, 4)
  assert known.names[3] == 'blocks/block2/inner/block1/RMSNorm_0/scale'
  norms = sorted((order, name) for known in TRANSFORMER.values() if known.norm
                 for order, name in zip(known.order, known.names, strict=True))
  names = [name.removesuffix('/scale') for _, name in norms if name.endswith('scale')]
  each = ['first', 'mix/query_ln', 'mix/key_ln', *(f'inner/block{i}/RMSNorm_0' for i in (1, 2, 3))]
  assert names == [f'blocks/block{i}/{norm}' for i in (1, 2) for norm in each]
  assert norms[-1][1] == 'end/gamma'
  # And as plots take arrays apart.
  values = layers.unstack({'blocks/inner/RMSNorm_0': np.arange(24).reshape(2, 3, 4)},
                                 known.lifts)
  np.testing.assert_array_equal(values['blocks/block2/inner/block1/RMSNorm_0'], np.arange(12, 16))


@pytest.mark.parametrize('name, fan_in', [
    ('embed/kernel', 12), ('embed/bias', 12), ('classify/kernel', 4),
    ('blocks/mix/query/kernel', 4),  # [4, 2, 2]: one axis of inputs
    ('blocks/mix/query/bias', 4),
    ('blocks/mix/out/kernel', 4),  # [2, 2, 4]: two axes of inputs
    ('blocks/inner/Dense_0/kernel', 4), ('blocks/inner/Dense_0/bias', 4),
    ('places', 0), ('tokens/embedding', 0), ('end/gamma', 0)])
def test_fan_in_is_of_the_axes_that_are_summed_over(name, fan_in):
  assert TRANSFORMER[name].fan_in == fan_in


def test_what_is_known_starts_as_ours_and_all_else_as_its_module_says():
  class Wide(nn.Module):
    @nn.compact
    def __call__(self, images, train=False):
      x = nn.Embed(7, 64, name='embed')(np.zeros((1, 16), np.int32))
      x = x + self.param('places', nn.initializers.normal(5.0), (1, 16, 64))
      y = nn.MultiHeadDotProductAttention(8, name='mix')(x, x)

      y, _ = stacked(Convolve, 4)(name='stack')(y, None)
      return nn.Dense(10)(Mine(name='m')(y).mean(1))

  first, second, other = (models.initialise(Wide(), SHAPE, seed)['params'] for seed in (0, 0, 1))
  for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
    np.testing.assert_array_equal(a, b)
  assert np.any(first['places'] != other['places'])
  assert abs(first['places'].std() / 5 - 1) < 0.1 and first['m']['extra'] == 3
  assert abs(first['embed']['embedding'].std() * 8 - 1) < 0.2
  for part, fan_in in (('query', 64), ('out', 64)):  # He normal over all axes of inputs
    kernel, bias = first['mix'][part]['kernel'], first['mix'][part]['bias']
    assert abs(kernel.std() / np.sqrt(2 / fan_in) - 1) < 0.05
    assert 0 < np.abs(bias).max() <= fan_in ** -0.5
  # The length of a stack, 4, is no part of the fan-in.
  bias = first['stack']['conv']['bias']
  assert bias.shape == (4, 64) and 0.9 < np.abs(bias).max() * np.sqrt(3 * 64) <= 1
  assert first['m']['gamma'].min() >= 0 and first['m']['gamma'].max() < 1


def test_orthogonal_is_so_over_all_axes_of_inputs():
  class Attention(nn.Module):
    @nn.compact
    def __call__(self, images, train=False):
      x = nn.MultiHeadDotProductAttention(4, qkv_features=16)(images, images)
      return nn.Dense(10)(x.mean((1, 2)))

  drawn = models.initialise(Attention(), (8, 8, 16), 0, 'orthogonal')['params']
  for part in ('query', 'out'):
    matrix = drawn['MultiHeadDotProductAttention_0'][part]['kernel'].reshape(16, 16)
    np.testing.assert_allclose(matrix.T @ matrix, np.eye(16), atol=1e-5)
