import itertools
import json
import os
import pathlib
import re
import socket
import subprocess
import sys

import conftest
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bnonly_jax import data
from bnonly_jax import experiment
from bnonly_jax import masks
from bnonly_jax import optimizer
from bnonly_jax import steps
from bnonly_jax.config import default_config
from bnonly_jax.config import UserError
from bnonly_jax.data import augment as augment_lib
from bnonly_jax.data import batches
from bnonly_jax.data import device
from bnonly_jax.models import layers
from bnonly_jax.run import plots

SELECTIONS = ('batchnorm', 'all', 'nothing', 'output')


def compiled(setup):
  return setup.experiment.train_step.lower(*experiment.train_arguments(setup.experiment)).compile()


@pytest.mark.parametrize('selection, chosen, optimizer', [
    *((s, 0, 'sgd') for s in SELECTIONS), ('gamma', 10, 'sgd'),
    *(('batchnorm+random:1', 0, name) for name in ('sgd', 'adamw')),
    *(pytest.param(selection, 0, name, marks=pytest.mark.slow) for selection, name in (
        ('batchnorm+random:1', 'lion'), ('batchnorm', 'adamw'), ('batchnorm', 'lion')))])
def test_what_is_frozen_keeps_its_bits_and_what_trains_moves(selection, chosen, optimizer):
  # A decay and a rate so large that nothing they touch keeps its bits.
  fields = {} if optimizer == 'sgd' else {
      'optimizer.name': optimizer, 'optimizer.weight_decay': 0.5, 'optimizer.learning_rate': 0.01}
  setup = conftest.make_setup(selection, 2, chosen=chosen, **fields)
  state, frozen, history = setup.run(5)
  # Drawn anew: the arrays that were put on the devices may share their memory.
  start = masks.flatten(experiment.draw_variables(setup.experiment, 0)['params'])
  mask = masks.flatten(setup.mask)
  after = masks.flatten(jax.device_get(masks.merge(state.trainable, frozen)))
  assert after.keys() == start.keys() == mask.keys()
  for name, keep in mask.items():
    keep = np.broadcast_to(keep, start[name].shape)
    np.testing.assert_array_equal(after[name][~keep], start[name][~keep], err_msg=name)
    assert np.all(after[name][keep] != start[name][keep]), name
  assert int(state.step) == 5
  assert (history[-1]['gradient_norm'] > 0) == (selection != 'nothing')


@pytest.mark.parametrize('selection', ['batchnorm', 'batchnorm+random:1'])
@pytest.mark.parametrize('name, moments', [('adamw', 2), ('lion', 1)])
def test_the_state_of_other_optimizers_holds_nothing_frozen(selection, name, moments):
  setup = conftest.make_setup(selection, 2, **{
      'optimizer.name': name, 'optimizer.weight_decay': 0.5, 'optimizer.learning_rate': 0.01})
  trained = {tensor: 0 if value is None else np.size(value)
             for tensor, value in masks.flatten(setup.state.trainable).items()}
  for moment in ('mu', 'nu')[:moments]:
    held = optax.tree.get(setup.state.opt_state, moment)
    for tensor, value in masks.flatten(held).items():
      assert trained[tensor] == sum(map(np.size, jax.tree.leaves(value))), tensor
  count = sum(map(np.size, jax.tree.leaves(setup.state.opt_state)))
  assert count == moments * sum(trained.values()) + 2  # steps counted by it and by the schedule


def plain_losses(logits, labels, smoothing):
  """The cross-entropy with targets written out."""
  targets = np.eye(logits.shape[1])[labels] * (1 - smoothing) + smoothing / logits.shape[1]
  return -np.sum(targets * (logits - np.log(np.sum(np.exp(logits), 1, keepdims=True))), 1)


