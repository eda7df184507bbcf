import csv
import json
import re
import xml.etree.ElementTree

import pytest

from bnonly_jax import figures
from bnonly_jax import paper
from bnonly_jax import sweep
from bnonly_jax import sweep_config

NETWORKS = {14: 'cifar_resnet14', 32: 'cifar_resnet32'}


def make(panels=('test_accuracy',), words=False, scale='short'):
  points = [sweep_config.Point(line, f'ResNet-{depth}' if words else depth,
                               {'network': network, 'train': line})
            for line in ('all', 'batchnorm') for depth, network in NETWORKS.items()]
  points.append(sweep_config.Point('level', None, {'network': 'cifar_resnet14', 'train': 'output'}))
  return sweep_config.sweep('drawn', 'Drawn & told', scale, 'depth', points, panels, seeds=2)


def finish(config, workdir, name, accuracy, analysis=None, **more):
  (run,) = [run for run in sweep.runs(config, workdir) if run.name == name]
  run.workdir.mkdir(parents=True)
  result = {'test_accuracy': accuracy, 'test_top5_accuracy': accuracy, 'diverged': False,
            'epochs': config.base.epochs, 'steps': 9, 'untrained_test_accuracy': 0.1,
            'trained_parameters': 1120, 'devices': 1, 'device_kind': 'cpu',
            'versions': {'jax': '1.2.3'}, **more}
  (run.workdir / 'result.json').write_text(json.dumps(result))
  (run.workdir / 'metrics.jsonl').write_text(
      '{"step": 9, "epoch": 7.5, "train_accuracy": 0.6, "time_seconds": 60}\n')
  if analysis:
    (run.workdir / 'analysis.json').write_text(json.dumps(
        {'step': 9, 'gamma': None, **analysis}))


def texts(path):
  return ' '.join(re.findall(r'<!-- (.*?) -->', path.read_text()))  # matplotlib names its texts


def test_rows_have_mean_spread_and_the_papers_value(tmp_path):
  config = make()
  finish(config, tmp_path, 'cifar_resnet14-batchnorm/seed0', 0.4)
  finish(config, tmp_path, 'cifar_resnet14-batchnorm/seed1', 0.44)
  finish(config, tmp_path, 'cifar_resnet32-batchnorm/seed0', 0.5)
  finish(config, tmp_path, 'cifar_resnet14-all/seed0', None, diverged=True)
  by_point = {(row.line, row.x): row for row in figures.rows(config, tmp_path, 'test_accuracy')}
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
  means = [row.mean for row in figures.rows(config, tmp_path, 'train_accuracy')
           if row.mean is not None]
  assert means == pytest.approx([(5 * 20 + 1 * 80) / 6])


def test_what_is_missing_is_said_and_not_drawn_as_zero(tmp_path):
  config = make()
  finish(config, tmp_path, 'cifar_resnet14-batchnorm/seed0', 0.4)
  report, _ = figures.draw(config, tmp_path)
  folder = report.parent
  assert (folder / 'test_accuracy.png').read_bytes()[:4] == b'\x89PNG'
  drawn = texts(folder / 'test_accuracy.svg')
  xml.etree.ElementTree.parse(folder / 'test_accuracy.svg')
  assert 'batchnorm (not run: 32)' in drawn and 'all (not run)' in drawn
  assert 'level (not run)' in drawn and 'the paper, its full recipe' in drawn
  lines = list(csv.DictReader((folder / 'test_accuracy.csv').read_text().splitlines()))
  assert [line['mean'] for line in lines] == ['', '', '40.0', '', '']
  assert lines[2]['difference'] == repr(40.0 - 47.8)
  table = (folder / 'test_accuracy.md').read_text()
  assert '| batchnorm | 14 | 1 | 1 | 40.00 | 47.80 | -7.80 |' in table
  assert '| all | 32 | 0 | 2 | missing | 92.30 |  |' in table
  page = report.read_text()
  assert 'Drawn &amp; told' in page and 'jax 1.2.3' in page and '1 done, 9 missing' in page
  assert not re.search(r'(src|href)="(?!data:)', page)


def test_smoke_has_no_values_of_the_papers(tmp_path):
  assert {row.paper for row in figures.rows(make(scale='smoke'), tmp_path, 'test_accuracy')} == {
      None}


