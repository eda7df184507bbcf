"""A run that was stopped goes on to the same bits, and no folder of another run is taken."""

import contextlib
import json
import os
import shutil

from conftest import Killed
from conftest import train_and_die
import jax
import numpy as np
import pytest
from tiny import last_state
from tiny import tiny_config
from tiny import without_times

from bnonly_jax import train
from bnonly_jax.config import UserError
from bnonly_jax.data import batches
from bnonly_jax.run import reading
from bnonly_jax.run import workdir as workdir_lib


def test_a_tracker_is_told_every_line_and_after_a_kill_those_that_are_written_again(
    data_dir, tmp_path):
  config, told = tiny_config(data_dir, epochs=1, log_every=1), []
  train_and_die(config, tmp_path, at_step=4)
  before = reading.lines(tmp_path)
  train.train_and_evaluate(config, tmp_path,
                           on_metrics=lambda step, values: told.append({'step': step, **values}))
  assert before and without_times(told)[:len(before)] == without_times(before)  # no checkpoint
  assert told == reading.lines(tmp_path)


def test_a_finished_run_says_so_and_keeps_its_files(tiny_run, data_dir, capsys):
  workdir, result = tiny_run
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
  lines = [without_times(reading.lines(tmp_path / name)) for name in ('whole', 'killed')]
  assert lines[0] == lines[1]


def test_a_workdir_from_before_there_was_a_choice_of_optimizer_goes_on(tiny_run, data_dir,
                                                                       tmp_path):
  workdir, expected = tiny_run
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
def test_a_run_stopped_anywhere_ends_with_the_same_bits(tiny_run, data_dir, tmp_path, monkeypatch,
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
  workdir, expected = tiny_run
  assert without_times([result]) == without_times([expected])
  assert without_times(reading.lines(tmp_path)) == without_times(reading.lines(workdir))
  for a, b in zip(last_state(tmp_path), last_state(workdir), strict=True):
    np.testing.assert_array_equal(a, b)


def test_a_workdir_of_another_experiment_is_refused_and_untouched(tiny_run, data_dir, tmp_path):
  workdir, _ = tiny_run
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


def test_a_run_goes_on_where_its_data_moved(tiny_run, data_dir):
  workdir, result = tiny_run
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


def test_a_workdir_from_before_batchnorm_images_goes_on(tiny_run, data_dir, tmp_path):
  workdir, result = tiny_run
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


def test_a_workdir_in_use_is_refused(data_dir, tmp_path):
  with contextlib.ExitStack() as lock:
    workdir_lib.claim(workdir_lib.path(tmp_path), lock, {})
    with pytest.raises(UserError, match=f'in use by process {os.getpid()} on .* since '):
      train.train_and_evaluate(tiny_config(data_dir), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ['.lock']
  with contextlib.ExitStack() as lock:
    workdir_lib.claim(workdir_lib.path(tmp_path), lock, {})


@pytest.mark.slow
def test_more_epochs_go_on_from_the_end_and_keep_the_shorter_result(data_dir, tmp_path):
  config = tiny_config(data_dir, log_every=1)
  config.optimizer.drops = ()
  short = train.train_and_evaluate(config, tmp_path / 'run')
  config.epochs, config.log_every, config.checkpoint_keep = 3, 1, 3
  longer = train.train_and_evaluate(config, tmp_path / 'run')
  straight = train.train_and_evaluate(config, tmp_path / 'straight')
  assert (longer['epochs'], longer['test_loss']) == (3, straight['test_loss'])
  assert without_times(reading.lines(tmp_path / 'run')) == without_times(
      reading.lines(tmp_path / 'straight'))
  assert json.loads((tmp_path / 'run/result_2_epochs.json').read_text()) == short
  with pytest.raises(UserError, match='epochs = 3 there and 2 here, which may only grow'):
    train.train_and_evaluate(tiny_config(data_dir, **{'optimizer.drops': ()}), tmp_path / 'run')


def test_a_damaged_checkpoint_costs_only_the_steps_since_the_one_before(tiny_run, data_dir,
                                                                        tmp_path, capsys):
  config = tiny_config(data_dir)
  workdir, expected = tiny_run
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
