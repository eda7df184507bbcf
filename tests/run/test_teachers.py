"""Runs that others teach: who they are, what of them is kept, and what is refused."""

import shutil

import conftest
import jax
import numpy as np
import pytest
from test_origin import leave
from tiny import last_state
from tiny import tiny_config
from tiny import without_times

from bnonly_jax import describe
from bnonly_jax import experiment
from bnonly_jax import train
from bnonly_jax.config import UserError
from bnonly_jax.run import checkpoint
from bnonly_jax.run import reading
from bnonly_jax.run import teachers
from bnonly_jax.run import workdir as workdir_lib


@pytest.fixture(scope='module')
def folders(data_dir, tmp_path_factory):
  """Untrained teachers: a ResNet-8 of two seeds, a ResNet-14 on other numbers, one of 3 classes."""
  root = tmp_path_factory.mktemp('teachers')
  leave(tiny_config(data_dir, seed=3, replicates=2), root / 'two')
  leave(tiny_config(data_dir, network='cifar_resnet14', norm='group', **{'data.mean': (0.5,)}),
        root / 'other')
  conftest.write_folder(root / 'data', one_size=True)
  leave(tiny_config(data_dir, batch_size=20, **{
      'data.name': f'folder:{root}/data', 'data.channels': 1}), root / 'classes')
  return root


def test_each_seed_teaches_with_its_own_network_and_numbers(folders, data_dir):
  config = tiny_config(data_dir, teacher=f'{folders}/other@0, {folders}/two')
  run = experiment.build(config)
  found = teachers.join(run)
  assert [(r['seed'], r['fields']['network'], r['fields']['norm']) for r in found.record] == [
      (0, 'cifar_resnet14', 'group'), (3, 'cifar_resnet8', 'batch'), (4, 'cifar_resnet8', 'batch')]
  for own, seed in zip(found.variables[1:], (3, 4), strict=True):
    jax.tree.map(np.testing.assert_array_equal, own, experiment.draw_variables(run, seed))
  # The step takes them last, and seeds share it, as they share the one without.
  *arguments, variables = experiment.train_arguments(found.run)
  assert len(arguments) == 5 and len(variables) == 3
  again = teachers.join(experiment.build(tiny_config(data_dir, teacher=config.teacher, seed=1)))
  assert again.run.train_step is found.run.train_step is not run.train_step
  assert teachers.join(experiment.build(tiny_config(data_dir))).run.teachers == ()
  both = teachers.join(experiment.build(tiny_config(data_dir, teacher=config.teacher,
                                                    replicates=2))).run
  state, told = jax.eval_shape(both.train_step, *experiment.train_arguments(both))
  assert told['distillation'].shape == () and state.trainable['stem_norm']['scale'].shape == (2, 16)


def test_a_description_counts_the_teachers(folders, data_dir, capsys):
  config = tiny_config(data_dir, teacher=f'{folders}/two')
  plain, taught = (describe.describe(tiny_config(data_dir)), describe.describe(config))
  statistics = sum(leaf.size for leaf in jax.tree.leaves(
      experiment.build(config).shapes['batch_stats']))
  each = 77754 + statistics
  assert (plain['teachers'], plain['taught_by']) == (0, []) and taught['teachers'] == 2 * 4 * each
  assert taught['flops_step'] == plain['flops_step'] + 2 * plain['flops_forward']
  for same in ('state', 'frozen', 'checkpoint', 'flops_forward'):
    assert taught[same] == plain[same]
  describe.print_description(config)
  printed = capsys.readouterr().out
  assert f'bytes of the teachers: {taught["teachers"]:,}' in printed
  assert f'is taught by step 0, seed 4, of {folders}/two (cifar_resnet8 on digits' in printed


@pytest.mark.slow
def test_a_killed_run_goes_on_with_the_same_teacher_without_its_folder(folders, data_dir, tmp_path,
                                                                       capsys):
  shutil.copytree(folders / 'two', tmp_path / 'teacher')
  config = tiny_config(data_dir, teacher=str(tmp_path / 'teacher'), epochs=1, train='output',
                       checkpoint_every_steps=3, distill=0.9)
  whole = train.train_and_evaluate(config, tmp_path / 'whole')
  conftest.train_and_die(config, tmp_path / 'run', 4)
  shutil.rmtree(tmp_path / 'teacher')
  leave(tiny_config(data_dir, seed=9), tmp_path / 'teacher')  # another one in its place
  capsys.readouterr()
  result = train.train_and_evaluate(config, tmp_path / 'run')
  printed = capsys.readouterr().out
  assert 'is taught by step 0, seed 3,' in printed and 'going on after step 3' in printed
  assert without_times([result]) == without_times([whole])
  lines = reading.lines(tmp_path / 'run')
  assert without_times(lines) == without_times(reading.lines(tmp_path / 'whole'))
  assert all(line['train_distillation'] > 0 for line in lines if 'train_loss' in line)
  for a, b in zip(last_state(tmp_path / 'run'), last_state(tmp_path / 'whole'), strict=True):
    np.testing.assert_array_equal(a, b)
  assert [one['seed'] for one in workdir_lib.read_json(tmp_path / 'run/teachers.json')] == [3, 4]
  kept = checkpoint.read_kept(tmp_path / 'run/teachers')
  drawn = experiment.draw_variables(experiment.build(tiny_config(data_dir)), 4)
  jax.tree.map(np.testing.assert_array_equal, kept['1'], drawn)


@pytest.mark.parametrize('teacher, fields, message', [
    ('classes', {}, r"names '.*classes', (a network of 3 classes; here there are 10|trained on)"),
    ('two', {'data.channels': 3, 'data.mean': (0.3,)},
     r"names '.*two', trained on images of 8x8x1 .digits.; here they are 8x8x3. Choose a run on"),
    ('two@7', {}, r"names '.*two@7': .* no checkpoint of step 7; allowed are 0"),
    ('none', {}, r'config.teacher=.*none: there is no such folder; allowed is the folder of a run'),
    ('two', {'distill': 1.5}, 'config.distill is 1.5; allowed is 0 to 1'),
    ('two', {'temperature': 0.0}, 'config.temperature is 0.0; allowed is a number above 0')])
def test_what_cannot_teach_is_one_line_before_anything_is_written(folders, data_dir, tmp_path,
                                                                  teacher, fields, message):
  config = tiny_config(data_dir, teacher=f'{folders}/{teacher}', **fields)
  with pytest.raises(UserError, match=message) as error:
    train.train_and_evaluate(config, tmp_path / 'new')
  assert '\n' not in str(error.value) and not (tmp_path / 'new').exists()


def test_classes_are_told_where_the_data_set_of_the_teacher_is_gone(folders, data_dir, tmp_path):
  shutil.copytree(folders / 'classes', tmp_path / 'teacher')
  facts = workdir_lib.read_json(tmp_path / 'teacher/config.json')
  workdir_lib.write_json(tmp_path / 'teacher/config.json', {**facts, 'data.name': 'folder:/gone'})
  with pytest.raises(UserError, match='a network of 3 classes; here there are 10. Choose a run on'):
    teachers.join(experiment.build(tiny_config(data_dir, teacher=str(tmp_path / 'teacher'))))
