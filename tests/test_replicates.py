"""Several seeds in one program, against each of them in a run alone."""

import functools
import json

from conftest import train_and_die
import jax
import numpy as np
from orbax.checkpoint import v1 as ocp
import pytest
from tiny import last_state
from tiny import tiny_config

from bnonly_jax import analysis
from bnonly_jax import experiment
from bnonly_jax import masks
from bnonly_jax import train
from bnonly_jax.config import UserError
from bnonly_jax.run import reading

pytestmark = pytest.mark.slow

# Everything that follows from a seed: start, choice of weights and of images, order, augmentation.
# A small rate, since rounding differs and training amplifies it.
FIELDS = {'train': 'batchnorm+random:1', 'data.subsample': 0.5, 'data.flip': True, 'epochs': 1,
          'data.augment': 'pad_crop,flip,randaugment,cutout,mixup',
          'batch_size': 128, 'optimizer.learning_rate': 1e-3, 'optimizer.drops': (),
          'optimizer.gradient_noise': 1e-3, 'log_dead': True}
SEEDS = (3, 4)


@pytest.fixture(scope='module')
def runs(data_dir, tmp_path_factory):
  root = tmp_path_factory.mktemp('replicates')
  for seed in SEEDS:
    train.train_and_evaluate(tiny_config(data_dir, seed=seed, **FIELDS), root / str(seed))
  train.train_and_evaluate(tiny_config(data_dir, seed=3, replicates=2, **FIELDS), root / 'both')
  return root


def require_close(workdir, runs):
  """Checks the final state of a run of both seeds against those of the runs alone."""
  alone = [last_state(runs / str(seed)) for seed in SEEDS]
  for leaf, *expected in zip(last_state(workdir), *alone, strict=True):
    if leaf.shape:  # all but the number of the step
      np.testing.assert_allclose(leaf, np.stack(expected), rtol=1e-5, atol=1e-6)
    else:
      assert leaf == expected[0]


def test_each_replicate_is_the_run_alone(runs):
  require_close(runs / 'both', runs)
  result, *alone = (json.loads((runs / name / 'result.json').read_text())
                    for name in ('both', '3', '4'))
  for one, expected in zip(result['replicates'], [r['replicates'][0] for r in alone], strict=True):
    assert one == pytest.approx(expected, rel=1e-5)
  for name in ('test_accuracy', 'test_loss', 'untrained_test_accuracy'):
    assert result[name] == pytest.approx(np.mean([r[name] for r in alone]), rel=1e-5)
  for name in ('parameters', 'trained_parameters', 'train_images', 'steps'):
    assert result[name] == alone[0][name]
  frozen, *expected = (masks.flatten(ocp.load(runs / name / 'frozen'))
                       for name in ('both', '3', '4'))
  for name, leaves in frozen.items():
    for leaf, *rest in zip(*map(jax.tree.leaves, (leaves, *(e[name] for e in expected))),
                           strict=True):
      np.testing.assert_array_equal(leaf, np.stack(rest), err_msg=name)


def test_lines_hold_the_means_and_evaluations_what_they_are_of(runs):
  both, *alone = (reading.lines(runs / name) for name in ('both', '3', '4'))
  for line, *lines in zip(both, *alone, strict=True):
    lists = {name: line.pop(name) for name in list(line) if isinstance(line[name], list)}
    assert list(line) == list(lines[0]) and len(lists) == (3 if 'test_loss' in line else 0)
    for name, value in line.items():
      if not name.startswith('time'):
        assert value == pytest.approx(np.mean([one[name] for one in lines]), rel=1e-4)
    if lists:
      assert lists['test_accuracies'] == pytest.approx([one['test_accuracy'] for one in lines])
      assert lists['test_losses'] == pytest.approx([one['test_loss'] for one in lines], rel=1e-5)


def test_as_on_an_accelerator_and_killed(data_dir, tmp_path, monkeypatch, capsys):
  build = functools.partial(experiment.build, backend='gpu')
  monkeypatch.setattr(train.experiment, 'build', build)
  for seed in SEEDS:
    train.train_and_evaluate(tiny_config(data_dir, seed=seed, **FIELDS), tmp_path / str(seed))
  config = tiny_config(data_dir, seed=3, replicates=2, steps_per_call=3, log_every=5,
                       checkpoint_every_steps=4, **FIELDS)
  train_and_die(config, tmp_path / 'both', 5)  # after calls of three steps and of one
  capsys.readouterr()
  result = train.train_and_evaluate(config, tmp_path / 'both')
  require_close(tmp_path / 'both', tmp_path)
  low, high = sorted(one['test_accuracy'] for one in result['replicates'])
  printed = capsys.readouterr().out
  assert 'seeds 3 to 4' in printed and 'going on after step 4 of 5' in printed
  assert printed.count(f'{result["test_accuracy"]:.4f} ({low:.4f} to {high:.4f})') == 2


def test_one_that_diverges_stops_all_and_is_seen(data_dir, tmp_path, monkeypatch):
  real = experiment.start

  def start(run, variables=None):
    state, frozen = real(run, variables)
    frozen['output']['bias'][1] = np.nan
    return state, frozen

  monkeypatch.setattr(experiment, 'start', start)
  result = train.train_and_evaluate(tiny_config(data_dir, replicates=2, epochs=1), tmp_path)
  assert result['diverged_step'] == 1
  (line,) = reading.lines(tmp_path)
  assert line['test_loss'] is None and line['test_losses'][0] > 0 and line['test_losses'][1] is None
  assert [one['test_accuracy'] for one in result['replicates']] == [None, None]


def test_each_replicate_is_analysed_as_the_run_alone(runs):
  for replicate, alone in enumerate(('3', '4')):
    found = analysis.load(runs / 'both', replicate=replicate)
    expected = analysis.load(runs / alone)
    assert found.step == expected.step
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7),
                 found.variables, expected.variables)
  for none in (2, -1):
    with pytest.raises(UserError, match=f'--replicate={none}: .* holds 2; allowed are 0 to 1'):
      analysis.load(runs / 'both', replicate=none)
  assert analysis.file_name(found.config, 1) == 'analysis_seed4.json'
