import json

import pytest
from sweeps import finish
from sweeps import make
from sweeps import set_fields
from sweeps import tear

from bnonly_jax.config import UserError
from bnonly_jax.sweep.rows import rows


def test_rows_have_mean_spread_and_the_papers_value(tmp_path):
  config = make()
  finish(config, tmp_path, 'cifar_resnet14-batchnorm/seed0', 0.4)
  finish(config, tmp_path, 'cifar_resnet14-batchnorm/seed1', 0.44)
  finish(config, tmp_path, 'cifar_resnet32-batchnorm/seed0', 0.5)
  finish(config, tmp_path, 'cifar_resnet14-all/seed0', None, diverged=True)
  by_point = {(row.line, row.x): row for row in rows(config, tmp_path, 'test_accuracy')}
  both = by_point['batchnorm', 14]
  assert (both.mean, both.sd) == pytest.approx((42, 2.828427))
  assert (both.runs, both.missing, both.paper) == (2, 0, 47.8)
  assert both.difference == pytest.approx(-5.8)
  one = by_point['batchnorm', 32]
  assert (one.mean, one.sd, one.missing) == (50, None, 1)
  assert by_point['all', 14].mean is None and by_point['all', 14].missing == 2
  assert by_point['all', 14].paper == 90.5


def test_training_accuracy_is_the_mean_over_the_steps_of_the_last_epoch(tmp_path):
  config = make(('train_accuracy',))
  finish(config, tmp_path, 'cifar_resnet14-batchnorm/seed0', 0.4)
  lines = [{'step': step, 'epoch': epoch, 'train_accuracy': accuracy} for step, epoch, accuracy in
           ((2, 7, 0.9), (7, 7.5, 0.2), (8, 8, 0.8))]  # the last epoch is the eighth
  (tmp_path / 'cifar_resnet14-batchnorm/seed0/metrics.jsonl').write_text(
      '\n'.join(map(json.dumps, lines)))
  means = [row.mean for row in rows(config, tmp_path, 'train_accuracy')
           if row.mean is not None]
  assert means == pytest.approx([(5 * 20 + 1 * 80) / 6])
  # Of several seeds in one program the lines hold the mean alone, which is none of theirs.
  config.base.replicates = 2
  assert {row.mean for row in rows(config, tmp_path, 'train_accuracy')} == {None}


def test_smoke_has_no_values_of_the_papers(tmp_path):
  assert {row.paper for row in rows(make(scale='smoke'), tmp_path, 'test_accuracy')} == {
      None}


def test_an_analysis_of_an_earlier_step_does_not_count(tmp_path):
  config = make(('silent_relus',))
  for seed, step in enumerate((9, 4)):
    finish(config, tmp_path, f'cifar_resnet14-batchnorm/seed{seed}', 0.4, analysis={
        'step': step, 'relus': {'all': {'silent_share': 0.1 * step}}})
  (row,) = [row for row in rows(config, tmp_path, 'silent_relus')
            if (row.line, row.x) == ('batchnorm', 14)]
  assert (row.mean, row.runs, row.missing) == (pytest.approx(90), 1, 1)


def test_replicates_count_each(tmp_path):
  config = make()
  config.base.replicates = 2
  finish(config, tmp_path, 'cifar_resnet14-batchnorm/seed0', 0.5, replicates=[
      {'seed': seed, 'test_accuracy': 0.4 + 0.2 * seed} for seed in range(2)])
  by_point = {(row.line, row.x): row for row in rows(config, tmp_path, 'test_accuracy')}
  row = by_point['batchnorm', 14]
  assert (row.runs, row.missing, row.mean) == (2, 0, pytest.approx(50))
  assert row.sd == pytest.approx(20 / 2 ** 0.5) and by_point['all', 14].missing == 2


def test_the_papers_values_stand_beside_its_own_setting_only(tmp_path):
  def published(config):
    return {row.paper for row in rows(config, tmp_path, 'test_accuracy')}

  config = make()
  assert 47.8 in published(config)
  config.base.norm = 'group'
  assert published(config) == {None}
  config = make()
  config.base.data.name = 'svhn_cropped'
  assert published(config) == {None}
  config = make(scale='paper')
  assert 47.8 in published(config)
  config.base.data.name = 'cifar10_jpeg'  # CIFAR-10's images, as captions say
  assert 47.8 in published(config)
  config.base.epochs = 80
  assert published(config) == {None}


def test_a_damaged_file_is_an_error_that_names_it(tmp_path):
  config = make(('test_accuracy', 'silent_relus'))
  folder = finish(config, tmp_path, 'cifar_resnet14-batchnorm/seed0', 0.4, analysis={
      'relus': {'all': {'silent_share': 0.1}}})
  for name, panel in (('analysis.json', 'silent_relus'), ('result.json', 'test_accuracy')):
    rows(config, tmp_path, panel)
    tear(folder / name)
    with pytest.raises(UserError, match=rf'^{folder / name} is damaged .*\. Delete it, and'):
      rows(config, tmp_path, panel)


def test_runs_on_two_versions_of_a_data_set_are_not_averaged(tmp_path):
  config = make()
  finish(config, tmp_path, 'cifar_resnet14-batchnorm/seed0', 0.4)
  folder = finish(config, tmp_path, 'cifar_resnet14-batchnorm/seed1', 0.5)
  assert rows(config, tmp_path, 'test_accuracy')[2].mean == pytest.approx(45)
  set_fields(folder / 'config.json', **{'data.version': '1.0.1'})
  with pytest.raises(UserError, match=r'several versions of cifar10_jpeg: 1.0.0 \(cifar_resnet14-b'
                     r'atchnorm/seed0\), 1.0.1 \(cifar_resnet14-batchnorm/seed1\)'):
    rows(config, tmp_path, 'test_accuracy')
