import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bnonly_jax.models import norm


@pytest.fixture
def double_precision():
  with jax.enable_x64(True):
    yield


def plain(y, scale, bias, residual, relu):
  mean, var = jnp.mean(y, (0, 1, 2)), jnp.var(y, (0, 1, 2))
  mean, var, scale, bias = (a.reshape(1, 1, 1, -1) for a in (mean, var, scale, bias))
  z = scale * (y - mean) / jnp.sqrt(var + 1e-5) + bias
  z = z if residual is None else z + residual
  return jax.nn.relu(z) if relu else z


def arguments(with_residual):
  rng = np.random.default_rng(1)
  y, residual, weight = (rng.standard_normal((8, 3, 5, 4)) + 0.3 for _ in range(3))
  return (y, rng.random(4), rng.standard_normal(4), residual if with_residual else None), weight


@pytest.mark.parametrize('relu', [True, False])
@pytest.mark.parametrize('with_residual', [True, False])
def test_value_and_gradients_equal_autodiff(double_precision, with_residual, relu):
  (y, scale, bias, residual), weight = arguments(with_residual)
  count = 4 if with_residual else 3

  def ours(*args):
    args = args if with_residual else (*args, None)
    return jnp.sum(weight * norm.batch_norm(*args, relu, norm.Statistics())[0])

  def theirs(*args):
    args = args if with_residual else (*args, None)
    return jnp.sum(weight * plain(*args, relu))

  given = (y, scale, bias, residual)[:count]
  np.testing.assert_allclose(ours(*given), theirs(*given), rtol=1e-12)
  gradients = [jax.grad(f, range(count))(*given) for f in (ours, theirs)]
  for mine, autodiffs in zip(*gradients, strict=True):
    np.testing.assert_allclose(mine, autodiffs, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize('with_residual', [True, False])
def test_over_two_devices_it_is_the_batchnorm_of_the_whole_batch(double_precision, with_residual):
  (y, scale, bias, residual), weight = arguments(with_residual)
  arrays = [y, weight] + ([residual] if with_residual else [])

  def loss(y, weight, residual, scale, bias, statistics):
    out, mean, var = norm.batch_norm(y, scale, bias, residual, True, statistics)
    return jnp.sum(weight * out), (mean, var)

  def on_devices(scale, bias, y, weight, residual=None):
    (_, stats), (dy, d_scale, d_bias) = jax.value_and_grad(loss, (0, 3, 4), has_aux=True)(
        y, weight, residual, scale, bias, norm.Statistics('batch'))
    return jax.lax.psum((d_scale, d_bias), 'batch'), stats, dy

  halves = [a.reshape(2, 4, *a.shape[1:]) for a in arrays]
  (d_scale, d_bias), stats, dy = jax.pmap(
      on_devices, 'batch', in_axes=(None, None) + (0,) * len(halves), out_axes=(None, None, 0))(
          scale, bias, *halves)
  whole = functools.partial(loss, statistics=norm.Statistics())
  (_, whole_stats), (whole_dy, *whole_d) = jax.value_and_grad(whole, (0, 3, 4), has_aux=True)(
      y, weight, residual, scale, bias)
  np.testing.assert_allclose(dy.reshape(y.shape), whole_dy, rtol=1e-9, atol=1e-11)
  for a, b in zip([d_scale, d_bias, *stats], [*whole_d, *whole_stats], strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-9)


def test_it_equals_flax_but_for_the_unbiased_running_variance():
  y = np.float32(np.random.default_rng(2).standard_normal((4, 2, 2, 3)) * 2 + 1)
  ours = norm.BatchNorm(train=True)
  variables = ours.init(jax.random.key(0), y)
  theirs = nn.BatchNorm(use_running_average=False, momentum=0.9, epsilon=1e-5)
  out, updated = ours.apply(variables, y, relu=False, mutable=['batch_stats'])
  expected, flax_updated = theirs.apply(variables, y, mutable=['batch_stats'])
  np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)
  ours_stats, flax_stats = updated['batch_stats'], flax_updated['batch_stats']
  np.testing.assert_allclose(ours_stats['mean'], flax_stats['mean'], rtol=1e-5, atol=1e-6)
  # torch.nn.BatchNorm2d: 0.9 * 1 + 0.1 * sum((y - mean)^2) / (n - 1)
  torchs = 0.9 + 0.1 * y.reshape(-1, 3).var(0, ddof=1)
  np.testing.assert_allclose(ours_stats['var'], torchs, rtol=1e-5)
  assert np.all(ours_stats['var'] > flax_stats['var'])


def test_evaluation_normalises_by_the_running_averages():
  y = np.float32(np.random.default_rng(3).standard_normal((4, 2, 2, 3)))
  variables = {'params': {'scale': np.float32([1, 2, 3]), 'bias': np.float32([0, 1, -1])},
               'batch_stats': {'mean': np.float32([0.5, 0, -1]), 'var': np.float32([4, 1, 0.25])}}
  out = norm.BatchNorm(train=False).apply(variables, y, relu=False)
  std = np.sqrt(np.float32([4, 1, 0.25]) + 1e-5)
  expected = [1, 2, 3] * (y - [0.5, 0, -1]) / std + [0, 1, -1]
  np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('kind, groups', [('group', 2), ('layer', 1)])
