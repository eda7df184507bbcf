"""The largest eigenvalue of a Hessian: of functions whose Hessian is known, and of a run's loss."""

import json

from conftest import write_run
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_config

from bnonly_jax import analysis
from bnonly_jax import experiment
from bnonly_jax import masks
from bnonly_jax import models
from bnonly_jax.analysis import hessian
from bnonly_jax.config import UserError


@pytest.mark.parametrize('eigenvalues, largest', [
    ((7.0, 2.0, 1.0, -3.0), 7.0), ((-9.0, 4.0, 1.0, 0.5), 4.0), ((-9.0, -4.0, -1.0, -0.5), -0.5),
    ((0.0, 0.0, 0.0, 0.0), 0.0)])
def test_of_a_quadratic_it_is_exact(eigenvalues, largest):
  generator = np.random.default_rng(0)
  rotation, _ = np.linalg.qr(generator.standard_normal((4, 4)))
  matrix = rotation @ np.diag(eigenvalues) @ rotation.T
  parameters = {'a': jnp.zeros((3,)), 'b': {'c': jnp.ones((1, 1)), 'd': None}}

  def loss(tree):
    x = jnp.concatenate([tree['a'], tree['b']['c'].reshape(-1)])
    return x @ matrix @ x / 2 + jnp.sum(x) + 3

  with jax.enable_x64(True):
    wide = jax.tree.map(np.float64, parameters)
    found = analysis.largest_eigenvalue(loss, wide, tolerance=1e-9, iterations=2000)
  assert found.value == pytest.approx(largest, abs=1e-9)
  assert found.converged and found.iterations < 3000


@pytest.mark.slow
def test_of_a_run_it_is_that_of_the_whole_hessian(data_dir, tmp_path, capsys):
  write_run(tiny_config(data_dir, train='beta@last:1+gamma@stem_norm'), tmp_path / 'run', 0.5)
  found = analysis.write_sharpness(tmp_path / 'run', images=32)
  assert found['converged'] and (found['parameters'], found['train_images']) == (64 + 16, 32)
  written = json.loads((tmp_path / 'run/sharpness.json').read_text())
  assert written == found and written['workdir'] == str(tmp_path / 'run')
  run = analysis.load(tmp_path / 'run')
  images, labels = (parts[:32] for parts in next(analysis.image_batches(run, train=True)))
  pixels = (np.float32(images) / 255 - np.float32(0.305)) / np.float32(0.376)
  params = run.variables['params']
  network = experiment.create_network(run.config, 10, models.Statistics(), 'cpu')

  def loss(gamma, beta):
    own = {**params, 'stem_norm': {**params['stem_norm'], 'scale': gamma}}
    first = params['stage3_first']
    own['stage3_first'] = {**first, 'norm2': {**first['norm2'], 'bias': beta}}
    logits, _ = network.apply(
        {'batch_stats': stats, 'params': own}, pixels, train=True, mutable=['batch_stats'])
    return -jnp.mean(jax.nn.log_softmax(logits)[np.arange(32), labels])

  at = params['stem_norm']['scale'], params['stage3_first']['norm2']['bias']
  # By differences of gradients, none of it forward over reverse; in float64 and so close together
  # that hardly a ReLU changes sides between them.
  with jax.enable_x64(True):
    params, pixels, stats = jax.tree.map(np.float64, (params, pixels, run.variables['batch_stats']))
    assert float(loss(*at)) == pytest.approx(found['train_loss'], rel=1e-5)
    slope, step = jax.jit(jax.grad(lambda x: loss(x[:16], x[16:]))), 1e-7
    at = np.float64(np.concatenate(at))
    columns = [(slope(at + step * one) - slope(at - step * one)) / (2 * step) for one in np.eye(80)]
  hessian = np.float64(columns)
  expected = np.linalg.eigvalsh((hessian + hessian.T) / 2)[-1]
  assert found['largest_eigenvalue'] == pytest.approx(expected, rel=0.02)
  assert f'largest eigenvalue {found["largest_eigenvalue"]:.6g} of' in capsys.readouterr().out


def test_where_nothing_trains_there_is_none(data_dir, tmp_path):
  write_run(tiny_config(data_dir, train='nothing'), tmp_path / 'run', 0.5)
  with pytest.raises(UserError, match="--sharpness: config.train is 'nothing' in .*run, where"):
    analysis.write_sharpness(tmp_path / 'run')
  with pytest.raises(UserError, match='--sharpness_images=0; allowed is 1 or more'):
    analysis.write_sharpness(tmp_path / 'run', images=0)


def test_weights_that_are_zero_for_good_are_not_among_what_trains(data_dir, tmp_path, monkeypatch):
  config = tiny_config(data_dir, train='all', weight_sparsity=0.5)
  write_run(config, tmp_path / 'run', 0.5)
  monkeypatch.setattr(hessian, 'largest_eigenvalue',
                      lambda *_: hessian.Eigenvalue(0.0, 0.0, 1, True))
  run = experiment.build(config)
  trained = sum(row.trained for row in masks.table(run.parameters, run.mask))
  found = analysis.sharpness(analysis.load(tmp_path / 'run'), images=8)
  assert found['parameters'] == trained < sum(row.parameters for row in masks.table(run.parameters))
