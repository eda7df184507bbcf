import contextlib
import json
import re
import shutil
import subprocess
import sys

from conftest import write_run
from flax.traverse_util import unflatten_dict
import jax
import numpy as np
import pytest
from test_main import environment
from test_main import ROOT
from tiny import tiny_config

from bnonly_jax import analysis
from bnonly_jax import experiment
from bnonly_jax import masks
from bnonly_jax import models
from bnonly_jax import train
from bnonly_jax.analysis import evaluation
from bnonly_jax.config import UserError
from bnonly_jax.data import device
from bnonly_jax.data import resident
from bnonly_jax.models import layers
from bnonly_jax.models import norm
from bnonly_jax.run import workdir as workdir_lib


@pytest.fixture(scope='module')
def workdir(data_dir, tmp_path_factory):
  """A run of a ResNet-14, whose stages have stacks of two blocks or of one after a first."""
  folder = tmp_path_factory.mktemp('analysis') / 'run'
  train.train_and_evaluate(tiny_config(data_dir, network='cifar_resnet14'), folder)
  return folder


@pytest.fixture(scope='module')
def result(workdir):
  """What the analysis of the run gives, in a copy of its folder."""
  copy = workdir.parent / 'copy'
  shutil.copytree(workdir, copy)
  return copy, analysis.analyse(copy)


@pytest.fixture(scope='module')
def crafted(workdir):
  """The run with gammas of all sizes and signs, and betas that keep some ReLUs from firing."""
  loaded, rng = analysis.load(workdir), np.random.default_rng(0)

  def craft(path, leaf):
    name = jax.tree_util.keystr(path)
    if 'norm' not in name:
      return leaf
    if name.endswith("['scale']"):
      return np.float32(rng.choice([-1, 1], leaf.shape) * 10 ** rng.uniform(-3, 0.3, leaf.shape))
    return np.float32(rng.choice([-1, 0, 0.5], leaf.shape) * rng.random(leaf.shape))

  params = jax.tree_util.tree_map_with_path(craft, loaded.variables['params'])
  return with_params(loaded, params)


def with_params(loaded, params):
  return loaded._replace(variables={**loaded.variables, 'params': params})


def images_of_the_test(loaded):
  """The test images as the network sees them, float64, and their labels."""
  images, labels = resident.open_source(loaded.config, loaded.experiment.info).test_set
  images = images[:, :64].reshape(-1, 8, 8, 1)
  mean, std = loaded.config.data.mean[0], loaded.config.data.std[0]
  return (images / 255 - mean) / std, labels


def by_hand(loaded, images):
  """The evaluation of a CIFAR ResNet in NumPy, float64: the logits and each ReLU's output."""
  params = layers.unstack(masks.flatten(loaded.variables['params']))
  stats = layers.unstack(masks.flatten(loaded.variables['batch_stats']))
  relus = {}

  def conv(x, name, stride):
    kernel = np.float64(params[f'{name}/kernel'])
    pad, size = kernel.shape[0] // 2, x.shape[1]
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    return sum(np.einsum('nhwi,io->nhwo', x[:, i:i + size:stride, j:j + size:stride], kernel[i, j])
               for i in range(kernel.shape[0]) for j in range(kernel.shape[1]))

  def normed(x, name):
    mean, var = stats[f'{name}/mean'], np.float64(stats[f'{name}/var'])
    return (x - mean) / np.sqrt(var + 1e-5) * params[f'{name}/scale'] + params[f'{name}/bias']

  def relu(x, name):
    relus[name] = np.maximum(x, 0)
    return relus[name]

  x = relu(normed(conv(images, 'stem_conv', 1), 'stem_norm'), 'stem_norm')
  for stage in (1, 2, 3):
    for i in (1, 2):
      block, stride = f'stage{stage}/block{i}', 2 if stage > 1 and i == 1 else 1
      y = relu(normed(conv(x, f'{block}/conv1', stride), f'{block}/norm1'), f'{block}/norm1')
      y = normed(conv(y, f'{block}/conv2', 1), f'{block}/norm2')
      if stride > 1:
        x = normed(conv(x, f'{block}/shortcut_conv', 2), f'{block}/shortcut_norm')
      x = relu(y + x, f'{block}/norm2')
  return x.mean((1, 2)) @ params['output/kernel'] + params['output/bias'], relus


