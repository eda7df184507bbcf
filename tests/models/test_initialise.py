import time

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bnonly_jax import models

SHAPE = (32, 32, 3)


def flat(name, seed=0):
  network = models.create(name, 10)
  return flax.traverse_util.flatten_dict(models.initialise(network, SHAPE, seed), sep='/')


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


@pytest.mark.parametrize('name, seconds', [('cifar_resnet110', 2), ('cifar_resnet866', 10)])
def test_deep_networks_are_initialised_fast(name, seconds):
  start = time.perf_counter()
  flat(name)
  assert time.perf_counter() - start < seconds
