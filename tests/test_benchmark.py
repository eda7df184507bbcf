import contextlib
import json
import os
import pathlib
import subprocess
import sys

from conftest import data_config
from PIL import Image
import pytest

from bnonly_jax.benchmark import against_torch
from bnonly_jax.benchmark import common
from bnonly_jax.benchmark import data as benchmark_data
from bnonly_jax.benchmark import scale
from bnonly_jax.benchmark import step
from bnonly_jax.benchmark import table
from bnonly_jax.benchmark.peaks import Peak
from bnonly_jax.config import default_config
from bnonly_jax.config import UserError


def test_the_rates_of_a_data_set(data_dir):
  config = data_config('digits', data_dir, mean=(0.5,), std=(0.25,))
  row = benchmark_data.data_rates(config)
  assert row['images'] == 1437 and row['shape'] == (8, 8, 1) and row['resident']
  assert row['batch_milliseconds'] > 0 and row['streamed_per_second'] > 0
  json.dumps(row)


def test_the_images_for_the_benchmark_are_of_imagenets_size(tmp_path):
  size = benchmark_data.write_imagenet_like(tmp_path, 4)
  assert 80_000 < size < 150_000
  paths = sorted(tmp_path.glob('*/*/*.jpg'))
  assert len({path.parent.name for path in paths}) == 2  # of one class a data set is refused
  assert len(paths) == 4 and all(Image.open(path).size == (500, 375) for path in paths)


def test_the_first_batch_is_timed_in_a_process_of_its_own(data_dir):
  config = data_config('digits', data_dir, mean=(0.5,), std=(0.25,))
  seconds, result = common.child(benchmark_data.time_to_first_batch, config, [0])
  assert result is None and seconds > 0


@pytest.mark.parametrize('selection', ['batchnorm', 'all'])
def test_what_is_all_reduced_is_what_trains_and_the_statistics(selection):
  config = default_config()
  config.update(network='cifar_resnet8', train=selection, batch_size=4, batchnorm_images=1)
  config.data.update(name='none')
  # 336 features in 9 norms have two statistics each; loss and accuracy are two numbers. Two norms
  # of shortcuts, with 32 and 64 features, have the beta gradients of the norms they are added to,
  # which XLA reduces once.
  parameters = {'batchnorm': 672, 'all': 78_042}[selection]
  assert common.all_reduced_bytes(config) == 4 * (parameters + 672 + 2 - 96)


@pytest.mark.parametrize('against, message', [
    ('foo', r"^--against=foo: 'foo' is no group.* Try --against=batchnorm\+output"),
    ('conv-conv', '^--against=conv-conv, which matches no parameter.* say --against=nothing'),
    ('[["x", true]]', "^--against has the expression 'x', found in no parameter")])
def test_a_wrong_selection_to_compare_with_is_told_as_that(against, message):
  config = data_config('none')
  config.network = 'cifar_resnet8'
  with pytest.raises(UserError, match=message):
    step.measure(config, against)


def test_what_cannot_be_cut_for_devices_is_told_before_anything_is_measured(monkeypatch):
  monkeypatch.setattr(common, 'child', lambda *_, **__: pytest.fail('measures'))
  config = data_config('none')
  config.batch_size = 126
  with pytest.raises(UserError, match='config.batch_size is 126; allowed is a multiple of 4'):
    scale.measure(config)


def test_the_roofline():
  peak = Peak(flops=1e12, memory=1e9, link=1e9)
  found = scale.roofline(1e9, 1e6, 100, 4, peak)
  assert found == {'compute_seconds': 0.1, 'reduce_seconds': pytest.approx(1.5e-3)}


@pytest.mark.slow
def test_steps_are_timed_on_simulated_devices():
  config = default_config()
  config.update(network='cifar_resnet8', batch_size=4)
  config.data.update(name='none')
  _, seconds = common.child(common.step_seconds, config, devices=2)
  assert seconds > 0


@pytest.mark.slow
def test_the_step_of_a_selection_beside_that_of_all():
  config = default_config()
  config.update(network='cifar_resnet8', batch_size=8)
  config.data.update(name='none')
  result = step.measure(config)
  json.dumps(result)
  part, whole = (result['selections'][name] for name in ('batchnorm', 'all'))
  assert part['convolutions'] < whole['convolutions'] and part['flops'] < 0.7 * whole['flops']
  assert part['temporary'] < whole['temporary'] and part['all_reduced'] < whole['all_reduced']
  for row in (part, whole):
    assert row['images_per_second'] == pytest.approx(8 / row['step_seconds'])
    assert row['start_seconds'] > row['compile_seconds']
    assert row['peak'] > row['temporary'] > 0 and row['arguments'] > 0
  assert result['ratio']['flops'] == part['flops'] / whole['flops']


