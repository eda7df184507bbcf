import contextlib
import fcntl
import importlib.util
import json
import pathlib
import subprocess
import sys

import pytest

from bnonly_jax import analysis
from bnonly_jax import sweep
from bnonly_jax import sweep_config
from bnonly_jax import train
from bnonly_jax.config import flat
from bnonly_jax.config import UserError

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted((ROOT / 'configs/figures').glob('*.py'))


def load(path, scale):
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(scale), module.__doc__


def tiny(data_dir, seeds=2, trains=('batchnorm', 'nothing')):
  config = sweep_config.base('smoke')
  config.data.dir = str(data_dir)
  config.epochs = 1
  points = [sweep_config.Point(line, 8, {'network': 'cifar_resnet8', 'train': line})
            for line in trains]
  return sweep_config.sweep('tiny', 'Tiny', 'smoke', 'depth', points, seeds=seeds,
                            base_config=config)


@pytest.fixture
def trained(monkeypatch):
  """Lets runs finish at once; lists their names, and does to each what `act` holds for it."""
  class Trained(list):
    act = {}

  trained = Trained()

  def train_and_evaluate(config, workdir):
    name = f'{workdir.parent.name}/{workdir.name}'
    trained.append(name)
    trained.act.get(name, lambda: None)()
    workdir.mkdir(parents=True, exist_ok=True)
    result = {'test_accuracy': 0.5 + 0.1 * config.seed, 'diverged': False, 'epochs': config.epochs,
              'steps': 5, 'replicates': [{'test_accuracy': 0.5 + 0.1 * (config.seed + i)}
                                         for i in range(config.replicates)]}
    (workdir / 'config.json').write_text(json.dumps(flat(config)))
    (workdir / 'result.json').write_text(json.dumps(result))
    (workdir / 'metrics.jsonl').write_text('{"step": 5, "time_seconds": 2.0}\n')
    return result

  monkeypatch.setattr(train, 'train_and_evaluate', train_and_evaluate)
  return trained


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_a_figure_is_one_file_with_its_command(path):
  names = {}
  for scale in sweep_config.SCALES:
    config, documentation = load(path, scale)
    assert config.name == path.stem and config.scale == scale
    names[scale] = [run.name for run in sweep.runs(config, 'x')]
    assert set(config.panels) <= {*sweep_config.RESULTS, *sweep_config.ANALYSES}
  assert len(names['smoke']) <= len(names['short']) < len(names['paper'])
  for program in ('sweep', 'figures'):
    assert f'bnonly_jax.{program} --config=configs/figures/{path.name}' in documentation
  with pytest.raises(UserError, match="the scale is 'long'; allowed is smoke, short, paper"):
    load(path, 'long')


@pytest.mark.parametrize('scale', sweep_config.SCALES)
def test_runs_of_one_name_in_two_figures_are_the_same_run(scale):
  seen = {}
  for path in FILES:
    for run in sweep.runs(load(path, scale)[0], 'x'):
      assert seen.setdefault(run.name, run.config).to_json() == run.config.to_json(), run.name


def test_what_is_missing_runs_and_a_failure_is_left_behind(data_dir, tmp_path, trained, capsys):
  config = tiny(data_dir)

  def fail():
    raise ValueError('no such thing')

  trained.act['cifar_resnet8-batchnorm/seed0'] = fail
  failed = sweep.run_missing(config, tmp_path)
  assert trained == ['cifar_resnet8-batchnorm/seed0', 'cifar_resnet8-nothing/seed0',
                     'cifar_resnet8-batchnorm/seed1', 'cifar_resnet8-nothing/seed1']
  assert [run.name for run in failed] == ['cifar_resnet8-batchnorm/seed0']
  reason = tmp_path / 'cifar_resnet8-batchnorm/seed0_failure.txt'
  assert 'ValueError: no such thing' in reason.read_text()
  capsys.readouterr()
  sweep.print_status(config, tmp_path)
  table = [line.split() for line in capsys.readouterr().out.splitlines()]
  assert table[0][:8] == ['runs', *sweep.STATES]
  assert table[1][:4] == ['cifar_resnet8-batchnorm', '1', '1', '60.00']  # done, failed, accuracy
  assert table[2][:5] == ['cifar_resnet8-nothing', '2', '55.00', '+-', '7.07']

  trained.clear()
  trained.act = {}
  assert sweep.run_missing(config, tmp_path) == []
  assert trained == ['cifar_resnet8-batchnorm/seed0'] and not reason.exists()