def test_group_norm_and_layer_norm_equal_flax(kind, groups):
  y = np.float32(np.random.default_rng(4).standard_normal((4, 3, 5, 16)) * 2 + 1)
  ours = norm.make_norm(kind, True, norm.Statistics())('norm1')
  params = {'scale': np.linspace(-1, 2, 16, dtype=np.float32),
            'bias': np.linspace(0, 1, 16, dtype=np.float32)}
  expected = nn.GroupNorm(num_groups=groups, epsilon=1e-5).apply({'params': params}, y)
  got = ours.apply({'params': params}, y, relu=False)
  np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
  with_both = ours.apply({'params': params}, y, residual=y)
  np.testing.assert_allclose(with_both, np.maximum(expected + y, 0), rtol=1e-4, atol=1e-5)


def test_the_relu_keeps_what_is_not_a_number():
  # XLA's CPU backend turns max(nan, 0) into 0 where a mean follows: a lost run would look well.
  out = jax.jit(lambda y: jnp.mean(norm.NoNorm().apply({}, y), (1, 2)))(
      jnp.full((64, 8, 8, 32), jnp.nan))
  assert np.all(np.isnan(out))


@pytest.mark.parametrize('with_residual', [True, False])
def test_bfloat16_keeps_its_sums_in_float32(with_residual):
  (y, scale, bias, residual), _ = arguments(with_residual)
  y = y + 30  # where eight bits of fraction would lose the variance
  small = [None if x is None else jnp.asarray(x, jnp.bfloat16) for x in (y, residual)]
  scale, bias = np.float32(scale), np.float32(bias)
  wide = [None if x is None else np.asarray(x, np.float32) for x in small]

  def total(y, scale, bias, residual):
    out, mean, var = norm.batch_norm(y, scale, bias, residual, True, norm.Statistics())
    return jnp.sum(out.astype(jnp.float32)), (out, mean, var)

  grad = jax.value_and_grad(total, (0, 1, 2), has_aux=True)
  (_, ours), ours_grad = grad(small[0], scale, bias, small[1])
  (_, exact), exact_grad = grad(wide[0], scale, bias, wide[1])
  assert ours[0].dtype == ours_grad[0].dtype == jnp.bfloat16
  for a, b in zip(ours[1:] + ours_grad[1:], exact[1:] + exact_grad[1:], strict=True):
    assert a.dtype == jnp.float32
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
  for a, b in ((ours[0], exact[0]), (ours_grad[0], exact_grad[0])):
    np.testing.assert_allclose(np.asarray(a, np.float32), b, rtol=2e-2, atol=2e-2)


def test_the_gradient_of_a_relu_at_zero_is_zero_with_every_norm():
  y = jnp.zeros((2, 3, 3, 8))
  for kind, train in (('batch', True), ('batch', False), ('group', True), ('none', True)):
    module = norm.make_norm(kind, train, norm.Statistics())('norm1')
    variables = module.init(jax.random.key(0), y)

    def out(residual, module=module, variables=variables):
      return jnp.sum(module.apply(variables, y, residual, mutable=['batch_stats'])[0])

    np.testing.assert_array_equal(jax.grad(out)(y), 0, err_msg=kind)
    np.testing.assert_array_equal(jax.grad(out)(y + 1), 1, err_msg=kind)


@pytest.mark.parametrize('with_residual', [True, False])
def test_parts_of_a_batch_have_statistics_of_their_own(double_precision, with_residual):
  (y, scale, bias, residual), weight = arguments(with_residual)

  def total(statistics, y, weight, scale, bias, residual):
    out, mean, var = norm.batch_norm(y, scale, bias, residual, True, statistics)
    return jnp.sum(weight * out), (mean, var)

  grad = jax.value_and_grad(total, (1, 3, 4), has_aux=True)
  (loss, moments), gradients = grad(norm.Statistics(parts=4), y, weight, scale, bias, residual)
  parts = [grad(norm.Statistics(), *(a[i:i + 2] for a in (y, weight)), scale, bias,
                residual[i:i + 2] if with_residual else None) for i in range(0, 8, 2)]
  np.testing.assert_allclose(loss, sum(part[0][0] for part in parts), rtol=1e-12)
  for i, moment in enumerate(moments):
    np.testing.assert_allclose(moment, np.mean([part[0][1][i] for part in parts], 0), rtol=1e-12)
  np.testing.assert_allclose(gradients[0], np.concatenate([part[1][0] for part in parts]),
                             rtol=1e-10, atol=1e-12)
  for i in (1, 2):
    np.testing.assert_allclose(gradients[i], sum(part[1][i] for part in parts), rtol=1e-10)
