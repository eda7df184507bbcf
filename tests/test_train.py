import functools
import json

from conftest import train_and_die
import jax
import numpy as np
from orbax.checkpoint import v1 as ocp
import pytest
from tiny import last_state
from tiny import tiny_config
from tiny import without_times

from bnonly_jax import experiment
from bnonly_jax import masks
from bnonly_jax import train
from bnonly_jax.config import UserError
from bnonly_jax.run import checkpoint
from bnonly_jax.run import metrics
from bnonly_jax.run import processes
from bnonly_jax.run import reading


def test_the_workdir_holds_all_of_the_run(tiny_run):
  workdir, result = tiny_run
  assert sorted(p.name for p in workdir.iterdir()) == [
      '.lock', 'accuracy.png', 'checkpoints', 'config.json', 'frozen', 'gamma.png', 'metrics.jsonl',
      'parameters.json', 'result.json', 'tensorboard']
  assert json.loads((workdir / 'config.json').read_text())['data.name'] == 'digits'
  rows = {row['group']: row for row in json.loads((workdir / 'parameters.json').read_text())}
  assert rows['gamma']['trained'] == rows['gamma']['parameters'] == 336
  assert rows['conv']['trained'] == 0 < rows['conv']['parameters']
  assert (rows['gamma']['trains'], rows['conv']['trains']) == ('trains', 'frozen')
  assert sum(row['share'] for row in rows.values()) == pytest.approx(1)
  for plot in ('accuracy.png', 'gamma.png'):
    assert (workdir / plot).read_bytes().startswith(b'\x89PNG')


def test_the_result_says_what_was_run_and_what_came_out(tiny_run):
  workdir, result = tiny_run
  assert json.loads((workdir / 'result.json').read_text()) == result
  assert 0 <= result['test_accuracy'] <= 1 and result['test_loss'] > 0
  assert result['test_accuracy'] * 360 == pytest.approx(round(result['test_accuracy'] * 360))
  assert (result['epochs'], result['steps'], result['seed']) == (2, 10, 0)
  assert (result['parameters'], result['trained_parameters']) == (77754, 672)
  assert (result['data'], result['train_images'], result['test_images']) == ('digits', 1437, 360)
  assert result['versions']['jax'] == jax.__version__ and result['device_kind'] == 'cpu'
  lines = reading.lines(workdir)
  assert result['seconds'] == sum(line.get('time_seconds', 0) for line in lines) > 0
  names = ('seed', 'test_loss', 'test_accuracy', 'test_top5_accuracy', 'untrained_test_accuracy')
  assert result['replicates'] == [{name: result[name] for name in names}]


def test_the_metrics_are_all_there(tiny_run):
  workdir, result = tiny_run
  lines = reading.lines(workdir)
  assert [(line['step'], 'test_loss' in line) for line in lines] == [
      (0, True), (2, False), (4, False), (5, False), (5, True), (7, False), (9, False), (10, False),
      (10, True)]
  for name in ('loss', 'accuracy', 'learning_rate', 'gradient_norm'):
    assert all(np.isfinite(line[f'train_{name}']) for line in lines if 'test_loss' not in line)
  # All but the first step count for the speed, and evaluations do not.
  assert sum(line.get('time_images_per_second', 0) > 0 for line in lines) == 6
  rates = [line['train_learning_rate'] for line in lines if 'test_loss' not in line]
  np.testing.assert_allclose(rates, [0.1, 0.1, 0.1, 0.01, 0.0055, 0.001], rtol=1e-6)
  assert lines[-1]['test_accuracy'] == result['test_accuracy']
  assert lines[0]['test_accuracy'] == result['untrained_test_accuracy']


def test_the_frozen_half_on_disk_is_the_start(tiny_run, data_dir):
  workdir, _ = tiny_run
  _, frozen = experiment.start(experiment.build(tiny_config(data_dir)))
  start = masks.flatten(frozen)
  kept = masks.flatten(ocp.load(workdir / 'frozen'))
  assert sum(value is not None for value in start.values()) == 11
  for name, value in start.items():
    if value is not None:
      np.testing.assert_array_equal(kept[name], value, err_msg=name)


def test_a_share_of_the_images_trains_on_labels_drawn_at_random(data_dir, tmp_path):
  fields = {'data.random_labels': 1.0, 'data.subsample': 0.5, 'batch_size': 64}
  config = tiny_config(data_dir, **fields)
  result = train.train_and_evaluate(config, tmp_path)
  assert result['train_images'] == 718 and result['steps'] == 2 * 11
  assert result['test_accuracy'] < 0.25


