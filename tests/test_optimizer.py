import conftest
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bnonly_jax import experiment
from bnonly_jax import masks
from bnonly_jax import optimizer
from bnonly_jax.config import default_config
from bnonly_jax.config import UserError


def test_the_rate_drops_after_half_and_three_quarters_of_the_run():
  rate = optimizer.schedule(default_config().optimizer, 128, 160 * 390, 390)
  steps = np.array([0, 80 * 390 - 1, 80 * 390, 120 * 390 - 1, 120 * 390, 160 * 390 - 1])
  np.testing.assert_allclose([rate(s) for s in steps], [0.1, 0.1, 0.01, 0.01, 0.001, 0.001],
                             rtol=1e-6)


def test_equal_drops_add_up_and_the_first_step_has_the_rate_itself():
  config = default_config().optimizer
  config.drops = (0.5, 0.5)
  rate = optimizer.schedule(config, 128, 10, 5)
  np.testing.assert_allclose([rate(4), rate(5)], [0.1, 0.001], rtol=1e-6)
  assert optimizer.schedule(config, 128, 1, 1)(0) == 0.1


def test_the_rate_scales_with_the_batch_only_when_asked():
  config = default_config().optimizer
  assert optimizer.schedule(config, 512, 10, 5)(0) == np.float32(0.1)
  config.reference_batch_size = 128
  np.testing.assert_allclose(optimizer.schedule(config, 512, 10, 5)(0), 0.4, rtol=1e-6)


def test_warm_up_is_linear_in_steps():
  config = default_config().optimizer
  config.warmup_epochs = 5.0
  rate = optimizer.schedule(config, 128, 1000, 10)
  np.testing.assert_allclose([rate(jnp.int32(s)) for s in (0, 1, 25, 50, 51, 500, 750)],
                             [0, 0.002, 0.05, 0.1, 0.1, 0.01, 0.001], rtol=1e-6)


def test_the_update_is_pytorchs_sgd_and_leaves_no_state_for_what_is_frozen():
  config = default_config().optimizer
  tx = optimizer.create(config, lambda _: 0.1, {'a': True, 'b': False})
  p = np.float32([1, -2])
  params = {'a': jnp.asarray(p), 'b': None}
  state, v = tx.init(params), 0
  for g in np.float32([[0.5, 1], [0.1, -0.3], [-1, 2]]):
    updates, state = tx.update({'a': jnp.asarray(g), 'b': None}, state, params)
    params = optax.apply_updates(params, updates)
    v = 0.9 * v + g + 1e-4 * p
    p = p - 0.1 * v
    np.testing.assert_allclose(params['a'], p, rtol=1e-6)
  assert params['b'] is None


def test_what_optax_masked_passes_through_would_reach_a_parameter_that_is_there():
  # Why gradients and parameters of frozen tensors are None: this is what happens otherwise.
  tx = optimizer.create(default_config().optimizer, lambda _: 0.1, {'a': True, 'b': False})
  params = {'a': jnp.ones(2), 'b': jnp.ones(2)}
  updates, _ = tx.update({'a': jnp.ones(2), 'b': jnp.full(2, 7.0)}, tx.init(params), params)
  np.testing.assert_array_equal(updates['b'], 7)


@pytest.mark.parametrize('warmup', [0.0, 5.0])
def test_a_cosine_falls_to_0_from_the_end_of_the_warm_up(warmup):
  config = default_config().optimizer
  config.update(schedule='cosine', warmup_epochs=warmup)
  rate, first = optimizer.schedule(config, 128, 1000, 10), int(10 * warmup)
  middle = first + (1000 - first) // 2
  np.testing.assert_allclose([rate(first), rate(middle), rate(1000)], [0.1, 0.05, 0], atol=1e-7)
  if warmup:
    np.testing.assert_allclose([rate(0), rate(25)], [0, 0.05], rtol=1e-6)


def test_a_constant_rate_stays_after_the_warm_up():
  config = default_config().optimizer
  config.update(schedule='constant', reference_batch_size=64, warmup_epochs=5.0)
  rate = optimizer.schedule(config, 128, 1000, 10)
  np.testing.assert_allclose([rate(s) for s in (0, 25, 50, 999)], [0, 0.1, 0.2, 0.2], rtol=1e-6)


def written_out(name, gradients, p, rate, decay):
  """AdamW (arXiv 1711.05101) and Lion (arXiv 2302.06675), with optax's constants."""
  m = v = 0
  for t, g in enumerate(gradients, 1):
    if name == 'adamw':
      m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
      step = (m / (1 - 0.9 ** t)) / (np.sqrt(v / (1 - 0.999 ** t)) + 1e-8)
    else:
      step, m = np.sign(0.9 * m + 0.1 * g), 0.99 * m + 0.01 * g
    p = p - rate * (step + decay * p)
  return p


@pytest.mark.parametrize('name', ['adamw', 'lion'])
def test_other_optimizers_are_those_of_their_papers(name):
  config = default_config().optimizer
  config.update(name=name, weight_decay=0.5)
  tx = optimizer.create(config, lambda _: 0.1, {'a': True, 'b': False})
  gradients = np.float32([[0.5, 1], [0.1, -0.3], [-1, 2]])
  params = {'a': jnp.float32([1, -2]), 'b': None}
  state = tx.init(params)
  for g in gradients:
    updates, state = tx.update({'a': jnp.asarray(g), 'b': None}, state, params)
    params = optax.apply_updates(params, updates)
  expected = written_out(name, gradients, np.float64([1, -2]), 0.1, 0.5)
  np.testing.assert_allclose(params['a'], expected, rtol=1e-5)
  assert params['b'] is None


