import json

from conftest import data_config
from PIL import Image
import pytest

from bnonly_jax.benchmark import common
from bnonly_jax.benchmark import data as benchmark_data
from bnonly_jax.benchmark import scale
from bnonly_jax.benchmark import step
from bnonly_jax.benchmark.peaks import Peak
from bnonly_jax.config import default_config


def test_the_rates_of_a_data_set(data_dir):
  config = data_config('digits', data_dir, mean=(0.5,), std=(0.25,))
  row = benchmark_data.data_rates(config)
  assert row['images'] == 1437 and row['shape'] == (8, 8, 1) and row['resident']
  assert 0 < row['batch_milliseconds'] < 100 and row['streamed_per_second'] > 100
  json.dumps(row)


def test_the_images_for_the_benchmark_are_of_imagenets_size(tmp_path):
  size = benchmark_data.write_imagenet_like(tmp_path, 4)
  assert 80_000 < size < 150_000
  paths = sorted(tmp_path.glob('*/*/*.jpg'))
  assert len(paths) == 4 and all(Image.open(path).size == (500, 375) for path in paths)


def test_the_first_batch_is_timed_in_a_process_of_its_own(data_dir):
  config = data_config('digits', data_dir)
  seconds, result = common.child(benchmark_data.time_to_first_batch, config, [0])
  assert result is None and 0.3 < seconds < 60


@pytest.mark.parametrize('selection', ['batchnorm', 'all'])
def test_what_is_all_reduced_is_what_trains_and_the_statistics(selection):
  config = default_config()
  config.update(network='cifar_resnet8', train=selection, batch_size=4)
  config.data.update(name='none')
  # 336 features in 9 norms have two statistics each; loss and accuracy are two numbers. Two norms
  # of shortcuts, with 32 and 64 features, have the beta gradients of the norms they are added to,
  # which XLA reduces once.
  parameters = {'batchnorm': 672, 'all': 78_042}[selection]
  assert common.all_reduced_bytes(config) == 4 * (parameters + 672 + 2 - 96)


def test_the_roofline():
  peak = Peak(flops=1e12, memory=1e9, link=1e9)
  found = scale.roofline(1e9, 1e6, 100, 4, peak)
  assert found == {'compute_seconds': 0.1, 'reduce_seconds': pytest.approx(1.5e-3)}


def test_steps_are_timed_on_simulated_devices():
  config = default_config()
  config.update(network='cifar_resnet8', batch_size=4)
  config.data.update(name='none')
  _, seconds = common.child(scale.step_seconds, config, devices=2)
  assert 0 < seconds < 10


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
    assert 0 < row['compile_seconds'] < row['start_seconds'] < 60
    assert row['peak'] > row['temporary'] > 0 and row['arguments'] > 0
  assert result['ratio']['flops'] == part['flops'] / whole['flops']


def test_remat_and_bfloat16_save_memory():
  config = default_config()
  config.update(network='cifar_resnet32', batch_size=32)
  config.data.update(name='none')

  def temporary(**fields):
    config.update(**{'remat': 'none', 'compute_dtype': 'float32', **fields})
    lower, _ = common.training_step(config)
    return step.costs(config, lower())['temporary']

  assert temporary(remat='block') < 0.8 * temporary()