@pytest.mark.slow
def test_it_learns(data_dir, tmp_path):
  # Ten classes: an untrained network guesses.
  config = tiny_config(data_dir, epochs=8, batch_size=64, network='cifar_resnet8x2')
  result = train.train_and_evaluate(config, tmp_path)
  assert result['test_accuracy'] > 0.4 > 0.2 > result['untrained_test_accuracy']


@pytest.mark.parametrize('fields, message', [
    ({'network': 'resnet8'}, "config.network is 'resnet8'"),
    ({'train': 'batchnorm+bias'}, "'bias' is no group"),
    ({'train': 'gamma-gamma'}, 'matches no parameter'),
    ({'data.name': 'cifar10'}, "config.data.name is 'cifar10', which is not prepared"),
    ({'data.mean': (0.1, 0.2, 0.3)}, 'config.data.mean .* one for each of the 1 channel'),
    ({'batch_size': 1440}, 'config.batch_size is 1440; .* 1437 training images in use'),
    ({'batch_size': 30}, 'a multiple of the 4 devices'),
    ({'epochs': 0}, 'config.epochs is 0'),
    ({'steps_per_call': 0}, 'config.steps_per_call is 0; allowed is a number above 0'),
    ({'replicates': 0}, 'config.replicates is 0; allowed is a number above 0'),
    ({'replicates': 2, 'data.resident_limit': 0.0}, 'replicates is 2; .* 1 where the data are str'),
    ({'replicates': 2, 'data.random_labels': 0.5}, 'allowed is 1 with config.data.random_labels'),
    ({'replicates': 2, 'seed': 2**31 - 1}, 'up to 2147483648 less the 2 replicates'),
    ({'steps_per_call': 2, 'data.resident_limit': 0.0}, 'allowed is 1 where the data are streamed'),
    ({'data.subsample': 0.1}, 'config.batch_size is 256; .* 144 training images in use'),
    ({'data.random_labels': 1.5}, 'config.data.random_labels is 1.5; allowed is 0 to 1'),
    ({'norm': 'weight'}, "config.norm is 'weight'; allowed is batch, group, layer, "),
    ({'weight_start': 'zero'}, "config.weight_start is 'zero'; allowed is he_normal, he_uniform"),
    ({'norm_start': '1,1'}, "config.norm_start is '1,1'; allowed is uniform, one_zero, one_one"),
    ({'init_from': 'no.npz'}, "config.init_from is 'no.npz', and there is no such file"),
])
def test_a_mistake_is_told_before_anything_is_written(data_dir, tmp_path, fields, message):
  with pytest.raises(UserError, match=message):
    train.train_and_evaluate(tiny_config(data_dir, **fields), tmp_path / 'new')
  assert not (tmp_path / 'new').exists()


def test_the_loop_moves_nothing_between_host_and_device_unasked(data_dir, tmp_path):
  config = tiny_config(data_dir, checkpoint_every_steps=3)
  with jax.transfer_guard('disallow'):
    with pytest.raises(Exception, match='Disallowed host-to-device transfer'):
      jax.jit(lambda x: x + 1)(np.ones(3))
    guarded = train._loop

  def loop(*arguments):
    with jax.transfer_guard('disallow'):
      return guarded(*arguments)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(train, '_loop', loop)
    train.train_and_evaluate(config, tmp_path)


def test_a_diverged_run_stops_and_says_so(data_dir, tmp_path, capsys):
  config = tiny_config(data_dir, epochs=3, log_every=1, checkpoint_every_steps=1)
  config.optimizer.drops = ()
  config.optimizer.learning_rate = 1e12
  result = train.train_and_evaluate(config, tmp_path)
  assert result == json.loads((tmp_path / 'result.json').read_text())
  step = result['diverged_step']
  assert result['diverged'] and result['test_loss'] is None and 1 <= step < 12
  lines = reading.lines(tmp_path)
  assert lines[-1]['step'] <= step  # a step of finite loss can leave a state that is not
  assert all(line.get('train_loss', 0.0) is not None for line in lines)
  kept = sorted(int(p.name) for p in (tmp_path / 'checkpoints').iterdir())
  assert kept and kept[-1] < step
  state, _, _ = checkpoint.restore(tmp_path, experiment.build(config).state)
  assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(state))
  printed = capsys.readouterr().out
  assert f'diverged: step {step} of 15 has a loss, or left a state, that is not finite' in printed
  # The same command again shows it, and leaves all as it is.
  assert train.train_and_evaluate(config, tmp_path) == result