@pytest.fixture(scope='module')
def expected(crafted):
  """Logits and ReLUs of the crafted network on its test images."""
  return by_hand(crafted, images_of_the_test(crafted)[0])


def never(relus):
  return {name: ~np.any(outputs > 0, (0, 1, 2)) for name, outputs in relus.items()}


def require_same(silent, relus):
  hand = never(relus)
  assert list(silent) == list(hand)  # the network's order
  for name, value in hand.items():
    np.testing.assert_array_equal(silent[name], value, err_msg=name)


def test_silent_relus_are_those_found_by_hand(crafted, expected):
  silent = analysis.silent_relus(crafted)
  require_same(silent, expected[1])
  number = sum(value.sum() for value in silent.values())
  assert sum(value.size for value in silent.values()) == 464 and 20 < number < 200
  assert any(silent['stage1/block2/norm1']) and any(silent['stage3/block2/norm1'])


def test_one_device_and_four_find_the_same(crafted, expected):
  params = crafted.variables['params']
  (four,) = analysis.evaluate(crafted, params)
  alone = crafted._replace(experiment=experiment.build(
      crafted.experiment.config, devices=jax.devices()[:1]))
  require_same(analysis.silent_relus(alone), expected[1])
  (one,) = analysis.evaluate(alone, params)
  assert (one['test_accuracy'], one['test_images']) == (four['test_accuracy'], 360)
  assert one['test_loss'] == pytest.approx(four['test_loss'], rel=1e-5)


def test_images_of_weight_zero_fire_no_relu(crafted):
  # Feature 0 of the stem fires at one image alone.
  images = images_of_the_test(crafted)[0][:100]
  params = jax.tree.map(np.copy, crafted.variables['params'])
  params['stem_norm']['scale'][0] = 1
  params['stem_norm']['bias'][0] = 0
  _, relus = by_hand(with_params(crafted, params), images)
  peaks = relus['stem_norm'][..., 0].max((1, 2))
  second, first = np.sort(peaks)[-2:]
  assert first > second
  params['stem_norm']['bias'][0] = -(first + second) / 2
  position = int(np.argmax(peaks))
  raw = resident.open_source(crafted.config, crafted.experiment.info).test_set
  step, devices = crafted.experiment.firing_step, jax.devices()
  state, frozen = evaluation._state(crafted, device.place(params, devices))
  weight = np.ones(100, np.float32)
  for weighed in (1, 0):
    weight[position] = weighed
    ((batch, weights),) = device.send_ahead([(np.arange(100, dtype=np.int32), weight)], devices)
    told = step(state, frozen, device.place(raw, devices), (batch, weights))
    (fired,) = told['stem_norm']['fired']
    assert bool(fired[0]) == bool(weighed)
    assert np.asarray(fired).sum() > 1


@pytest.mark.parametrize('row', [0, 1])
def test_accuracy_and_loss_without_small_gammas_are_those_by_hand(crafted, row):
  threshold, found = (0.0, 0.1)[row], analysis.thresholded(crafted, (0.1,))[row]
  flat, zeroed = masks.flatten(jax.tree.map(np.copy, crafted.variables['params'])), 0
  for name, value in flat.items():
    if name.endswith('/scale'):
      small = (-threshold < value) & (value < threshold)
      value[small], zeroed = 0, zeroed + small.sum()
  images, labels = images_of_the_test(crafted)
  logits, _ = by_hand(with_params(crafted, unflatten_dict(flat, sep='/')), images)
  logits -= logits.max(1, keepdims=True)
  losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(360), labels]
  assert found['test_accuracy'] == pytest.approx(np.mean(logits.argmax(1) == labels), abs=1e-9)
  assert found['test_loss'] == pytest.approx(losses.mean(), rel=1e-4)
  assert (found['threshold'], found['gammas_zeroed'], found['test_images']) == (
      threshold, zeroed, 360)


