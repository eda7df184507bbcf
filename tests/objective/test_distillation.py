"""The loss with teachers, by hand, and in a step."""

import conftest
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bnonly_jax import experiment
from bnonly_jax.data import augment
from bnonly_jax.data import device
from bnonly_jax.models import Statistics
from bnonly_jax.objective import distillation
from bnonly_jax.objective.distillation import Teacher


class Logits:
  """A network that puts out its variables."""

  def apply(self, variables, images, train):
    assert not train
    return variables


def probabilities(logits):
  exponents = np.exp(np.float64(logits))
  return exponents / exponents.sum(-1, keepdims=True)


def test_the_loss_is_that_of_the_formula_for_several_teachers():
  generator = np.random.default_rng(0)
  *logits, own = (np.float32(3 * generator.standard_normal((7, 5))) for _ in range(4))
  teacher = Teacher(Logits(), device.Preparation((1, 1, 1)))
  teaching = distillation.Teaching((teacher,) * 3, 0.5, 3.0)
  taught = distillation.targets(teaching, tuple(logits), jnp.zeros((7, 1, 1, 1), jnp.uint8))
  mean = np.mean([probabilities(each / 3) for each in logits], 0)
  np.testing.assert_allclose(np.exp(taught), mean, rtol=1e-5)
  expected = 9 * np.mean(np.sum(mean * np.log(mean / probabilities(own / 3)), -1))
  assert distillation.divergence(taught, own, 3.0) == pytest.approx(expected, rel=1e-5)
  assert expected > 0.1


def test_of_equals_it_is_nothing_and_draws_nowhere():
  logits = np.float32(np.random.default_rng(0).standard_normal((7, 5)))
  for count in (1, 2):
    teaching = distillation.Teaching((Teacher(Logits(), device.Preparation((1, 1, 1))),) * count,
                                     1.0, 4.0)
    taught = distillation.targets(teaching, (logits,) * count, jnp.zeros((7, 1, 1, 1), jnp.uint8))
    value, slope = jax.value_and_grad(distillation.divergence, 1)(taught, logits, 4.0)
    assert abs(value) < 1e-6 and np.max(np.abs(slope)) < 1e-6
  assert distillation.divergence(distillation.softened(logits, 4.0), logits, 4.0) == 0


def taught_setup(selection, teacher_fields, devices=1, **fields):
  """A setup whose step learns from one teacher, drawn of seed 5, and the teacher's experiment."""
  setup = conftest.make_setup(selection, devices, **fields)
  other = conftest.make_setup('nothing', **teacher_fields).experiment
  network = experiment.create_network(other.config, 10, Statistics(), 'cpu')
  variables = experiment.draw_variables(other, 5)
  run = experiment.taught(setup.experiment, [Teacher(network, other.preparation)], [variables])
  return setup._replace(experiment=run), network, variables


def step(setup, variables):
  state, frozen, train_set, seed = setup.place()
  return jax.device_get(setup.experiment.train_step(
      state, frozen, train_set, setup.index(0), seed, (variables,)))


def test_a_step_by_the_teacher_that_it_equals_moves_nothing():
  # Of GroupNorm, training and evaluation are the same function.
  fields = {'norm': 'group', 'distill': 1.0, 'optimizer.weight_decay': 0.0}
  setup, _, _ = taught_setup('batchnorm', {'norm': 'group'}, **fields)
  state, metrics = step(setup, setup.variables)  # the student's own
  assert abs(metrics['loss']) < 1e-5 and metrics['loss'] == metrics['distillation']
  assert metrics['gradient_norm'] < 1e-5
  for a, b in zip(*map(jax.tree.leaves, (state.trainable, setup.state.trainable)), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-6)


def test_the_loss_of_a_step_is_both_on_the_images_as_augmented():
  teacher = {'data.mean': (0.2,), 'data.std': (0.4,)}
  setup, network, variables = taught_setup('output', teacher, 2, distill=0.3, temperature=2.5,
                                           **{'data.augment': 'pad_crop'})
  _, metrics = step(setup, variables)
  run, index = setup.experiment, setup.index(0).reshape(-1)
  batch = jax.tree.map(jnp.asarray, device.look_up(setup.train_set, index, (8, 8, 1)))
  images, _ = augment.augment(batch, 0, jnp.int32(0), np.arange(conftest.BATCH, dtype=np.int32),
                              run.preparation)
  assert np.any(images != batch.images)
  pixels = np.asarray(images) / np.float32(255)
  taught = network.apply(variables, (pixels - np.float32(0.2)) / np.float32(0.4), train=False)
  theirs = probabilities(taught / 2.5)
  own_network = experiment.create_network(run.config, 10, Statistics(), 'cpu')
  logits, _ = own_network.apply(setup.variables, (pixels - np.float32(0.5)) / np.float32(0.25),
                                train=True, mutable=['batch_stats'])
  own = probabilities(logits / 2.5)
  divergence = 2.5 ** 2 * np.mean(np.sum(theirs * np.log(theirs / own), -1))
  labels = np.log(probabilities(logits))[np.arange(len(index)), batch.labels]
  assert divergence > 0.01
  assert float(metrics['distillation']) == pytest.approx(divergence, rel=1e-3)
  assert float(metrics['loss']) == pytest.approx(0.7 * -np.mean(labels) + 0.3 * divergence,
                                                 rel=1e-4)