@pytest.mark.slow
def test_remat_computes_every_block_again_and_saves_memory():
  config = default_config()
  config.update(network='cifar_resnet14', batch_size=32)
  config.data.update(name='none')

  def costs(remat):
    config.remat = remat
    lower, *_ = common.training_step(config)
    return step.costs(config, lower())

  none, block = costs('none'), costs('block')
  # Two convolutions in each of six blocks, and two shortcuts.
  assert block['convolutions'] == none['convolutions'] + 14
  assert block['temporary'] < 0.8 * none['temporary']


def test_the_step_beside_pytorchs(tmp_path):
  pytest.importorskip('torch')
  done = subprocess.run(
      [sys.executable, '-m', 'bnonly_jax.benchmark', 'step', '--config=configs/cifar10.py:resnet8',
       '--config.batch_size=8', '--against=torch', f'--out={tmp_path}/row.json'],
      cwd=pathlib.Path(__file__).parents[1], capture_output=True, text=True, check=False,
      env={**os.environ, 'XLA_FLAGS': '', 'JAX_PLATFORMS': 'cpu'})
  assert done.returncode == 0, done.stderr
  result = json.loads((tmp_path / 'row.json').read_text())
  ours, theirs = result['selections']['batchnorm'], result['torch']
  assert theirs['mode'] == 'eager' and theirs['threads'] > 0 and not theirs['errors']
  assert theirs['precision_of_both'] == 'float32'
  assert theirs['images_per_second'] == pytest.approx(8 / theirs['step_seconds'])
  assert result['ratio']['step_seconds'] == ours['step_seconds'] / theirs['step_seconds']
  assert f'PyTorch {theirs["version"]}' in done.stdout and 'mallopt' in done.stdout


@pytest.mark.parametrize('fields, torch, message', [
    ({'train': 'output'}, True, "config.train is 'output'; allowed is batchnorm or all with"),
    ({'norm': 'group'}, True, "config.norm is 'group'; allowed is batch with --against=torch"),
    ({}, False, "Install it with pip install -e '.\\[torch\\]'"),
    ({}, True, 'JAX has 4 cpu device.*compares one CPU or one GPU. Set')])
def test_what_cannot_stand_beside_pytorch_is_told(monkeypatch, fields, torch, message):
  monkeypatch.setattr(against_torch.importlib.util, 'find_spec', lambda name: torch or None)
  config = default_config()
  config.update(fields)
  with pytest.raises(UserError, match=message):
    step.measure(config, 'torch')


def test_a_failing_torch_compile_is_reported_and_failing_pytorch_is_an_error(monkeypatch):
  fails = 'import sys; sys.exit("RuntimeError: no kernel")'
  code = {'': 'print("{}", flush=True); input()', 'default': fails, 'reduce-overhead': 'input()'}
  popen = subprocess.Popen
  monkeypatch.setattr(against_torch.subprocess, 'Popen', lambda command, **how: popen(
      [sys.executable, '-c', code[json.loads(command[-1])['compile']]], **how))
  with contextlib.ExitStack() as opened:
    peers = {mode: against_torch.Peer({}, against_torch.MODES[mode], opened)
             for mode in against_torch.MODES}
    errors = against_torch.wait_for_all(peers, 2)
    assert list(peers) == ['eager'] and errors == {
        'compiled': 'RuntimeError: no kernel',
        'compiled, CUDA graphs': 'torch.compile took longer than --compile_limit'}
    with pytest.raises(UserError, match='PyTorch failed: RuntimeError: no kernel'):
      against_torch.wait_for_all({'eager': against_torch.Peer({}, 'default', opened)}, 1)