def test_a_mistake_in_a_later_point_is_told_before_the_first_run(data_dir, tmp_path, trained):
  config = tiny(data_dir, trains=('batchnorm', 'batchnrm'))
  with pytest.raises(UserError, match="'batchnrm' is no group"):
    sweep.run_missing(config, tmp_path)
  assert trained == [] and list(tmp_path.iterdir()) == []


def test_a_stop_is_no_failure(data_dir, tmp_path, trained):
  def stop():
    raise SystemExit(143)

  trained.act['cifar_resnet8-nothing/seed0'] = stop
  with pytest.raises(SystemExit):
    sweep.run_missing(tiny(data_dir), tmp_path)
  states = [sweep.progress(run).state for run in sweep.runs(tiny(data_dir), tmp_path)]
  assert states == ['done', 'missing', 'missing', 'missing']


def test_tasks_share_the_runs(data_dir, tmp_path, trained):
  config = tiny(data_dir, seeds=3)
  for task in range(2):
    sweep.run_missing(config, tmp_path / 'x', task=task, tasks=2)
  # Each point's runs are dealt out: no task has all that are dear.
  assert trained == [f'cifar_resnet8-{run}' for run in (
      'batchnorm/seed0', 'batchnorm/seed2', 'nothing/seed1',
      'batchnorm/seed1', 'nothing/seed0', 'nothing/seed2')]
  for call in (sweep.run_missing, sweep.estimate, sweep.print_list):
    with pytest.raises(UserError, match='--task=2 with --tasks=2; allowed'):
      call(config, tmp_path, task=2, tasks=2)
    with pytest.raises(UserError, match='--task=6 with --tasks=7: there are 6 runs, none is left'):
      call(config, tmp_path, task=6, tasks=7)


def test_a_run_in_use_is_left_alone(data_dir, tmp_path, trained):
  config = tiny(data_dir, seeds=1)
  first = sweep.runs(config, tmp_path)[0]
  first.workdir.mkdir(parents=True)
  with contextlib.closing(open(first.workdir / '.lock', 'a')) as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    assert sweep.progress(first).state == 'running'
    assert sweep.run_missing(config, tmp_path) == []
    assert first.name not in trained
  assert sweep.progress(first).state == 'missing'


def test_replicates_take_the_place_of_seeds(data_dir, tmp_path, trained, capsys):
  config = tiny(data_dir, seeds=4)
  config.base.replicates = 2
  assert [run.name for run in sweep.runs(config, 'x', only='nothing')] == [
      'cifar_resnet8-nothing/seed0', 'cifar_resnet8-nothing/seed2']
  sweep.run_missing(config, tmp_path)
  sweep.print_status(config, tmp_path)
  assert '65.00 +- 12.91' in capsys.readouterr().out  # over 50, 60, 70, 80: seeds, not programs
  for wrong in (3, 0):
    config.base.replicates = wrong
    with pytest.raises(UserError, match=f'replicates is {wrong}; allowed is a divisor of'
                       ' config.seeds = 4'):
      sweep.runs(config, 'x')


def test_a_folder_of_another_experiment_does_not_count(data_dir, tmp_path, trained):
  config = tiny(data_dir, seeds=1, trains=('batchnorm',))
  sweep.run_missing(config, tmp_path)

  def state(**fields):
    other = tiny(data_dir, seeds=1, trains=('batchnorm',))
    other.base.update_from_flattened_dict(fields)
    return sweep.progress(sweep.runs(other, tmp_path)[0]).state

  assert state() == state(eval_every=7) == 'done'
  assert state(norm='group') == state(**{'optimizer.learning_rate': 5.0}) == 'other'
  assert state(epochs=2) == 'stopped'  # it can go on
  config.base.epochs = 2
  sweep.run_missing(config, tmp_path)
  assert len(trained) == 2 and state() == 'other'  # the longer run is not the shorter one


