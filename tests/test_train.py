import contextlib
import functools
import json
import os
import shutil

from conftest import Killed
from conftest import train_and_die
import jax
import numpy as np
from orbax.checkpoint import v1 as ocp
import pytest

from bnonly_jax import experiment
from bnonly_jax import masks
from bnonly_jax import train
from bnonly_jax.config import default_config
from bnonly_jax.config import UserError
from bnonly_jax.data import batches
from bnonly_jax.run import checkpoint
from bnonly_jax.run import metrics
from bnonly_jax.run import processes
from bnonly_jax.run import workdir as workdir_lib

TIMES = ('time_seconds', 'time_images_per_second', 'seconds', 'finished')


def tiny_config(data_dir, **fields):
  config = default_config()
  config.update(network='cifar_resnet8', epochs=2, batch_size=256, eval_batch_size=100, log_every=2)
  config.data.update(name='digits', dir=str(data_dir), pad=1, flip=False, mean=(0.305,),
                     std=(0.376,))
  config.update_from_flattened_dict(fields)
  return config


@pytest.fixture(scope='module')
def run(data_dir, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('run')
  result = train.train_and_evaluate(tiny_config(data_dir), workdir)
  return workdir, result


def without_times(lines):
  return [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


def last_state(workdir):
  newest = max((workdir / 'checkpoints').iterdir(), key=lambda path: int(path.name))
  return jax.tree.leaves(ocp.load(newest))


def test_the_workdir_holds_all_of_the_run(run):
  workdir, result = run
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


def test_the_result_says_what_was_run_and_what_came_out(run):
  workdir, result = run
  assert json.loads((workdir / 'result.json').read_text()) == result
  assert 0 <= result['test_accuracy'] <= 1 and result['test_loss'] > 0
  assert result['test_accuracy'] * 360 == pytest.approx(round(result['test_accuracy'] * 360))
  assert (result['epochs'], result['steps'], result['seed']) == (2, 10, 0)
  assert (result['parameters'], result['trained_parameters']) == (77754, 672)
  assert (result['data'], result['train_images'], result['test_images']) == ('digits', 1437, 360)
  assert result['versions']['jax'] == jax.__version__ and result['device_kind'] == 'cpu'
  assert result['seconds'] == sum(line.get('time_seconds', 0) for line in metrics.read(workdir)) > 0
  names = ('seed', 'test_loss', 'test_accuracy', 'test_top5_accuracy', 'untrained_test_accuracy')
  assert result['replicates'] == [{name: result[name] for name in names}]


def test_the_metrics_are_all_there(run):
  workdir, result = run
  lines = metrics.read(workdir)
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


def test_a_tracker_is_told_every_line_and_after_a_kill_those_that_are_written_again(
    data_dir, tmp_path):
  config, told = tiny_config(data_dir, epochs=1, log_every=1), []
  train_and_die(config, tmp_path, at_step=4)
  before = metrics.read(tmp_path)
  train.train_and_evaluate(config, tmp_path,
                           on_metrics=lambda step, values: told.append({'step': step, **values}))
  assert before and without_times(told)[:len(before)] == without_times(before)  # no checkpoint
  assert told == metrics.read(tmp_path)


def test_a_finished_run_says_so_and_keeps_its_files(run, data_dir, capsys):
  workdir, result = run
  before = {p: p.stat().st_mtime_ns for p in workdir.rglob('*')}
  assert train.train_and_evaluate(tiny_config(data_dir), workdir) == result
  assert 'finished' in capsys.readouterr().out
  assert before == {p: p.stat().st_mtime_ns for p in workdir.rglob('*')}


def test_a_kill_between_a_line_and_the_next_checkpoint_writes_no_line_twice(data_dir, tmp_path):
  # Checkpoints after steps 2 and 4, where lines end too; the kill comes after step 3.
  config = tiny_config(data_dir, log_every=2, checkpoint_every_steps=2, epochs=1)
  expected = train.train_and_evaluate(config, tmp_path / 'whole')
  train_and_die(config, tmp_path / 'killed', 4)
  result = train.train_and_evaluate(config, tmp_path / 'killed')
  assert without_times([result]) == without_times([expected])
  lines = [without_times(metrics.read(tmp_path / name)) for name in ('whole', 'killed')]
  assert lines[0] == lines[1]


def test_a_workdir_from_before_there_was_a_choice_of_optimizer_goes_on(run, data_dir, tmp_path):
  workdir, expected = run
  train_and_die(tiny_config(data_dir), tmp_path, at_step=7)
  facts = json.loads((tmp_path / 'config.json').read_text())
  new = ('label_smoothing', 'data.augment', *(f'optimizer.{name}' for name in (
      'name', 'schedule', 'decay_norms', 'rates')))
  (tmp_path / 'config.json').write_text(json.dumps(
      {name: value for name, value in facts.items() if name not in new}))
  with pytest.raises(UserError, match=r"data.augment = 'pad_crop,flip' there and 'cutout' here"):
    train.train_and_evaluate(tiny_config(data_dir, **{'data.augment': 'cutout'}), tmp_path)
  result = train.train_and_evaluate(tiny_config(data_dir), tmp_path)
  assert result['test_loss'] == expected['test_loss']
  for a, b in zip(last_state(tmp_path), last_state(workdir), strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize('at_step', [3, 7])
def test_a_run_stopped_anywhere_ends_with_the_same_bits(run, data_dir, tmp_path, monkeypatch,
                                                        at_step):
  real = batches.train_indices

  def killing(seed, step, *args):
    if step == at_step:
      raise Killed
    return real(seed, step, *args)

  with monkeypatch.context() as patch:
    patch.setattr(batches, 'train_indices', killing)
    with pytest.raises(Killed):
      train.train_and_evaluate(tiny_config(data_dir), tmp_path)
  assert not (tmp_path / 'result.json').exists()
  result = train.train_and_evaluate(tiny_config(data_dir), tmp_path)
  workdir, expected = run
  assert without_times([result]) == without_times([expected])
  assert without_times(metrics.read(tmp_path)) == without_times(metrics.read(workdir))
  for a, b in zip(last_state(tmp_path), last_state(workdir), strict=True):
    np.testing.assert_array_equal(a, b)


def test_the_frozen_half_on_disk_is_the_start(run, data_dir):
  workdir, _ = run
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


def test_a_workdir_of_another_experiment_is_refused_and_untouched(run, data_dir, tmp_path):
  workdir, _ = run
  before = {p: p.stat().st_mtime_ns for p in workdir.rglob('*')}
  with pytest.raises(UserError, match='experiment: seed = 0 there and 1 here; train = .batchnorm'):
    train.train_and_evaluate(tiny_config(data_dir, seed=1, train='output'), workdir)
  assert before == {p: p.stat().st_mtime_ns for p in workdir.rglob('*')}
  (tmp_path / 'thesis.tex').write_text('mine')
  with pytest.raises(UserError, match='holds thesis.tex and no config.json'):
    train.train_and_evaluate(tiny_config(data_dir), tmp_path)
  with pytest.raises(UserError, match='is a file'):
    train.train_and_evaluate(tiny_config(data_dir), tmp_path / 'thesis.tex')
  with pytest.raises(UserError, match='thesis.tex is a file'):
    train.train_and_evaluate(tiny_config(data_dir), tmp_path / 'thesis.tex' / 'run')
  assert [p.name for p in tmp_path.iterdir()] == ['thesis.tex']


def test_a_bucket_that_holds_no_checkpoints_is_refused(data_dir):
  with pytest.raises(UserError, match='allowed are folders and gs://'):
    train.train_and_evaluate(tiny_config(data_dir), 's3://bucket/run')


@pytest.mark.parametrize('content', ['{"name": "eslint"}', '[1]', 'no json', ''])
def test_a_config_json_of_others_is_refused(data_dir, tmp_path, content):
  (tmp_path / 'config.json').write_text(content)
  with pytest.raises(UserError, match='another experiment|not that of a run'):
    train.train_and_evaluate(tiny_config(data_dir), tmp_path)
  assert (tmp_path / 'config.json').read_text() == content


def test_a_run_goes_on_where_its_data_moved(run, data_dir):
  workdir, result = run
  elsewhere = data_dir / '..' / data_dir.name
  assert train.train_and_evaluate(tiny_config(elsewhere, checkpoint_keep=7), workdir) == result


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_devices(data_dir, tmp_path, monkeypatch):
  config = tiny_config(data_dir, epochs=1, batchnorm_images=32, **{'optimizer.learning_rate': 1e-3})
  config.optimizer.drops = ()
  straight = train.train_and_evaluate(config, tmp_path / 'straight')
  devices = jax.devices()
  train_and_die(tiny_config_of(config, checkpoint_every_steps=2), tmp_path / 'moved', 4)
  monkeypatch.setattr(jax, 'devices', lambda *_: devices[:2])
  moved = train.train_and_evaluate(config, tmp_path / 'moved')
  assert (straight['devices'], moved['devices']) == (4, 2)
  assert moved['test_loss'] == pytest.approx(straight['test_loss'], rel=1e-4)


def tiny_config_of(config, **fields):
  config = config.copy_and_resolve_references()
  config.update(fields)
  return config


def test_a_workdir_from_before_batchnorm_images_goes_on(run, data_dir, tmp_path):
  workdir, result = run
  shutil.copytree(workdir, tmp_path / 'old')
  facts = json.loads((workdir / 'config.json').read_text())
  del facts['batchnorm_images'], facts['matmul_precision']
  for sync, devices, images in ((True, 'any', 0), (False, 1, 0), (False, 4, 64)):
    workdir_lib.write_json(tmp_path / 'old/config.json',
                           {**facts, 'sync_batchnorm': sync, 'devices': devices})
    config = tiny_config(data_dir, batchnorm_images=images)
    assert train.train_and_evaluate(config, tmp_path / 'old') == result
  with pytest.raises(UserError, match='batchnorm_images = 64 there and 0 here'):
    train.train_and_evaluate(tiny_config(data_dir), tmp_path / 'old')


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


def test_a_workdir_in_use_is_refused(data_dir, tmp_path):
  with contextlib.ExitStack() as lock:
    workdir_lib.claim(workdir_lib.path(tmp_path), lock, {})
    with pytest.raises(UserError, match=f'in use by process {os.getpid()} on .* since '):
      train.train_and_evaluate(tiny_config(data_dir), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ['.lock']
  with contextlib.ExitStack() as lock:
    workdir_lib.claim(workdir_lib.path(tmp_path), lock, {})


def test_a_diverged_run_stops_and_says_so(data_dir, tmp_path, capsys):
  config = tiny_config(data_dir, epochs=3, log_every=1, checkpoint_every_steps=1)
  config.optimizer.drops = ()
  config.optimizer.learning_rate = 1e12
  result = train.train_and_evaluate(config, tmp_path)
  assert result == json.loads((tmp_path / 'result.json').read_text())
  step = result['diverged_step']
  assert result['diverged'] and result['test_loss'] is None and 1 <= step < 12
  lines = metrics.read(tmp_path)
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
def test_more_epochs_go_on_from_the_end_and_keep_the_shorter_result(data_dir, tmp_path):
  config = tiny_config(data_dir, log_every=1)
  config.optimizer.drops = ()
  short = train.train_and_evaluate(config, tmp_path / 'run')
  config.epochs, config.log_every, config.checkpoint_keep = 3, 1, 3
  longer = train.train_and_evaluate(config, tmp_path / 'run')
  straight = train.train_and_evaluate(config, tmp_path / 'straight')
  assert (longer['epochs'], longer['test_loss']) == (3, straight['test_loss'])
  assert without_times(metrics.read(tmp_path / 'run')) == without_times(
      metrics.read(tmp_path / 'straight'))
  assert json.loads((tmp_path / 'run/result_2_epochs.json').read_text()) == short
  with pytest.raises(UserError, match='epochs = 3 there and 2 here, which may only grow'):
    train.train_and_evaluate(tiny_config(data_dir, **{'optimizer.drops': ()}), tmp_path / 'run')


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
  expected, state = without_times(metrics.read(tmp_path / '1')), last_state(tmp_path / '1')
  config = tiny_config(data_dir, steps_per_call=3, **fields)
  assert train.train_and_evaluate(config, tmp_path / '1')['steps'] == 22  # the same experiment
  train.train_and_evaluate(config, tmp_path / 'cpu')  # where each step stays a call
  assert without_times(metrics.read(tmp_path / 'cpu')) == expected
  for a, b in zip(last_state(tmp_path / 'cpu'), state, strict=True):
    np.testing.assert_array_equal(a, b)

  calls, real = [], metrics.TrainLog.add
  build = functools.partial(experiment.build, backend='gpu')
  monkeypatch.setattr(train.experiment, 'build', build)
  train.train_and_evaluate(tiny_config(data_dir, **fields), tmp_path / 'single')
  expected = without_times(metrics.read(tmp_path / 'single'))
  state = last_state(tmp_path / 'single')
  with monkeypatch.context() as patch:
    patch.setattr(metrics.TrainLog, 'add', lambda log, step, values: (
        calls.append((step, np.size(values['loss']))), real(log, step, values)))
    train.train_and_evaluate(config, tmp_path / '3')
  # Lines after 5, 10, 15, 20 and 22 steps of an epoch, checkpoints after 7, 14 and 21.
  assert [number for _, number in calls] == [3, 1, 1, 1, 1, 3, 3, 1, 1, 3, 1, 1, 1, 1]
  lines = without_times(metrics.read(tmp_path / '3'))
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
  assert without_times(metrics.read(tmp_path / 'killed')) == lines
  for a, b in zip(last_state(tmp_path / 'killed'), last_state(tmp_path / '3'), strict=True):
    np.testing.assert_array_equal(a, b)


def test_a_damaged_checkpoint_costs_only_the_steps_since_the_one_before(run, data_dir, tmp_path,
                                                                        capsys):
  config = tiny_config(data_dir)
  workdir, expected = run
  shutil.copytree(workdir, tmp_path / 'run')
  (tmp_path / 'run/result.json').unlink()
  newest = max((tmp_path / 'run/checkpoints').iterdir(), key=lambda p: int(p.name))
  for path in newest.rglob('d/*'):
    if path.is_file():
      path.write_bytes(b'')
  result = train.train_and_evaluate(config, tmp_path / 'run')
  printed = capsys.readouterr().out
  assert f'the checkpoint of step {newest.name} is damaged' in printed
  assert 'going on after step 5 of 10' in printed
  assert without_times([result]) == without_times([expected])


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
