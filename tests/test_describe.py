import jax
import numpy as np
import pytest
from tiny import tiny_config

from bnonly_jax import describe
from bnonly_jax.config import default_config
from bnonly_jax.config import UserError


def described(train='batchnorm', **fields):
  config = default_config()
  config.update(train=train, batch_size=4, **fields)
  return describe.describe(config)


def forward_flops(width, size, channels):
  """ResNet-14's stem and whole, by hand: two a multiplication and addition."""
  stem = 2 * size ** 2 * 9 * channels * width
  total = stem + 2 * 4 * width * 10
  for i, features in enumerate((width, 2 * width, 4 * width)):
    pixels = (size // 2 ** i) ** 2
    total += 2 * pixels * 9 * features * (3 * features + (features // 2 if i else features))
    total += 2 * pixels * features * (features // 2) if i else 0
  return stem, total


def test_flops_are_those_counted_by_hand():
  stem, forward = forward_flops(16, 32, 3)
  values = described(network='cifar_resnet14')
  assert values['flops_forward'] == forward
  # Backward through what is frozen: the gradient of each input but the images'. What trains costs
  # as much again.
  assert values['flops_step'] == 2 * forward - stem
  assert described('all', network='cifar_resnet14')['flops_step'] == 3 * forward - stem
  assert described('nothing', network='cifar_resnet14')['flops_step'] == forward


def test_bytes_moved_are_those_counted_by_hand():
  devices, batch = jax.local_device_count(), 4
  image = kernels = 0  # numbers read and written, for an image and for a device
  convs = [(32, 3, 32, 16, 3), *[(32, 16, 32, 16, 3)] * 4]
  for size, width in ((16, 32), (8, 64)):
    convs += [(2 * size, width // 2, size, width, 3), *[(size, width, size, width, 3)] * 3]
    convs += [(size, width // 2, size, width, 1)]  # the shortcut's, of every other pixel
  for size_in, features_in, size_out, features, size in convs:
    image += size_in ** 2 * features_in + size_out ** 2 * features
    kernels += size ** 2 * features_in * features
  expected = 4 * (batch * (image + 64 + 10) + devices * (kernels + 640))
  assert described('nothing', network='cifar_resnet14')['moved_step'] == expected


@pytest.mark.parametrize('train, trained', [('batchnorm', 1120), ('all', 175258), ('nothing', 0)])
def test_bytes_are_those_of_what_trains(train, trained):
  values = described(train, network='cifar_resnet14')
  # Besides: running mean and variance of 560 channels, the state's step and the schedule's.
  assert values['optimizer'] == 4 * trained + 4
  assert values['state'] == values['checkpoint'] == 2 * 4 * trained + 4 * 2 * 560 + 8
  assert values['frozen'] == 4 * (175258 - trained)


def test_random_weights_cost_the_state_what_batchnorm_costs():
  two, batchnorm = (described(train, network='cifar_resnet14')
                    for train in ('random:2', 'batchnorm'))
  assert two['state'] == batchnorm['state']


def test_a_network_of_any_family_is_described_without_its_data(capsys):
  for network in ('imagenet_resnet50', 'cifar_vgg11', 'cifar_resnet8x2'):
    config = default_config()
    config.update(network=network, batch_size=4)
    describe.print_description(config)
  printed = capsys.readouterr().out
  assert '224x224x3, 1000 classes (not prepared: assumed)' in printed
  assert printed.count('FLOPs an image') == 3


def test_it_agrees_with_the_multiplications_known_of_resnet_50():
  # torchvision documents 4.09 billion multiplications with their additions at 224x224.
  assert np.isclose(described(network='imagenet_resnet50')['flops_forward'] / 2, 4.09e9, rtol=0.005)


def test_all_names_are_listed_as_a_selection_may_say_them():
  config = default_config()
  config.update(network='cifar_resnet14', train='batchnorm@stage1/block2+random:1@stem_conv',
                batch_size=4)
  rows = {name: rest for name, *rest in describe.names(config)}
  assert len(rows) == 15 * 2 + 13 + 2 + 2
  assert list(rows)[0] == 'stem_conv/kernel' and list(rows)[-1] == 'output/kernel'
  assert rows['stem_conv/kernel'] == ['3x3x3x16', 'conv', '16 train']
  assert rows['stage1/block2/norm1/scale'] == ['16', 'gamma', 'trains']
  assert rows['stage1/block1/norm1/scale'] == ['16', 'gamma', 'frozen']


def test_depthwise_convolutions_count_as_elsewhere():
  # timm's inceptionnext_atto at 224 pixels has 0.503 billion multiplications and additions.
  flops = described(network='inceptionnext_atto')['flops_forward']
  assert round(flops / 2e9, 3) == 0.503


def test_it_says_how_many_weights_are_not_zero(capsys):
  config = default_config()
  config.update(network='cifar_resnet14', train='all', batch_size=4, weight_sparsity=0.9)
  describe.print_description(config)
  kept = [43, *[230] * 4, 461, *[922] * 3, 51, 1843, *[3686] * 3, 205]
  assert f'convolutions: {sum(kept):,} of 173,488 weights are not zero' in capsys.readouterr().out
  trained = {row.group: row.trained for row in describe.describe(config)['table']}
  assert trained['conv'] + trained['shortcut'] == sum(kept)


def test_what_is_assumed_has_the_size_and_the_channels_that_are_asked_for(capsys):
  config = default_config()
  config.update(network='imagenet_resnet18', batch_size=4)
  config.data.update(name='none', image_size=128, channels=1, mean=(0.5,), std=(0.25,))
  describe.print_description(config)
  assert '128x128x1, 1000 classes (not prepared: assumed)' in capsys.readouterr().out


def test_a_data_set_that_is_there_and_wrong_is_not_assumed_away(data_dir):
  config = tiny_config(data_dir)
  config.data.test_split = 'validation'
  with pytest.raises(UserError, match="test_split is 'validation'; allowed is test"):
    describe.describe(config)
