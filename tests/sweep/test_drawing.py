import csv
import html
import re
import xml.etree.ElementTree

import pytest
from sweeps import finish
from sweeps import make
from sweeps import set_fields
from sweeps import tear
from sweeps import texts

from bnonly_jax.config import UserError
from bnonly_jax.sweep.drawing import draw
from bnonly_jax.sweep.rows import rows


def test_what_is_missing_is_said_and_not_drawn_as_zero(tmp_path):
  config = make()
  finish(config, tmp_path, 'cifar_resnet14-batchnorm/seed0', 0.4)
  report, _ = draw(config, tmp_path)
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
    return {row.at: row.mean for row in rows(config, tmp_path, panel)
            if (row.line, row.x) == ('batchnorm', 'ResNet-14')}

  assert means('small_gammas') == pytest.approx({0.01: 30, 0.05: 50, 0.1: 60})
  assert means('zeroed') == pytest.approx({0.0: 40, 0.05: 30})
  assert means('silent_relus') == {None: 25}
  assert means('gamma') == pytest.approx({5: 0.05, 25: 0.25, 50: 0.5, 75: 0.75, 95: 0.95})
  folder = draw(config, tmp_path)[0].parent
  for panel in config.panels:
    assert 'all (not run' in texts(folder / f'{panel}.svg'), panel
  assert 'share of the gammas in a bin (%)' in texts(folder / 'gamma.svg')


@pytest.mark.parametrize('field, value, reason', [
    ('optimizer.learning_rate', 5.0,
     r'\(1 other, 9 missing\).*1 of 10 runs are of another experiment: optimizer.learning_rate ='
     ' 0.1 there and 5.0 here'),
    ('epochs', 9, r'\(1 stopped, 9 missing\).*1 of 10 runs are finished after fewer epochs, from'
     ' which they can go on: epochs = 8 there and 9 here')])
def test_other_runs_leave_what_is_drawn_untouched(tmp_path, field, value, reason):
  config = make()
  finish(config, tmp_path, 'cifar_resnet14-batchnorm/seed0', 0.4)
  folder = draw(config, tmp_path)[0].parent
  drawn = {file.name: file.read_bytes() for file in folder.iterdir()}
  assert len(drawn) == 5
  config.base.update_from_flattened_dict({field: value})
  with pytest.raises(UserError, match=reason) as error:
    draw(config, tmp_path)
  assert '\n' not in str(error.value)
  assert {file.name: file.read_bytes() for file in folder.iterdir()} == drawn


def test_runs_of_another_experiment_are_left_out_and_counted(tmp_path, capsys):
  config = make()
  finish(config, tmp_path, 'cifar_resnet14-batchnorm/seed0', 0.4)
  folder = finish(config, tmp_path, 'cifar_resnet14-batchnorm/seed1', 0.9)
  set_fields(folder / 'config.json', norm='layer')
  report, panels = draw(config, tmp_path)
  assert panels['test_accuracy'][2][3:6] == (1, 1, 40)  # one run, one missing, the mean
  said = "1 of 10 runs are of another experiment: norm = 'layer' there and 'batch' here"
  assert f'left out: {said}' in capsys.readouterr().out
  assert f'Left out: {html.escape(said)}' in report.read_text()


def test_what_cannot_be_drawn_is_told_before_anything_is_written(tmp_path):
  config = make()
  with pytest.raises(UserError, match=r'no finished run of this sweep \(10 missing\)'):
    draw(config, tmp_path)
  folder = finish(config, tmp_path, 'cifar_resnet14-batchnorm/seed0', 0.4)
  with pytest.raises(UserError, match='is the folder of one run'):
    draw(config, folder)
  with pytest.raises(UserError, match='there is no such folder'):
    draw(config, tmp_path / 'new')
  finish(config, tmp_path, 'cifar_resnet14-batchnorm/seed1', 0.4)
  tear(folder / 'result.json')
  with pytest.raises(UserError, match='result.json is damaged'):
    draw(config, tmp_path)
  assert not (tmp_path / 'figures').exists() and not (folder / 'figures').exists()