def test_the_table_has_a_line_for_each_file(tmp_path):
  row = {'step_seconds': 0.002, 'images_per_second': 64_000.0, 'peak': 5e6}
  whole = {'device': 'H', 'jax': '1', 'network': 'cifar_resnet14', 'batch': 128,
           'compute_dtype': 'float32'}
  (tmp_path / 'a.json').write_text(json.dumps({
      **whole, 'selections': {'batchnorm': row, 'all': {**row, 'step_seconds': 0.004}},
      'ratio': {'step_seconds': 0.5}}))
  (tmp_path / 'b.json').write_text(json.dumps({
      **whole, 'selections': {'batchnorm': row}, 'ratio': {'step_seconds': 2.0}, 'torch': {
          **row, 'step_seconds': 0.001, 'mode': 'compiled', 'version': '2', 'allocators': 'own',
          'precision_of_both': 'tf32', 'errors': {'compiled, CUDA graphs': 'no'}}}))
  (tmp_path / 'other.json').write_text('{}')
  text = table.markdown(str(tmp_path))
  assert ('| a | cifar_resnet14 | 128 | float32 | batchnorm | 2.00 | 64,000 | 5 |  | all | 4.00 | 5'
          ' | 0.50 |') in text
  assert ('| b | cifar_resnet14 | 128 | tf32 | batchnorm | 2.00 | 64,000 | 5 |  | PyTorch, compiled'
          ' | 1.00 | 5 | 2.00 |') in text
  assert '- b: PyTorch, compiled, CUDA graphs: no' in text and 'other' not in text
  with pytest.raises(UserError, match='a folder without figures'):
    table.markdown('')
  (tmp_path / 'half.json').write_text('{')
  with pytest.raises(UserError, match='half.json of --rows cannot be read'):
    table.markdown(str(tmp_path))


def test_estimates_have_tables_of_their_own(tmp_path):
  names = ('images', 'forward', 'backward', 'optimizer')
  stages = {stage: {'milliseconds': 0.1} for stage in names}
  row = {'fits': True, 'temporary': 8e6, 'all_reduced': 17800, 'milliseconds': 0.75,
         'stages': stages}
  whole = {'on': 'v5e:2x2', 'device': 'TPU v5 lite', 'versions': {'jax': '1', 'libtpu': '2'},
           'clock': 1.5e9, 'clock_source': 'said', 'network': 'cifar_resnet14', 'batch': 512,
           'compute_dtype': 'bfloat16', 'train': 'batchnorm', 'ratio': {'milliseconds': 0.5}}
  (tmp_path / 'a.json').write_text(json.dumps({**whole, 'estimates': {
      'batchnorm': row, 'flax': {**row, 'milliseconds': 1.5},
      'evaluation': {**row, 'milliseconds': 0.25}}}))
  refused = {'fits': False, 'told': 'too large'}
  (tmp_path / 'b.json').write_text(json.dumps({
      **whole, 'estimates': {'batchnorm': refused, 'evaluation': refused}, 'ratio': {}}))
  gpu = {'fits': True, 'temporary': 3e7, 'all_reduced': 0.0, 'kernels': 115.0, 'bytes': 3e8}
  (tmp_path / 'c.json').write_text(json.dumps({
      **whole, 'on': 'h100', 'device': 'NVIDIA H', 'clock': None,
      'estimates': {'batchnorm': gpu, 'evaluation': gpu}}))
  text = table.markdown(str(tmp_path))
  assert 'estimate of a compiler, not measured: TPU v5 lite, jax 1, libtpu 2; 1.50 GHz:' in text
  said = '| v5e:2x2 | cifar_resnet14 | 512 | bfloat16 | batchnorm |'
  assert (f'| a {said} yes | 8 | 17.8 | 0.75 | 0.1 | 0.1 | 0.1 | 0.1 | 0.25 | flax | 8 | 1.5 | 0.50'
          ' |') in text
  assert f'| b {said} no |  |  |  |' in text
  assert '| c | h100 | cifar_resnet14 | 512 | bfloat16 | batchnorm | yes | 30 | 0.0 | 115 |' in text
  for table_lines in text.split('\n\n')[1:]:
    assert len({line.count('|') for line in table_lines.splitlines()}) == 1


@pytest.mark.parametrize('fields, message', [
    ({'network': 'vit_tiny'}, 'config.network is .vit_tiny.; allowed is a ResNet with equally'),
    ({'network': 'cifar_resnet_1-2-1'}, 'config.network is .* allowed is a ResNet with equally'),
    ({'optimizer.name': 'adamw'}, 'config.optimizer.name is .adamw.; allowed is sgd with')])
def test_what_pytorchs_side_has_not_is_told(fields, message, monkeypatch):
  monkeypatch.setattr(against_torch.importlib.util, 'find_spec', lambda name: name)
  monkeypatch.setattr(against_torch.jax, 'device_count', lambda: 1)
  config = data_config('none')
  config.update_from_flattened_dict(fields)
  with pytest.raises(UserError, match=message):
    against_torch.specification(config)
