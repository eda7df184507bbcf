"""A network from a file of one's own: trained, killed, analysed; and what is wrong with one."""

import functools
import importlib
import pathlib
import sys

import conftest
from conftest import train_and_die
import flax.linen as nn
import jax
import numpy as np
import pytest
from tiny import last_state
from tiny import tiny_config
from tiny import without_times

from bnonly_jax import analysis
from bnonly_jax import describe
from bnonly_jax import experiment
from bnonly_jax import masks
from bnonly_jax import models
from bnonly_jax import train
from bnonly_jax.config import UserError
from bnonly_jax.export import network
from bnonly_jax.models import own as own_lib
from bnonly_jax.run import origin
from bnonly_jax.run import reading
from bnonly_jax.sweep import runs as runs_lib
from bnonly_jax.sweep.config import Point
from bnonly_jax.sweep.config import sweep

ROOT = pathlib.Path(__file__).parents[1]

# Stacked blocks with a norm of each image, Flax's BatchNorm over all devices, a norm of one's own.
NETWORK = '''
import flax.linen as nn
import jax.numpy as jnp

class Scaled(nn.Module):
  is_norm = True
  @nn.compact
  def __call__(self, x):
    scale = self.param('scale', nn.initializers.ones, x.shape[-1:])
    return x * scale[None] * self.param('times', nn.initializers.constant(2.0), (1,))[None]

class Block(nn.Module):
  @nn.compact
  def __call__(self, x, _):
    return x + nn.relu(nn.Conv(8, (3, 3))(nn.LayerNorm()(x))), None

class Network(nn.Module):
  classes: int
  @nn.compact
  def __call__(self, images, train):
    x = nn.Conv(8, (3, 3), (2, 2))(images)
    x = nn.relu(nn.BatchNorm(not train, momentum=0.9, axis_name='batch')(x))
    x, _ = nn.scan(nn.remat(Block), variable_axes={'params': 0}, split_rngs={'params': True},
                   length=2)(name='layers')(x, None)
    return nn.Dense(self.classes)(Scaled()(x.mean((1, 2))))

def make(classes):
  return Network(classes)
'''
SELECTION = 'batchnorm@layers/block2+norm:batch+output'


@pytest.fixture
def own(tmp_path, monkeypatch):
  """Returns what makes config.network of the text of a file."""
  folder = tmp_path / 'files'
  folder.mkdir()
  monkeypatch.syspath_prepend(folder)
  monkeypatch.chdir(folder)

  def write(text, name='own_file'):
    (folder / f'{name}.py').write_text(text)
    importlib.invalidate_caches()
    sys.modules.pop(name, None)
    return f'{name}:make'

  yield write
  for name in ('own_file', 'broken_file'):
    sys.modules.pop(name, None)


def own_config(own, data_dir, **fields):
  return tiny_config(data_dir, network=own(NETWORK), **{'train': SELECTION, **fields})


