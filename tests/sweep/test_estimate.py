import pytest
from sweeps import tiny
from sweeps import train_at_once

from bnonly_jax.sweep import estimate as estimate_lib
from bnonly_jax.sweep import training


@pytest.fixture
def trained(monkeypatch):
  return train_at_once(monkeypatch)


def test_estimates_follow_measured_steps_and_flops(data_dir, tmp_path, trained):
  config = tiny(data_dir, seeds=2, trains=('batchnorm', 'all'))
  training.run_missing(config, tmp_path, 'batchnorm/seed0')  # 5 steps in 2 seconds
  left = {run.name: seconds for run, _, seconds in estimate_lib.estimate(config, tmp_path)}
  assert left['cifar_resnet8-batchnorm/seed0'] == 0
  assert left['cifar_resnet8-batchnorm/seed1'] == pytest.approx(11 * 2 / 5)
  assert 1.4 < left['cifar_resnet8-all/seed0'] / left['cifar_resnet8-batchnorm/seed1'] < 1.6
