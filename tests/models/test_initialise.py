
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bnonly_jax import models

SHAPE = (32, 32, 3)


def flat(name, seed=0, *starts):
  network = models.create(name, 10)
  return flax.traverse_util.flatten_dict(models.initialise(network, SHAPE, seed, *starts), sep='/')


def kernels(start):
  """Every single kernel of a network as a matrix [fan_in, features], by name."""
  found = {}
  for name, value in flat('cifar_resnet14x2', 0, start).items():
    if name.endswith('kernel'):
      for i, kernel in enumerate(value if '_stack/' in name else [value]):
        found[f'{name}/{i}'] = kernel.reshape(-1, kernel.shape[-1])
  return found


def test_the_distributions_are_the_papers():
  values = flat('cifar_resnet14x4')
  for name, value in values.items():
    assert value.dtype == np.float32
    if name.endswith('kernel'):
      std = np.sqrt(2 / np.prod(value.shape[-4:-1]))
      # Six standard errors of a mean and of a standard deviation.
      assert abs(value.mean()) < 6 * std / np.sqrt(value.size), name
      assert abs(value.std() / std - 1) < 6 / np.sqrt(2 * value.size), name
    elif name.endswith('scale'):
      assert value.min() >= 0 and value.max() < 1
      assert abs(value.mean() - 0.5) < 6 * np.sqrt(1 / 12 / value.size), name
    elif name == 'params/output/bias':
      assert np.all(np.abs(value) <= 1 / 16) and np.ptp(value) > 1 / 32
    else:
      np.testing.assert_array_equal(value, 1 if name.endswith('var') else 0, err_msg=name)


def test_he_uniform():
  for name, kernel in kernels('he_uniform').items():
    bound = np.sqrt(6 / len(kernel))
    assert np.abs(kernel).max() <= bound and np.abs(kernel).max() > 0.98 * bound, name
    assert abs(kernel.std() / np.sqrt(2 / len(kernel)) - 1) < 6 / np.sqrt(kernel.size), name


def test_orthogonal():
  for name, kernel in kernels('orthogonal').items():
    matrix = kernel if kernel.shape[0] >= kernel.shape[1] else kernel.T
    np.testing.assert_allclose(matrix.T @ matrix, np.eye(matrix.shape[1]), atol=1e-5, err_msg=name)
  signs = kernels('orthogonal')['params/stage3_first/conv1/kernel/0'] > 0
  assert abs(signs.mean() - 0.5) < 6 * 0.5 / np.sqrt(signs.size)


def test_binary():
  normal = kernels('he_normal')
  for name, kernel in kernels('binary').items():
    std = np.std(normal[name], ddof=1)
    np.testing.assert_allclose(kernel, np.sign(normal[name]) * std, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize('start, low, high, mean, bias', [
    ('uniform', 0, 1, 0.5, 0), ('one_zero', 1, 1, 1, 0), ('one_one', 1, 1, 1, 1),
    ('symmetric', -1, 1, 0, 0)])
def test_starts_of_gamma_and_beta(start, low, high, mean, bias):
  values = flat('cifar_resnet14x4', 0, 'he_normal', start)
  gamma = np.concatenate([v.ravel() for k, v in values.items() if k.endswith('scale')])
  assert gamma.min() >= low and gamma.max() <= high
  assert abs(gamma.mean() - mean) <= 6 * (high - low) / np.sqrt(12 * gamma.size)
  assert low == high or np.ptp(gamma) > 0.99 * (high - low)
  for name, value in values.items():
    if 'norm' in name and name.endswith('bias'):
      np.testing.assert_array_equal(value, bias)
  # The weights are what they are with any start of the norms.
  plain = flat('cifar_resnet14x4')
  np.testing.assert_array_equal(values['params/output/kernel'], plain['params/output/kernel'])


def test_biases_of_convolutions_are_pytorchs_default():
  values = flat('cifar_vgg11')
  for number, fan_in in ((1, 27), (2, 576), (8, 4608)):
    bias = values[f'params/conv{number}/bias']
    assert np.abs(bias).max() <= fan_in ** -0.5 and np.ptp(bias) > fan_in ** -0.5


def test_a_networks_own_init_has_the_same_distributions():
  variables = models.create('cifar_resnet8x4', 10).init(jax.random.key(0), jnp.zeros((1, *SHAPE)))
  own = flax.traverse_util.flatten_dict(variables, sep='/')
  ours = flat('cifar_resnet8x4')
  assert {k: v.shape for k, v in own.items()} == {k: v.shape for k, v in ours.items()}
  for name, value in ours.items():
    spread = 6 / np.sqrt(value.size)
    assert abs(np.std(own[name]) - value.std()) <= spread * max(value.std(), 1e-6), name


def test_a_value_depends_on_the_seed_and_its_name_alone():
  small, deep = flat('cifar_resnet14'), flat('cifar_resnet20')
  name = 'params/stage2_first/conv1/kernel'
  np.testing.assert_array_equal(small[name], deep[name])
  # A deeper network's stack begins with the blocks of a shallower one.
  stack = 'params/stage1_stack/conv1/kernel'
  np.testing.assert_array_equal(small[stack], deep[stack][:2])
  assert np.any(flat('cifar_resnet14', seed=1)[name] != small[name])
  kernels = [v.reshape(-1)[:9] for k, v in small.items() if k.endswith('kernel')]
  assert len({k.tobytes() for k in kernels}) == len(kernels)


def test_the_values_do_not_change_from_version_to_version():
  values = flat('cifar_resnet8')
  kernel, gamma = values['params/stem_conv/kernel'], values['params/stem_norm/scale']
  np.testing.assert_allclose(kernel[0, 0, 0, :3], (-0.03691919, 0.30254525, -0.10810867), rtol=1e-6)
  np.testing.assert_allclose(gamma[:3], (0.34913951, 0.34297395, 0.01961440), rtol=1e-6)


def test_a_deep_network_is_drawn_without_the_compiler():
  events = []
  jax.monitoring.register_event_duration_secs_listener(lambda event, *_, **__: events.append(event))
  flat('cifar_resnet110')
  assert not [event for event in events if 'backend_compile' in event]
  jax.jit(lambda x: x + 41)(1)
  assert [event for event in events if 'backend_compile' in event]