@pytest.mark.slow
def test_it_trains_and_a_killed_run_ends_with_the_same_bits(own, data_dir, tmp_path, capsys):
  config = own_config(own, data_dir)
  expected = train.train_and_evaluate(config, tmp_path / 'whole')
  train_and_die(config, tmp_path / 'killed', 7)
  result = train.train_and_evaluate(config, tmp_path / 'killed')
  assert without_times([result]) == without_times([expected])
  for a, b in zip(last_state(tmp_path / 'killed'), last_state(tmp_path / 'whole'), strict=True):
    np.testing.assert_array_equal(a, b)
  assert result['network'] == 'own_file:make' and result['trained_parameters'] == 2 * 8 + 2 * 8 + 90
  assert result['test_loss'] < reading.lines(tmp_path / 'whole')[0]['test_loss']
  # Of the stack only block 2 has moved.
  loaded = analysis.load(tmp_path / 'whole')
  start = masks.flatten(experiment.draw_variables(loaded.experiment, 0)['params'])
  after = masks.flatten(loaded.variables['params'])
  moved = {name: after[name] != start[name] for name in start}
  assert {name for name, which in moved.items() if which.any()} == {
      'BatchNorm_0/scale', 'BatchNorm_0/bias', 'layers/LayerNorm_0/scale',
      'layers/LayerNorm_0/bias', 'Dense_0/kernel', 'Dense_0/bias'}
  assert not moved['layers/LayerNorm_0/scale'][0].any()
  assert after['Scaled_0/times'] == 2
  analysed = analysis.analyse(tmp_path / 'whole')
  assert [row['layer'] for row in analysed['gamma']['layers']] == [
      'BatchNorm_0', 'Scaled_0', 'layers/block1/LayerNorm_0', 'layers/block2/LayerNorm_0']
  assert analysed['relus'] is None and 'do not tell whether they fire' in capsys.readouterr().out
  assert analysed['thresholds'][0]['test_accuracy'] == result['test_accuracy']
  with pytest.raises(UserError, match='whose ReLUs do not tell'):
    analysis.silent_relus(loaded)
  # What goes into its last dense layer makes its logits.
  images, _ = next(analysis.image_batches(loaded))
  inputs = analysis.features(loaded, images)['output']
  logits = inputs @ after['Dense_0/kernel'] + after['Dense_0/bias']
  np.testing.assert_allclose(
      logits, jax.jit(network.classifier(network.of_run(loaded)))(loaded.variables, images),
      rtol=1e-4, atol=1e-5)
  assert analysis.write_probe(tmp_path / 'whole')['features'] == 8
  assert analysis.write_sharpness(tmp_path / 'whole', images=64)['parameters'] == 2 * 8 + 2 * 8 + 90


@pytest.mark.slow
def test_it_trains_alike_on_any_number_of_devices_and_as_a_replicate(own):
  fields = {'network': own(NETWORK), 'optimizer.learning_rate': 1e-3}
  one, two, both = (conftest.make_setup(SELECTION, devices, **fields, replicates=replicates)
                    for devices, replicates in ((1, 1), (2, 1), (1, 2)))
  first, second = (setup.run(2)[0] for setup in (one, two))
  for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
  state, frozen = experiment.start(both.experiment)
  for a, b in zip(jax.tree.leaves((state.trainable, frozen)),
                  jax.tree.leaves((one.state.trainable, one.frozen)), strict=True):
    np.testing.assert_array_equal(a[0], b)
  batch = np.stack([one.index(0)] * 2, -1)
  state, frozen, data, seed = one.place(state)[0], *one.place()[1:]
  frozen = jax.device_put(jax.device_get(experiment.start(both.experiment)[1]))
  state, _ = both.experiment.train_step(state, frozen, data, batch, seed)
  once = one.run(1)[0]
  for a, b in zip(jax.tree.leaves(state.trainable), jax.tree.leaves(once.trainable), strict=True):
    np.testing.assert_allclose(np.asarray(a)[0], b, rtol=1e-5, atol=1e-6)


def test_it_is_described_and_has_a_place_in_a_sweep(own, data_dir, tmp_path):
  config = own_config(own, data_dir)
  rows = {name: rest for name, *rest in describe.names(config)}
  assert rows['layers/block2/LayerNorm_0/scale'] == ['8', 'gamma', 'trains']
  assert rows['layers/block1/Conv_0/kernel'] == ['3x3x8x8', 'conv', 'frozen']
  assert rows['Scaled_0/times'] == ['1', 'other', 'frozen']
  assert {row.group: row.trained for row in describe.describe(config)['table']} == {
      'gamma': 16, 'beta': 16, 'shortcut': 0, 'conv': 0, 'other': 0, 'output': 90}
  points = [Point(line, 1, {'network': config.network, 'train': line}) for line in ('all', 'gamma')]
  found = runs_lib.runs(sweep('own', 'Own', 'smoke', 'depth', points, seeds=1,
                              base_config=config), tmp_path)
  assert len({run.workdir for run in found}) == 2


@pytest.mark.parametrize('name, message', [
    ('nope.file:make', "there is no module 'nope' \\(here is .*PYTHONPATH"),
    ('own_file:nope', "own_file.py has no function 'nope'; there are Scaled, Block, Network, make"),
    (':make', 'allowed is module:function'), ('own_file:', 'allowed is module:function'),
    ('own_file:Scaled', r"Scaled\(classes=1\) fails.*TypeError")])
