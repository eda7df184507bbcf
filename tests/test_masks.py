import jax
import numpy as np
import pytest

from bnonly_jax import masks
from bnonly_jax import models
from bnonly_jax.config import UserError

PARAMS = models.variable_shapes(models.create('cifar_resnet14', 10), (32, 32, 3))['params']
NAMES = masks.group_names(PARAMS)


def trained_groups(selection):
  mask = masks.flatten(masks.make_mask(selection, PARAMS))
  return {NAMES[name] for name, keep in mask.items() if keep}


@pytest.mark.parametrize('selection, groups', [
    ('batchnorm', {'gamma', 'beta'}),
    ('gamma', {'gamma'}),
    ('beta', {'beta'}),
    ('output', {'output'}),
    ('shortcut', {'shortcut'}),
    ('conv', {'conv'}),
    ('all', {'gamma', 'beta', 'shortcut', 'conv', 'output'}),
    ('all-batchnorm', {'shortcut', 'conv', 'output'}),
    ('batchnorm+output+shortcut', {'gamma', 'beta', 'output', 'shortcut'}),
    (' batchnorm - beta + output ', {'gamma', 'output'}),
    ('batchnorm-gamma+gamma', {'gamma', 'beta'}),
    ('nothing', set()),
    ('nothing+output', {'output'}),
])
def test_a_selection_trains_its_groups_whole(selection, groups):
  assert trained_groups(selection) == groups
  mask = masks.flatten(masks.make_mask(selection, PARAMS))
  assert all(keep == (NAMES[name] in groups) for name, keep in mask.items())


@pytest.mark.parametrize('selection', [
    'batchnrom', '', '+', 'batchnorm+', '-batchnorm', 'batchnorm output', 'all+nope', 'gamma,beta'])
def test_what_is_no_selection_is_an_error_with_the_groups(selection):
  with pytest.raises(UserError, match='is no group. Allowed are.*gamma, beta.*--config.train='):
    masks.make_mask(selection, PARAMS)


@pytest.mark.parametrize('selection', ['batchnorm-gamma-beta', 'output-all', 'nothing+nothing'])
def test_a_selection_that_matches_nothing_is_an_error_with_what_there_is(selection):
  with pytest.raises(UserError, match=r'matches no parameter.*gamma \(560\).*output \(650\)'):
    masks.make_mask(selection, PARAMS)


def test_a_group_that_the_network_lacks_is_an_error_with_what_there_is():
  params = {name: PARAMS[name] for name in ('stem_conv', 'output')}
  with pytest.raises(UserError, match=r'this network has no batchnorm. It has conv \(432\)'):
    masks.make_mask('conv+batchnorm', params)


def test_a_parameter_of_no_group_is_an_error():
  with pytest.raises(ValueError, match="'stem/weight' belongs to none"):
    masks.make_mask('all', {'stem': {'weight': np.zeros(3)}})


def test_the_table_counts_tensors_of_a_stack_one_by_one():
  table = {row.group: row for row in masks.table(PARAMS, masks.make_mask('gamma', PARAMS))}
  assert table['gamma'] == ('gamma', 15, 560, 560)
  assert table['beta'] == ('beta', 15, 560, 0)
  assert table['conv'].tensors == 13 and table['shortcut'].tensors == 2


def small_params():
  rng = np.random.default_rng(0)
  return {'a_conv': {'kernel': rng.random((3, 3, 2, 4), np.float32)},
          'a_norm': {'scale': rng.random(4, np.float32), 'bias': rng.random(4, np.float32)}}


def test_partition_and_merge_are_inverse_for_tensors_and_for_single_weights():
  params = small_params()
  weights = np.random.default_rng(1).random((3, 3, 2, 4)) < 0.2
  mask = {'a_conv': {'kernel': weights}, 'a_norm': {'scale': True, 'bias': False}}
  trainable, frozen = masks.partition(params, mask)
  assert trainable['a_conv']['kernel'].shape == (weights.sum(),)
  assert trainable['a_norm']['bias'] is None and frozen['a_norm']['scale'] is None
  for a, b in zip(jax.tree.leaves(masks.merge(trainable, frozen)), jax.tree.leaves(params),
                  strict=True):
    np.testing.assert_array_equal(a, b)


def test_only_the_chosen_weights_of_a_tensor_change():
  params = small_params()
  weights = np.random.default_rng(1).random((3, 3, 2, 4)) < 0.2
  mask = {'a_conv': {'kernel': weights}, 'a_norm': {'scale': False, 'bias': False}}
  trainable, frozen = masks.partition(params, mask)
  merged = masks.merge(jax.tree.map(lambda t: t + 1, trainable), frozen)
  np.testing.assert_array_equal(merged['a_conv']['kernel'],
                                params['a_conv']['kernel'] + weights.astype(np.float32))
  assert masks.table(params, mask)[list(masks.GROUPS).index('conv')].trained == weights.sum()
  assert masks.tensors_trained(mask)['a_conv']['kernel'] is True