@pytest.mark.parametrize('smoothing, augment', [(0.1, ''), (0.1, 'mixup')])
def test_the_loss_is_that_of_smooth_labels_and_of_mixed_images(smoothing, augment):
  setup = conftest.make_setup('output', **{'label_smoothing': smoothing, 'data.augment': augment})
  _, _, (metrics,) = setup.run(1)
  run, index = setup.experiment, setup.index(0)[0]
  batch = device.look_up(setup.train_set, index, (8, 8, 1))
  positions = np.arange(conftest.BATCH, dtype=np.int32)
  images, mixed = augment_lib.augment(jax.tree.map(jnp.asarray, batch), 0, jnp.int32(0), positions,
                                      run.preparation)
  assert (mixed is None) != bool(augment)
  logits, _ = run.network.apply(setup.variables, device.normalise(images, run.preparation),
                                train=True, mutable=['batch_stats'])
  losses = plain_losses(np.float64(logits), batch.labels, smoothing)
  if mixed:
    share = np.asarray(mixed.share) / 256
    losses = share * losses + (1 - share) * plain_losses(
        np.float64(logits), np.roll(batch.labels, -1), smoothing)
  np.testing.assert_allclose(metrics['loss'], np.mean(losses), rtol=1e-4)
  state, frozen, train_set, _ = setup.place()  # evaluation's stays the plain one
  weight = np.ones((1, len(index)), np.float32)
  sums = run.eval_step(state, frozen, train_set, (index[None], weight))
  clean = device.normalise(jnp.asarray(batch.images), run.preparation)
  logits = np.float64(run.network.apply(setup.variables, clean))
  np.testing.assert_allclose(sums['loss'], np.sum(plain_losses(logits, batch.labels, 0)), rtol=1e-5)


@pytest.mark.parametrize('selection', SELECTIONS)
def test_running_statistics_move_whatever_trains(selection):
  setup = conftest.make_setup(selection, 2)
  state, _, _ = setup.run(2)
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


def test_of_a_stack_only_the_chosen_blocks_train_and_are_kept():
  setup = conftest.make_setup('batchnorm@stage1/block2+beta@last:1', network='cifar_resnet14')
  state, frozen, _ = setup.run(2)
  trained = 4 * 16 + 64
  count = lambda tree: sum(np.size(leaf) for leaf in jax.tree.leaves(tree))
  assert count(state.trainable) == trained and count(state.opt_state) == trained + 1
  start = experiment.draw_variables(setup.experiment, 0)['params']
  before, after = (layers.unstack(masks.flatten(tree)) for tree in (
      start, jax.device_get(masks.merge(state.trainable, frozen))))
  moved = {name for name, value in before.items() if np.any(after[name] != value)}
  assert moved == {*(f'stage1/block2/norm{i}/{leaf}' for i in (1, 2) for leaf in ('scale', 'bias')),
                   'stage3/block2/norm2/bias'}
  gammas = plots.gammas(setup.experiment.parameters, state.trainable, frozen)
  np.testing.assert_array_equal(np.sort(gammas), np.sort(np.concatenate(
      [value for name, value in after.items() if name.endswith('scale')])))


def test_the_state_is_as_small_as_what_trains():
  setup = conftest.make_setup('batchnorm')
  size = {row.group: row.parameters for row in masks.table(setup.experiment.parameters)}
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
  # Groups of a device's share: no norm's own sums are all-reduced.
  setup = conftest.make_setup(selection, 2, batchnorm_images=32)
  text = compiled(setup).as_text()
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
  norms = {selection: conftest.make_setup(selection, **{'optimizer.weight_decay': 0.0}).run(1)
           for selection in ('all', 'batchnorm')}
  state, _, (metrics,) = norms['all']
  parameters = conftest.make_setup('all').experiment.parameters
  trace = masks.flatten(optax.tree.get(state.opt_state, 'trace'))
  squares = {name: np.sum(np.square(g, dtype=np.float64)) for name, g in trace.items()}
  np.testing.assert_allclose(metrics['gradient_norm'], np.sqrt(sum(squares.values())), rtol=1e-5)
  batchnorm = sum(s for name, s in squares.items() if parameters[name].group in ('gamma', 'beta'))
  of_batchnorm = norms['batchnorm'][2][0]['gradient_norm']
  np.testing.assert_allclose(of_batchnorm, np.sqrt(batchnorm), rtol=1e-4)


# In float64, for in float32 and at the recipe's rate a rounding error that flips one ReLU grows
# tenfold every few steps, on one device as on many.
@pytest.mark.parametrize('images, devices', [
    (32, (2, 4)), pytest.param(0, (2, 4), marks=pytest.mark.slow),
    pytest.param(8, (4,), marks=pytest.mark.slow)])
