import json

import conftest
import jax
import numpy as np
import pytest

from bnonly_jax import data
from bnonly_jax import experiment
from bnonly_jax import masks
from bnonly_jax.benchmark import flax_peer
from bnonly_jax.benchmark import step
from bnonly_jax.config import default_config
from bnonly_jax.config import UserError
from bnonly_jax.data import device


def build(network, image_size, channels=3, **fields):
  config = default_config()
  config.update(network=network, batch_size=4, **fields)
  config.data.update(mean=(0.5,), std=(0.25,))
  shape = (image_size, image_size, channels)
  info = data.Info(None, '', shape, shape, tuple('0123456789'), 64, 64, 'test')
  return experiment.build(config, info, jax.devices()[:1])


@pytest.mark.parametrize('network, image_size, channels', [
    ('cifar_resnet14', 16, 1), ('cifar_resnet8x2', 16, 3), ('imagenet_resnet18', 64, 3),
    pytest.param('imagenet_resnet50', 64, 3, marks=pytest.mark.slow)])
def test_its_logits_and_its_parameters_are_ours(network, image_size, channels):
  run = build(network, image_size, channels)
  variables = experiment.draw_variables(run, 0)
  random = np.random.default_rng(0)
  variables['batch_stats'] = jax.tree.map(  # other than they start
      lambda leaf: np.float32(random.uniform(0.5, 2, leaf.shape)), variables['batch_stats'])
  theirs = {name: flax_peer.convert(tree) for name, tree in variables.items()}
  net = flax_peer.network(run)
  images = random.normal(size=(2, image_size, image_size, channels)).astype(np.float32)
  shapes = jax.eval_shape(net.init, jax.random.key(0), images)
  assert jax.tree.map(np.shape, theirs) == jax.tree.map(lambda leaf: leaf.shape, dict(shapes))
  count = lambda tree: sum(np.size(leaf) for leaf in jax.tree.leaves(tree))
  assert count(theirs['params']) == count(variables['params'])
  np.testing.assert_allclose(jax.jit(net.apply)(theirs, images),
                             jax.jit(run.network.apply)(variables, images), rtol=1e-3, atol=1e-4)


def test_a_step_of_it_is_a_step_of_ours():
  run = build('cifar_resnet8', 8)
  run = run._replace(preparation=run.preparation._replace(pad=0, flip=False))
  variables = experiment.draw_variables(run, 0)
  images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
  labels = np.arange(4, dtype=np.int32)

  theirs, tx = flax_peer.train_step(run)
  params, batch_stats = (flax_peer.convert(variables[name]) for name in ('params', 'batch_stats'))
  new, *_ = theirs(*device.place((params, batch_stats, tx.init(params)), run.target.local),
                   images[None], labels[None])

  ours = experiment.steps.train_step(run.network, run.tx, run.learning_rate, run.preparation,
                                     run.target)
  state, frozen = experiment.start(run)
  after, _ = ours(*experiment.place(run, state, frozen)[:2], None,
                  data.Images(images[None], labels[None]), np.int32(0))
  wanted = flax_peer.convert(jax.device_get(masks.merge(after.trainable, frozen)))
  before = masks.flatten(params)
  for name, value in masks.flatten(jax.device_get(new)).items():
    np.testing.assert_allclose(value, masks.flatten(wanted)[name], rtol=1e-3, atol=1e-5)
    assert np.array_equal(value, before[name]) != ('norm' in name), name


@pytest.mark.parametrize('fields, message', [
    ({'network': 'cifar_vgg11'}, 'allowed is a CIFAR or ImageNet ResNet with --against=flax'),
    ({'norm': 'group'}, "config.norm is 'group'; allowed is batch with --against=flax"),
    ({'train': 'random:2'}, "'random:2', which chooses single weights; .* whole tensors")])
def test_what_is_not_written_in_flax_is_told(fields, message):
  run = build(**{'network': 'cifar_resnet8', 'image_size': 32, **fields})
  with pytest.raises(UserError, match=message):
    flax_peer.network(run)


@pytest.mark.slow
def test_the_step_beside_flaxs():
  config = conftest.data_config('none')
  config.update(network='cifar_resnet8', batch_size=8)
  result = step.measure(config, 'flax')
  json.dumps(result)
  ours, theirs = (result['selections'][name] for name in ('batchnorm', 'flax'))
  assert 'start_seconds' not in ours and theirs['flops'] == ours['flops']
  assert theirs['images_per_second'] == pytest.approx(8 / theirs['step_seconds'])
  assert result['ratio']['step_seconds'] == ours['step_seconds'] / theirs['step_seconds']
