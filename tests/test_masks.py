import pathlib
import re

from flax import nnx
import jax
import numpy as np
import optax
import pytest

from bnonly_jax import masks
from bnonly_jax import models
from bnonly_jax.config import UserError

PARAMETERS = models.look(models.create('cifar_resnet14', 10), (32, 32, 3))[1]
NAMES = {name: known.group for name, known in PARAMETERS.items()}


def trained_groups(selection):
  mask = masks.flatten(masks.make_mask(selection, PARAMETERS))
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
  mask = masks.flatten(masks.make_mask(selection, PARAMETERS))
  assert all(keep == (NAMES[name] in groups) for name, keep in mask.items())


@pytest.mark.parametrize('selection', [
    'batchnrom', '', '+', 'batchnorm+', '-batchnorm', 'batchnorm output', 'all+nope', 'gamma,beta',
    'random', 'random:0', 'random:x'])
def test_what_is_no_selection_is_an_error_with_the_groups(selection):
  with pytest.raises(UserError, match='is no group. Allowed are.*gamma, beta.*--config.train='):
    masks.make_mask(selection, PARAMETERS)


@pytest.mark.parametrize('selection', ['batchnorm-gamma-beta', 'output-all', 'nothing+nothing'])
def test_a_selection_that_matches_nothing_is_an_error_with_what_there_is(selection):
  with pytest.raises(UserError, match=r'matches no parameter.*gamma \(560\).*output \(650\)'):
    masks.make_mask(selection, PARAMETERS)


def test_a_group_that_the_network_lacks_is_an_error_with_what_there_is():
  few = {name: PARAMETERS[name] for name in ('stem_conv/kernel', 'output/bias')}
  with pytest.raises(UserError, match=r'this network has no batchnorm. It has conv \(432\)'):
    masks.make_mask('conv+batchnorm', few)


def test_the_table_counts_tensors_of_a_stack_one_by_one():
  table = {row.group: row for row in masks.table(PARAMETERS, masks.make_mask('gamma', PARAMETERS))}
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
  assert masks.tensors_trained(mask)['a_conv']['kernel'] is True


def test_random_weights_are_chosen_for_every_channel_from_the_seed():
  mask = masks.flatten(masks.make_mask('random:3', PARAMETERS))
  for name, keep in mask.items():
    if NAMES[name] in ('conv', 'shortcut'):
      kernels = keep if '_stack/' in name else keep[None]
      counts = kernels.reshape(len(kernels), -1, kernels.shape[-1]).sum(1)
      np.testing.assert_array_equal(counts, 3, err_msg=name)
    else:
      assert keep is False, name
  again, other = (masks.flatten(masks.make_mask('random:3', PARAMETERS, seed)) for seed in (0, 1))
  name = 'stage2_first/conv1/kernel'
  np.testing.assert_array_equal(mask[name], again[name])
  assert np.any(mask[name] != other[name])
  # Any weight of a channel is as likely as another: 27 weights, 16 channels, 100 seeds.
  stem = {'stem_conv/kernel': PARAMETERS['stem_conv/kernel']}
  hits = sum(masks.flatten(masks.make_mask('random:3', stem, seed))['stem_conv/kernel']
             .reshape(27, 16).sum(1) for seed in range(100))
  assert np.all(abs(hits - 1600 / 9) < 6 * np.sqrt(1600 * 8 / 81))


def test_a_channel_with_fewer_weights_trains_them_all():
  mask = masks.flatten(masks.make_mask('random:20', PARAMETERS))
  assert mask['stage2_first/shortcut_conv/kernel'] is True
  assert mask['stem_conv/kernel'].sum() == 20 * 16


@pytest.mark.parametrize('selection, trained', [
    ('batchnorm+output+random:1', (560, 560, 96, 464, 650)),
    ('random:1-shortcut', (0, 0, 0, 464, 0)),
    ('random:1+conv', (0, 0, 96, 170928, 0)),
    ('conv+shortcut-random:1', (0, 0, 2464, 170464, 0)),
    ('random:1+random:1', (0, 0, 96, 464, 0))])
def test_random_weights_combine_with_groups(selection, trained):
  assert tuple(row.trained for row in masks.table(
      PARAMETERS, masks.make_mask(selection, PARAMETERS))) == trained


