"""RESULTS.md and the runs that are kept: each number is drawn from them, each network loads."""

import pytest
from sweeps import load
from sweeps import ROOT

import bnonly_jax
from bnonly_jax.run import reading
from bnonly_jax.sweep.rows import rows

KEPT = ROOT / 'docs/runs'


def small_end():
  """The sweep that RESULTS.md leads with."""
  config, _ = load(ROOT / 'configs/figures/small_end.py', 'paper')
  config.seeds = 3
  config.base.data.name = 'cifar10_jpeg'
  return config


def tables(page):
  """The rows of a page's tables, each its cells by the names of their columns.

  Of RESULTS.md they are those that it leads with.
  """
  columns = None
  for line in (ROOT / page).read_text().partition('## What the paper reports')[0].splitlines():
    if not line.startswith('|'):
      columns = None
      continue
    cells = [cell.strip() for cell in line.split('|')[1:-1]]
    columns = columns or cells
    yield dict(zip(columns, cells, strict=True))


@pytest.mark.parametrize('panel', small_end().panels)
def test_the_results_are_those_of_the_runs_that_are_kept(panel):
  page = 'RESULTS.md' if panel == 'test_accuracy' else f'docs/runs/figures/small_end/{panel}.md'
  there = list(tables(page))
  found = [row for row in rows(small_end(), KEPT, panel) if row.runs]
  assert found
  for row in found:
    cells = {'': row.line, 'network': row.x, 'runs': str(row.runs), 'mean': f'{row.mean:.2f}',
             'standard deviation': '' if row.sd is None else f'{row.sd:.2f}'}
    if row.at is not None:
      cells['threshold'] = f'{row.at:g}'
    assert any(cells.items() <= of.items() for of in there), cells


@pytest.mark.parametrize('file', sorted(KEPT.glob('**/net.bnonly')),
                         ids=lambda file: str(file.parent.relative_to(KEPT)))
def test_kept_networks_load(file):
  result = reading.values(file.parent / 'result.json')
  trained = bnonly_jax.load(file)
  assert (trained.config.network, trained.step, trained.config.seed) == (
      result['network'], result['steps'], result['seed'])
  some = result['trained_parameters'] < result['parameters']  # a file of all does not say
  assert trained.trained_parameters == (result['trained_parameters'] if some else None)


@pytest.mark.parametrize('images, folder', [
    ('as they are', ''), ('once more at quality 75', 'jpeg_again/q75'),
    ('once more at quality 30', 'jpeg_again/q30')])
def test_the_jpeg_table_is_that_of_the_runs_that_are_kept(images, folder):
  row = next(row for row in tables('RESULTS.md') if row.get('images') == images)
  for line in ('all', 'BatchNorm'):
    result = reading.values(KEPT / folder / f'cifar_resnet14-{line.lower()}/seed0/result.json')
    assert row[line] == f"{100 * result['test_accuracy']:.1f}", line
