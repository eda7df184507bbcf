import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest

from bnonly_jax import metrics

ROOT = pathlib.Path(__file__).parents[1]


def command(*arguments):
  return [sys.executable, '-m', 'bnonly_jax.main', *arguments]


def environment():
  return {**os.environ, 'XLA_FLAGS': '', 'JAX_PLATFORMS': 'cpu'}


def call(*arguments):
  return subprocess.run(command(*arguments), cwd=ROOT, env=environment(), capture_output=True,
                        text=True, check=False)


def digits(data_dir, workdir, *more, config='configs/digits.py:resnet8'):
  return (f'--config={config}', f'--config.data.dir={data_dir}',
          '--config.epochs=2', f'--workdir={workdir}', *more)


@pytest.mark.parametrize('more, message', [
    ('--config.optimizer.learning_rat=1', 'Did you mean --config.optimizer.learning_rate?'),
    ('--config.epochs=many', "--config.epochs=many: invalid literal for int()"),
    ('configs/digit.py', 'there is no file configs/digit.py. Allowed'),
    ('configs/digits.py:resnet9', "config.network is 'cifar_resnet9'; allowed are"),
    ('--config.train=batchnrom', "'batchnrom' is no group. Allowed are"),
    ('--config.data.name=cifar10', 'data.prepare --dataset=cifar10'),
    ('--wrokdir=x', "Unknown command line flag 'wrokdir'. Did you mean: workdir"),
    ('--config.data=digits', 'there is no such field. Allowed are --config.data.bad_images'),
    ('--epochs=3', 'a field of the config is set with --config.epochs=3'),
    ('config.epochs=3', "'config.epochs=3' is no flag"),
    ('--workdir=', '--config=FILE.py[:ARGUMENT] and --workdir=DIR are both needed'),
])
def test_a_mistake_is_one_line_fast_and_writes_nothing(data_dir, tmp_path, more, message):
  config = {'config': more} if more.startswith('configs/') else {}
  arguments = digits(data_dir, tmp_path / 'run', *([] if config else [more]), **config)
  seconds = []
  while not seconds or (seconds[-1] > 5 and len(seconds) < 3):  # a busy machine gets two more tries
    start = time.perf_counter()
    done = call(*arguments)
    seconds.append(time.perf_counter() - start)
  assert done.returncode not in (0, None) and done.stdout == ''
  (line,) = done.stderr.strip().splitlines()
  assert line.startswith('error: ') and message in line
  assert list(tmp_path.iterdir()) == []
  assert min(seconds) < 5


def test_help_explains_every_flag_and_field():
  done = call('--help')
  for text in ('--config:', '--workdir:', "--config.train='batchnorm'", '--config.data.pad=4',
               'python -m bnonly_jax.main'):
    assert text in done.stdout


def test_one_command_trains_and_the_same_command_again_shows_the_result(data_dir, tmp_path):
  first = call(*digits(data_dir, tmp_path / 'run'))
  assert first.returncode == 0, first.stderr
  result = json.loads((tmp_path / 'run/result.json').read_text())
  for text in ('gamma', 'frozen', 'images/s', 'left',
               f'test accuracy {result["test_accuracy"]:.4f}',
               f'untrained: {result["untrained_test_accuracy"]:.4f}', 'accuracy.png', 'gamma.png'):
    assert text in first.stdout
  again = call(*digits(data_dir, tmp_path / 'run'))
  assert again.returncode == 0 and 'finished' in again.stdout
  assert first.stdout.splitlines()[-2:] == again.stdout.splitlines()[-2:]


DIE = '''
import os
from bnonly_jax import checkpoint, command_line, main, train, workdir
real_save, real_write = checkpoint.save, workdir.write_json
def save(checkpointer, step, *rest):
  done = real_save(checkpointer, step, *rest)
  if step == {after_save}:
    os._exit(9)
  return done
def write_json(path, value):
  if path.name == {before_writing!r}:
    os._exit(9)
  real_write(path, value)
checkpoint.save, workdir.write_json = save, write_json
command_line.run(main.main, main.missing)
'''


@pytest.mark.parametrize('after_save, before_writing', [
    (11, ''), (22, ''), (0, 'parameters.json'), (0, 'result.json')])
def test_a_process_that_dies_loses_nothing(data_dir, tmp_path, whole, after_save, before_writing):
  arguments = digits(data_dir, tmp_path / 'run')
  code = DIE.format(after_save=after_save, before_writing=before_writing)
  died = subprocess.run([sys.executable, '-c', code, *arguments], cwd=ROOT, env=environment(),
                        capture_output=True, text=True, check=False)
  assert died.returncode == 9, died.stderr
  assert call(*arguments).returncode == 0
  assert same_run(tmp_path / 'run', whole)


@pytest.fixture(scope='module')
def whole(data_dir, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('whole') / 'run'
  assert call(*digits(data_dir, workdir)).returncode == 0
  return workdir


def same_run(one, other):
  """Whether two workdirs hold equal metrics and results, times aside."""
  def lines(workdir):
    return [{k: v for k, v in line.items() if not k.startswith('time_')}
            for line in metrics.read(workdir)]

  def result(workdir):
    values = json.loads((workdir / 'result.json').read_text())
    return {k: v for k, v in values.items() if k not in ('seconds', 'finished')}

  return lines(one) == lines(other) and result(one) == result(other)


def test_an_interrupt_is_one_line_and_the_run_goes_on(data_dir, tmp_path, whole):
  arguments = digits(data_dir, tmp_path / 'run')
  process = subprocess.Popen(command(*arguments), cwd=ROOT, env=environment(), text=True,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE)
  for line in process.stdout:
    if line.startswith('epoch 1/2'):
      process.send_signal(signal.SIGINT)
      break
  _, errors = process.communicate()
  assert process.returncode == 130
  assert errors.strip() == 'stopped; the same command goes on from the last checkpoint'
  assert call(*arguments).returncode == 0
  assert same_run(tmp_path / 'run', whole)


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_with_the_same_bits(data_dir, tmp_path):
  arguments = digits(data_dir, tmp_path / 'whole', '--config.epochs=150')
  assert call(*arguments).returncode == 0
  killed, kills = digits(data_dir, tmp_path / 'killed', '--config.epochs=150'), 0
  moments = random.Random(0)
  for _ in range(15):
    process = subprocess.Popen(command(*killed), cwd=ROOT, env=environment(),
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
      process.wait(moments.uniform(1, 7))
    except subprocess.TimeoutExpired:
      process.send_signal(signal.SIGKILL)
      kills += 1
    process.wait()
  assert call(*killed).returncode == 0 and kills > 7
  assert same_run(tmp_path / 'whole', tmp_path / 'killed')
