import jax.numpy as jnp
import numpy as np
import optax

from bnonly_jax import optimizer
from bnonly_jax.config import default_config


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
