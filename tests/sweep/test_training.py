import contextlib
import fcntl
import json

import jax
import pytest
from sweeps import tear
from sweeps import tiny
from sweeps import train_at_once

from bnonly_jax import analysis
from bnonly_jax import experiment
from bnonly_jax.config import UserError
from bnonly_jax.sweep import config as config_lib
from bnonly_jax.sweep import estimate as estimate_lib
from bnonly_jax.sweep import runs as runs_lib
from bnonly_jax.sweep import status
from bnonly_jax.sweep import training


@pytest.fixture
def trained(monkeypatch):
  return train_at_once(monkeypatch)


def test_what_is_missing_runs_and_a_failure_is_left_behind(data_dir, tmp_path, trained, capsys):
  config = tiny(data_dir)

  def fail():
    raise ValueError('no such thing')

  trained.act['cifar_resnet8-batchnorm/seed0'] = fail
  failed = training.run_missing(config, tmp_path)
  assert trained == ['cifar_resnet8-batchnorm/seed0', 'cifar_resnet8-nothing/seed0',
                     'cifar_resnet8-batchnorm/seed1', 'cifar_resnet8-nothing/seed1']
  assert [run.name for run in failed] == ['cifar_resnet8-batchnorm/seed0']
  reason = tmp_path / 'cifar_resnet8-batchnorm/seed0_failure.txt'
  assert 'ValueError: no such thing' in reason.read_text()
  capsys.readouterr()
  status.print_status(config, tmp_path)
  table = [line.split() for line in capsys.readouterr().out.splitlines()]
  assert table[0][:8] == ['runs', *runs_lib.STATES]
  assert table[1][:4] == ['cifar_resnet8-batchnorm', '1', '1', '60.00']  # done, failed, accuracy
  assert table[2][:5] == ['cifar_resnet8-nothing', '2', '55.00', '+-', '7.07']

  trained.clear()
  trained.act = {}
  assert training.run_missing(config, tmp_path) == []
  assert trained == ['cifar_resnet8-batchnorm/seed0'] and not reason.exists()


def test_a_mistake_in_a_later_point_is_told_before_the_first_run(data_dir, tmp_path, trained):
  config = tiny(data_dir, trains=('batchnorm', 'batchnrm'))
  with pytest.raises(UserError, match="'batchnrm' is no group"):
    training.run_missing(config, tmp_path)
  assert trained == [] and list(tmp_path.iterdir()) == []


def test_a_stop_is_no_failure(data_dir, tmp_path, trained):
  def stop():
    raise SystemExit(143)

  trained.act['cifar_resnet8-nothing/seed0'] = stop
  with pytest.raises(SystemExit):
    training.run_missing(tiny(data_dir), tmp_path)
  states = [runs_lib.progress(run).state for run in runs_lib.runs(tiny(data_dir), tmp_path)]
  assert states == ['done', 'missing', 'missing', 'missing']


def test_tasks_share_the_runs(data_dir, tmp_path, trained):
  config = tiny(data_dir, seeds=3)
  for task in range(2):
    training.run_missing(config, tmp_path / 'x', task=task, tasks=2)
  # Each point's runs are dealt out: no task has all that are dear.
  assert trained == [f'cifar_resnet8-{run}' for run in (
      'batchnorm/seed0', 'batchnorm/seed2', 'nothing/seed1',
      'batchnorm/seed1', 'nothing/seed0', 'nothing/seed2')]
  for call in (training.run_missing, estimate_lib.estimate, status.print_list):
    with pytest.raises(UserError, match='--task=2 with --tasks=2; allowed'):
      call(config, tmp_path, task=2, tasks=2)
    with pytest.raises(UserError, match='--task=6 with --tasks=7: there are 6 runs, none is left'):
      call(config, tmp_path, task=6, tasks=7)


def test_a_run_in_use_is_left_alone(data_dir, tmp_path, trained):
  config = tiny(data_dir, seeds=1)
  first = runs_lib.runs(config, tmp_path)[0]
  first.workdir.mkdir(parents=True)
  with contextlib.closing(open(first.workdir / '.lock', 'a')) as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    assert runs_lib.progress(first).state == 'running'
    assert training.run_missing(config, tmp_path) == []
    assert first.name not in trained
  assert runs_lib.progress(first).state == 'missing'


def test_replicates_take_the_place_of_seeds(data_dir, tmp_path, trained, capsys):
  config = tiny(data_dir, seeds=4)
  config.base.replicates = 2
  assert [run.name for run in runs_lib.runs(config, 'x', only='nothing')] == [
      'cifar_resnet8-nothing/seed0', 'cifar_resnet8-nothing/seed2']
  training.run_missing(config, tmp_path)
  status.print_status(config, tmp_path)
  assert '65.00 +- 12.91' in capsys.readouterr().out  # over 50, 60, 70, 80: seeds, not programs
  for wrong in (3, 0):
    config.base.replicates = wrong
    with pytest.raises(UserError, match=f'replicates is {wrong}; allowed is a divisor of'
                       ' config.seeds = 4'):
      runs_lib.runs(config, 'x')


