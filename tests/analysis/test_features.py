"""Features, linear CKA and the linear probe."""

import shutil
import subprocess
import sys

from conftest import write_run
import flax.linen as nn
import jax
import numpy as np
import pytest
from test_analysis import by_hand
from test_analysis import images_of_the_test
from test_main import environment
from test_main import ROOT
from tiny import tiny_config

from bnonly_jax import analysis
from bnonly_jax import experiment
from bnonly_jax import models
from bnonly_jax import train
from bnonly_jax.analysis import activations
from bnonly_jax.analysis import probe
from bnonly_jax.analysis import similarity
from bnonly_jax.config import UserError


@pytest.fixture(scope='module')
def folders(data_dir, tmp_path_factory):
  """Untrained ResNet-14s of two seeds, and a ResNet-8 of two replicates."""
  root = tmp_path_factory.mktemp('features')
  write_run(tiny_config(data_dir, network='cifar_resnet14'), root / '0', 0.5)
  write_run(tiny_config(data_dir, network='cifar_resnet14', seed=1), root / '1', 0.5)
  write_run(tiny_config(data_dir, replicates=2), root / 'two', 0.5)
  return root


@pytest.fixture(scope='module')
def run(folders):
  return analysis.load(folders / '0')


def test_features_are_those_by_hand(run):
  images, labels = next(analysis.image_batches(run))
  normalised, all_labels = images_of_the_test(run)
  np.testing.assert_array_equal(labels, all_labels[:len(labels)])
  logits, relus = by_hand(run, normalised[:7])
  found = analysis.features(run, images[:7])
  assert list(found) == [*relus, 'output'] == analysis.layer_names(run)
  for name, value in relus.items():
    np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-4 * value.max(), err_msg=name)
  kernel = run.variables['params']['output']
  np.testing.assert_allclose(found['output'] @ kernel['kernel'] + kernel['bias'], logits, rtol=1e-3)
  pooled = analysis.features(run, images[:7], ['output', 'stage3/block2/norm1'], pool=True)
  assert list(pooled) == ['stage3/block2/norm1', 'output']
  np.testing.assert_allclose(pooled['stage3/block2/norm1'],
                             found['stage3/block2/norm1'].mean((1, 2)), rtol=1e-5)


def test_features_come_in_batches_of_one_size(run, monkeypatch):
  images = np.concatenate([images for images, _ in analysis.image_batches(run)])
  whole = analysis.features(run, images, ['stage1/block1/conv2'])
  assert len(images) == 360 and whole['stage1/block1/conv2'].shape == (360, 8, 8, 16)
  sizes = []
  real = activations._program
  monkeypatch.setattr(activations, '_program', lambda *rest: lambda variables, batch: (
      sizes.append(len(batch)), real(*rest)(variables, batch))[1])
  analysis.features(run, images[:230], ['output'])
  assert sizes == [100, 100, 100]  # config.eval_batch_size, a multiple of the devices


def test_a_wrong_layer_or_image_is_told(run):
  image = np.zeros((1, 8, 8, 1), np.uint8)
  with pytest.raises(UserError, match='no layer stage9/norm1. It has stem_conv, stem_norm, stage'):
    analysis.features(run, image, ['stage9/norm1'])
  for other in (image.astype(np.float32), image[:, :4]):
    with pytest.raises(UserError, match=r'allowed is uint8 \[N, 8, 8, 1\]'):
      analysis.features(run, other)


@pytest.mark.parametrize('name, kind', [('imagenet_resnet50', 'layer'), ('cifar_vgg13', 'none')])
def test_every_network_has_features_of_its_relus(name, kind):
  network = models.create(name, 10, models.Style(kind, remat=name.startswith('imagenet')))
  variables = models.variable_shapes(network, (32, 32, 3))
  images = jax.ShapeDtypeStruct((2, 32, 32, 3), np.float32)
  fired, outputs = jax.eval_shape(
      lambda v, x: activations._told(network, v, x, 'output'), variables, images)
  for layer, value in fired.items():
    assert outputs[layer].shape[-1:] == value.shape[1:], layer
  channels = variables['params']['output']['kernel'].shape[0]
  assert outputs['output'].shape == (2, channels)


