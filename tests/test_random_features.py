"""Random weights that are sparse, coded, of low rank, or moved within a subspace, in training."""

import conftest
import jax
import numpy as np
import pytest

from bnonly_jax import experiment
from bnonly_jax import masks
from bnonly_jax.config import UserError
from bnonly_jax.models import frozen_half


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
