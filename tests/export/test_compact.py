"""Compact networks against the thresholded originals, and the other forms made of them."""

import json

import jax
import networks
import numpy as np
import pytest

from bnonly_jax import analysis
from bnonly_jax.config import UserError
from bnonly_jax.export import compact
from bnonly_jax.export import loading
from bnonly_jax.export import network
from bnonly_jax.export import onnx_file
from bnonly_jax.export import plain
from bnonly_jax.export import prune
from bnonly_jax.export import seed
from bnonly_jax.export import stablehlo
from bnonly_jax.export import torch_names

# With the side of the images: odd ones have other borders where the stride is 2.
NETWORKS = {'cifar_resnet14': 13, 'cifar_resnet8': 32, 'cifar_vgg11': 20, 'imagenet_resnet18': 47,
            'imagenet_resnet50': 40}


def thresholded(trained, threshold):
  params = analysis.zero_small(trained.variables['params'], threshold)
  return trained._replace(variables={**trained.variables, 'params': params})


def close(a, b):
  np.testing.assert_allclose(a, b, atol=1e-4 * max(1, np.abs(b).max()), rtol=0)


@pytest.mark.parametrize('name', [
    pytest.param(name, marks=pytest.mark.slow) if name.startswith('imagenet') else name
    for name in NETWORKS])
def test_the_logits_are_those_of_the_thresholded_network(name):
  trained = networks.random_network(name, NETWORKS[name])
  small = compact.compact(trained, 0.01)
  expected = networks.logits(thresholded(trained, 0.01))
  close(networks.logits(small), expected)
  assert np.abs(expected - networks.logits(trained)).max() > 1e-3  # the threshold does something
  (numbers, flops), (fewer, less) = compact.sizes(trained), compact.sizes(small)
  assert fewer < 0.9 * numbers and less < 0.95 * flops


def test_nothing_is_lost_without_a_threshold():
  trained = networks.random_network('cifar_resnet14', 13)
  small = compact.compact(trained, 0.0)
  close(networks.logits(small), networks.logits(trained))
  assert compact.sizes(small)[1] == compact.sizes(trained)[1]


def test_a_network_of_which_everything_is_off_is_a_constant():
  trained = networks.random_network('cifar_resnet14', 13)
  small = compact.compact(trained, 10.0)
  close(networks.logits(small), networks.logits(thresholded(trained, 10.0)))
  assert np.ptp(networks.logits(small), axis=0).max() < 1e-5


def test_a_feature_of_the_residual_stream_goes_only_if_all_that_write_it_are_constant():
  trained = networks.random_network('cifar_resnet14', 13)
  params = jax.tree.map(np.array, trained.variables['params'])
  for name in ('stem_norm', 'stage1_stack'):
    norm = params[name] if name == 'stem_norm' else params[name]['norm2']
    norm['scale'][...] = 0.5
    norm['scale'][..., :4] = 0
  norm['scale'][1, 0] = 0.5  # the last block of the stage writes feature 0
  nodes, tensors = plain.fold(trained._replace(variables={**trained.variables, 'params': params}))
  constants = prune._constants(nodes, tensors, 3)
  last = constants['stage1/block2/conv2']
  assert np.flatnonzero(~np.isnan(constants['stage1/block1/conv2'])).tolist() == [0, 1, 2, 3]
  assert np.flatnonzero(~np.isnan(last)).tolist() == [1, 2, 3]
  kept = prune._kept(nodes, constants)
  for name in ('stem_conv', 'stage1/block1/conv2', 'stage1/block2/conv2'):
    assert 0 in kept[name] and len(kept[name]) == 16  # 13 that stay, up to a multiple of 4


@pytest.mark.parametrize('size, stride, side', [(3, 1, 5), (3, 2, 6), (3, 2, 7), (7, 2, 9),
                                                (1, 2, 5), (3, 1, 1), (7, 2, 3)])
