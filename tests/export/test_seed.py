"""A network as what trained and a seed: bit for bit, small, and nothing that a file can break."""

import json
import os
import pathlib
import struct
import subprocess
import sys

import fuzz
import jax
import networks
import numpy as np
import pytest
import safetensors

import bnonly_jax
from bnonly_jax import analysis
from bnonly_jax import experiment
from bnonly_jax import masks
from bnonly_jax.config import default_config
from bnonly_jax.config import UserError
from bnonly_jax.export import loading
from bnonly_jax.export import network
from bnonly_jax.export import seed

ROOT = pathlib.Path(__file__).parents[2]


def equal(a, b):
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_array_equal(x, y)


def parts(file):
  """The header of a file, its recipe, and the bytes of its tensors."""
  content = file.read_bytes()
  end = 8 + struct.unpack('<Q', content[:8])[0]
  header = json.loads(content[8:end])
  return header, json.loads(header['__metadata__']['recipe']), content[end:]


def rewritten(file, change):
  """Changes a file's recipe, and its digest with it, as a stranger could."""
  header, recipe, tensors = parts(file)
  change(recipe)
  other = file.with_name('other.bnonly')
  other.write_bytes(fuzz.sign(tensors, header, json.dumps(recipe)))
  return other


@pytest.fixture(scope='module')
def loaded(data_dir):
  return analysis.load(networks.trained_run(data_dir))


@pytest.fixture(scope='module')
def file(loaded, tmp_path_factory):
  path = tmp_path_factory.mktemp('seed') / 'net.bnonly'
  seed.write(loaded, path)
  return path


def test_the_logits_are_the_runs_bit_for_bit(loaded, file):
  found = bnonly_jax.load(file)
  equal(found.variables, loaded.variables)
  images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), np.uint8)
  programs = [jax.jit(network.classifier(t)) for t in (found, network.of_run(loaded))]
  equal(programs[0](found.variables, images), programs[1](loaded.variables, images))
  assert found.info.class_names == tuple('0123456789') and found.step == loaded.step
  assert found.preparation == network.of_run(loaded).preparation


def test_only_what_trained_is_in_the_file(loaded, file):
  trained = sum(leaf.size for name, leaf in masks.flatten(loaded.variables).items()
                if 'norm' in name)
  with safetensors.safe_open(file, 'numpy') as opened:
    names = set(opened.keys())
  assert not any('conv/' in name or 'conv1' in name or 'output' in name for name in names)
  assert 0 < file.stat().st_size - 4 * trained < 16_000


@pytest.mark.parametrize('selection', ['random:2', 'output+gamma', '[["conv1", true], ["", false]]',
                                       'all', 'nothing'])
def test_whatever_trained(tmp_path, selection):
  comes_back(tmp_path, selection)


@pytest.mark.parametrize('selection, fields', [
    ('all', {'weight_sparsity': 0.9, 'weight_sparsity_layers': 'erk'}),
    ('batchnorm', {'weight_sparsity': 0.9}), ('batchnorm', {'weight_rank': 3}),
    ('gamma', {'weight_bits': '1', 'weight_sparsity': 0.5}), ('random:1', {'weight_bits': '4'})])
def test_however_random_weights_are_made(tmp_path, selection, fields):
  comes_back(tmp_path, selection, **fields)


def comes_back(folder, selection, **fields):
  run = networks.run_without_training(selection, folder, seed=3, **fields)
  seed.write(run, folder / 'net.bnonly')
  equal(bnonly_jax.load(folder / 'net.bnonly').variables, run.variables)
  seed.write(run, folder / 'all.bnonly', include_frozen=True)
  equal(bnonly_jax.load(folder / 'all.bnonly').variables, run.variables)


def test_rules_for_single_weights_need_the_frozen_half(tmp_path):
  run = networks.run_without_training('[["conv1", true], ["", false]]', tmp_path,
                                      weight_sparsity=0.5)
  with pytest.raises(UserError, match='is a list of rules.*Add --include_frozen'):
    seed.write(run, tmp_path / 'net.bnonly')
  seed.write(run, tmp_path / 'net.bnonly', include_frozen=True)
  equal(bnonly_jax.load(tmp_path / 'net.bnonly').variables, run.variables)


def test_bfloat16_halves_the_file_and_prints_the_accuracy(loaded, file, tmp_path, capsys):
  half = tmp_path / 'half.bnonly'
  seed.export(str(loaded.workdir), str(half), dtype='bfloat16')
  header = len(json.dumps(parts(file)[0]))
  assert half.stat().st_size - header < 0.55 * (file.stat().st_size - header)
  assert 'in float32, 0.' in capsys.readouterr().out
  for a, b in zip(jax.tree.leaves(bnonly_jax.load(half).variables),
                  jax.tree.leaves(bnonly_jax.load(file).variables), strict=True):
    np.testing.assert_allclose(a, b, rtol=2**-8)


