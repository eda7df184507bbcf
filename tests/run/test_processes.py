"""Two processes of two simulated devices each, started as launch/local.sh starts them."""

import json
import os
import pathlib
import signal
import subprocess
import sys

from conftest import XLA_FLAGS
import jax
import numpy as np
import pytest
from tiny import last_state
from tiny import tiny_config
from tiny import without_times

from bnonly_jax import analysis
from bnonly_jax import train
from bnonly_jax.config import UserError
from bnonly_jax.run import processes
from bnonly_jax.run import reading

ROOT = pathlib.Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, 'PYTHON': sys.executable, 'DEVICES': '2', 'XLA_FLAGS': XLA_FLAGS,
               'PYTHONUNBUFFERED': '1'}
# Equal rates at any number of epochs, and small ones: rounding differs and training amplifies it.
FIELDS = {'optimizer.drops': (), 'optimizer.learning_rate': 1e-3, 'data.flip': True,
          'batch_size': 512, 'log_every': 1}


def flags_of(data_dir, workdir, **fields):
  fields = {**FIELDS, **fields}
  return ['--config=configs/digits.py:resnet8', f'--config.data.dir={data_dir}',
          f'--workdir={workdir}', '--config.eval_batch_size=100', '--config.optimizer.drops=()',
          *(f'--config.{name}={value}' for name, value in fields.items()
            if name != 'optimizer.drops')]


def start(*arguments, number=2):
  return subprocess.Popen(['launch/local.sh', str(number), *arguments], cwd=ROOT, text=True,
                          env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          start_new_session=True)


def finish(process, seconds=150):
  try:
    return process.communicate(timeout=seconds)[0]
  finally:
    if process.poll() is None:
      os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize('limit', [2.0, 0.0])  # resident, streamed
def test_two_processes_do_what_one_does_and_take_over_from_each_other(data_dir, tmp_path, limit):
  fields = {**FIELDS, 'data.resident_limit': limit}
  for epochs in (1, 2, 3):  # two processes, one, two
    if epochs == 2:
      train.train_and_evaluate(tiny_config(data_dir, epochs=2, **fields), tmp_path / 'run')
    else:
      process = start(*flags_of(data_dir, tmp_path / 'run', epochs=epochs,
                                **{'data.resident_limit': limit}))
      out = finish(process)
      assert process.returncode == 0, out
      assert out.count('test accuracy') == 1  # process 0 alone speaks
  straight = train.train_and_evaluate(tiny_config(data_dir, epochs=3, **fields), tmp_path / 'one')
  assert jax.device_count() == 4 and straight['processes'] == 1
  lines, expected = (without_times(reading.lines(tmp_path / name)) for name in ('run', 'one'))
  assert [line['step'] for line in lines] == [line['step'] for line in expected]
  for line, other in zip(lines, expected, strict=True):
    for name, value in line.items():
      # In float32 the order of a sum may put a ReLU to its other side, on some kinds of CPU.
      np.testing.assert_allclose(value, other[name], rtol=3e-4, err_msg=f'{name} {line["step"]}')
  for a, b in zip(last_state(tmp_path / 'run'), last_state(tmp_path / 'one'), strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=3e-4)


DIGESTS = '''
import os, pathlib, sys
from bnonly_jax import command_line, main
from bnonly_jax.run import checkpoint
real = checkpoint.save
def save(checkpointer, step, state, *rest):
  import jax
  import numpy as np
  digest = checkpoint._digest(jax.tree.map(np.array, state), [])
  path = pathlib.Path(os.environ['DIGESTS']) / f'{step}-{jax.process_index()}'
  path.write_text(digest)
  return real(checkpointer, step, state, *rest)
checkpoint.save = save
command_line.run(main.main, main.missing)
'''


