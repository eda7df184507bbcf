import csv
import errno
import json
import subprocess
import sys

import pytest
from sweeps import finish
from sweeps import make
from sweeps import ROOT
from sweeps import tear
from sweeps import texts

from bnonly_jax.config import UserError
from bnonly_jax.run import workdir as workdir_lib
from bnonly_jax.sweep import drawing
from bnonly_jax.sweep.compare import compare


def leave(workdir, line, depth=14, accuracies=(0.1, 0.3, 0.4), finished=True):
  """Writes what a run leaves that was evaluated before and after each of its epochs."""
  config = make()
  config.base.epochs = 2
  folder = finish(config, workdir, f'cifar_resnet{depth}-{line}/seed0', accuracies[-1])
  (folder / 'metrics.jsonl').write_text(''.join(json.dumps(
      {'step': 9 * i, 'epoch': float(i), 'test_accuracy': one}) + '\n'
      for i, one in enumerate(accuracies)))
  (folder / 'parameters.json').write_text('[{"trained": 1000}, {"trained": 120}]')
  if not finished:
    (folder / 'result.json').unlink()
  return folder


def test_runs_of_all_kinds_stand_side_by_side(tmp_path):
  paths = [leave(tmp_path, 'all'), leave(tmp_path, 'batchnorm', 32, (0.1, 0.2), finished=False)]
  path, shown, left_out = compare([*paths, paths[0]], tmp_path / 'out')
  assert sorted(file.name for file in path.parent.iterdir()) == [
      'runs.csv', 'runs.md', 'runs.png', 'runs.svg']
  assert path.read_bytes()[:4] == b'\x89PNG' and left_out == []
  drawn = texts(path.with_suffix('.svg'))
  assert 'cifar_resnet14-all/seed0: cifar_resnet14 on cifar10_jpeg, training all' in drawn
  assert 'training batchnorm (unfinished)' in drawn
  assert shown[0].curve == [(0, 10), (1, 30), (2, 40)] and shown[0].told == ''
  assert shown[1].told == f'{paths[1]}: unfinished; drawn up to epoch 1 of 2'
  lines = list(csv.DictReader(path.with_suffix('.csv').read_text().splitlines()))
  assert lines[0] == {
      'run': 'cifar_resnet14-all/seed0', 'network': 'cifar_resnet14', 'trains': 'all',
      'data': 'cifar10_jpeg', 'epochs': '2', 'trained parameters': '1120',
      'test accuracy, %': '40.0'}
  assert lines[1]['test accuracy, %'] == '' and len(lines) == 2
  assert '| cifar_resnet14 | all | cifar10_jpeg | 2 | 1120 | 40.00 |' in (
      path.with_suffix('.md').read_text())


def test_what_else_differs_has_a_column(tmp_path):
  paths = [leave(tmp_path / name, 'all') for name in 'ab']
  facts = json.loads((paths[1] / 'config.json').read_text())
  (paths[1] / 'config.json').write_text(json.dumps({**facts, 'seed': 7, 'log_every': 1}))
  path, _, _ = compare(paths, tmp_path / 'out')
  lines = list(csv.DictReader(path.with_suffix('.csv').read_text().splitlines()))
  assert [line['seed'] for line in lines] == ['0', '7'] and 'log_every' not in lines[0]


@pytest.mark.parametrize('harm, message', [
    (lambda folder: tear(folder / 'result.json'), 'result.json is damaged'),
    (lambda folder: tear(folder / 'config.json'), 'config.json there is not that of a run'),
    (lambda folder: (folder / 'config.json').unlink(), 'it holds no config.json'),
    (lambda folder: tear(folder / 'parameters.json'), 'parameters.json is damaged'),
    (lambda folder: (folder / 'metrics.jsonl').unlink(), 'it holds no evaluation yet'),
    (lambda folder: (folder / 'metrics.jsonl').write_text('{}\n{}\n'), r'is damaged .*\(line 1'),
    (lambda folder: folder.rename(folder.with_name('gone')), 'there is no such folder')])
def test_a_folder_that_cannot_be_shown_is_one_line(tmp_path, harm, message):
  good, bad = leave(tmp_path, 'all'), leave(tmp_path, 'batchnorm')
  harm(bad)
  _, shown, (said,) = compare([good, bad], tmp_path / 'out')
  assert len(shown) == 1 and said.startswith('left out: ') and '\n' not in said
  with pytest.raises(UserError, match=message) as error:
    compare([bad], tmp_path / 'none')
  assert '\n' not in str(error.value) and not (tmp_path / 'none').exists()


def full(*_):
  raise OSError(errno.ENOSPC, 'No space left on device')


def test_a_full_disk_is_one_line_and_leaves_what_was_drawn(tmp_path, monkeypatch):
  config, run = make(), leave(tmp_path, 'all')
  finish(config, tmp_path, 'cifar_resnet14-batchnorm/seed0', 0.4)
  draws = {'--workdir': lambda: drawing.draw(config, tmp_path)[0],
           '--output': lambda: compare([run], tmp_path / 'out')[0]}
  for flag, draw in draws.items():
    folder = draw().parent
    before = {file: file.read_bytes() for file in folder.iterdir()}
    with monkeypatch.context() as patch:
      patch.setattr(workdir_lib.os, 'fsync', full)
      with pytest.raises(UserError, match=fr'{flag}=.* cannot be written \(No space left') as error:
        draw()
    assert '\n' not in str(error.value)
    assert before == {file: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize('form', ['words', 'commas'])
def test_the_program_takes_several_folders(tmp_path, form):
  paths = [str(leave(tmp_path, line)) for line in ('all', 'batchnorm')]
  given = ['--runs', *paths] if form == 'words' else [f'--runs={",".join(paths)}']
  done = subprocess.run(
      [sys.executable, '-m', 'bnonly_jax.figures', *given, f'--output={tmp_path}/out'], cwd=ROOT,
      capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
  assert 'cifar_resnet14-batchnorm/seed0' in done.stdout and (tmp_path / 'out/runs.png').exists()


@pytest.mark.parametrize('arguments, message', [
    (['--runs', 'a', 'b'], '--runs needs --output=DIR'),
    (['--output=a'], '--output=a is of --runs'),
    (['--output=a', '--runs=a', '--workdir=b'], '--runs stands instead of --config and --workdir'),
    (['a', 'b'], "'a b' is no flag"),
    (['--output=a', '--runs', 'no/such', 'nor/this'], 'nothing can be drawn. left out: --runs')])
def test_a_mistake_is_one_line(arguments, message):
  done = subprocess.run([sys.executable, '-m', 'bnonly_jax.figures', *arguments], cwd=ROOT,
                        capture_output=True, text=True, check=False)
  (line,) = done.stderr.splitlines()
  assert done.returncode == 1 and line.startswith('error: ') and message in line