def test_the_number_of_devices_changes_rounding_only(images, devices):
  with jax.enable_x64(True):
    one, *others = (
        conftest.make_setup('batchnorm', n, double=True, batchnorm_images=images).run(20)
        for n in (1, *devices))
  for state, _, history in others:
    for name in history[0]:
      np.testing.assert_allclose([m[name] for m in history], [m[name] for m in one[2]],
                                 rtol=1e-11, err_msg=name)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(one[0]), strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


LOSSES = """
import json, sys
import conftest
import jax
if sys.argv[1:]:
  jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
with jax.enable_x64(True):
  for images in (0, 32, 4):
    setup = conftest.make_setup('batchnorm', jax.device_count(), double=True,
                                batchnorm_images=images)
    print(json.dumps([float(m['loss']) for m in setup.run(20)[2]]))
"""


def losses_elsewhere(devices, *processes):
  """Returns the losses for each size of group, as processes with so many devices each find them."""
  started = [subprocess.Popen(
      [sys.executable, '-c', LOSSES, *arguments], cwd=pathlib.Path(__file__).parent, text=True,
      env={**os.environ, 'XLA_FLAGS': '', 'DEVICES': str(devices)}, stdout=subprocess.PIPE)
             for arguments in processes or [()]]
  outs = [process.communicate()[0] for process in started]
  assert not any(process.returncode for process in started)
  return [[json.loads(line) for line in out.splitlines() if re.match(r'\[\d', line)]
          for out in outs]


@pytest.mark.slow
def test_eight_devices_and_two_processes_change_rounding_only():
  with socket.socket() as free:
    free.bind(('localhost', 0))
    address = f'localhost:{free.getsockname()[1]}'
  (one,), (eight,) = losses_elsewhere(1), losses_elsewhere(8)
  first, second = losses_elsewhere(2, (address, '0'), (address, '1'))
  assert len(one) == 3 and first == second
  np.testing.assert_allclose(eight, one, rtol=1e-11)
  np.testing.assert_allclose(first, one, rtol=1e-11)


@pytest.mark.slow
def test_over_how_many_images_a_norm_takes_its_statistics_counts():
  losses = [conftest.make_setup('batchnorm', batchnorm_images=images).run(2)[2][0]['loss']
            for images in (0, 32, 8)]
  assert min(abs(a - b) for a, b in itertools.combinations(losses, 2)) > 1e-5


@pytest.mark.parametrize('images, devices, nearest', [
    (100, 1, '64'), (48, 1, '32 and 64'), (24, 4, '16 and 32'), (3, 2, '2 and 4')])
def test_groups_that_cannot_be_cut_are_refused_with_the_nearest(images, devices, nearest):
  config = conftest.pattern_config(batchnorm_images=images)
  with pytest.raises(UserError, match=f'batchnorm_images is {images}, .* nearest being {nearest};'):
    experiment.build(config, conftest.PATTERNS, jax.devices()[:devices])


@pytest.mark.parametrize('selection', ['batchnorm', 'random:1'])
def test_seeds_share_one_program(selection):
  runs = [experiment.build(conftest.pattern_config(selection, seed=seed), conftest.PATTERNS)
          for seed in (0, 1)]
  assert runs[0].train_step is runs[1].train_step and runs[0].config.seed != runs[1].config.seed
  experiment._build.cache_clear()  # built anew, as in another process
  again = experiment.build(conftest.pattern_config(selection, seed=1), conftest.PATTERNS)
  assert again.train_step is not runs[0].train_step
  texts = []
  for run in (runs[0], again):
    state, frozen = experiment.start(run)
    arguments = (*experiment.place(run, state, frozen)[:2], *experiment.train_arguments(run)[2:])
    texts.append(run.train_step.lower(*arguments).as_text())
  assert texts[0] == texts[1]


@pytest.mark.parametrize('selection, accelerator', [
    pytest.param('all', 'tpu', marks=pytest.mark.slow), ('batchnorm', 'gpu')])
