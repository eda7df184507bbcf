"""Random weights that are sparse, coded, of low rank, or moved within a subspace, in training."""

import conftest
from etils import epath
import jax
import numpy as np
import pytest
from tiny import tiny_config

import bnonly_jax
from bnonly_jax import analysis
from bnonly_jax import describe
from bnonly_jax import experiment
from bnonly_jax import masks
from bnonly_jax import train
from bnonly_jax.config import UserError
from bnonly_jax.export import seed
from bnonly_jax.models import frozen_half
from bnonly_jax.run import origin


def all_params(setup, state, frozen):
  return {name: np.asarray(value) for name, value in masks.flatten(
      jax.device_get(masks.merge(state.trainable, frozen))).items()}


@pytest.mark.parametrize('selection, optimizer', [
    ('all', 'sgd'), pytest.param('batchnorm+conv@stage1', 'adamw', marks=pytest.mark.slow)])
def test_zeros_stay_zero_and_the_other_weights_train(selection, optimizer):
  # A decay so large that nothing it touches keeps its bits.
  setup = conftest.make_setup(selection, 2, **{
      'weight_sparsity': 0.8, 'optimizer.weight_decay': 0.5, 'optimizer.learning_rate': 0.01,
      'optimizer.name': optimizer})
  start = masks.flatten(setup.variables['params'])
  state, frozen, _ = setup.run(3)
  after = all_params(setup, state, frozen)
  numbers = frozen_half.kept_numbers(setup.experiment.parameters, 0.8, 'uniform')
  trained = set()
  for name, number in numbers.items():
    zeros = start[name] == 0
    assert zeros.sum() == zeros.size - number * len(setup.experiment.parameters[name].names)
    assert not np.any(after[name][zeros]), name
    keep = np.broadcast_to(masks.flatten(setup.mask)[name], zeros.shape)
    assert np.all(after[name][keep] != start[name][keep]), name
    np.testing.assert_array_equal(after[name][~keep], start[name][~keep])
    np.testing.assert_array_equal(keep, ~zeros if keep.any() else False)
    trained |= {name} if keep.any() else set()
  assert trained == {name for name in numbers if selection == 'all' or name.startswith('stage1')}
  # Neither state nor optimizer holds a zero's share.
  moments = jax.tree.leaves(state.opt_state)
  weights = sum(leaf.size for leaf in jax.tree.leaves(state.trainable))
  rows = masks.table(setup.experiment.parameters, setup.mask)
  assert weights == sum(row.trained for row in rows)
  held = sum(leaf.size for leaf in moments if leaf.size > 1)
  assert held == {'sgd': 1, 'adamw': 2}[optimizer] * weights


def test_every_seed_has_as_many_weights_in_each_tensor():
  fields = {'weight_sparsity': 0.9, 'weight_sparsity_layers': 'erk'}
  run = conftest.make_setup('all', **fields).experiment
  zero, one = (masks.flatten(masks.of_config(run.config, run.parameters, seed)) for seed in (0, 1))
  for name in frozen_half.kernels(run.parameters):
    assert np.sum(zero[name]) == np.sum(one[name]), name
  assert any(np.any(zero[name] != one[name]) for name in zero)


def test_without_any_of_it_nothing_is_drawn_otherwise():
  run = conftest.make_setup().experiment
  drawn = masks.flatten(experiment.draw_variables(run, 0)['params'])
  sparse = conftest.make_setup(weight_sparsity=0.5)
  for name, value in masks.flatten(sparse.variables['params']).items():
    if name not in frozen_half.kernels(run.parameters):
      np.testing.assert_array_equal(value, drawn[name])