def test_the_paper_has_values_for_its_own_settings_only():
  point = {'network': 'cifar_resnet866', 'train': 'batchnorm'}
  assert paper.value('test_accuracy', point) == 82
  assert paper.value('test_accuracy', {**point, 'norm': 'group'}) is None
  assert paper.value('test_accuracy', {**point, 'train': 'random:2'}) is None
  assert paper.value('train_accuracy', point) is None
  assert paper.value('test_top5_accuracy',
                     {'network': 'imagenet_resnet200', 'train': 'batchnorm'}) == 32


def test_panels_of_the_analysis(tmp_path):
  config = make(('gamma', 'small_gammas', 'zeroed', 'silent_relus'), words=True)
  quantiles = {f'q{q}': q / 100 for q in (5, 25, 50, 75, 95)}
  for seed, below in enumerate((0.2, 0.4)):
    finish(config, tmp_path, f'cifar_resnet14-batchnorm/seed{seed}', 0.4, analysis={
        'gamma': {'bins': [-1, 0, 1, 2], 'all': {
            'below_0.01': below, 'below_0.05': 0.5, 'below_0.1': 0.6, 'histogram': [0, 3, 1],
            **quantiles}},
        'thresholds': [{'threshold': 0.0, 'test_accuracy': 0.4},
                       {'threshold': 0.05, 'test_accuracy': 0.3}],
        'relus': {'all': {'silent_share': 0.25}}})

  def means(panel):
    return {row.at: row.mean for row in figures.rows(config, tmp_path, panel)
            if (row.line, row.x) == ('batchnorm', 'ResNet-14')}

  assert means('small_gammas') == pytest.approx({0.01: 30, 0.05: 50, 0.1: 60})
  assert means('zeroed') == pytest.approx({0.0: 40, 0.05: 30})
  assert means('silent_relus') == {None: 25}
  assert means('gamma') == pytest.approx({5: 0.05, 25: 0.25, 50: 0.5, 75: 0.75, 95: 0.95})
  folder = figures.draw(config, tmp_path)[0].parent
  for panel in config.panels:
    assert 'all (not run' in texts(folder / f'{panel}.svg'), panel
  assert 'share of the gammas in a bin (%)' in texts(folder / 'gamma.svg')


def test_an_analysis_of_an_earlier_step_does_not_count(tmp_path):
  config = make(('silent_relus',))
  for seed, step in enumerate((9, 4)):
    finish(config, tmp_path, f'cifar_resnet14-batchnorm/seed{seed}', 0.4, analysis={
        'step': step, 'relus': {'all': {'silent_share': 0.1 * step}}})
  (row,) = [row for row in figures.rows(config, tmp_path, 'silent_relus')
            if (row.line, row.x) == ('batchnorm', 14)]
  assert (row.mean, row.runs, row.missing) == (pytest.approx(90), 1, 1)


def test_replicates_count_each(tmp_path):
  config = make()
  config.base.replicates = 2
  finish(config, tmp_path, 'cifar_resnet14-batchnorm/seed0', 0.5, replicates=[
      {'seed': seed, 'test_accuracy': 0.4 + 0.2 * seed} for seed in range(2)])
  by_point = {(row.line, row.x): row for row in figures.rows(config, tmp_path, 'test_accuracy')}
  row = by_point['batchnorm', 14]
  assert (row.runs, row.missing, row.mean) == (2, 0, pytest.approx(50))
  assert row.sd == pytest.approx(20 / 2 ** 0.5) and by_point['all', 14].missing == 2


def test_the_papers_values_stand_beside_its_own_setting_only(tmp_path):
  def published(config):
    return {row.paper for row in figures.rows(config, tmp_path, 'test_accuracy')}

  config = make()
  assert 47.8 in published(config)
  config.base.norm = 'group'
  assert published(config) == {None}
  config = make()
  config.base.data.name = 'svhn_cropped'
  assert published(config) == {None}


def test_the_title_names_the_data_sets_of_the_points():
  config = make()
  with config.unlocked():
    config.points = tuple(
        sweep_config.Point(point.line, point.x, {**point.changes, 'data.name': 'cifar100'})
        for point in config.points)
  assert figures.source(config) == '10% of cifar100, 8 epochs, 2 seeds'
