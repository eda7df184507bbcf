"""Runs that start from what others have trained."""

import re
import shutil

import conftest
import jax
import numpy as np
import pytest
from tiny import last_state
from tiny import tiny_config
from tiny import without_times

from bnonly_jax import experiment
from bnonly_jax import masks
from bnonly_jax import train
from bnonly_jax.config import flat
from bnonly_jax.config import UserError
from bnonly_jax.run import checkpoint
from bnonly_jax.run import origin as origin_lib
from bnonly_jax.run import reading
from bnonly_jax.run import trained
from bnonly_jax.run import workdir as workdir_lib


@pytest.fixture(scope='module')
def chain(data_dir, tmp_path_factory):
  """Everything trained, then BatchNorm from there, then everything from that: their folders."""
  folders = [tmp_path_factory.mktemp('chain') / name for name in ('all', 'batchnorm', 'again')]
  results, init_from = [], ''
  for folder, selection in zip(folders, ('all', 'batchnorm', 'all'), strict=True):
    config = tiny_config(data_dir, train=selection, init_from=init_from, epochs=1)
    results.append(train.train_and_evaluate(config, folder))
    init_from = f'{folder}@5' if selection == 'batchnorm' else str(folder)
  return folders, results


def variables(folder, step=None):
  return trained.read(workdir_lib.path(folder), 1, step).replicates[0]


def require_same(one, other, names=None):
  one, other = masks.flatten(one), masks.flatten(other)
  assert one.keys() == other.keys()
  for name in names or one:
    np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_a_run_starts_where_the_other_has_ended(chain):
  folders, results = chain
  assert results[1]['untrained_test_accuracy'] == results[0]['test_accuracy']
  assert results[2]['untrained_test_accuracy'] == results[1]['test_accuracy']
  for before, folder in zip(folders, folders[1:], strict=False):
    start = checkpoint.read_kept(folder / 'start')
    require_same(start, variables(before))
  end = variables(folders[1])
  frozen = [name for name in masks.flatten(end['params'])
            if not re.search(r'norm\d*/(scale|bias)$', name)]
  require_same(end['params'], variables(folders[0])['params'], frozen)
  assert np.any(end['params']['stem_norm']['scale']
                != variables(folders[0])['params']['stem_norm']['scale'])
  record = workdir_lib.read_json(folders[2] / 'start.json')
  assert (record['init_from'], record['step'], record['train'], record['new_output']) == (
      str(folders[1]), 5, 'batchnorm', '')
  assert not (folders[0] / 'start').exists() and not (folders[0] / 'start.json').exists()


@pytest.mark.parametrize('at_step', [2, 4])  # before and after the first checkpoint
def test_a_killed_run_goes_on_without_its_source_with_the_same_bits(chain, data_dir, tmp_path,
                                                                    capsys, at_step):
  (source, whole, _), (_, expected, _) = chain
  config = tiny_config(data_dir, train='batchnorm', init_from=str(tmp_path / 'all'), epochs=1)
  shutil.copytree(source, tmp_path / 'all')
  conftest.train_and_die(tiny_config(
      data_dir, train='batchnorm', init_from=str(tmp_path / 'all'), epochs=1,
      checkpoint_every_steps=3), tmp_path / 'run', at_step)
  shutil.rmtree(tmp_path / 'all')
  capsys.readouterr()
  result = train.train_and_evaluate(config, tmp_path / 'run')
  printed = capsys.readouterr().out
  assert f'starts from step 5 of {tmp_path}/all (cifar_resnet8 on digits, training all)' in printed
  assert ('going on after step 3' in printed) == (at_step > 3)
  assert without_times([result]) == without_times([expected])
  assert without_times(reading.lines(tmp_path / 'run')) == without_times(reading.lines(whole))
  for a, b in zip(last_state(tmp_path / 'run'), last_state(whole), strict=True):
    np.testing.assert_array_equal(a, b)


def test_another_number_of_classes_gets_a_new_output_layer(chain, data_dir, tmp_path, capsys):
  (source, _, _), _ = chain
  conftest.write_folder(tmp_path / 'data', one_size=True)
  config = tiny_config(data_dir, train='batchnorm+output', init_from=str(source), epochs=1,
                       batch_size=20, seed=3, **{'data.name': f'folder:{tmp_path}/data',
                                                'data.channels': 1})
  train.train_and_evaluate(config, tmp_path / 'run')
  said = 'its output layer is new, drawn from the seed: 10 classes there, 3 here'
  assert said in capsys.readouterr().out
  start, drawn = checkpoint.read_kept(tmp_path / 'run/start'), experiment.draw_variables(
      experiment.build(config), 3)
  require_same(start['params']['output'], drawn['params']['output'])
  rest = [name for name in masks.flatten(start) if '/output/' not in name]
  require_same(start, variables(source), rest)
  assert variables(tmp_path / 'run')['params']['output']['kernel'].shape == (64, 3)