def random(*shape):
  return np.random.default_rng(sum(shape)).standard_normal(shape) + 3


def test_cka_is_one_of_equals_and_blind_to_rotation_and_scale():
  x, y = random(500, 12), random(500, 12) + random(500, 1)
  rotation, _ = np.linalg.qr(random(12, 12))
  assert analysis.cka(x, x) == pytest.approx(1, abs=1e-12)
  plain = analysis.cka(x, y)
  assert 0 < plain < 0.5
  assert analysis.cka(x @ rotation, 7.5 * y - 100) == pytest.approx(plain, rel=1e-11)
  assert analysis.cka(y, x) == pytest.approx(plain, rel=1e-11)
  assert abs(analysis.cka(x * np.arange(12), y) - plain) > 1e-3  # but not to scales of each
  assert analysis.cka(x, np.ones((500, 3))) is None


def test_cka_is_that_of_its_formula_in_whatever_batches():
  x, y = random(500, 12), random(500, 5)
  # Kornblith et al. 2019, by the kernels of all images: HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)).
  centre = np.eye(500) - 1 / 500
  k, other = (centre @ a @ a.T @ centre for a in (x, y))
  expected = np.sum(k * other) / np.sqrt(np.sum(k * k) * np.sum(other * other))
  for size in (500, 130, 1):
    sums = None
    for start in range(0, 500, size):
      sums = similarity.add(sums, x[start:start + size], y[start:start + size])
    assert similarity.linear_cka(sums) == pytest.approx(expected, rel=1e-10)
  far = 1e6 + x.astype(np.float64)
  assert analysis.cka(far, y) == pytest.approx(expected, rel=1e-6)


def test_a_run_is_like_itself_and_less_like_another(folders, run, tmp_path, capsys):
  same = analysis.by_layer(run, run)
  assert list(same) == analysis.layer_names(run)
  assert all(value == pytest.approx(1, abs=1e-9) for value in same.values())
  shutil.copytree(folders / '0', tmp_path / 'copy')
  found = analysis.write_cka(tmp_path / 'copy', f'{folders}/1@0')
  values = {row['layer']: row['cka'] for row in found['layers']}
  assert list(values) == list(same) and all(0 <= value < 0.999 for value in values.values())
  name = f'cka_{folders.name}_1_step0'
  assert (tmp_path / f'copy/{name}.png').read_bytes()[:4] == b'\x89PNG'
  assert (tmp_path / f'copy/{name}.json').exists()
  assert f'{values["output"]:.4f}' in capsys.readouterr().out
  images = np.concatenate([images for images, _ in analysis.image_batches(run)])
  features = [analysis.features(one, images, ['stem_norm'])['stem_norm'].mean((1, 2))
              for one in (run, analysis.load(folders / '1'))]
  assert values['stem_norm'] == pytest.approx(analysis.cka(*features), rel=1e-5)


def test_another_network_is_compared_where_layers_have_the_same_name(folders, run):
  other = analysis.load(folders / 'two', replicate=1)
  shared = list(analysis.by_layer(run, other))
  assert shared == ['stem_norm', *(f'stage{i}/block1/norm{j}' for i in (1, 2, 3) for j in (1, 2)),
                    'output']
  with pytest.raises(UserError, match='/two: its network has no layer stage1/block2/norm1'):
    analysis.by_layer(run, other, ['stage1/block2/norm1'])
  odd = run._replace(experiment=run.experiment._replace(
      info=run.experiment.info._replace(image_shape=(9, 9, 1))))
  with pytest.raises(UserError, match='allowed are runs on images of one size'):
    analysis.by_layer(odd, run)


