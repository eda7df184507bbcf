import json

from conftest import data_config
from PIL import Image

from bnonly_jax import benchmark


def test_the_rates_of_a_data_set(data_dir):
  config = data_config('digits', data_dir, mean=(0.5,), std=(0.25,))
  row = benchmark.data_rates(config)
  assert row['images'] == 1437 and row['shape'] == (8, 8, 1) and row['resident']
  assert 0 < row['batch_milliseconds'] < 100 and row['streamed_per_second'] > 100
  json.dumps(row)


def test_the_images_for_the_benchmark_are_of_imagenets_size(tmp_path):
  size = benchmark.write_imagenet_like(tmp_path, 4)
  assert 80_000 < size < 150_000
  paths = sorted(tmp_path.glob('*/*/*.jpg'))
  assert len(paths) == 4 and all(Image.open(path).size == (500, 375) for path in paths)


def test_the_first_batch_is_timed_in_a_process_of_its_own(data_dir):
  config = data_config('digits', data_dir)
  seconds, result = benchmark._child('time_to_first_batch', config, [0])
  assert result is None and 0.3 < seconds < 60
