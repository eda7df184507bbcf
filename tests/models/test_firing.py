"""Which ReLUs fire on the batch that a step trains on."""

import conftest
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bnonly_jax import experiment
from bnonly_jax import masks
from bnonly_jax import models
from bnonly_jax.config import UserError
from bnonly_jax.data import augment
from bnonly_jax.data import device
from bnonly_jax.models import firing


def test_the_share_counts_features_over_stacks_and_calls():
  yes, no = jnp.array([True]), jnp.array([False])
  fired = {'stack': {'norm': {'fired': (jnp.array([[True, False], [False, False]]),)}},
           'shared': {'fired': (yes, no)}, 'norm': {'fired': (no,)}}
  assert firing.silent_share(fired) == pytest.approx(4 / 6)


def test_the_rate_is_that_of_the_batch_trained_on():
  # Beta so low that many ReLUs are silent, some of them only on a part of the batch.
  setup = conftest.make_setup('batchnorm', 2, log_dead=True)
  drawn = np.random.default_rng(0)
  low = jax.tree_util.tree_map_with_path(
      lambda path, leaf: leaf - np.float32(3 * drawn.random(leaf.shape))
      if path[-1].key == 'bias' else leaf, setup.state.trainable)
  state = setup.state._replace(trainable=low)
  _, _, history = setup.run(1, state)
  run, index = setup.experiment, setup.index(0).reshape(-1)
  batch = jax.tree.map(jnp.asarray, device.look_up(setup.train_set, index, (8, 8, 1)))
  images, _ = augment.augment(batch, 0, jnp.int32(0), np.arange(conftest.BATCH, dtype=np.int32),
                              run.preparation)
  network = experiment.create_network(run.config, 10, models.Statistics(), 'cpu')
  _, told = network.apply(
      {'params': masks.merge(low, setup.frozen), 'batch_stats': setup.state.batch_stats},
      device.normalise(images, run.preparation), train=True,
      mutable=['batch_stats', 'intermediates'])
  told = masks.flatten(told['intermediates'])
  silent = [~np.any(np.asarray(calls[0]), -2) for name, calls in told.items()
            if name.endswith('/fired')]
  expected = float(sum(s.sum() for s in silent)) / sum(s.size for s in silent)
  assert 0.05 < expected < 0.95
  assert history[0]['dead_relus'] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize('fields', [{'remat': 'block', 'network': 'cifar_resnet14'},
                                    {'norm': 'none', 'selection': 'all'}, {'norm': 'ibn_b'}])
def test_every_norm_tells_in_training_too(fields):
  run = experiment.build(conftest.pattern_config(log_dead=True, **fields), conftest.PATTERNS)
  _, metrics = jax.eval_shape(run.train_step, *experiment.train_arguments(run))
  assert metrics['dead_relus'].shape == ()


def test_a_network_that_does_not_tell_is_refused_in_one_line():
  config = conftest.pattern_config(log_dead=True, network='configs.own_network:make')
  with pytest.raises(UserError, match='config.log_dead is True, .* of whose ReLUs none tells'):
    experiment.build(config, conftest.PATTERNS)