def test_the_forms_for_accelerators_train_as_those_for_the_cpu(selection, accelerator):
  with jax.enable_x64(True):
    here, there = (conftest.make_setup(selection, 2, double=True, backend=backend).run(5)
                   for backend in ('cpu', accelerator))
  for a, b in zip(here[2], there[2], strict=True):
    np.testing.assert_allclose(a['loss'], b['loss'], rtol=1e-9)
  for a, b in zip(jax.tree.leaves(here[0]), jax.tree.leaves(there[0]), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9)


def test_convolutions_of_few_channels_go_to_onednn(monkeypatch):
  run = experiment.build(conftest.pattern_config(batch_size=8), conftest.PATTERNS,
                         jax.devices()[:1])
  lowered = run.train_step.lower(*experiment.train_arguments(run))
  # As XLA_FLAGS of the tests says.
  assert '__onednn$' not in steps.compiled(lowered, run.target).as_text()
  monkeypatch.setenv('XLA_FLAGS', '')
  known = [int(n) for n in jax.__version__.split('.')[:2]] >= [0, 12]
  assert ('__onednn$' in steps.compiled(lowered, run.target).as_text()) == known
  monkeypatch.setitem(steps.CPU_OPTIONS, 'xla_no_such_option', True)
  steps.compiled(lowered, run.target)


@pytest.mark.parametrize('precision', ['default', 'highest'])
def test_every_product_is_as_exact_as_the_config_says(precision):
  run = experiment.build(conftest.pattern_config('all', matmul_precision=precision,
                                                 network='cifar_resnet14'), conftest.PATTERNS)
  text = run.train_step.lower(*experiment.train_arguments(run)).as_text()
  products = [line for line in text.splitlines()
              if 'stablehlo.convolution' in line or 'stablehlo.dot_general' in line]
  assert len(products) > 20
  assert all((precision.upper() in line) == (precision == 'highest') or precision == 'default'
             and 'HIGH' not in line for line in products)


def test_equal_seeds_give_equal_bits_and_so_does_a_stop_between():
  setup = conftest.make_setup('batchnorm', 2)
  straight, _, history = setup.run(6)
  half, _, first = setup.run(3)
  rest, _, second = setup.run(3, state=half)
  assert first + second == history
  for a, b in zip(jax.tree.leaves(rest), jax.tree.leaves(straight), strict=True):
    np.testing.assert_array_equal(a, b)


def test_steps_of_one_call_are_those_of_calls_of_their_own():
  # In float64: what a loop rounds otherwise, training amplifies.
  setup = conftest.make_setup('batchnorm', 2, double=True)
  with jax.enable_x64(True):
    start, _, _ = setup.run(1)
    expected, _, history = setup.run(4, state=start)
    state, frozen, train_set, seed = setup.place(start)
    index = np.stack([setup.index(step) for step in range(1, 5)], -1)
    state, metrics = setup.experiment.train_step(state, frozen, train_set, index, seed)
  for name in metrics:
    np.testing.assert_allclose(metrics[name], [m[name] for m in history], rtol=1e-11)
  for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize('devices, batch_size', [(1, 8), (1, 37), (2, 32), (4, 100)])
def test_evaluation_counts_every_image_once(devices, batch_size):
  setup = conftest.make_setup('batchnorm', devices)
  test_set = data.Images(*(a[:37] for a in setup.train_set))
  state, frozen, _, _ = setup.place()
  placed = device.place(test_set, setup.experiment.target.local)
  total = {'loss': 0.0, 'correct': 0.0, 'count': 0.0}
  eval_step = setup.experiment.eval_step
  for batch in batches.eval_indices(37, batch_size):
    sums = eval_step(state, frozen, placed, [x.reshape(devices, -1) for x in batch])
    total = {k: total[k] + float(sums[k]) for k in total}
  images = test_set.images[:, :64].reshape(-1, 8, 8, 1)
  images = (images / np.float32(255) - np.float32(0.5)) / np.float32(0.25)
  logits = setup.experiment.network.apply(setup.variables, images)
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, test_set.labels)
  assert total['count'] == 37
  assert total['correct'] == np.sum(np.argmax(logits, -1) == test_set.labels)
  np.testing.assert_allclose(total['loss'], np.sum(losses), rtol=1e-5)