def test_each_replicate_has_its_own_images(data_dir, tmp_path):
  write_run(tiny_config(data_dir, replicates=2, **{'data.subsample': 0.5}), tmp_path / 'two', 0)
  write_run(tiny_config(data_dir, seed=1, **{'data.subsample': 0.5}), tmp_path / 'one', 0)
  two, one = analysis.load(tmp_path / 'two', replicate=1), analysis.load(tmp_path / 'one')
  for a, b in zip(*(analysis.image_batches(each, train=True) for each in (two, one)), strict=True):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_streamed_images_are_the_resident_ones(data_dir, tmp_path):
  write_run(tiny_config(data_dir), tmp_path / 'a', 0)
  run = analysis.load(tmp_path / 'a')
  config = run.experiment.config.copy_and_resolve_references()
  config.data.resident_limit = 0.0
  streamed = run._replace(experiment=experiment.build(config))
  for train_images in (False, True):
    whole, parts = ([np.concatenate(parts) for parts in zip(
        *analysis.image_batches(one, train=train_images), strict=True)] for one in (run, streamed))
    jax.tree.map(np.testing.assert_array_equal, whole, parts)
    assert len(whole[1]) == (1437 if train_images else 360)
  config.data.subsample = 0.5
  with pytest.raises(UserError, match='--sharpness: config.data.subsample is 0.5 .* streamed'):
    next(analysis.image_batches(run._replace(experiment=experiment.build(config)), train=True))


def test_ridge_is_the_least_squares_solution():
  x, y = random(300, 6), random(300, 2)
  x = np.concatenate([x, np.full((300, 1), 4.0), 1000 * x[:, :1]], 1)  # a constant, and a copy
  weights, bias = probe.ridge(300, x.sum(0), y.sum(0), x.T @ x, x.T @ y)
  assert np.all(weights[6] == 0)
  np.testing.assert_allclose(1000 * weights[7], weights[0], rtol=1e-7)
  std = np.where(x.std(0) > 1e-9, x.std(0), 1)
  design = (x - x.mean(0)) / std
  # As least squares with rows for the penalty.
  rows = np.concatenate([design, np.sqrt(probe.PENALTY * 300) * np.eye(8)])
  targets = np.concatenate([y - y.mean(0), np.zeros((8, 2))])
  solved = np.linalg.lstsq(rows, targets, rcond=None)[0]
  np.testing.assert_allclose(x @ weights + bias, design @ solved + y.mean(0), rtol=1e-8)


def test_a_probe_reads_more_than_an_untrained_output_layer(data_dir, tmp_path, capsys):
  train.train_and_evaluate(tiny_config(data_dir, epochs=1), tmp_path)
  before = {path.name for path in tmp_path.iterdir()}
  found = analysis.write_probe(tmp_path)
  assert (found['features'], found['train_images'], found['test_images']) == (64, 1437, 360)
  assert found['test_accuracy'] > 0.5 > 0.3 > found['own_test_accuracy']
  assert (f'fitted on 1,437 training images: test accuracy {found["test_accuracy"]:.4f}; the run\'s'
          f' own {found["own_test_accuracy"]:.4f}') in capsys.readouterr().out
  assert {path.name for path in tmp_path.iterdir()} - before == {'probe.json'}


@pytest.mark.slow
def test_the_program_compares_and_probes(folders, tmp_path):
  shutil.copytree(folders / '0', tmp_path / 'run')

  def call(*arguments):
    return subprocess.run(
        [sys.executable, '-m', 'bnonly_jax.analysis', f'--workdir={tmp_path}/run', *arguments],
        cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)

  done = call(f'--cka={folders}/1', '--probe')
  assert done.returncode == 0, done.stderr
  assert 'linear CKA' in done.stdout and 'linear probe on the 64 features' in done.stdout
  assert not (tmp_path / 'run/analysis.json').exists()
  wrong = call('--cka=no/such')
  (line,) = wrong.stderr.splitlines()
  assert wrong.returncode == 1 and line.startswith('error: --cka=no/such: there is no such folder')


def test_a_network_without_an_output_layer_has_nothing_that_goes_into_it():
  class Mean(nn.Module):
    @nn.compact
    def __call__(self, images, train):
      return images.mean((1, 2))

  images = jax.ShapeDtypeStruct((2, 8, 8, 10), np.float32)
  with pytest.raises(UserError, match='has 0 inputs of an output layer; needed is one'):
    jax.eval_shape(lambda x: activations._told(Mean(), {}, x, None), images)
