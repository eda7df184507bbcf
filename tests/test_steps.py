import re

import conftest
import jax
import numpy as np
import optax
import pytest

from bnonly_jax import data
from bnonly_jax import masks
from bnonly_jax import models
from bnonly_jax import optimizer
from bnonly_jax import steps
from bnonly_jax.config import default_config
from bnonly_jax.data import batches

SELECTIONS = ('batchnorm', 'all', 'nothing', 'output')


def compiled(setup, devices=1):
  state, frozen, train_set = steps.place((setup.state, setup.frozen, setup.train_set), devices)
  index = np.zeros((devices, conftest.BATCH // devices), np.int32)
  return setup.train_step.lower(state, frozen, train_set, index).compile()


@pytest.mark.parametrize('selection, chosen', [
    *((s, 0) for s in SELECTIONS), ('gamma', 10), ('batchnorm+random:1', 0)])
def test_what_is_frozen_keeps_its_bits_and_what_trains_moves(selection, chosen):
  setup = conftest.make_setup(selection, chosen=chosen)
  state, frozen, history = setup.run(5, devices=2)
  # Drawn anew: the arrays that were put on the devices may share their memory.
  start = masks.flatten(models.initialise(setup.network, (8, 8, 1), 0)['params'])
  mask = masks.flatten(setup.mask)
  after = masks.flatten(jax.device_get(masks.merge(state.trainable, frozen)))
  assert after.keys() == start.keys() == mask.keys()
  for name, keep in mask.items():
    keep = np.broadcast_to(keep, start[name].shape)
    np.testing.assert_array_equal(after[name][~keep], start[name][~keep], err_msg=name)
    assert np.all(after[name][keep] != start[name][keep]), name
  assert int(state.step) == 5
  assert (history[-1]['gradient_norm'] > 0) == (selection != 'nothing')


@pytest.mark.parametrize('selection', SELECTIONS)
def test_running_statistics_move_whatever_trains(selection):
  setup = conftest.make_setup(selection)
  state, _, _ = setup.run(2, devices=2)
  for name, value in masks.flatten(state.batch_stats).items():
    assert np.all(value != masks.flatten(setup.variables['batch_stats'])[name]), name


def test_raw_gradients_of_frozen_parameters_reach_nothing():
  # optax.masked hands on what it masks out. Whatever stands for a frozen parameter among the
  # gradients, the trainable half has no place for it.
  setup = conftest.make_setup('batchnorm')
  tx = optimizer.create(default_config().optimizer, lambda _: 0.1, setup.mask)
  params = setup.variables['params']
  raw = jax.tree.map(np.ones_like, params)
  updates, _ = tx.update(raw, tx.init(params), params)
  assert np.all(updates['output']['kernel'] == 1)  # the trap is there
  moved = optax.apply_updates(setup.state.trainable, updates)
  assert jax.tree.structure(moved) == jax.tree.structure(setup.state.trainable)
  merged = masks.flatten(masks.merge(moved, setup.frozen))
  for name, keep in masks.flatten(setup.mask).items():
    assert np.array_equal(merged[name], masks.flatten(params)[name]) != keep, name


def test_the_state_is_as_small_as_what_trains():
  setup = conftest.make_setup('batchnorm')
  size = {row.group: row.parameters for row in masks.table(setup.variables['params'])}
  trained = size['gamma'] + size['beta']
  count = lambda tree: sum(np.size(leaf) for leaf in jax.tree.leaves(tree))
  assert count(setup.state.trainable) == trained
  assert count(setup.state.opt_state) == trained + 1  # and the step of the schedule
  assert count(setup.frozen) == sum(size.values()) - trained


def test_the_batchnorm_only_step_has_no_gradient_of_a_weight():
  # ResNet-8: nine convolutions and the output forward; backward again all but the first. On the
  # smallest images a convolution is a product.
  batchnorm, everything = (
      len(re.findall(r' convolution\(| dot\(', compiled(conftest.make_setup(selection)).as_text()))
      for selection in ('batchnorm', 'all'))
  assert batchnorm == (9 + 1) + (8 + 1)
  assert everything >= batchnorm + 9 + 1


@pytest.mark.parametrize('selection', ['batchnorm', 'all'])
def test_the_all_reduce_carries_what_trains_and_the_statistics_only(selection):
  setup = conftest.make_setup(selection)
  text = compiled(setup, devices=2).as_text()
  carried = 0
  for shapes in re.findall(r'= (.*?) all-reduce(?:-start)?\(', text):
    for dims in re.findall(r'f32\[([\d,]*)\]', shapes):
      carried += int(np.prod([int(d) for d in dims.split(',') if d]))
  trained = sum(np.size(leaf) for leaf in jax.tree.leaves(setup.state.trainable))
  statistics = sum(np.size(leaf) for leaf in jax.tree.leaves(setup.state.batch_stats))
  # The beta of a shortcut's norm and that of the norm it is added to have the same gradient, which
  # XLA sends once.
  twice = sum(np.size(value) for name, value in masks.flatten(setup.state.trainable).items()
              if name.endswith('shortcut_norm/bias'))
  assert carried == trained - twice + statistics + 2  # and loss and accuracy


def test_the_gradient_norm_is_that_of_what_trains():
  # After one step without decay the momentum is the gradient.
  norms = {selection: conftest.make_setup(selection, weight_decay=0.0).run(1, devices=1)
           for selection in ('all', 'batchnorm')}
  state, _, (metrics,) = norms['all']
  groups = masks.group_names(state.trainable)
  trace = masks.flatten(optax.tree.get(state.opt_state, 'trace'))
  squares = {name: np.sum(np.square(g, dtype=np.float64)) for name, g in trace.items()}
  np.testing.assert_allclose(metrics['gradient_norm'], np.sqrt(sum(squares.values())), rtol=1e-5)
  batchnorm = sum(s for name, s in squares.items() if groups[name] in ('gamma', 'beta'))
  of_batchnorm = norms['batchnorm'][2][0]['gradient_norm']
  np.testing.assert_allclose(of_batchnorm, np.sqrt(batchnorm), rtol=1e-4)


@pytest.mark.parametrize('double, rate', [(True, 0.1), (False, 0.001)])
def test_with_common_statistics_devices_do_not_change_the_losses(double, rate):
  # In float32 and at the recipe's rate, a rounding error that flips one ReLU grows tenfold every
  # few steps, on one device as on many: only float64 can compare the arithmetic at that rate.
  setup = conftest.make_setup('batchnorm', sync=True, double=double, learning_rate=rate)
  with jax.enable_x64(double):
    one, two, four = ([m['loss'] for m in setup.run(20, devices)[2]] for devices in (1, 2, 4))
  for many in (two, four):
    np.testing.assert_allclose(many, one, rtol=1e-11 if double else 1e-5)


def test_statistics_of_each_devices_share_do_change_the_losses():
  setup = conftest.make_setup('batchnorm')
  one, two = (setup.run(2, devices)[2] for devices in (1, 2))
  assert abs(one[0]['loss'] - two[0]['loss']) > 1e-5


def test_equal_seeds_give_equal_bits_and_so_does_a_stop_between():
  setup = conftest.make_setup('batchnorm')
  straight, _, history = setup.run(6, devices=2)
  half, _, first = setup.run(3, devices=2)
  rest, _, second = setup.run(3, devices=2, state=half)
  assert first + second == history
  for a, b in zip(jax.tree.leaves(rest), jax.tree.leaves(straight), strict=True):
    np.testing.assert_array_equal(a, b)


def test_steps_of_one_call_are_those_of_calls_of_their_own():
  # In float64: what a loop rounds otherwise, training amplifies.
  setup = conftest.make_setup('batchnorm', sync=True, double=True, learning_rate=0.1)
  with jax.enable_x64(True):
    start, _, _ = setup.run(1, devices=2)
    expected, _, history = setup.run(4, devices=2, state=start)
    placed = steps.place((start, setup.frozen, setup.train_set), 2)
    index = [batches.train_indices(0, step, 256, conftest.BATCH) for step in range(1, 5)]
    state, metrics = setup.train_step(*placed, np.stack(index, -1).reshape(2, -1, 4))
  for name in metrics:
    np.testing.assert_allclose(metrics[name], [m[name] for m in history], rtol=1e-11)
  for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize('devices, batch_size', [(1, 8), (1, 37), (2, 32), (4, 100)])
def test_evaluation_counts_every_image_once(devices, batch_size):
  setup = conftest.make_setup('batchnorm')
  padded = setup.train_set
  test_set = data.Images(padded.images[:37, 1:-1, 1:-1], padded.labels[:37])
  state, frozen, placed = steps.place((setup.state, setup.frozen, test_set), devices)
  total = {'loss': 0.0, 'correct': 0.0, 'count': 0.0}
  for batch in batches.eval_indices(37, batch_size):
    sums = setup.eval_step(state, frozen, placed, [x.reshape(devices, -1) for x in batch])
    total = {k: total[k] + float(sums[k]) for k in total}
  images = (test_set.images / np.float32(255) - np.float32(0.5)) / np.float32(0.25)
  logits = setup.network.apply(setup.variables, images)
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, test_set.labels)
  assert total['count'] == 37
  assert total['correct'] == np.sum(np.argmax(logits, -1) == test_set.labels)
  np.testing.assert_allclose(total['loss'], np.sum(losses), rtol=1e-5)