@pytest.mark.slow
def test_both_processes_hold_the_same_bits(data_dir, tmp_path):
  # A stand-in for python that runs main with checkpoint.save wrapped.
  (tmp_path / 'wrapped_main.py').write_text(DIGESTS)
  python = tmp_path / 'python'
  python.write_text(f'#!/bin/sh\nif [ "$1" = -m ]; then shift 2; exec {sys.executable}'
                    f' {tmp_path}/wrapped_main.py "$@"; fi\nexec {sys.executable} "$@"\n')
  python.chmod(0o755)
  (tmp_path / 'digests').mkdir()
  process = subprocess.Popen(
      ['launch/local.sh', '2', *flags_of(data_dir, tmp_path / 'run', epochs=3, batchnorm_images=128,
                                         **{'optimizer.learning_rate': 0.1})],
      cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
      env={**ENVIRONMENT, 'PYTHON': str(python), 'PYTHONPATH': str(ROOT),
           'DIGESTS': str(tmp_path / 'digests')})
  out = finish(process)
  assert process.returncode == 0, out
  found = {p.name: p.read_text() for p in (tmp_path / 'digests').iterdir()}
  assert sorted(found) == ['2-0', '2-1', '4-0', '4-1', '6-0', '6-1']
  for step in (2, 4, 6):
    assert found[f'{step}-0'] == found[f'{step}-1']
  assert len(set(found.values())) == 3


def until(process, text):
  lines = []
  for line in process.stdout:
    lines.append(line)
    if text in line:
      return
  raise AssertionError(''.join(lines))


def children(process):
  listed = subprocess.run(['pgrep', '-P', str(process.pid), '-f', 'bnonly_jax.main'],
                          capture_output=True, text=True, check=True)
  return [int(pid) for pid in listed.stdout.split()]


@pytest.mark.slow
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_both_write_one_checkpoint_and_go_on(data_dir, tmp_path, number):
  arguments = flags_of(data_dir, tmp_path / 'run', epochs=4000, checkpoint_every=4000)
  process = start(*arguments)
  until(process, 'epoch 3/')
  os.kill(children(process)[1], number)
  out = finish(process)
  assert process.returncode == 143, out
  (checkpoint,) = (tmp_path / 'run/checkpoints').iterdir()
  process = start(*arguments)
  until(process, f'going on after step {checkpoint.name} of 8000')
  os.killpg(process.pid, signal.SIGKILL)
  process.wait()


@pytest.mark.slow
@pytest.mark.parametrize('victim', [0, 1])
def test_when_one_dies_the_other_ends_and_both_go_on(data_dir, tmp_path, victim):
  arguments = flags_of(data_dir, tmp_path / 'run', epochs=4000)
  process = start(*arguments)
  until(process, 'epoch 3/')
  os.kill(children(process)[victim], signal.SIGKILL)
  out = finish(process)
  assert process.returncode not in (0, None), out
  process = start(*arguments)
  until(process, 'going on after step')
  until(process, 'epoch')
  os.killpg(process.pid, signal.SIGKILL)
  process.wait()


def test_a_peer_that_does_not_come_is_one_line(data_dir, tmp_path):
  done = subprocess.run(
      [sys.executable, '-m', 'bnonly_jax.main', *flags_of(data_dir, tmp_path / 'run'),
       '--coordinator=localhost:29517', '--processes=2', '--process=0', '--start_timeout=2'],
      cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=60)
  assert done.returncode == 1 and not (tmp_path / 'run').exists()
  assert 'error: the processes at localhost:29517 did not come together within 2 s' in done.stderr


