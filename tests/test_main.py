import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time
import types

from conftest import XLA_FLAGS
from orbax.checkpoint import v1 as ocp
import pytest

from bnonly_jax import command_line
from bnonly_jax.run import reading

ROOT = pathlib.Path(__file__).parents[1]


def command(*arguments):
  return [sys.executable, '-m', 'bnonly_jax.main', *arguments]


def environment():
  return {**os.environ, 'XLA_FLAGS': XLA_FLAGS, 'JAX_PLATFORMS': 'cpu'}


def call(*arguments):
  return subprocess.run(command(*arguments), cwd=ROOT, env=environment(), capture_output=True,
                        text=True, check=False)


def digits(data_dir, workdir, *more, config='configs/digits.py:resnet8'):
  return (f'--config={config}', f'--config.data.dir={data_dir}',
          '--config.epochs=2', f'--workdir={workdir}', *more)


@pytest.mark.parametrize('more, message', [
    ('--config.optimizer.learning_rat=1', 'Did you mean --config.optimizer.learning_rate?'),
    ('--config.epochs=many', "--config.epochs=many: allowed is an integer, as in"),
    ('configs/digit.py', 'configs/digit.py is no file. Did you mean configs/digits.py? Allowed'),
    ('configs/digits.py:resnet9', "config.network is 'cifar_resnet9'; allowed are"),
    ('--config.train=batchnrom', "'batchnrom' is no group. Allowed are"),
    ('--config.data.name=cifar10', 'data.prepare --dataset=cifar10 --download'),
    ('--wrokdir=x', "Unknown command line flag 'wrokdir'. Did you mean: workdir"),
    ('--config.data=digits', 'each field of it has a flag of its own. Allowed are --config.d'),
    ('--epochs=3', 'a field of the config is set with --config.epochs=3'),
    ('config.epochs=3', "'config.epochs=3' is no flag"),
    ('configs/cifar10.py:resnet15', "config.network is 'cifar_resnet15'; allowed are"),
    ('--workdir=', '--config=FILE.py[:ARGUMENT] and --workdir=DIR are both needed'),
])
def test_a_mistake_is_one_line_and_writes_nothing(data_dir, tmp_path, more, message):
  config = {'config': more} if more.startswith('configs/') else {}
  arguments = digits(data_dir, tmp_path / 'run', *([] if config else [more]), **config)
  done = call(*arguments)
  assert done.returncode not in (0, None) and done.stdout == ''
  (line,) = done.stderr.strip().splitlines()
  assert line.startswith('error: ') and message in line
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('program, arguments, message', [
    ('data.show', ['--config=configs/digits.py'], '--config=FILE.py[:ARGUMENT] and --out=DIR are'),
    ('data.prepare', [], '--dataset=NAME is needed: digits, cifar10_jpeg or a TFDS name'),
    ('data.prepare', ['cifar 10'], "'cifar 10' is no flag. Write --FLAG=VALUE"),
    ('benchmark', ['step', '--config=configs/digits.py', '--out=none/x.json'],
     '--out=none/x.json cannot be written; allowed is a file in a folder that there is'),
])
def test_a_mistake_of_another_program_is_one_line(program, arguments, message):
  done = subprocess.run([sys.executable, '-m', f'bnonly_jax.{program}', *arguments], cwd=ROOT,
                        env=environment(), capture_output=True, text=True, check=False)
  assert done.returncode == 1 and done.stdout == ''
  (line,) = done.stderr.strip().splitlines()
  assert line.startswith('error: ') and message in line
  assert not any((ROOT / name).exists() for name in ('train.png', 'eval.png'))


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
               'digits/1.0.0: train: 1,437 images in 10 classes; test: 360 images\n',
               f'test accuracy {result["test_accuracy"]:.4f}',
               f'untrained: {result["untrained_test_accuracy"]:.4f}', 'accuracy.png', 'gamma.png'):
    assert text in first.stdout
  again = call(*digits(data_dir, tmp_path / 'run'))
  assert again.returncode == 0 and 'finished' in again.stdout
  assert first.stdout.splitlines()[-2:] == again.stdout.splitlines()[-2:]


@pytest.mark.parametrize('platforms, installed, kept', [
    ('', '', True), ('cpu', 'libtpu', True), ('cuda,cpu', '', False), ('', 'jax_plugins', False),
    ('', 'libtpu', False), ('', 'entry point', False)])
def test_malloc_is_told_to_keep_memory_where_the_cpu_trains(monkeypatch, platforms, installed,
                                                             kept):
  told = []
  monkeypatch.setenv('JAX_PLATFORMS', platforms)
  monkeypatch.setattr(command_line.sys, 'platform', 'linux')
  monkeypatch.setattr(command_line.ctypes, 'CDLL', lambda _: types.SimpleNamespace(
      mallopt=lambda *arguments: told.append(arguments)))
  monkeypatch.setattr(command_line.importlib.util, 'find_spec', lambda name: name == installed)
  monkeypatch.setattr(command_line.importlib.metadata, 'entry_points',
                      lambda group: ['cuda'] if installed == 'entry point' else [])
  command_line.keep_freed_memory()
  assert len(told) == (4 if kept else 0)


@pytest.mark.slow
def test_a_run_that_diverges_has_an_exit_code_of_its_own(data_dir, tmp_path):
  arguments = digits(data_dir, tmp_path / 'run', '--config.optimizer.learning_rate=1e12',
                     '--config.optimizer.warmup_epochs=0', '--config.log_every=1')
  for said in ('diverged: step', 'holds this run, finished'):
    done = call(*arguments)
    assert done.returncode == 3 and said in done.stdout and done.stderr == '', done.stderr