def leave(config, folder):
  """Writes what a run has in its folder that trained no step, and returns the folder."""
  folder, run = workdir_lib.path(folder), experiment.build(config)
  state, frozen = experiment.start(run)
  folder.mkdir(parents=True, exist_ok=True)
  workdir_lib.write_json(folder / 'config.json', {**flat(config), 'data.version': '1.0.0'})
  checkpoint.keep(folder / 'frozen', frozen)
  with checkpoint.open_checkpointer(folder, 1) as checkpointer:
    checkpoint.save(checkpointer, 0, state)
  return folder


@pytest.mark.parametrize('fields', [{'train': 'random:2'}, {'train': 'nothing', 'norm': 'none'},
                                    {'train': 'all', 'norm': 'group'}])
def test_every_selection_comes_back_whole(data_dir, tmp_path, fields):
  config = tiny_config(data_dir, **fields)
  leave(config, tmp_path)
  require_same(variables(tmp_path), experiment.draw_variables(experiment.build(config), 0))


def test_each_seed_of_several_goes_on_as_itself(data_dir, tmp_path):
  leave(tiny_config(data_dir, seed=3, replicates=2, train='random:2'), tmp_path)

  def found(**fields):
    run = experiment.build(tiny_config(data_dir, init_from=str(tmp_path), **fields))
    return run, origin_lib.find(run, tmp_path / 'new', {})

  run, both = found(seed=3, replicates=2)
  for seed, own in zip(run.seeds, both.variables, strict=True):
    require_same(own, experiment.draw_variables(run, seed))
  (tmp_path / 'new').mkdir()
  origin_lib.keep(workdir_lib.path(tmp_path / 'new'), both)
  kept = origin_lib._apart(checkpoint.read_kept(tmp_path / 'new/start'), 2)
  jax.tree.map(np.testing.assert_array_equal, kept, list(both.variables))
  shutil.rmtree(tmp_path / 'new')
  _, one = found(seed=4)
  require_same(one.variables[0], both.variables[1])
  with pytest.raises(UserError, match='of the seeds 3 to 4, .* here are the seeds 4 to 5. Choose'):
    found(seed=4, replicates=2)


def test_one_run_is_the_start_of_every_seed(chain, data_dir):
  run = experiment.build(tiny_config(data_dir, init_from=str(chain[0][0]), seed=7, replicates=2))
  for own in origin_lib.find(run, chain[0][0] / 'new', {}).variables:
    require_same(own, variables(chain[0][0]))


@pytest.mark.parametrize('fields, message', [
    ({'network': 'cifar_resnet14'}, "a run with config.network = 'cifar_resnet8', and here it is"),
    ({'norm': 'group'}, "config.norm = 'batch', and here it is 'group'; .* --config.norm=batch"),
    ({'init_from': 'no/such'}, 'config.init_from=no/such: there is no such folder; allowed is the'),
    ({'init_from': '{}@7'}, r"init_from is '.*@7': .* no checkpoint of step 7; allowed are 5"),
    ({'data.channels': 3, 'data.mean': (0.3,)},
     r'does not fit the network: 1 tensors differ \(params/stem_conv/kernel: \(3, 3, 1, 16\) there')
])
def test_what_does_not_fit_is_one_line_before_anything_is_written(chain, data_dir, tmp_path, fields,
                                                                  message):
  source = str(chain[0][0])
  fields = {'init_from': source, **fields}
  fields['init_from'] = fields['init_from'].format(source)
  with pytest.raises(UserError, match=message) as error:
    train.train_and_evaluate(tiny_config(data_dir, **fields), tmp_path / 'new')
  assert '\n' not in str(error.value) and not (tmp_path / 'new').exists()


def test_the_start_of_another_attempt_is_not_taken(chain, data_dir, tmp_path):
  # Killed before its first line of metrics, a folder may become another experiment's.
  folders, _ = chain
  config = tiny_config(data_dir, init_from=str(folders[0]), epochs=1)
  conftest.train_and_die(config, tmp_path, 1)
  config.init_from = str(folders[1])
  conftest.train_and_die(config, tmp_path, 1)
  require_same(checkpoint.read_kept(tmp_path / 'start'), variables(folders[1]))
  config.init_from = ''
  conftest.train_and_die(config, tmp_path, 1)
  assert not (tmp_path / 'start').exists() and not (tmp_path / 'start.json').exists()