def test_of_rules_the_first_match_counts():
  rules = '[["stage1.*norm1/scale$", true], ["norm", false], ["output/bias", true], ["", false]]'
  mask = masks.flatten(masks.make_mask(rules, PARAMETERS))
  trained = {name for name, keep in mask.items() if keep}
  assert trained == {'stage1_stack/norm1/scale', 'output/bias'}


@pytest.mark.parametrize('rules, message', [
    ('[["nrm", true], ["", false]]', "'nrm', found in no parameter. There are output/bias"),
    ('[["norm", true]]', 'no expression that is found in output/bias'),
    ('[["", false]]', 'matches no parameter'),
    ('[["norm", 1], ["", false]]', 'no list of rules'),
    ('[["("]]', 'no list of rules'),
    ('["norm"]', 'no list of rules'),
    ('[["(", true]]', 'no list of rules'),
    ('[', 'no list of rules')])
def test_wrong_rules_are_errors(rules, message):
  with pytest.raises(UserError, match=message):
    masks.make_mask(rules, PARAMETERS)


def trained_names(selection, parameters=PARAMETERS):
  """The unstacked names of what trains, whole."""
  mask, found = masks.flatten(masks.make_mask(selection, parameters)), set()
  for whole, known in parameters.items():
    keeps = np.broadcast_to(mask[whole], known.whole_shape).reshape(len(known.names), -1)
    assert np.all(keeps.all(1) == keeps.any(1)), whole
    found |= {name for name, keep in zip(known.names, keeps, strict=True) if keep.all()}
  return found


def test_rules_take_the_names_of_single_blocks():
  assert trained_names('[["stage1/block2/norm1/scale$", true], ["", false]]') == {
      'stage1/block2/norm1/scale'}
  # A rule for a stack's name in the tree, as older workdirs have them, holds for all of it.
  assert trained_names('[["^stage1_stack/norm2/bias", true], ["", false]]') == {
      'stage1/block1/norm2/bias', 'stage1/block2/norm2/bias'}


@pytest.mark.parametrize('selection, layers, leaves', [
    ('batchnorm@stage1/block2', {'stage1/block2/norm1', 'stage1/block2/norm2'}, 2),
    ('gamma@stage2', {'stage2/block1/norm1', 'stage2/block1/norm2', 'stage2/block2/norm1',
                      'stage2/block2/norm2', 'stage2/block1/shortcut_norm'}, 1),
    ('batchnorm@last:4', {'stage3/block2/norm2', 'stage3/block2/norm1', 'stage3/block1/norm2',
                          'stage3/block1/shortcut_norm'}, 2),
    ('norm:batch@last:1', {'stage3/block2/norm2'}, 2),
    ('beta@stage1-beta@stage1/block1', {'stage1/block2/norm1', 'stage1/block2/norm2'}, 1),
    ('conv@last:1', {'stage3/block2/conv2'}, 1),
    ('output@output/bias', {'output'}, 1),
    ('shortcut@stage3', {'stage3/block1/shortcut_conv'}, 1)])
def test_a_selection_may_hold_a_place(selection, layers, leaves):
  names = trained_names(selection)
  assert {name.rpartition('/')[0] for name in names} == layers
  assert len(names) == leaves * len(layers)


def test_random_weights_have_places_too():
  everywhere, here = (masks.flatten(masks.make_mask(selection, PARAMETERS))
                      for selection in ('random:2', 'random:2@stage1/block2'))
  stack = 'stage1_stack/conv1/kernel'
  assert not here[stack][0].any()
  np.testing.assert_array_equal(here[stack][1], everywhere[stack][1])
  assert {name for name, keep in here.items() if np.any(keep)} == {
      stack, 'stage1_stack/conv2/kernel'}