def test_only_small_gammas_of_either_sign_become_zero():
  params = {'norm1': {'scale': np.float32([-0.02, 0.5, 0.04, -3, 0.05]),
                      'bias': np.float32([0.01, 0, 0, 0, 0])},
            'conv1': {'kernel': np.full((1, 1, 1, 5), 0.01, np.float32)}}
  zeroed = analysis.zero_small(params, 0.05)
  np.testing.assert_array_equal(zeroed['norm1']['scale'], np.float32([0, 0.5, 0, -3, 0.05]))
  np.testing.assert_array_equal(zeroed['norm1']['bias'], params['norm1']['bias'])
  np.testing.assert_array_equal(zeroed['conv1']['kernel'], params['conv1']['kernel'])


def test_tables_of_gamma_and_beta_count_as_written_out():
  params = {'stem_norm': {'scale': np.float32([-0.5, 0.005]), 'bias': np.float32([1, 2])},
            'stage1_first': {'norm1': {'scale': np.float32([0.07]), 'bias': np.float32([0])}},
            'stage1_stack': {'norm1': {'scale': np.float32([[-0.03], [1]]),
                                       'bias': np.float32([[3], [4]])}}}
  table = analysis.gamma_table(params)
  assert [(row['layer'], row['count']) for row in table['layers']] == [
      ('stem_norm', 2), ('stage1/block1/norm1', 1), ('stage1/block2/norm1', 1),
      ('stage1/block3/norm1', 1)]
  shares = [[row[f'below_{t}'] for t in (0.01, 0.05, 0.1)]
            for row in (table['all'], *table['layers'])]
  np.testing.assert_allclose(shares, [[0.2, 0.4, 0.6], [0.5, 0.5, 0.5], [0, 0, 1], [0, 1, 1],
                                      [0, 0, 0]])
  every = [-0.5, -0.03, 0.005, 0.07, 1]
  np.testing.assert_allclose([table['all'][key] for key in ('q0', 'q25', 'q50', 'q75', 'q100')],
                             every, rtol=1e-6)
  assert table['all']['mean'] == pytest.approx(np.mean(every), rel=1e-6)
  assert table['all']['std'] == pytest.approx(np.std(every), rel=1e-6)
  np.testing.assert_array_equal(np.sum([row['histogram'] for row in table['layers']], 0),
                                table['all']['histogram'])
  assert len(table['bins']) == len(table['all']['histogram']) + 1
  assert sum(table['all']['histogram']) == 5
  beta = analysis.beta_table(params)
  assert beta['all']['q100'] == 4 and 'below_0.1' not in beta['all']


def test_a_small_gamma_costs_its_feature_but_not_where_a_residual_is_added():
  small = {'scale': np.float32([0.009, -0.009, 0.01, -0.01])}
  params = {'stem_norm': small, 'stage1_stack': {
      name: {'scale': small['scale'][None]} for name in ('norm1', 'norm2')}}
  silent = {name: np.array([False, True, True, False])
            for name in ('stem_norm', 'stage1/block1/norm1', 'stage1/block1/norm2')}
  table = analysis.relu_table(params, silent)
  assert [row['effective'] for row in table['layers']] == [1, 1, 2]
  assert [row['silent'] for row in table['layers']] == [2, 2, 2]
  assert table['all'] == {'layer': 'all', 'relus': 12, 'silent': 6, 'silent_share': 0.5,
                          'effective': 4, 'effective_share': 1 / 3}
  assert analysis.relu_table({}, silent)['all']['effective'] == 6


@pytest.mark.parametrize('name, kind, relus, first, last', [
    ('cifar_resnet14', 'batch', 464, 'stage1/block1/norm1', 'stage3/block2/norm2'),
    ('cifar_resnet14', 'group', 464, 'stage1/block1/norm1', 'stage3/block2/norm2'),
    ('imagenet_resnet50', 'layer', 22720, 'stage1/block1/norm1', 'stage4/block3/norm3'),
    ('cifar_vgg13', 'none', 2944, 'norm2', 'norm10')])