def test_a_frozen_tensor_that_is_drawn_otherwise_is_named(loaded, file, monkeypatch):
  with monkeypatch.context() as patch:
    real = experiment.draw_variables

    def other(run, number):
      variables = real(run, number)
      variables['params']['stage2_first']['conv1']['kernel'] += 1
      return variables

    patch.setattr(experiment, 'draw_variables', other)
    with pytest.raises(UserError, match='stage2_first/conv1/kernel.*--include_frozen'):
      bnonly_jax.load(file)
    with pytest.raises(UserError, match='stage2_first/conv1/kernel.*--include_frozen'):
      seed.write(loaded, file.with_name('no.bnonly'))
    assert not file.with_name('no.bnonly').exists()
    seed.write(loaded, file.with_name('whole.bnonly'), include_frozen=True)
    equal(bnonly_jax.load(file.with_name('whole.bnonly')).variables, loaded.variables)


@pytest.mark.parametrize('change, message', [
    (lambda r: r['config'].update(network='cifar_resnet866x99'), 'allowed are 100,000,000'),
    (lambda r: r['config'].update(network='cifar_resnet99998x999'), 'numbers; allowed are'),
    (lambda r: r['config'].update(network='cifar_resnet99999999998'), 'is none'),
    (lambda r: r['config'].update(network='os:system'), 'trust_code=True'),
    (lambda r: r['config'].update(network='cifar_resnet20'), 'no tensor|not of|digests'),
    (lambda r: r['config'].update(norm='group'), 'digests'),
    (lambda r: r['config'].update(surprise=1), 'surprise.*newer'),
    (lambda r: r['config'].update(seed=1), 'tensor.* are drawn otherwise'),
    (lambda r: r.update(class_names=['a', '\x1b[2J']), 'class_names'),
    (lambda r: r.update(image_shape=[8, 10**9, 1]), 'image_shape'),
    (lambda r: r.update(format=2), 'format 1')])
def test_what_a_stranger_may_say_is_refused(file, change, message):
  with pytest.raises(UserError, match=message):
    bnonly_jax.load(rewritten(file, change))


def test_a_monster_is_refused_before_anything_is_drawn(file, monkeypatch):
  monkeypatch.setattr(experiment, 'draw_variables', None)
  monkeypatch.setattr(loading, '_variables', None)
  with pytest.raises(UserError, match='allowed are 100,000,000'):
    bnonly_jax.load(rewritten(file, lambda r: r['config'].update(network='cifar_resnet866x999')))


def test_rules_of_a_stranger_are_never_evaluated(file):
  slow = '[["^(([a-z])+.)+[A-Z]([a-z])+$", true], ["", false]]'
  found = bnonly_jax.load(rewritten(file, lambda r: r['config'].update(train=slow)))
  equal(found.variables, bnonly_jax.load(file).variables)


def test_paths_stay_at_home():
  config = default_config()
  config.data.name = 'folder:/home/someone/secret/pictures'
  fields = seed.recipe_fields(config)
  assert fields['data.name'] == 'folder:pictures'
  assert not {'data.dir', 'init_from'} & fields.keys()


def test_what_is_no_file_of_ours_is_an_error(tmp_path):
  for name, content in (('empty', b''), ('text', b'hello world, text'), ('zeros', bytes(99))):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f'{name}: it does not begin'):
      bnonly_jax.load(tmp_path / name)
  for name in ('nothing', '.'):
    with pytest.raises(UserError, match='no such file'):
      bnonly_jax.load(tmp_path / name)


def test_what_cannot_be_written_is_told_at_once(tmp_path):
  for output in (tmp_path, tmp_path / 'nowhere/net.bnonly'):
    done = subprocess.run(
        [sys.executable, '-m', 'bnonly_jax.export', 'seed', '--workdir=x', f'--output={output}'],
        capture_output=True, text=True, check=False, env={**os.environ, 'PYTHONPATH': str(ROOT)})
    assert done.returncode == 1 and f'--output={output} cannot be written' in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr


def test_damaged_files_are_refused_or_right(file, tmp_path):
  found = fuzz.fuzz(file, 300, tmp_path)
  assert found['refused'] > 250 and found['slowest'] < 20


@pytest.mark.slow
def test_ten_thousand_damaged_files_are_refused_or_right(file, tmp_path):
  done = subprocess.run(
      [sys.executable, fuzz.__file__, file, '10000', tmp_path], capture_output=True, text=True,
      check=False, timeout=3000, env={**os.environ, 'PYTHONPATH': str(ROOT)})
  assert not done.returncode, done.stderr
  found = json.loads(done.stdout)
  print(found)
  assert found['refused'] + found['right'] + found['other'] == 10_000
  assert found['memory'] < 1e9 and found['slowest'] < 60


def test_a_resnet_866_is_small(tmp_path):
  loaded = networks.run_without_training('batchnorm', tmp_path, 'cifar_resnet866')
  numbers = sum(leaf.size for name, leaf in masks.flatten(loaded.variables).items()
                if 'norm' in name)
  for dtype, size in (('float32', 4), ('bfloat16', 2)):
    seed.write(loaded, tmp_path / dtype, dtype=dtype)
    assert (tmp_path / dtype).stat().st_size < size * numbers + 16_000
  assert (tmp_path / 'bfloat16').stat().st_size < 300_000
