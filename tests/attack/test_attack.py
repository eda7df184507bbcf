"""Attacks, against what is known of linear networks, and the program."""

import json

from conftest import write_run
import flax.linen as nn
import numpy as np
import pytest
from tiny import tiny_config

from bnonly_jax import analysis
from bnonly_jax import attack
from bnonly_jax.attack import gradient
from bnonly_jax.config import UserError


def two_classes(low, high):
  """A linear network of two classes: pixels, labels, the weights' difference, and its bias."""
  generator = np.random.default_rng(0)
  pixels = generator.uniform(low, high, (400, 5, 4, 1)).astype(np.float32)
  weights = generator.standard_normal((20, 2)).astype(np.float32)
  bias = np.float32(-pixels.reshape(400, 20).mean(0) @ weights)
  labels = generator.integers(0, 2, 400).astype(np.int32)
  return pixels, labels, weights, bias


@pytest.mark.parametrize('steps', [0, 10])
@pytest.mark.parametrize('low, high, eps', [(0.3, 0.7, 0.03), (0.3, 0.7, 0.2), (0.0, 1.0, 0.1)])
def test_of_a_linear_network_the_accuracy_is_the_closed_form(steps, low, high, eps):
  pixels, labels, weights, bias = two_classes(low, high)
  logits = lambda x: x.reshape(-1, 20) @ weights + bias[None]
  start = np.random.default_rng(1).uniform(-1, 1, pixels.shape).astype(np.float32)
  changed = attack.perturb(logits, pixels, labels, eps, steps, start if steps else None)
  found = np.mean(np.argmax(logits(np.asarray(changed)), -1) == labels)
  # The worst within the bound moves each pixel by eps against the weights' difference.
  towards = np.float64(weights[:, 1] - weights[:, 0]) * (2 * labels[:, None] - 1)
  x = np.float64(pixels.reshape(400, 20))
  margin = np.sum(x * towards, 1) + (bias[1] - bias[0]) * (2.0 * labels - 1)
  moves = np.where(towards > 0, np.minimum(x, eps), np.minimum(1 - x, eps))
  expected = np.mean(margin - np.sum(np.abs(towards) * moves, 1) > 0)
  assert found == expected and (0 < expected < 0.5 or eps > 0.1)
  if low - eps > 0:  # no pixel meets the end of its range
    assert expected == np.mean(margin > eps * np.sum(np.abs(towards), 1))
  assert np.max(np.abs(np.asarray(changed) - pixels)) <= eps + 1e-7
  assert changed.min() >= 0 and changed.max() <= 1


class Linear(nn.Module):
  """The logits are a matrix times the pixels."""

  @nn.compact
  def __call__(self, images, train=False):
    kernel = self.param('kernel', nn.initializers.normal(0.3), (64, 10))
    return images.reshape(-1, 64) @ kernel


@pytest.fixture(scope='module')
def folder(data_dir, tmp_path_factory):
  root = tmp_path_factory.mktemp('attack') / 'run'
  write_run(tiny_config(data_dir), root, 0.5)
  return root


@pytest.fixture(scope='module')
def linear(folder):
  """The run with a linear network of ten classes in its place, fitted to some test images."""
  run = analysis.load(folder)
  images, labels = next(analysis.image_batches(run))
  x = (images.reshape(-1, 64) / 255 - 0.305) / 0.376
  kernel = np.linalg.lstsq(x.T @ x + np.eye(64), x.T @ np.eye(10)[labels], None)[0]
  return run._replace(experiment=run.experiment._replace(network=Linear()),
                      variables={'params': {'kernel': np.float32(10 * kernel)}})