@pytest.mark.parametrize('message, fields', [
    ('weight_sparsity is 0.5; allowed is 0 with random:K', {
        'weight_sparsity': 0.5, 'train': 'batchnorm+random:1'}),
    ('weight_sparsity is 1.0; allowed is at least 0 and below 1', {'weight_sparsity': 1.0}),
    ('weight_sparsity_layers is .*uniform or erk', {'weight_sparsity_layers': 'igq'}),
    ('weight_sparsity is 0.5; allowed is 0 with config.init_from', {
        'weight_sparsity': 0.5, 'init_from': 'runs/a'}),
    ('weight_rank is 2; allowed is 0 with config.init_from', {
        'weight_rank': 2, 'init_from': 'runs/a'}),
    ('weight_rank is 2; allowed is 0 with config.weight_sparsity', {
        'weight_rank': 2, 'weight_sparsity': 0.5}),
    ("weight_start is 'binary'; allowed is he_normal with config.weight_rank", {
        'weight_rank': 2, 'weight_start': 'binary'})])
def test_what_makes_no_sense_is_told_in_a_line(message, fields):
  config = conftest.pattern_config(**fields)
  with pytest.raises(UserError, match=f'config.{message}.*--config'):
    experiment.build(config, conftest.PATTERNS, jax.devices()[:1])


def test_a_network_without_convolutions_has_none_of_it(tmp_path, monkeypatch):
  (tmp_path / 'no_convolution.py').write_text('''
import flax.linen as nn

class Network(nn.Module):
  classes: int
  @nn.compact
  def __call__(self, images, train):
    return nn.Dense(self.classes)(nn.BatchNorm(not train)(images.mean((1, 2))))

def make(classes):
  return Network(classes)
''')
  monkeypatch.syspath_prepend(tmp_path)
  for field, value in (('weight_sparsity', 0.5), ('weight_rank', 2), ('weight_bits', '4'),
                       ('train', 'subspace:2')):
    config = conftest.pattern_config(**{'network': 'no_convolution:make', field: value})
    with pytest.raises(UserError, match=f'config.{field} is .*has no convolutions.*config.{field}'):
      experiment.build(config, conftest.PATTERNS, jax.devices()[:1])


SPAN = 'subspace:2+output'


def span_arrays(tree):
  return {name: leaf for name, leaf in masks.flatten(tree).items()
          if isinstance(leaf, masks.Spanned)}


def test_a_subspace_has_coefficients_for_each_channel_and_starts_at_the_frozen_network():
  setup = conftest.make_setup(SPAN)
  parameters = setup.experiment.parameters
  drawn = masks.flatten(conftest.make_setup().variables['params'])
  start = all_params(setup, setup.state, setup.frozen)
  for name, value in start.items():
    np.testing.assert_array_equal(value, drawn[name], err_msg=name)
  coefficients = masks.flatten(setup.state.trainable)
  spanned, channels = span_arrays(setup.frozen), 0
  assert spanned.keys() == frozen_half.kernels(parameters).keys()
  for name, (tensor, directions) in spanned.items():
    known = parameters[name]
    assert coefficients[name].shape == (*known.stack, 2, known.shape[-1])
    channels += len(known.names) * known.shape[-1]
    flat = directions.reshape(len(known.names), 2, -1, known.shape[-1])
    np.testing.assert_allclose(np.square(flat).sum(2), 1, rtol=1e-5)
    # Of one channel as of another, the directions are independent.
    assert abs((flat[:, 0] * flat[:, 1]).sum(1).mean()) < 6 / np.sqrt(
        flat.shape[2] * len(flat) * known.shape[-1]), name
    assert tensor.shape == known.whole_shape
  rows = {row.group: row.trained for row in masks.table(parameters, setup.mask)}
  assert rows['conv'] + rows['shortcut'] == 2 * channels == 2 * 336
  assert rows['output'] == 650 and rows['gamma'] == rows['beta'] == 0
  told = describe.describe(setup.experiment.config)['kernels']
  assert told.startswith('convolutions: 672 coefficients train, 2 for each of 336 output channels,')