DIE = '''
import os
from bnonly_jax import command_line, main, train
from bnonly_jax.run import checkpoint, workdir
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
    pytest.param(11, '', marks=pytest.mark.slow), (22, ''),
    pytest.param(0, 'parameters.json', marks=pytest.mark.slow),
    pytest.param(0, 'result.json', marks=pytest.mark.slow)])
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
            for line in reading.lines(workdir)]

  def result(workdir):
    values = json.loads((workdir / 'result.json').read_text())
    return {k: v for k, v in values.items() if k not in ('seconds', 'finished')}

  return lines(one) == lines(other) and result(one) == result(other)


@pytest.mark.slow
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
@pytest.mark.parametrize('number, code', [
    (signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_step_and_leaves_a_checkpoint(data_dir, tmp_path, number, code):
  fields = ('--config.epochs=12', '--config.checkpoint_every=12', '--config.log_every=7')
  arguments = digits(data_dir, tmp_path / 'run', *fields)
  process = subprocess.Popen(command(*arguments), cwd=ROOT, env=environment(), text=True,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE)
  for line in process.stdout:
    if line.startswith('epoch 3/'):
      break
  time.sleep(random.uniform(0, 0.2))
  process.send_signal(number)
  out, errors = process.communicate()
  assert process.returncode == code, errors
  assert 'asked to stop' in out
  (checkpoint,) = (tmp_path / 'run/checkpoints').iterdir()
  assert call(*arguments).returncode == 0
  assert call(*digits(data_dir, tmp_path / 'whole', *fields)).returncode == 0
  assert same_run(tmp_path / 'run', tmp_path / 'whole')


def test_a_signal_before_the_first_step_ends_at_once(data_dir, tmp_path):
  process = subprocess.Popen(command(*digits(data_dir, tmp_path / 'run')), cwd=ROOT,
                             env=environment(), text=True, stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE)
  while not (tmp_path / 'run/metrics.jsonl').exists() and process.poll() is None:
    time.sleep(0.01)
  process.send_signal(signal.SIGTERM)
  process.communicate()
  assert process.returncode in (143, -signal.SIGTERM)
  assert not list((tmp_path / 'run').glob('checkpoints/*'))


@pytest.mark.skipif(os.geteuid() != 0, reason='mounts a small file system, as root only can')
@pytest.mark.slow
def test_a_full_disk_is_told_and_the_run_goes_on_where_there_is_room(data_dir, tmp_path):
  disk = tmp_path / 'disk'
  disk.mkdir()
  mount = subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=3m', 'tmpfs', disk], check=False)
  if mount.returncode:
    pytest.skip('cannot mount a small file system here')
  try:
    arguments = digits(data_dir, disk / 'run', '--config.epochs=12', '--config.train=all',
                       '--config.checkpoint_keep=99')
    full = call(*arguments)
    assert full.returncode == 1, full.stdout + full.stderr
    (said,) = full.stderr.splitlines()
    assert said.startswith('error: ') and 'cannot be written (No space left on device' in said
    assert not (disk / 'run/result.json').exists()
    subprocess.run(['mount', '-o', 'remount,size=60m', disk], check=True)
    done = call(*arguments)
    assert done.returncode == 0 and 'going on after step' in done.stdout, done.stderr
  finally:
    subprocess.run(['umount', '-l', disk], check=True)
  whole = digits(data_dir, tmp_path / 'whole', '--config.epochs=12', '--config.train=all')
  assert call(*whole).returncode == 0
  result = json.loads((tmp_path / 'whole/result.json').read_text())
  assert f'test accuracy {result["test_accuracy"]:.4f}' in done.stdout


KILLER = """
import os, pathlib, random, signal, sys, time
from bnonly_jax import command_line, main, train  # once for all: a child starts with it all there
import tensorflow_datasets
workdir = pathlib.Path(next(a for a in sys.argv if a.startswith('--workdir=')).split('=')[1])
newest = lambda: max((int(path.name) for path in workdir.glob('checkpoints/*')
                      if path.name.isdigit()), default=0)
kills, random = 0, random.Random(0)
for number in range(100):
  before, pid = newest(), os.fork()
  if not pid:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(1, 2)
    sys.argv[0] = 'main'
    command_line.run(main.main, main.missing)
  alive = lambda: os.waitpid(pid, os.WNOHANG) == (0, 0)
  while number % 5 and newest() <= before and alive():  # every fifth dies at its start
    time.sleep(0.002)
  time.sleep(random.uniform(0, 0.3 if number % 5 else 1))
  try:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    kills += 1
  except (ProcessLookupError, ChildProcessError):
    break  # it has finished
print(kills)
"""


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_with_the_same_bits(data_dir, tmp_path):
  # Most kills come in the middle of steps, saves and evaluations, and some before.
  fields = ('--config.epochs=150', '--config.checkpoint_every_steps=5', '--config.log_every=4')
  whole, killed = (digits(data_dir, tmp_path / name, *fields) for name in ('whole', 'killed'))
  assert call(*whole).returncode == 0
  done = subprocess.run([sys.executable, '-c', KILLER, *killed], cwd=ROOT, env=environment(),
                        capture_output=True, text=True, check=True)
  assert int(done.stdout) > 40
  assert call(*killed).returncode == 0
  assert same_run(tmp_path / 'whole', tmp_path / 'killed')
  state = [sorted(p for p in (tmp_path / name / 'checkpoints').iterdir())[-1]
           for name in ('whole', 'killed')]
  assert state[0].name == state[1].name
  first, second = (ocp.metadata(path).custom_metadata['sha256'] for path in state)
  assert first == second