def test_every_network_tells_of_all_its_relus(name, kind, relus, first, last):
  network = models.create(name, 10, models.Style(kind))
  variables = models.variable_shapes(network, (32, 32, 3))
  assert set(variables) == {'params', 'batch_stats'}
  images = jax.ShapeDtypeStruct((2, 32, 32, 3), np.float32)
  _, told = jax.eval_shape(lambda v, x: network.apply(v, x, mutable=['intermediates']), variables,
                           images)
  fired = layers.unstack({name: np.empty(value.shape, value.dtype)
                          for name, (value,) in masks.flatten(told['intermediates']).items()})
  assert all(value.shape[0] == 2 and value.dtype == bool for value in fired.values())
  assert sum(value.shape[1] for value in fired.values()) == relus
  names = [name.removesuffix('/fired') for name in fired]
  assert (names[1], names[-1]) == (first, last)
  ends = sum(layers.adds_residual(name, names) for name in names)
  assert ends == {'cifar_resnet14': 6, 'imagenet_resnet50': 16, 'cifar_vgg13': 0}[name]


def test_training_steps_are_what_they_are_without_it(monkeypatch):
  def program():
    network = models.create('cifar_resnet14', 10)
    shapes = models.variable_shapes(network, (8, 8, 1))
    images = jax.ShapeDtypeStruct((2, 8, 8, 1), np.float32)
    text = str(jax.make_jaxpr(lambda v, x: network.apply(
        v, x, train=True, mutable=['batch_stats']))(shapes, images))
    return re.sub('0x[0-9a-f]+', '', text)

  with_it = program()
  monkeypatch.setattr(norm, '_watched', lambda module, out, relu: out)
  assert with_it == program()


def test_a_run_is_loaded_as_it_was_and_its_folder_left_alone(workdir):
  before = {p: p.stat().st_mtime_ns for p in workdir.rglob('*')}
  run = workdir_lib.read_json(workdir / 'result.json')
  with contextlib.ExitStack() as lock:  # as a run that is going on has it
    workdir_lib._lock(workdir_lib.path(workdir), lock)
    before[workdir / '.lock'] = (workdir / '.lock').stat().st_mtime_ns
    loaded = analysis.load(workdir)
    (evaluated,) = analysis.evaluate(loaded, loaded.variables['params'])
  assert evaluated['test_accuracy'] == run['test_accuracy']
  assert evaluated['test_loss'] == pytest.approx(run['test_loss'], rel=1e-6)
  assert before == {p: p.stat().st_mtime_ns for p in workdir.rglob('*')}
  assert loaded.step == 10 and analysis.load(workdir, 5).step == 5


def test_a_run_that_goes_on_elsewhere_or_is_damaged_is_read_as_far_as_it_goes(workdir, data_dir,
                                                                             tmp_path, monkeypatch,
                                                                             capsys):
  loaded = analysis.load(workdir)
  copy = tmp_path / 'run'
  shutil.copytree(workdir, copy)
  for path in (copy / 'checkpoints/10').rglob('d/*'):
    if path.is_file():
      path.write_bytes(b'')
  three = jax.devices()[:3]  # which the batches of training do not fit
  monkeypatch.setattr(jax, 'devices', lambda: three)
  older = analysis.load(copy, data_dir=str(data_dir))
  assert older.step == 5 and 'the checkpoint of step 10 is damaged' in capsys.readouterr().out
  assert (copy / 'checkpoints/10').exists() and not (copy / 'damaged').exists()
  for group in ('conv', 'shortcut', 'output'):
    for name, value in masks.flatten(loaded.variables['params']).items():
      if loaded.experiment.parameters[name].group == group:
        np.testing.assert_array_equal(masks.flatten(older.variables['params'])[name], value)
  with pytest.raises(UserError, match='checkpoint of step 10 in .* is damaged; there are 5, 10'):
    analysis.load(copy, 10)


