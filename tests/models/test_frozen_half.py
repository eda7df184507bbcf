import numpy as np
import pytest

from bnonly_jax import models
from bnonly_jax.models import frozen_half


def look(name):
  return models.look(models.create(name, 10), (32, 32, 3))[1]


PARAMETERS = look('cifar_resnet14')
KERNELS = frozen_half.kernels(PARAMETERS)


def kept(sparsity, layers='uniform', seed=0, parameters=PARAMETERS):
  """Which weights stay, by kernel, as [kernels of the stack, inputs, features]."""
  numbers = frozen_half.kept_numbers(parameters, sparsity, layers)
  return {name: frozen_half.kept(name, parameters[name], number, seed).reshape(
      len(parameters[name].names), -1, parameters[name].shape[-1])
          for name, number in numbers.items()}


def drawn(seed=0):
  return models.initialise(models.create('cifar_resnet14', 10), (32, 32, 3), seed)['params']


def test_kernels_are_those_of_all_convolutions():
  assert {known.group for known in KERNELS.values()} == {'conv', 'shortcut'}
  assert sum(len(known.names) for known in KERNELS.values()) == 15
  vgg = frozen_half.kernels(look('cifar_vgg11'))  # whose convolutions have biases
  assert len(vgg) == 8 and all(name.endswith('kernel') for name in vgg)


@pytest.mark.parametrize('sparsity', [0.5, 0.9])
def test_the_number_of_weights_that_stay_is_exact(sparsity):
  for name, weights in kept(sparsity).items():
    np.testing.assert_array_equal(weights.sum((1, 2)), round((1 - sparsity) * weights[0].size),
                                  err_msg=name)


def test_each_output_channel_keeps_a_weight():
  for name, weights in kept(0.999).items():
    assert weights.any(1).all(), name
    number = max(round(0.001 * weights[0].size), weights.shape[-1])
    np.testing.assert_array_equal(weights.sum((1, 2)), number, err_msg=name)


# Worked out by the formula in CIFAR/sparselearning/core.py of github.com/VITA-Group/Random_Pruning,
# the code of arXiv 2202.02643, over convolutions alone, at density 0.1.
@pytest.mark.parametrize('network, stem, stage1, stage2, stage3, shortcuts', [
    ('cifar_resnet14', 0.9342, 0.2662, 0.1226, 0.0587, (1.0, 0.7725)),
    ('cifar_resnet20', 1.0, 0.2864, 0.1319, 0.0631, (1.0, 0.8309)),
    ('cifar_resnet110', 1.0, 0.3223, 0.1484, 0.0710, (1.0, 0.9352))])
def test_erdos_renyi_kernels_have_the_densities_of_the_official_code(network, stem, stage1, stage2,
                                                                     stage3, shortcuts):
  parameters = look(network)
  numbers = frozen_half.kept_numbers(parameters, 0.9, 'erk')
  golden = {'stem_conv': stem, 'stage1_stack/conv1': stage1, 'stage1_stack/conv2': stage1,
            'stage2_first/conv2': stage2, 'stage2_stack/conv1': stage2,
            'stage3_first/conv2': stage3, 'stage3_stack/conv2': stage3,
            'stage2_first/shortcut_conv': shortcuts[0], 'stage3_first/shortcut_conv': shortcuts[1]}
  for name, density in golden.items():
    size = np.prod(parameters[f'{name}/kernel'].shape)
    assert abs(numbers[f'{name}/kernel'] / size - density) < 6e-5 + 0.5 / size, name
  weights = sum(len(known.names) * np.prod(known.shape)
                for known in frozen_half.kernels(parameters).values())
  together = sum(len(parameters[name].names) * number for name, number in numbers.items())
  assert abs(together - 0.1 * weights) < sum(len(known.names) for known in parameters.values())


def test_which_weights_stay_depends_on_the_seed_and_the_name_alone():
  half, tenth, other = kept(0.5), kept(0.9), kept(0.5, seed=1)
  deeper = kept(0.5, parameters=look('cifar_resnet20'))
  for name, weights in half.items():
    assert np.any(weights != other[name]) and not np.any(tenth[name] & ~weights), name
    np.testing.assert_array_equal(weights, deeper[name][:len(weights)], err_msg=name)
  one, two = half['stage2_first/conv2/kernel'], half['stage2_stack/conv1/kernel'][0]
  assert np.any(one[0] != two)
  # Any weight is as likely as another: 432 weights, 100 seeds.
  name = 'stem_conv/kernel'
  hits = sum(frozen_half.kept(name, PARAMETERS[name], 108, seed) for seed in range(100))
  assert np.all(abs(hits - 25) < 6 * np.sqrt(100 * 3 / 16))


@pytest.mark.parametrize('layers', ['uniform', 'erk'])
def test_sparse_weights_are_the_dense_ones_as_large_as_activations_need(layers):
  dense = models.parameters.flatten(drawn())
  sparse = frozen_half.sparsify(dense, PARAMETERS, 0.9, layers, 0)
  for name, weights in kept(0.9, layers).items():
    scale = np.float32(np.sqrt(weights[0].size / weights[0].sum()))
    expected = np.where(weights.reshape(dense[name].shape), scale * dense[name], 0)
    np.testing.assert_array_equal(sparse[name], expected, err_msg=name)
    assert sparse[name].dtype == np.float32
    # Five standard errors of a sum of squares.
    power = np.square(sparse[name]).sum() / np.square(dense[name]).sum()
    assert abs(power - 1) < 5 * np.sqrt(2 / weights.sum()) + 0.05, name
  for name in dense.keys() - KERNELS.keys():
    np.testing.assert_array_equal(sparse[name], dense[name])


def test_low_rank_kernels_have_the_rank_and_the_variance():
  dense = models.parameters.flatten(drawn())
  low = frozen_half.low_rank(dense, PARAMETERS, 4, 0)
  for name, known in KERNELS.items():
    for kernel in low[name].reshape(-1, known.fan_in, known.shape[-1]):
      assert np.linalg.matrix_rank(kernel) == 4, name
      # The product's squares vary as those of its 4 * (inputs + features) numbers do, or less.
      error = 6 * np.sqrt(2 / (4 * min(kernel.shape)))
      assert abs(np.square(kernel).mean() * known.fan_in / 2 - 1) < error, name
  assert all(low[name] is dense[name] for name in dense.keys() - KERNELS.keys())
  full = frozen_half.low_rank(dense, PARAMETERS, 16, 0)
  assert full['stem_conv/kernel'] is dense['stem_conv/kernel']  # [27, 16]
  assert np.linalg.matrix_rank(full['stage3_first/conv2/kernel'].reshape(-1, 64)) == 16


def test_low_rank_kernels_depend_on_the_seed_and_the_name_alone():
  dense = models.parameters.flatten(drawn())
  low, other = (frozen_half.low_rank(dense, PARAMETERS, 2, seed) for seed in (0, 1))
  deeper = look('cifar_resnet20')
  more = frozen_half.low_rank({}, deeper, 2, 0)
  for name, known in KERNELS.items():
    assert np.any(low[name] != other[name])
    one = low[name].reshape(-1, *known.shape)
    np.testing.assert_array_equal(one, more[name].reshape(-1, *known.shape)[:len(one)])