def test_an_analysis_is_made_anew_when_the_run_went_on(data_dir, tmp_path, trained, monkeypatch):
  config = tiny(data_dir, seeds=1, trains=('batchnorm',))
  with config.unlocked():
    config.panels = ('silent_relus',)
  analysed = []

  def fail(workdir, replicate, data_dir):
    raise UserError('a bad image')

  monkeypatch.setattr(analysis, 'analyse', fail)
  (failed,) = sweep.run_missing(config, tmp_path)
  reason = failed.workdir.parent / 'seed0_failure.txt'
  assert 'a bad image' in reason.read_text() and len(trained) == 1

  def analyse(workdir, replicate, data_dir):
    analysed.append(data_dir)
    step = json.loads((workdir / 'result.json').read_text())['steps']
    (workdir / 'analysis.json').write_text(json.dumps({'step': step, 'seed': 0}))

  monkeypatch.setattr(analysis, 'analyse', analyse)
  for expected in (1, 1):
    sweep.run_missing(config, tmp_path)
    assert analysed == [str(data_dir)] * expected and not reason.exists()
  (file,) = tmp_path.glob('*/*/analysis.json')
  file.write_text(json.dumps({'step': 4, 'seed': 0}))
  sweep.run_missing(config, tmp_path)
  assert len(analysed) == 2 and json.loads(file.read_text())['step'] == 5


def test_what_a_folder_cannot_be_called_still_tells_points_apart(data_dir):
  config = tiny(data_dir)
  names = {sweep.point_name(config, sweep_config.Point('', 1, {'data.name': name}))
           for name in ('folder:/a/b', 'folder:/ab')}
  assert len(names) == 2 and not any(set('/:') & set(name) for name in names)
  assert sweep.point_name(config, sweep_config.Point(
      '', 1, {'network': 'cifar_resnet8', 'train': 'random:2'})) == 'cifar_resnet8-random2'


def test_a_mistake_is_told_before_any_run(data_dir, tmp_path, trained):
  config = tiny(data_dir)
  with pytest.raises(UserError, match='--only=nothing/seed7 is found in no run. There are cifar'):
    sweep.run_missing(config, tmp_path, 'nothing/seed7')
  with pytest.raises(UserError, match='no regular expression'):
    sweep.run_missing(config, tmp_path, '(')
  with pytest.raises(UserError, match='is a file; allowed is a folder'):
    sweep.run_missing(config, __file__)
  with pytest.raises(UserError, match='allowed are folders and gs://'):
    sweep.run_missing(config, 's3://bucket/x')
  with config.unlocked():
    config.panels = ('accuracy',)
  with pytest.raises(UserError, match="config.panels has 'accuracy'; allowed are test_accuracy"):
    sweep.run_missing(config, tmp_path)
  config = tiny(data_dir)
  config.seeds = 0
  with pytest.raises(UserError, match='config.seeds is 0; allowed'):
    sweep.run_missing(config, tmp_path)
  config = tiny(data_dir)
  with pytest.raises(UserError, match='that of a single run'):
    sweep.run_missing(config.base, tmp_path)
  with pytest.raises(UserError, match='is a sweep, of many runs'):
    train.plan(config)
  config.base.data.name = 'cifar10'
  with pytest.raises(UserError, match='data.prepare --dataset=cifar10'):
    sweep.run_missing(config, tmp_path)
  with config.unlocked():
    config.points = (sweep_config.Point('a', 1, {'netwrok': 'cifar_resnet8'}),)
  with pytest.raises(UserError, match='netwrok'):
    sweep.run_missing(config, tmp_path)
  assert trained == [] and list(tmp_path.iterdir()) == []


def test_estimates_follow_measured_steps_and_flops(data_dir, tmp_path, trained):
  config = tiny(data_dir, seeds=2, trains=('batchnorm', 'all'))
  sweep.run_missing(config, tmp_path, 'batchnorm/seed0')  # 5 steps in 2 seconds
  left = {run.name: seconds for run, _, seconds in sweep.estimate(config, tmp_path)}
  assert left['cifar_resnet8-batchnorm/seed0'] == 0
  assert left['cifar_resnet8-batchnorm/seed1'] == pytest.approx(11 * 2 / 5)
  assert 1.4 < left['cifar_resnet8-all/seed0'] / left['cifar_resnet8-batchnorm/seed1'] < 1.6


def test_the_program_trains_and_draws(data_dir, tmp_path):
  for program in ('sweep', 'figures'):
    done = subprocess.run(
        [sys.executable, '-m', f'bnonly_jax.{program}', f'--workdir={tmp_path}',
         '--config=configs/figures/main_depth.py:smoke', '--config.seeds=1',
         f'--config.base.data.dir={data_dir}', '--config.base.epochs=1',
         *(['--only=resnet8-nothing'] if program == 'sweep' else [])],
        cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
  assert 'nothing                           8     1' in done.stdout
  assert (tmp_path / 'figures/main_depth/report.html').exists()