def test_within_a_subspace_kernels_move_along_the_directions_and_all_else_is_frozen():
  setup = conftest.make_setup(SPAN, 2, **{'optimizer.weight_decay': 0.5})
  state, frozen, _ = setup.run(3)
  jax.tree.map(np.testing.assert_array_equal, frozen, setup.frozen)
  start, after = (all_params(setup, *pair) for pair in (
      (setup.state, setup.frozen), (state, frozen)))
  coefficients = masks.flatten(state.trainable)
  for name, (tensor, directions) in span_arrays(frozen).items():
    moved = np.zeros(tensor.shape)
    stack = len(setup.experiment.parameters[name].stack)
    for k in range(2):
      along = np.take(coefficients[name], k, stack)
      assert np.all(along != 0), name
      moved += np.take(directions, k, stack) * along.reshape(
          *along.shape[:-1], *(1,) * (tensor.ndim - along.ndim), along.shape[-1])
    np.testing.assert_allclose(after[name], tensor + moved, atol=1e-6, err_msg=name)
  for name, value in after.items():
    if 'norm' in name:
      np.testing.assert_array_equal(value, start[name], err_msg=name)


def test_directions_depend_on_the_seed_and_the_name_and_leave_zeros_alone():
  setup = conftest.make_setup(SPAN, weight_sparsity=0.8)
  run = setup.experiment
  drawn = [span_arrays(masks.partition(setup.variables['params'], masks.of_config(
      run.config, run.parameters, seed))[1]) for seed in (0, 0, 1)]
  for name, (tensor, directions) in drawn[0].items():
    np.testing.assert_array_equal(directions, drawn[1][name].directions)
    assert np.any(directions != drawn[2][name].directions)
    zeros = np.expand_dims(tensor == 0, len(run.parameters[name].stack))
    assert not np.any(directions[np.broadcast_to(zeros, directions.shape)])
  moved = jax.tree.map(lambda x: x + np.float32(1), setup.state.trainable)
  after = all_params(setup, setup.state._replace(trainable=moved), setup.frozen)
  for name, (tensor, _) in drawn[0].items():
    assert not np.any(after[name][tensor == 0]) and np.any(after[name] != tensor), name


@pytest.mark.parametrize('train, message', [
    ('subspace:2+conv@stage1', 'nothing else may train their weights'),
    ('all+subspace:2', 'nothing else may train their weights'),
    ('random:1+subspace:2', 'nothing else may train their weights'),
    ('subspace:1+subspace:2', 'allowed is one'), ('all-subspace:2', 'allowed is one'),
    ('subspace:2@stage1', 'is no group.*subspace:K with K = 1 to 999'),
    ('subspace:0', 'is no group'), ('subspace:1000', 'is no group')])
def test_a_subspace_that_makes_no_sense_is_told_in_a_line(train, message):
  config = conftest.pattern_config(train)
  with pytest.raises(UserError, match=f'config.train is .*{message}.*--config.train='):
    experiment.build(config, conftest.PATTERNS, jax.devices()[:1])


def test_a_subspace_joins_all_that_is_no_convolution():
  mask = masks.flatten(conftest.make_setup('all-conv-shortcut+subspace:3').mask)
  assert all(keep is True or keep.number == 3 for keep in mask.values())


@pytest.mark.slow  # two replicates compile for long
def test_a_run_within_a_subspace_is_read_by_all_who_read_runs(data_dir, tmp_path):
  fields = {'train': 'batchnorm+subspace:1', 'replicates': 2, 'seed': 3, 'weight_bits': '4'}
  config = tiny_config(data_dir, epochs=1, checkpoint_every_steps=2, **fields)
  conftest.train_and_die(config, tmp_path / 'run', 4)
  result = train.train_and_evaluate(config, tmp_path / 'run')
  loaded = analysis.load(tmp_path / 'run', replicate=1)
  evaluated = analysis.evaluate(loaded, loaded.variables['params'])[0]['test_accuracy']
  assert evaluated == pytest.approx(result['replicates'][1]['test_accuracy'], abs=0.01)
  seed.write(loaded, tmp_path / 'net.bnonly', replicate=1)
  jax.tree.map(np.testing.assert_array_equal, bnonly_jax.load(tmp_path / 'net.bnonly').variables,
               loaded.variables)
  later = experiment.build(tiny_config(data_dir, init_from=str(tmp_path / 'run'), seed=4))
  found = origin.find(later, epath.Path(tmp_path / 'new'), {})
  jax.tree.map(np.testing.assert_array_equal, found.variables[0], loaded.variables)