@pytest.mark.parametrize('selection, message', [
    ('batchnorm@stage4', "none of that at 'stage4'. There are stage1, stage2, stage3, stem_norm, "
     'with what lies below them, and last:1 to last:15; .*--describe --names'),
    ('conv@output', "none of that at 'output'. There are stage1"),
    ('batchnorm@stage1/block3', "none of that at 'stage1/block3'"),
    ('batchnorm@stage', "none of that at 'stage'"),
    ('batchnorm@last:16', "at 'last:16'.*last:1 to last:15"),
    ('batchnorm@', 'is no group. Allowed are'), ('nothing@stage1', 'is no group'),
    ('norm:nope', 'is no group.*norm:batch, norm:layer, norm:group, norm:rms, norm:instance'),
    ('attention', 'this network has no attention. It has gamma')])
def test_a_wrong_place_is_an_error_with_those_that_there_are(selection, message):
  with pytest.raises(UserError, match=message):
    masks.make_mask(selection, PARAMETERS)


DOC = pathlib.Path(__file__).parents[1] / 'docs/networks.md'


@pytest.mark.parametrize('library', ['flax.linen', 'flax.nnx', 'equinox'])
def test_a_recipe_of_the_documentation_trains_the_norm_alone(library):
  pytest.importorskip(library)
  recipe, = (text for text in re.findall(r'^```python\n(.*?)^```', DOC.read_text(), re.M | re.S)
             if text.startswith(f'import {library}'))
  assert len([line for line in recipe.splitlines() if line.strip()]) <= 20
  scope = {}
  with jax.numpy_rank_promotion('allow'):
    exec(recipe, scope)
    first = jax.tree.leaves(scope['trainable'])
    start, begun = (jax.tree.leaves(scope[name]) for name in ('frozen', 'opt_state'))
    more = ('stats',) if 'stats' in scope else ()
    arguments = [scope[name] for name in ('trainable', *more, 'opt_state', 'frozen')]
    second = jax.tree.leaves(scope['step'](*arguments)[0])
  assert [leaf.shape for leaf in first] == [(8,), (8,)]  # scale and bias of the one norm
  assert all(np.any(a != b) for a, b in zip(first, second, strict=True))
  assert sum(np.size(leaf) for leaf in begun) == 16
  arrays = [leaf for leaf in start if hasattr(leaf, 'shape')]
  assert len(arrays) == 4  # two kernels, two biases


def test_optax_masked_on_all_parameters_is_a_trap():
  params = {'norm': {'scale': np.ones(3, np.float32)}, 'conv': {'kernel': np.ones(3, np.float32)}}
  tx = optax.masked(optax.sgd(0.1), masks.norms_only(params))
  updates, _ = tx.update(params, tx.init(params), params)
  np.testing.assert_array_equal(updates['conv']['kernel'], 1)  # the raw gradient
  np.testing.assert_allclose(updates['norm']['scale'], -0.1)


def test_norms_are_found_by_type_where_there_are_types_and_else_by_name():
  class Odd(nnx.Module):
    def __init__(self, rngs):
      self.norm_like = nnx.Linear(2, 3, rngs=rngs)
      self.layers = nnx.List([nnx.RMSNorm(3, rngs=rngs)])

  leaves = jax.tree_util.tree_leaves_with_path(masks.norms_only(Odd(nnx.Rngs(0))))
  assert {jax.tree_util.keystr(path) for path, keep in leaves if keep} == {
      '.layers[0].scale.value'}
  named = {'block': {'bn1': {'scale': 1, 'bias': 2}, 'down_bn': {'weight': 1}, 'ln': {'bias': 0},
                     'conv': {'kernel': 3, 'bias': 1}, 'LayerNorm_0': {'scale': 1, 'mean': 1}}}
  leaves = masks.flatten(masks.norms_only(named))
  assert {name for name, keep in leaves.items() if keep} == {
      'block/bn1/scale', 'block/bn1/bias', 'block/down_bn/weight', 'block/ln/bias',
      'block/LayerNorm_0/scale'}
  with pytest.raises(UserError, match=r"no norm in these parameters: \['a'\]\['kernel'\]"):
    masks.norms_only({'a': {'kernel': 1}})


def test_of_a_linen_network_the_types_of_its_modules_count():
  network = models.create('cifar_resnet8', 10)
  images = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
  params = models.variable_shapes(network, (32, 32, 3))['params']
  _, parameters = models.look(network, (32, 32, 3))
  assert masks.norms_only(params, network, images) == masks.make_mask('batchnorm', parameters)