def test_a_wrong_name_is_one_line(own, name, message):
  own(NETWORK)
  with pytest.raises(UserError, match=f"config.network is '{name}'.*{message}") as error:
    models.create(name, 1)
  assert '\n' not in str(error.value)


BODY = '''
import flax.linen as nn
import jax.numpy as jnp

class Network(nn.Module):
  @nn.compact
  def __call__(self, images, train):
    x = nn.Dense(10)(images.mean((1, 2)))
    {}

def make(classes):
  return {}
'''


@pytest.mark.parametrize('text, message', [
    ('import nonsuch', 'importing it fails at .*broken_file.py:1: ModuleNotFoundError'),
    ('def make(', 'importing it fails at .*broken_file.py:1: SyntaxError'),
    ('def make(n):\n  return n', 'TypeError: .*classes'),
    (BODY.format('return x', '3'), 'returns a int; needed is a flax.linen.Module'),
    (BODY.format('return x[:, :3]', 'Network()'), r'of 2 images it returns float32 \[2, 3\]'),
    (BODY.format('return x.astype(jnp.bfloat16)', 'Network()'), 'it returns bfloat16'),
    (BODY.format('return x @ x', 'Network()'), r'broken_file.py:9: TypeError'),
    (BODY.format('return nn.Dropout(0.5)(x, deterministic=not train)', 'Network()'),
     r'train=True\) fails at .*broken_file.py:9.*nn.Dropout.*Set its rate to 0'),
    (BODY.format('self.variable("cache", "n", jnp.zeros, ()); return x', 'Network()'),
     'it has the collections batch_stats, cache, params. Allowed are params'),
    (BODY.format('return nn.BatchNorm(False)(x)', 'Network()'),
     r'train=False\) fails at .*broken_file.py:9')])
def test_what_a_network_gets_wrong_is_told_in_one_line_with_its_place(own, text, message):
  config = conftest.pattern_config(network=own(text, 'broken_file'))
  with pytest.raises(UserError, match=message) as error:
    experiment.build(config, conftest.PATTERNS, jax.devices()[:1])
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('fields, message', [
    ({'norm': 'group'}, 'config.norm is'), ({'attention': 'se'}, 'config.attention is'),
    ({'remat': 'block'}, 'config.remat is'),
    ({'unroll': 2}, 'config.unroll is'), ({'batchnorm_images': 32}, 'config.batchnorm_images is')])
def test_fields_of_the_packages_own_networks_are_refused(own, fields, message):
  config = conftest.pattern_config(network=own(NETWORK), **fields)
  with pytest.raises(UserError, match=f'{message}.*which says itself how it computes'):
    experiment.build(config, conftest.PATTERNS, jax.devices()[:1])


def test_pytorchs_weights_are_refused(own, tmp_path):
  config = conftest.pattern_config(network=own(NETWORK), init_from='weights.npz')
  run = experiment.build(config, conftest.PATTERNS, jax.devices()[:1])
  with pytest.raises(UserError, match='config.init_from is'):
    origin.find(run, tmp_path, {})


def test_a_function_in_a_module_is_a_network_and_others_are_not(monkeypatch, tmp_path):
  monkeypatch.syspath_prepend(ROOT)
  make = importlib.import_module('configs.own_network').make
  assert own_lib.name_of(make) == 'configs.own_network:make'
  for other in (lambda classes: None, functools.partial(make), nn.Dense(3)):
    with pytest.raises(UserError, match='allowed is a function that stands by its name'):
      own_lib.name_of(other)
  config = tiny_config(tmp_path, network='nonsense', norm='group')
  with pytest.raises(UserError, match='with a network of one.s own, which says itself how'):
    train.train_and_evaluate(config, tmp_path / 'run', network=make)


def test_the_example_is_short_and_builds(monkeypatch):
  file = ROOT / 'configs/own_network.py'
  assert len(file.read_text().splitlines()) <= 40
  monkeypatch.syspath_prepend(ROOT)
  config = importlib.import_module('configs.own_network').get_config()
  run = experiment.build(config, conftest.PATTERNS, jax.devices()[:1])
  groups = {row.group: row.trained for row in masks.table(run.parameters, run.mask)}
  assert groups['gamma'] == groups['beta'] == 288 and groups['output'] == 0