def test_the_map_of_a_constant_input_is_its_convolution(size, stride, side):
  rng = np.random.default_rng(0)
  kernel, values = rng.normal(size=(size, size, 2, 3)), rng.normal(size=2)
  image = np.broadcast_to(values, (1, side, side, 2))
  from bnonly_jax.models import conv
  expected = conv.conv(np.float32(image), np.float32(kernel), stride, 'gpu')[0]
  after = expected.shape[0]
  bias, kinds = prune._bias_map(np.zeros(3), np.einsum('c,yxco->yxo', values, kernel), stride,
                                (side, side), (after, after))
  found = np.broadcast_to(plain.spread(kinds, bias)[0], expected.shape)
  np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_file_holds_the_network(data_dir, tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(analysis, 'THRESHOLDS', ())
  monkeypatch.setattr(compact, 'milliseconds', lambda networks: [1.0] * len(networks))
  workdir, path = networks.trained_run(data_dir), tmp_path / 'net.compact'
  compact.export(str(workdir), str(path), threshold=0.3)
  told = capsys.readouterr().out
  rows = {line.split()[0]: line.split() for line in told.splitlines() if line[:1] in '0'}
  assert list(rows) == ['0', '0.3']
  loaded = analysis.load(workdir)
  whole, zeroed = analysis.thresholded(loaded, (0.3,))
  for row, threshold in zip((whole, zeroed), ('0', '0.3'), strict=True):
    assert float(rows[threshold][-1]) == pytest.approx(row['test_accuracy'], abs=1 / 360 + 1e-4)
  assert int(rows['0.3'][1].replace(',', '')) < int(rows['0'][1].replace(',', ''))
  net, variables, about = compact.read(path)
  trained = network.of_run(loaded)
  assert about['class_names'] == list('0123456789') and about['threshold'] == 0.3
  found = trained._replace(network=net, variables=variables)
  close(networks.logits(found), networks.logits(thresholded(trained, 0.3)))
  path.write_bytes(b'nonsense')
  with pytest.raises(UserError, match='is no compact network'):
    compact.read(path)


@pytest.mark.slow
def test_a_file_from_the_seed_will_do_in_place_of_the_run(data_dir, tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(compact, 'milliseconds', lambda networks: [1.0] * len(networks))
  workdir, file = networks.trained_run(data_dir), tmp_path / 'net.bnonly'
  seed.write(analysis.load(workdir), file)
  capsys.readouterr()
  for i, source in enumerate((workdir, file)):
    torch_names.export(str(source), str(tmp_path / f'{i}.safetensors'))
    compact.export(str(source), str(tmp_path / f'{i}.compact'))
    stablehlo.export(str(source), str(tmp_path / f'{i}.stablehlo'))
  for kind in ('safetensors', 'compact'):
    assert (tmp_path / f'0.{kind}').read_bytes() == (tmp_path / f'1.{kind}').read_bytes()
  images = np.random.default_rng(1).integers(0, 256, (4, 8, 8, 1), np.uint8)
  logits = [stablehlo.read(tmp_path / f'{i}.stablehlo')[0].call(images) for i in (0, 1)]
  np.testing.assert_array_equal(*logits)
  ends = [line.split()[-1] for line in capsys.readouterr().out.splitlines()
          if line.startswith(('as trained', '0.01'))]
  assert '-' not in ends[:2] and ends[2:] == ['-', '-']  # no test set, no accuracy


def test_networks_are_timed_side_by_side(monkeypatch):
  monkeypatch.setattr(compact, '_CALLS', 2)
  assert compact.milliseconds([networks.random_network('cifar_resnet8', 8)])[0] > 0


def test_other_norms_cannot_be_folded():
  trained = networks.random_network('cifar_resnet14', 13)
  config = trained.config.copy_and_resolve_references()
  config.norm = 'layer'
  with pytest.raises(UserError, match="norm is 'layer'.*stablehlo"):
    compact.compact(trained._replace(config=config), 0.01)


@pytest.mark.parametrize('name', [
    'cifar_vgg11', pytest.param('imagenet_resnet50', marks=pytest.mark.slow)])
def test_onnx_runtime_computes_the_same(name, tmp_path):
  onnx = pytest.importorskip('onnx', reason='the extra onnx is not installed')
  runtime = pytest.importorskip('onnxruntime', reason='the extra onnx is not installed')
  trained = networks.random_network(name, NETWORKS[name])
  small = compact.compact(trained, 0.01)
  onnx.save(onnx_file.model(small), tmp_path / 'net.onnx')
  error, largest = onnx_file.largest_error(tmp_path / 'net.onnx', thresholded(trained, 0.01))
  assert error < 1e-4 * max(1, largest)
  about = runtime.InferenceSession(
      tmp_path / 'net.onnx', providers=['CPUExecutionProvider']).get_modelmeta()
  assert json.loads(about.custom_metadata_map['class_names']) == list('abcdefg')
  assert json.loads(about.custom_metadata_map['preprocessing'])['height'] == NETWORKS[name]


def test_onnx_of_a_run(data_dir, tmp_path, capsys):
  pytest.importorskip('onnxruntime', reason='the extra onnx is not installed')
  onnx_file.export(str(networks.trained_run(data_dir)), str(tmp_path / 'net.onnx'))
  assert 'opset 17' in capsys.readouterr().out and (tmp_path / 'net.onnx').exists()


@pytest.mark.parametrize('threshold', [None, 0.3])
def test_stablehlo_runs_here_and_is_for_all(data_dir, tmp_path, threshold):
  workdir, path = networks.trained_run(data_dir), tmp_path / 'net.stablehlo'
  stablehlo.export(str(workdir), str(path), threshold=threshold)
  program, about = stablehlo.read(path)
  assert program.platforms == ('cpu', 'cuda', 'tpu')
  assert about['class_names'] == list('0123456789')
  images = np.random.default_rng(1).integers(0, 256, (4, 8, 8, 1), np.uint8)
  trained = network.of_run(analysis.load(workdir))
  close(program.call(images), networks.logits(thresholded(trained, threshold or 0)))


def test_stablehlo_has_all_that_the_config_says_of_the_network(tmp_path, monkeypatch):
  loaded = networks.run_without_training('all', tmp_path, attention='se', norm='group')
  trained = network.of_run(loaded)
  monkeypatch.setattr(loading, 'open_network', lambda *_: trained)
  stablehlo.export('', str(tmp_path / 'net.stablehlo'))
  images = np.random.default_rng(1).integers(0, 256, (4, 32, 32, 3), np.uint8)
  program, _ = stablehlo.read(tmp_path / 'net.stablehlo')
  close(program.call(images), networks.logits(trained))