def test_an_analysis_is_made_anew_when_the_run_went_on(data_dir, tmp_path, trained, monkeypatch):
  config = tiny(data_dir, seeds=1, trains=('batchnorm',))
  with config.unlocked():
    config.panels = ('silent_relus',)
  analysed = []

  def fail(workdir, replicate, data_dir):
    raise UserError('a bad image')

  monkeypatch.setattr(analysis, 'analyse', fail)
  (failed,) = training.run_missing(config, tmp_path)
  reason = failed.workdir.parent / 'seed0_failure.txt'
  assert 'a bad image' in reason.read_text() and len(trained) == 1

  def analyse(workdir, replicate, data_dir):
    analysed.append(data_dir)
    step = json.loads((workdir / 'result.json').read_text())['steps']
    (workdir / 'analysis.json').write_text(json.dumps({'step': step, 'seed': 0}))

  monkeypatch.setattr(analysis, 'analyse', analyse)
  for expected in (1, 1):
    training.run_missing(config, tmp_path)
    assert analysed == [str(data_dir)] * expected and not reason.exists()
  (file,) = tmp_path.glob('*/*/analysis.json')
  file.write_text(json.dumps({'step': 4, 'seed': 0}))
  training.run_missing(config, tmp_path)
  assert len(analysed) == 2 and json.loads(file.read_text())['step'] == 5


def test_a_mistake_is_told_before_any_run(data_dir, tmp_path, trained):
  config = tiny(data_dir)
  with pytest.raises(UserError, match='--only=nothing/seed7 is found in no run. There are cifar'):
    training.run_missing(config, tmp_path, 'nothing/seed7')
  with pytest.raises(UserError, match='no regular expression'):
    training.run_missing(config, tmp_path, '(')
  with pytest.raises(UserError, match='is a file; allowed is a folder'):
    training.run_missing(config, __file__)
  with pytest.raises(UserError, match='allowed are folders and gs://'):
    training.run_missing(config, 's3://bucket/x')
  with config.unlocked():
    config.panels = ('accuracy',)
  with pytest.raises(UserError, match="config.panels has 'accuracy'; allowed are test_accuracy"):
    training.run_missing(config, tmp_path)
  config = tiny(data_dir)
  config.seeds = 0
  with pytest.raises(UserError, match='config.seeds is 0; allowed'):
    training.run_missing(config, tmp_path)
  config = tiny(data_dir)
  with pytest.raises(UserError, match='that of a single run'):
    training.run_missing(config.base, tmp_path)
  with pytest.raises(UserError, match='is a sweep, of many runs'):
    experiment.build(config)
  config.base.data.name = 'cifar10'
  with pytest.raises(UserError, match='data.prepare --dataset=cifar10'):
    training.run_missing(config, tmp_path)
  with config.unlocked():
    config.points = (config_lib.Point('a', 1, {'netwrok': 'cifar_resnet8'}),)
  with pytest.raises(UserError, match='netwrok'):
    training.run_missing(config, tmp_path)
  assert trained == [] and list(tmp_path.iterdir()) == []


def test_a_damaged_run_is_left_behind_as_it_is(data_dir, tmp_path, trained, capsys):
  config = tiny(data_dir, seeds=1)
  training.run_missing(config, tmp_path, 'batchnorm')
  result = tmp_path / 'cifar_resnet8-batchnorm/seed0/result.json'
  tear(result)
  torn = result.read_text()
  capsys.readouterr()
  (failed,) = training.run_missing(config, tmp_path)
  assert failed.name == 'cifar_resnet8-batchnorm/seed0' and result.read_text() == torn
  assert trained == ['cifar_resnet8-batchnorm/seed0', 'cifar_resnet8-nothing/seed0']
  assert f'failed: {result} is damaged' in capsys.readouterr().out
  assert len(failed.failure.read_text().splitlines()) == 1
  result.unlink()
  assert training.run_missing(config, tmp_path) == [] and not failed.failure.exists()


def test_a_damaged_analysis_is_told_in_one_line(data_dir, tmp_path, trained):
  config = tiny(data_dir, seeds=1, trains=('batchnorm',))
  with config.unlocked():
    config.panels = ('silent_relus',)
  analysed = tmp_path / 'cifar_resnet8-batchnorm/seed0/analysis.json'
  analysed.parent.mkdir(parents=True)
  analysed.write_text('{"step": ')
  (failed,) = training.run_missing(config, tmp_path)
  (reason,) = failed.failure.read_text().splitlines()
  assert reason.startswith(f'{analysed} is damaged') and 'analyses the run anew' in reason


def test_the_folder_of_a_run_is_no_place_for_a_sweep(data_dir, tmp_path, trained):
  config = tiny(data_dir, seeds=1, trains=('batchnorm',))
  training.run_missing(config, tmp_path)
  folder = tmp_path / 'cifar_resnet8-batchnorm/seed0'
  there = sorted(folder.iterdir())
  with pytest.raises(UserError, match='is the folder of one run'):
    training.run_missing(config, folder)
  assert len(trained) == 1 and sorted(folder.iterdir()) == there


def test_what_is_compiled_stays_for_the_next_run(data_dir, tmp_path, trained):
  traced = []
  twice = jax.jit(lambda x: traced.append(x) or 2 * x)
  for run in ('batchnorm', 'nothing'):
    trained.act[f'cifar_resnet8-{run}/seed0'] = lambda: twice(1.0)
  training.run_missing(tiny(data_dir, seeds=1), tmp_path)
  assert len(trained) == 2 and len(traced) == 1