@pytest.mark.slow
def test_checkpoints_come_by_steps_and_minutes(data_dir, tmp_path, monkeypatch):
  steps_saved = []
  real = checkpoint.save
  monkeypatch.setattr(checkpoint, 'save', lambda checkpointer, step, *rest: (
      steps_saved.append(step), real(checkpointer, step, *rest))[1])
  fields = {'log_every': 2, 'checkpoint_every': 2, 'checkpoint_keep': 9}
  train.train_and_evaluate(tiny_config(data_dir, **fields), tmp_path / 'epochs')
  train.train_and_evaluate(tiny_config(data_dir, checkpoint_every_steps=4, **fields),
                           tmp_path / 'steps')
  train.train_and_evaluate(tiny_config(data_dir, checkpoint_every_minutes=1e-9, **fields),
                           tmp_path / 'minutes')
  # Five steps an epoch; the lines of metrics end with steps 2, 4, 5, 7, 9, 10.
  assert steps_saved == [10] + [4, 8, 10] + [2, 4, 5, 7, 9, 10]


@pytest.mark.slow
def test_steps_per_call_changes_when_the_host_works_and_nothing_else(data_dir, tmp_path,
                                                                      monkeypatch):
  # Twenty-two steps an epoch; a small rate, since the loop of an accelerator rounds otherwise.
  fields = {'epochs': 1, 'batch_size': 64, 'log_every': 5, 'checkpoint_every_steps': 7,
            'checkpoint_keep': 9, 'optimizer.learning_rate': 1e-4}
  train.train_and_evaluate(tiny_config(data_dir, **fields), tmp_path / '1')
  expected, state = without_times(reading.lines(tmp_path / '1')), last_state(tmp_path / '1')
  config = tiny_config(data_dir, steps_per_call=3, **fields)
  assert train.train_and_evaluate(config, tmp_path / '1')['steps'] == 22  # the same experiment
  train.train_and_evaluate(config, tmp_path / 'cpu')  # where each step stays a call
  assert without_times(reading.lines(tmp_path / 'cpu')) == expected
  for a, b in zip(last_state(tmp_path / 'cpu'), state, strict=True):
    np.testing.assert_array_equal(a, b)

  calls, real = [], metrics.TrainLog.add
  build = functools.partial(experiment.build, backend='gpu')
  monkeypatch.setattr(train.experiment, 'build', build)
  train.train_and_evaluate(tiny_config(data_dir, **fields), tmp_path / 'single')
  expected = without_times(reading.lines(tmp_path / 'single'))
  state = last_state(tmp_path / 'single')
  with monkeypatch.context() as patch:
    patch.setattr(metrics.TrainLog, 'add', lambda log, step, values: (
        calls.append((step, np.size(values['loss']))), real(log, step, values)))
    train.train_and_evaluate(config, tmp_path / '3')
  # Lines after 5, 10, 15, 20 and 22 steps of an epoch, checkpoints after 7, 14 and 21.
  assert [number for _, number in calls] == [3, 1, 1, 1, 1, 3, 3, 1, 1, 3, 1, 1, 1, 1]
  lines = without_times(reading.lines(tmp_path / '3'))
  assert [(line['step'], *line) for line in lines] == [(line['step'], *line) for line in expected]
  for line, other in zip(lines, expected, strict=True):
    assert line == pytest.approx(other, rel=1e-4)
  for a, b in zip(last_state(tmp_path / '3'), state, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
  assert (sorted(p.name for p in (tmp_path / '3/checkpoints').iterdir())
          == sorted(p.name for p in (tmp_path / '1/checkpoints').iterdir()))

  # Killed in one call and told to stop after another: what follows falls into the same calls.
  train_and_die(config, tmp_path / 'killed', 13)
  with monkeypatch.context() as patch, pytest.raises(SystemExit):
    patch.setattr(processes, 'preempted', iter((False, True)).__next__)
    train.train_and_evaluate(config, tmp_path / 'killed')
  saved = sorted(int(p.name) for p in (tmp_path / 'killed/checkpoints').iterdir())
  assert saved == [7, 13]
  train.train_and_evaluate(config, tmp_path / 'killed')
  assert without_times(reading.lines(tmp_path / 'killed')) == lines
  for a, b in zip(last_state(tmp_path / 'killed'), last_state(tmp_path / '3'), strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_bfloat16_learns_as_float32_does(data_dir, tmp_path):
  config = tiny_config(data_dir, epochs=8, batch_size=64, compute_dtype='bfloat16',
                       network='cifar_resnet8x2')
  result = train.train_and_evaluate(config, tmp_path)
  assert result['test_accuracy'] > 0.4 > 0.2 > result['untrained_test_accuracy']
  run = experiment.build(config)
  _, frozen, _ = experiment.place(run, *experiment.start(run))
  stored = masks.flatten(frozen)
  assert stored['stem_conv/kernel'].dtype == 'bfloat16'
  assert stored['output/kernel'].dtype == np.float32
  for leaf in last_state(tmp_path):
    assert leaf.dtype in (np.float32, np.int32)