def moved(train, **fields):
  """How far one step without a gradient, or with gradients of 1, moves each tensor."""
  config = conftest.pattern_config(train, **{f'optimizer.{k}': v for k, v in fields.items()})
  run = experiment.build(config, conftest.PATTERNS)
  state, _ = jax.eval_shape(lambda: experiment.start(run))
  full = lambda value: jax.tree.map(lambda leaf: jnp.full(leaf.shape, value), state.trainable)
  moves = []
  for gradient in (0.0, 1.0):
    updates, _ = run.tx.update(full(gradient), run.tx.init(full(2.0)), full(2.0))
    moves.append({name: float(np.ravel(value)[0])
                  for name, value in masks.flatten(updates).items() if value is not None})
  return {name: known.group for name, known in run.parameters.items()}, *moves


@pytest.mark.parametrize('name', ['sgd', 'adamw', 'lion'])
def test_norms_need_not_decay(name):
  groups, decayed, _ = moved('all', name=name, weight_decay=0.5, decay_norms=False)
  assert set(groups) == set(decayed)
  for tensor, move in decayed.items():
    expected = 0 if groups[tensor] in ('gamma', 'beta') else -0.1 * 0.5 * 2
    assert move == pytest.approx(expected), tensor
  _, decayed, _ = moved('all', name=name, weight_decay=0.5)
  assert all(move == pytest.approx(-0.1) for move in decayed.values())


@pytest.mark.parametrize('name', ['sgd', 'adamw', 'lion'])
@pytest.mark.parametrize('schedule, warmup, first', [('steps', 0.0, 1), ('constant', 1.0, 0)])
def test_groups_have_rates_of_their_own_in_the_same_schedule(name, schedule, warmup, first):
  groups, _, pushed = moved('batchnorm+output+random:1', name=name, weight_decay=0.0,
                            rates='output=0.01, batchnorm=0.4', schedule=schedule,
                            warmup_epochs=warmup)
  rates = {'output': 0.01, 'gamma': 0.4, 'beta': 0.4, 'conv': 0.1, 'shortcut': 0.1}
  assert set(pushed) == set(groups)
  for tensor, move in pushed.items():
    assert move == pytest.approx(-first * rates[groups[tensor]], rel=1e-5), tensor


@pytest.mark.parametrize('train, rates, message', [
    ('batchnorm', 'output=0.01', "a rate of 'output', which is of no group that trains. Allowed is"
     ' one for each of beta, gamma, and for batchnorm .gamma and beta.. Leave output out, or'),
    ('batchnorm', 'conv1=0.01', "'conv1', which is of no group that trains"),
    ('nothing', 'gamma=0.01', 'one for each of none'),
    ('output', 'batchnorm=0.01', "'batchnorm', which is of no group that trains"),
    ('batchnorm', 'batchnorm=1,gamma=2', "'gamma', and another one is of the same group")])
def test_a_rate_of_what_does_not_train_is_told(train, rates, message):
  config = conftest.pattern_config(train, **{'optimizer.rates': rates})
  with pytest.raises(UserError, match=f'config.optimizer.rates is .*{message}'):
    experiment.build(config, conftest.PATTERNS)


def test_noise_is_gaussian_and_keyed_by_seed_step_and_name():
  zeros = {'a': {'scale': jnp.zeros((200, 100)), 'bias': None}, 'b': jnp.zeros((200, 100))}
  noise = lambda seed=0, step=0, tree=zeros: optimizer.add_noise(tree, 0.09, 0.55, seed, step)
  first = noise()
  assert first['a']['bias'] is None
  values = np.asarray(first['a']['scale'])
  assert abs(values.mean()) < 5 * 0.3 / values.size ** 0.5
  assert values.std() == pytest.approx(0.3, rel=0.02)  # five times what chance leaves
  assert np.mean(np.abs(values) < 0.3) == pytest.approx(0.6827, abs=0.015)
  for other in (noise(seed=1)['b'], noise(step=1)['b'], first['a']['scale']):
    assert abs(np.corrcoef(np.ravel(other), np.ravel(first['b']))[0, 1]) < 0.04
  np.testing.assert_array_equal(noise(tree={'b': zeros['b']})['b'], first['b'])
  late = np.asarray(noise(step=99)['b'])
  assert late.std() == pytest.approx(0.3 * 100 ** -0.275, rel=0.02)


def test_a_step_adds_noise_to_what_trains_before_momentum_the_same_on_any_devices():
  fields = {'optimizer.gradient_noise': 0.01, 'optimizer.weight_decay': 0.0}
  with jax.enable_x64(True):
    one, two = (conftest.make_setup('gamma', devices, double=True, **fields) for devices in (1, 2))
    first, _, (metrics,) = one.run(1)
    momentum = optax.tree.get(first.opt_state, 'trace')
    assert len(jax.tree.leaves(momentum)) == len(jax.tree.leaves(one.state.trainable))
    noise = optimizer.add_noise(jax.tree.map(np.zeros_like, momentum), 0.01, 0.55, 0, 0)
    gradient = jax.tree.map(lambda a, b: a - b, momentum, noise)
    # The metrics tell of the gradient before the noise.
    np.testing.assert_allclose(metrics['gradient_norm'], optax.tree.norm(gradient), rtol=1e-9)
    assert optax.tree.norm(momentum) > 1.05 * metrics['gradient_norm']
    straight = one.run(4)[0]
    for state, tolerance in ((one.run(3, state=first)[0], 0), (two.run(4)[0], 1e-9)):
      for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(straight), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)