def test_the_whole_test_set_is_attacked_as_by_hand(linear):
  images, labels = (np.concatenate(parts) for parts in zip(*analysis.image_batches(linear),
                                                           strict=True))
  kernel = np.float64(linear.variables['params']['kernel'])
  logits = lambda x: (x.reshape(-1, 64) - 0.305) / 0.376 @ kernel
  pixels = images / 255
  exponents = np.exp(logits(pixels))
  slope = (exponents / exponents.sum(1, keepdims=True) - np.eye(10)[labels]) @ kernel.T
  bounds = (0.0, 2 / 255, 0.1)
  found = attack.accuracies(linear, bounds, 0)
  for eps, accuracy in zip(bounds, found, strict=True):
    worse = np.clip(pixels + eps * np.sign(slope).reshape(pixels.shape), 0, 1)
    assert accuracy == np.mean(np.argmax(logits(worse), 1) == labels)
  assert len(labels) == 360 and found[0] > found[1] > found[2]
  stronger = attack.accuracies(linear, bounds, 10)
  assert stronger[0] == found[0] and stronger[2] <= found[2]
  assert stronger == attack.accuracies(linear, bounds, 10)


def test_without_a_bound_the_accuracy_is_the_runs_own(folder):
  run = analysis.load(folder)
  (own,) = analysis.evaluate(run, run.variables['params'])
  assert attack.accuracies(run, (0.0,), 0) == [own['test_accuracy']]


def test_a_pixel_that_leaves_its_bound_or_range_is_caught(linear, monkeypatch):
  for by, message in ((0.2, 'a pixel has moved by 0.2'), (-2.0, 'a pixel has moved')):
    monkeypatch.setattr(gradient, 'perturb', lambda *rest, by=by: rest[1] + by)
    gradient._program.cache_clear()
    with pytest.raises(AssertionError, match=message):
      attack.accuracies(linear, (0.1,), 0)
  monkeypatch.setattr(gradient, 'perturb', lambda *rest: rest[1] - 0.1)
  gradient._program.cache_clear()
  with pytest.raises(AssertionError, match=r'and not in \[0, 1\]'):
    attack.accuracies(linear, (0.1,), 0)
  gradient._program.cache_clear()


def test_bounds_are_read_as_written():
  assert attack.parse_eps('8/255, 0,0.01') == {'0': 0.0, '0.01': 0.01, '8/255': 8 / 255}
  for text, part in (('2,0', '2'), ('0,x', 'x'), ('1/0', '1/0'), ('-0.1', '-0.1'), ('nan', 'nan')):
    with pytest.raises(UserError, match=f"has '{part}'; allowed are numbers from 0 to 1"):
      attack.parse_eps(text)
  with pytest.raises(UserError, match='names no number'):
    attack.parse_eps(' ,')


def test_several_runs_share_a_table_and_a_plot(folder, data_dir, tmp_path, capsys):
  write_run(tiny_config(data_dir, replicates=2, seed=5), tmp_path / 'two', 0.5)
  with pytest.raises(UserError, match='--replicate=1: .* holds 1; allowed are 0 to 0'):
    attack.attack(f'{folder}@0', against=[str(tmp_path / 'two')], replicate=1)
  assert not (folder / 'attack.json').exists()
  capsys.readouterr()
  found = attack.attack(f'{tmp_path}/two@0', '0,8/255', 2, [str(folder)], replicate=1)
  assert found == json.loads((tmp_path / 'two/attack_seed6.json').read_text())
  assert (tmp_path / 'two/attack_seed6.png').read_bytes().startswith(b'\x89PNG')
  assert (found['steps'], found['step_size'], found['random_start']) == (2, 1.25, True)
  assert [(one['seed'], one['test_images']) for one in found['runs']] == [(6, 360), (0, 360)]
  table = [line.split() for line in capsys.readouterr().out.splitlines()[1:4]]
  assert table[0] == ['eps', *(one['name'] for one in found['runs'])]
  for i, row in enumerate(table[1:]):
    assert row == [['0', '8/255'][i], *(f'{one["accuracies"][i]["test_accuracy"]:.4f}'
                                        for one in found['runs'])]