def differing(data_dir, first, second, *common):
  """Starts two processes with one flag each of their own; returns what they said."""
  command = [sys.executable, '-m', 'bnonly_jax.main', '--coordinator=localhost:29518',
             '--processes=2', *common]
  pair = [subprocess.Popen([*command, f'--process={i}', flag], cwd=ROOT, env=ENVIRONMENT, text=True,
                           stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
          for i, flag in enumerate((first, second))]
  outs = [finish(process, 60) for process in pair]
  assert all(process.returncode == 1 for process in pair), outs
  return outs


def test_processes_of_different_configs_are_refused(data_dir, tmp_path):
  for out in differing(data_dir, '--config.seed=0', '--config.seed=1',
                       *flags_of(data_dir, tmp_path / 'run')):
    assert 'error: process 1 has another config than process 0' in out
  assert not (tmp_path / 'run').exists()


def test_a_workdir_that_is_not_shared_is_refused(data_dir, tmp_path):
  for out in differing(data_dir, f'--workdir={tmp_path}/a', f'--workdir={tmp_path}/b',
                       *flags_of(data_dir, tmp_path / 'a')):
    assert 'is not one folder for all processes: process 1 does not see' in out


@pytest.mark.parametrize('environment, name', [
    ({}, ''), ({'SLURM_JOB_ID': '7'}, ''), ({'SLURM_JOB_ID': '7', 'SLURM_STEP_NUM_TASKS': '1'}, ''),
    ({'SLURM_JOB_ID': '7', 'SLURM_STEP_NUM_TASKS': '4'}, 'Slurm'),
    ({'OMPI_COMM_WORLD_SIZE': '2'}, 'Open MPI'), ({'OMPI_COMM_WORLD_SIZE': '1'}, ''),
    ({'KUBERNETES_SERVICE_HOST': 'x', 'JOB_COMPLETION_INDEX': '0'}, 'Kubernetes'),
    ({'KUBERNETES_SERVICE_HOST': 'x'}, ''), ({'TPU_WORKER_HOSTNAMES': 'a,b'}, 'Cloud TPU'),
    ({'TPU_WORKER_HOSTNAMES': 'localhost'}, '')])
def test_a_cluster_is_recognised(environment, name):
  assert processes.cluster(environment) == name


@pytest.mark.parametrize('flags', [{'coordinator': 'a:1'}, {'number': 2}, {'index': 0},
                                   {'coordinator': 'a:1', 'number': 2, 'index': 2}])
def test_half_of_the_flags_is_an_error(flags):
  with pytest.raises(UserError, match='Give all three'):
    processes.initialize({}, **flags)


def test_processes_that_jax_cannot_find_are_told(monkeypatch):
  def fail(**_):
    raise ValueError('coordinator_address should be defined.')

  monkeypatch.setattr(processes.jax.distributed, 'initialize', fail)
  with pytest.raises(UserError, match='in the cluster .Kubernetes. cannot be joined .coordinator'):
    processes.initialize({'KUBERNETES_SERVICE_HOST': 'x', 'JOB_COMPLETION_INDEX': '0'})


def test_told_to_stop_between_two_runs_the_second_stops(monkeypatch):
  numbers = []
  monkeypatch.setattr(processes.jax, 'process_count', lambda: 2)
  monkeypatch.setattr(processes.multihost_utils, 'reached_preemption_sync_point', numbers.append)
  for _ in range(2):  # runs of a sweep, of two steps each: no number comes again
    processes.preempted(), processes.preempted()
  assert numbers == list(range(numbers[0], numbers[0] + 4))


def test_one_process_agrees_with_itself(tmp_path):
  processes.require_equal('config', {})
  processes.require_shared(tmp_path)
  assert processes.on_main(lambda: 3) == 3 and not processes.preempted()


@pytest.mark.slow
def test_two_processes_do_a_sweep_and_write_its_analyses_once(data_dir, tmp_path):
  process = subprocess.Popen(
      ['launch/local.sh', '2', '--config=configs/figures/silent_relus.py:smoke', '--config.seeds=1',
       f'--workdir={tmp_path}', f'--config.base.data.dir={data_dir}', '--config.base.epochs=1'],
      cwd=ROOT, text=True, env={**ENVIRONMENT, 'PROGRAM': 'bnonly_jax.sweep'},
      stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
  out = finish(process)
  assert process.returncode == 0, out
  assert out.count('[1/2] cifar_resnet8-all/seed0') == 1  # process 0 alone speaks
  for train_what in ('all', 'batchnorm'):
    folder = tmp_path / f'cifar_resnet8-{train_what}/seed0'
    one_process = analysis.analyse(folder, data_dir=str(data_dir))
    # From float32 sums over other numbers of devices.
    assert json.loads((folder / 'result.json').read_text())['test_accuracy'] == pytest.approx(
        one_process['thresholds'][0]['test_accuracy'], abs=1e-6)


TELL = '''
import sys
from bnonly_jax.config import UserError
from bnonly_jax.run import processes
processes.initialize({}, 'localhost:29519', 2, int(sys.argv[1]))
for length in (0, 100, 65_521, 65_522, 200_000):  # of which the JSON around makes 15 more
  assert processes.on_main(lambda: length * 'x') == length * 'x', length
try:
  processes.on_main(lambda: [][300_000 * ' '])
except UserError as error:
  assert 'process 0 failed: TypeError' in str(error)
def fail():
  raise UserError(100_000 * 'y')
try:
  processes.on_main(fail)
except UserError as error:
  print(len(str(error)))
'''


def test_a_message_of_any_length_reaches_all():
  pair = [subprocess.Popen([sys.executable, '-c', TELL, str(i)], cwd=ROOT, env=ENVIRONMENT,
                           text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
          for i in range(2)]
  outs = [finish(process, 60) for process in pair]
  assert [out.splitlines()[-1] for out in outs] == ['100000', '100000'], outs
  assert all(process.returncode == 0 for process in pair)