def test_single_trained_weights_come_back_in_their_place(data_dir, tmp_path):
  config = tiny_config(data_dir, train='random:2')
  start = masks.flatten(write_run(config, tmp_path, 7))
  run = analysis.load(tmp_path)
  loaded = masks.flatten(run.variables['params'])
  for name, value in start.items():
    weights = run.experiment.parameters[name].group in ('conv', 'shortcut')
    number = 2 * value.size // np.prod(value.shape[-4:-1]) if weights else 0
    assert np.sum(loaded[name] == 7) == np.sum(loaded[name] != value) == number, name


def test_a_network_without_norms_has_its_relus_analysed(data_dir, tmp_path, capsys):
  write_run(tiny_config(data_dir, norm='none', train='output'), tmp_path, 0)
  found = analysis.analyse(tmp_path)
  assert found['gamma'] is found['beta'] is None and len(found['thresholds']) == 1
  assert found['relus']['all']['relus'] == 16 + 2 * 112
  assert 'this network has no gamma' in capsys.readouterr().out
  assert [p.name for p in tmp_path.glob('analysis*.png')] == ['analysis_relus.png']


def test_norms_without_beta_are_drawn_by_their_gamma(data_dir, tmp_path):
  write_run(tiny_config(data_dir, norm='rms'), tmp_path, 0.5)
  found = analysis.analyse(tmp_path)
  assert found['beta'] is None and len(found['gamma']['layers']) == 9
  assert (tmp_path / 'analysis_gamma_beta_by_layer.png').exists()


def test_the_analysis_is_written_whole(result):
  folder, found = result
  assert json.loads((folder / 'analysis.json').read_text()) == found
  assert (found['step'], found['epoch'], found['norm']) == (10, 2.0, 'batch')
  assert found['gamma']['all']['count'] == found['beta']['all']['count'] == 560
  assert [row['threshold'] for row in found['thresholds']] == [0, 0.01, 0.05, 0.1]
  for row in found['thresholds'][1:]:
    assert row['gammas_zeroed'] / 560 == found['gamma']['all'][f'below_{row["threshold"]}']
  assert found['relus']['all']['relus'] == 464
  for name in ('gamma_beta_by_layer', 'small_gammas', 'relus'):
    assert (folder / f'analysis_{name}.png').read_bytes().startswith(b'\x89PNG')


def test_a_wrong_folder_or_step_is_told(workdir, tmp_path):
  (tmp_path / 'thesis.tex').write_text('mine')
  for folder, step, message in (
      (tmp_path / 'no', None, 'there is no such folder; allowed is the folder of a run'),
      (tmp_path / 'thesis.tex', None, 'there is no such folder'),
      (tmp_path, None, 'holds no config.json'),
      (workdir, 7, 'holds no checkpoint of step 7; allowed are 5, 10')):
    with pytest.raises(UserError, match=message):
      analysis.load(folder, step)
  for content in ('{"name": "eslint"}', '{"epochs": "x", "data.version": "1"}', '[1]', ''):
    (tmp_path / 'config.json').write_text(content)
    with pytest.raises(UserError, match='config.json there is not that of a run'):
      analysis.load(tmp_path)
  facts = workdir_lib.read_json(workdir / 'config.json')
  workdir_lib.write_json(tmp_path / 'config.json', facts)
  with pytest.raises(UserError, match='holds no checkpoint yet'):
    analysis.load(tmp_path)
  workdir_lib.write_json(tmp_path / 'config.json', {**facts, 'data.version': '0.9.0'})
  with pytest.raises(UserError, match='trained on digits of version 0.9.0, and here is 1.0.0'):
    analysis.load(tmp_path)


@pytest.mark.parametrize('arguments, message', [
    (['--workdir=no/such'], 'there is no such folder'),
    (['--workdir=no/such', '--sharpness_images=8'], '--sharpness_images is of --sharpness'),
    (['runs/digits'], "'runs/digits' is no flag. Write --FLAG=VALUE")])
def test_a_mistake_is_one_line(arguments, message):
  done = subprocess.run([sys.executable, '-m', 'bnonly_jax.analysis', *arguments], cwd=ROOT,
                        env=environment(), capture_output=True, text=True, check=False)
  assert done.returncode == 1 and done.stdout == ''
  (line,) = done.stderr.strip().splitlines()
  assert line.startswith('error: ') and message in line
