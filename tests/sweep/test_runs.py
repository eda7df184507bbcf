import json

import pytest
from sweeps import finish
from sweeps import make
from sweeps import tiny
from sweeps import train_at_once

from bnonly_jax.config import default_config
from bnonly_jax.config import flat
from bnonly_jax.config import FREE
from bnonly_jax.config import UserError
from bnonly_jax.sweep import config as config_lib
from bnonly_jax.sweep import runs as runs_lib
from bnonly_jax.sweep import training


@pytest.fixture
def trained(monkeypatch):
  return train_at_once(monkeypatch)


def test_a_folder_of_another_experiment_does_not_count(data_dir, tmp_path, trained):
  config = tiny(data_dir, seeds=1, trains=('batchnorm',))
  training.run_missing(config, tmp_path)

  def state(**fields):
    other = tiny(data_dir, seeds=1, trains=('batchnorm',))
    other.base.update_from_flattened_dict(fields)
    return runs_lib.progress(runs_lib.runs(other, tmp_path)[0]).state

  assert state() == state(eval_every=7) == 'done'
  assert state(norm='group') == state(**{'optimizer.learning_rate': 5.0}) == 'other'
  assert state(epochs=2) == 'stopped'  # it can go on
  config.base.epochs = 2
  training.run_missing(config, tmp_path)
  assert len(trained) == 2 and state() == 'other'  # the longer run is not the shorter one


def test_what_a_folder_cannot_be_called_still_tells_points_apart(data_dir):
  config = tiny(data_dir)
  names = {runs_lib.point_name(config, config_lib.Point('', 1, {'data.name': name}))
           for name in ('folder:/a/b', 'folder:/ab')}
  assert len(names) == 2 and not any(set('/:') & set(name) for name in names)
  assert runs_lib.point_name(config, config_lib.Point(
      '', 1, {'network': 'cifar_resnet8', 'train': 'random:2'})) == 'cifar_resnet8-random2'


def test_no_field_of_the_experiment_may_differ(tmp_path):
  config = make()
  folder = finish(config, tmp_path, 'cifar_resnet14-batchnorm/seed0', 0.4)
  (run,) = runs_lib.runs(config, tmp_path, '14-batchnorm/seed0')
  facts = json.loads((folder / 'config.json').read_text())

  def look(**fields):
    (folder / 'config.json').write_text(json.dumps({**facts, **fields}))
    return runs_lib.progress(run)

  for field in flat(default_config()).keys() - set(FREE):
    there = look(**{field: facts[field] + 1 if field == 'epochs' else 'another'})
    assert there.state == 'other', field
    assert there.differences[0].startswith(f'{field} = ') and there.result is None
  assert look(a_field_of_old='x').state == 'other'
  for free in ({'data.version': '2.0.0'}, {'log_every': 7}, {}):
    assert look(**free).state == 'done'


@pytest.mark.parametrize('name', ['result.json', 'config.json'])
def test_a_damaged_file_is_named(tmp_path, name):
  config = make()
  folder = finish(config, tmp_path, 'cifar_resnet14-batchnorm/seed0', 0.4)
  (run,) = runs_lib.runs(config, tmp_path, '14-batchnorm/seed0')
  whole = (folder / name).read_text()

  def look():
    there = runs_lib.progress(run)
    return there.state, there.damage.startswith(f'{folder / name} is damaged'), there.result

  for text in (whole[:len(whole) // 2], '', '[]' if name == 'config.json' else '{}'):
    (folder / name).write_text(text)
    assert look() == ('failed', True, None), text
  (folder / name).write_text(whole)
  (folder / 'metrics.jsonl').write_text('{}\n{}\n')
  there = runs_lib.progress(run)
  assert there.state == 'failed' and there.damage.startswith(f'{folder / "metrics.jsonl"} is dam')
  (folder / 'config.json').unlink()  # whose result it is cannot be told
  assert runs_lib.progress(run).state == 'failed'


def test_a_folder_can_be_that_of_a_sweep_or_not(tmp_path):
  folder = finish(make(), tmp_path, 'cifar_resnet14-batchnorm/seed0', 0.4)
  for may_be_new in (True, False):
    with pytest.raises(UserError, match='is the folder of one run'):
      runs_lib.check_workdir(folder, may_be_new)
    runs_lib.check_workdir(tmp_path, may_be_new)
  with pytest.raises(UserError, match='there is no such folder'):
    runs_lib.check_workdir(tmp_path / 'new')
  runs_lib.check_workdir(tmp_path / 'new', may_be_new=True)
  assert not (tmp_path / 'new').exists()
