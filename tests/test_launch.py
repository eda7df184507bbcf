"""The launch scripts, run against stand-ins that record how they are called."""

import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest
from test_main import environment

LAUNCH = pathlib.Path(__file__).parents[1] / 'launch'
# Records its arguments, and answers with the first that is left for such arguments.
STUB = f'''#!{sys.executable}
import json, os, pathlib, shlex, sys
folder, name = pathlib.Path(os.environ['STUBS']), os.path.basename(sys.argv[0])
with open(folder / 'calls', 'a') as file:
  file.write(json.dumps([name, *sys.argv[1:]]) + chr(10))
answers = json.loads((folder / 'answers').read_text())
for answer in answers:
  program, part, code, text = answer
  if program == name and part in ' '.join(sys.argv[1:]):
    answers.remove(answer)
    (folder / 'answers').write_text(json.dumps(answers))
    print(text, end=chr(10) if text else '')
    sys.exit(code)
'''


@pytest.fixture
def stubs(tmp_path):
  for name in ('gcloud', 'srun', 'scontrol', 'sleep'):
    (tmp_path / name).write_text(STUB)
    (tmp_path / name).chmod(0o755)
  return tmp_path


def run(stubs, script, *arguments, answers=(), **environment):
  """Runs a script; `answers` are (program, part of its arguments, exit code, output) in turn."""
  (stubs / 'answers').write_text(json.dumps(answers))
  (stubs / 'calls').write_text('')
  done = subprocess.run(
      [LAUNCH / script, *arguments], capture_output=True, text=True, timeout=60, check=False,
      env={'PATH': f'{stubs}:{os.environ["PATH"]}', 'STUBS': str(stubs), 'HOME': str(stubs),
           'WAIT': '0', **environment})
  return done, [json.loads(line) for line in (stubs / 'calls').read_text().splitlines()]


POD = {'NAME': 'bn', 'ZONE': 'us-west4-a', 'PROJECT': 'mine'}
STATE = 'queued-resources describe'


SHELLCHECK = shutil.which('shellcheck', path=os.pathsep.join(
    [os.path.dirname(sys.executable), os.environ['PATH']]))


@pytest.mark.skipif(SHELLCHECK is None, reason='needs shellcheck')
@pytest.mark.parametrize('script', sorted(p.name for p in LAUNCH.glob('*.s*')))
def test_shellcheck_has_nothing_to_say(script):
  done = subprocess.run([SHELLCHECK, LAUNCH / script], capture_output=True, text=True,
                        check=False)
  assert done.returncode == 0, done.stdout


def test_create_asks_for_a_spot_slice_and_waits(stubs):
  done, calls = run(stubs, 'tpu_pod.sh', 'create', **POD, TYPE='v5litepod-256', answers=[
      ('gcloud', STATE, 1, ''), ('gcloud', STATE, 0, 'WAITING_FOR_RESOURCES'),
      ('gcloud', STATE, 0, 'PROVISIONING'), ('gcloud', STATE, 0, 'ACTIVE')])
  assert done.returncode == 0, done.stderr
  (create,) = [call for call in calls if 'create' in call]
  assert create[:6] == ['gcloud', 'compute', 'tpus', 'queued-resources', 'create', 'bn']
  for flag in ('--zone=us-west4-a', '--project=mine', '--node-id=bn', '--spot',
               '--accelerator-type=v5litepod-256', '--runtime-version=v2-alpha-tpuv5-lite'):
    assert flag in create
  assert 'WAITING_FOR_RESOURCES' in done.stdout and 'PROVISIONING' in done.stdout


def test_a_slice_that_is_there_is_not_asked_for_again(stubs):
  done, calls = run(stubs, 'tpu_pod.sh', 'create', **POD, SPOT='0', answers=[
      ('gcloud', STATE, 0, 'ACTIVE')] * 2)
  assert done.returncode == 0 and not [call for call in calls if 'create' in call]


def test_setup_copies_the_repository_to_all_workers_and_installs_it(stubs):
  done, calls = run(stubs, 'tpu_pod.sh', 'setup', **POD)
  assert done.returncode == 0, done.stderr
  copy, install = (' '.join(call) for call in calls if call[0] == 'gcloud')
  assert ' scp ' in copy and 'bn:bnonly.tar.gz' in copy and '--worker=all' in copy
  assert ' ssh bn ' in install and '--worker=all' in install


@pytest.mark.parametrize('code, said', [(255, ''), (0, 'exit 143')])  # at once, or after a save
def test_run_comes_back_after_a_preemption(stubs, code, said):
  flags = ['--config=configs/cifar10.py:resnet110', '--workdir=gs://b/run',
           '--config.train=a b']
  done, calls = run(stubs, 'tpu_pod.sh', 'run', *flags, **POD, answers=[
      ('gcloud', 'bnonly_jax.main', code, said), ('gcloud', 'result.json', 255, ''),
      ('gcloud', STATE, 0, 'SUSPENDED'),
      ('gcloud', STATE, 0, 'SUSPENDED'), ('gcloud', STATE, 0, 'ACTIVE'),
      ('gcloud', 'bnonly_jax.main', 0, 'exit 0'), ('gcloud', 'result.json', 0, 'True')])
  assert done.returncode == 0, done.stderr
  text = '\n'.join(' '.join(call) for call in calls)
  assert text.count('-m bnonly_jax.main') == 2 and 'was preempted; asking again' in done.stdout
  assert '--config.train=a\\ b' in text and '--workdir=gs://b/run' in text
  order = [text.index(part) for part in ('bnonly_jax.main', 'delete bn', 'create bn', ' scp ')]
  assert order == sorted(order)
  assert calls[-1][-2:] == ['--worker=0', '--command=tail -n 3 bnonly/run.log']


def pod_run(stubs, *rounds, **environment):
  """Runs on a slice that stays; `rounds` are what the workers and the workdir say, in turn."""
  done, calls = run(stubs, 'tpu_pod.sh', 'run', '--workdir=gs://b/run', **POD, **environment,
                    answers=[answer for said, found in rounds for answer in (
                        ('gcloud', '--distributed', 0, said), ('gcloud', 'result.json', 0, found),
                        ('gcloud', STATE, 0, 'ACTIVE'))])
  return done, sum('--distributed' in ' '.join(call) for call in calls)


@pytest.mark.parametrize('said, found', [
    ('exit 1', 'False'), ('exit 0\nexit 1', 'False'), ('exit 1', 'True'), ('exit 0', 'False'),
    ('', 'False'), ('exit 143\nexit 1', 'False')])
def test_run_stops_at_an_error_with_the_log_of_worker_0(stubs, said, found):
  done, starts = pod_run(stubs, (said, found))
  assert done.returncode == 2 and 'the run ended with an error' in done.stderr and starts == 1
  last = json.loads((stubs / 'calls').read_text().splitlines()[-1])
  assert last[-2:] == ['--worker=0', '--command=tail -n 30 bnonly/run.log']


@pytest.mark.parametrize('rounds, code, program', [
    ([('exit 0\nexit 0', 'True c/5')], 0, 'bnonly_jax.main'),
    ([('exit 3\nexit 143', 'True c/5')], 3, 'bnonly_jax.main'),  # diverged
    ([('exit 0', 'False c/5')], 0, 'bnonly_jax.sweep'),
    ([('exit 143', 'False c/5'), ('exit 0', 'True c/9')], 0, 'bnonly_jax.main'),
    ([('exit 143', 'True c/5'), ('exit 0', 'True c/9')], 0, 'bnonly_jax.main'),  # a shorter run's
    ([('exit 143\nexit 143', f'False c/{step}') for step in (5, 5, 9, 9)] + [('exit 0', 'True')], 0,
     'bnonly_jax.main')])
def test_told_to_end_where_the_slice_stays_the_run_goes_on_to_its_result(stubs, rounds, code,
                                                                         program):
  done, starts = pod_run(stubs, *rounds, PROGRAM=program)
  assert done.returncode == code and starts == len(rounds), done.stderr
  assert done.stdout.count('starting again') == len(rounds) - 1


def test_a_run_that_is_told_to_end_again_and_again_and_saves_nothing_ends(stubs):
  done, starts = pod_run(stubs, *[('exit 143', 'False c/5')] * 9)
  assert done.returncode == 2 and starts == 3
  assert 'told to end 3 times in a row and saved nothing new' in done.stderr


def test_a_run_that_was_stopped_is_not_started_again(stubs):
  done, starts = pod_run(stubs, ('stopped\nstopped', 'False'))
  assert done.returncode == 143 and starts == 1 and 'stopped; the same command' in done.stdout


@pytest.mark.parametrize('action, expected', [
    ('status', 'queued-resources describe bn'), ('logs', '--worker=0 --command=tail -n 100 -f'),
    ('stop', '--worker=all --command=touch bnonly/stopped; pkill -TERM -f ^.venv/bin/python'),
    ('delete', 'queued-resources delete bn')])
def test_the_other_actions(stubs, action, expected):
  done, calls = run(stubs, 'tpu_pod.sh', action, **POD)
  assert done.returncode == 0 and expected in '\n'.join(' '.join(call) for call in calls)


@pytest.mark.parametrize('arguments, environment, message', [
    ([], POD, 'the first argument is missing'), (['start'], POD, 'the first argument is start'),
    (['create'], {'NAME': 'bn'}, 'NAME and ZONE are needed'),
    (['run', '--workdir=/tmp/x'], POD, '--workdir is to be a bucket')])
def test_mistakes_are_told_before_anything_is_asked_for(stubs, arguments, environment, message):
  done, calls = run(stubs, 'tpu_pod.sh', *arguments, **environment)
  assert done.returncode == 2 and message in done.stderr and not calls


@pytest.mark.parametrize('code, result, requeued', [
    (0, True, False), (1, False, False), (143, False, True), (3, True, False), (143, True, False)])
def test_slurm_runs_one_task_a_node_and_queues_again_after_a_signal(stubs, code, result, requeued):
  if result:
    (stubs / 'result.json').touch()
  done, calls = run(stubs, 'slurm.sbatch', '--config=c.py', f'--workdir={stubs}',
                    SLURM_SUBMIT_DIR=str(stubs), SLURM_JOB_ID='7', PYTHON='python3',
                    SLURM_CPUS_PER_TASK='8',
                    answers=[('srun', 'bnonly_jax.main', code, '')])
  assert done.returncode == code
  assert calls[0] == ['srun', '--cpus-per-task=8', '--kill-on-bad-exit=1', 'python3', '-m',
                      'bnonly_jax.main', '--config=c.py', f'--workdir={stubs}']
  assert (['scontrol', 'requeue', '7'] in calls) == requeued
  header = (LAUNCH / 'slurm.sbatch').read_text()
  for line in ('--ntasks-per-node=8', '--requeue', '--signal=TERM@120', '--open-mode=append'):
    assert f'#SBATCH {line}\n' in header


def test_the_jobs_of_a_slurm_array_share_a_sweep(stubs):
  done, calls = run(stubs, 'slurm.sbatch', '--config=c.py', SLURM_SUBMIT_DIR=str(stubs),
                    PYTHON='python3', PROGRAM='bnonly_jax.sweep', SLURM_ARRAY_TASK_ID='3',
                    SLURM_ARRAY_TASK_MIN='1', SLURM_ARRAY_TASK_COUNT='8')
  assert done.returncode == 0
  assert calls[0][-4:] == ['bnonly_jax.sweep', '--config=c.py', '--task=2', '--tasks=8']


@pytest.mark.parametrize('script, environment', [
    ('slurm.sbatch', {'SLURM_SUBMIT_DIR': '/'}), ('local.sh', {})])
def test_without_arguments_they_say_what_they_want(stubs, script, environment):
  done, calls = run(stubs, script, **environment)
  assert done.returncode == 2 and done.stderr.startswith('error: ') and not calls


# Answers for `benchmark step` with a file of figures, and fails for one network; all else is real.
BENCHMARK_STUB = f'''#!/bin/bash
echo "$*" >> "$STUBS/calls"
if [[ "$*" == *bnonly_jax.main* ]]; then
  mkdir -p "$STUBS/out/trace"
  echo 1 > "$STUBS/out/trace/result.json"
  exit
fi
if [[ "$*" != *"benchmark step"* ]]; then exec {sys.executable} "$@"; fi
if [[ "$*" == *resnet20* && ! -e $STUBS/mended ]]; then echo "error: no memory"; exit 1; fi
for flag in "$@"; do
  if [[ $flag == --out=* ]]; then cp "$STUBS/figures" "${{flag#--out=}}"; fi
done
'''


def test_the_gpu_benchmark_goes_on_after_a_failure_and_does_only_what_is_missing(tmp_path):
  (tmp_path / 'python').write_text(BENCHMARK_STUB)
  (tmp_path / 'python').chmod(0o755)
  row = {'step_seconds': 0.002, 'images_per_second': 64_000.0, 'peak': 5e6}
  (tmp_path / 'figures').write_text(json.dumps({
      'device': 'H', 'jax': '1', 'network': 'n', 'batch': 8, 'compute_dtype': 'float32',
      'selections': {'batchnorm': row, 'all': row}, 'ratio': {'step_seconds': 1.0}}))

  def measure():
    (tmp_path / 'calls').write_text('')
    done = subprocess.run(
        [LAUNCH / 'benchmark_gpu.sh', tmp_path / 'out'], capture_output=True, text=True, timeout=60,
        check=False, env={**os.environ, 'STUBS': str(tmp_path), 'PYTHON': str(tmp_path / 'python'),
                          'NETWORKS': 'resnet20 resnet14', 'BATCH': '8', 'IMAGENET': ''})
    calls = (tmp_path / 'calls').read_text().splitlines()
    return done, [call for call in calls if 'benchmark step' in call or 'main' in call]

  done, calls = measure()
  against = 1 + (importlib.util.find_spec('torch') is not None)
  assert done.returncode == 1, done.stderr
  # Two networks in two precisions, one in a big batch too, the first with many steps a call and
  # with two numbers of replicates; and the trace.
  assert len(calls) == 7 * against + 3 and '--profile' in calls[-1]
  summary = (tmp_path / 'out/summary.md').read_text()
  assert '- resnet20_b8_float32_all: error: no memory' in summary
  assert summary.count('| n |') == 4 * against and '| resnet14_b1024_bfloat16_all | n |' in summary
  assert ('PyTorch is not installed: its rows are left out' in summary) == (against == 1)
  (tmp_path / 'mended').touch()
  done, calls = measure()
  assert done.returncode == 0 and len(calls) == 3 * against + 2
  assert all('resnet20' in call for call in calls)
  assert 'resnet14_b8_float32_all: there' in done.stdout
  assert 'no memory' not in (tmp_path / 'out/summary.md').read_text()


@pytest.mark.slow
def test_the_gpu_benchmark_runs_on_a_cpu(tmp_path):
  done = subprocess.run(
      [LAUNCH / 'benchmark_gpu.sh', tmp_path], capture_output=True, text=True, check=False,
      env={**environment(), 'PYTHON': sys.executable, 'NETWORKS': 'resnet8', 'DTYPES': 'float32',
           'BATCH': '8', 'IMAGENET': ''})
  assert done.returncode == 0, done.stdout
  assert list((tmp_path / 'trace/profile').rglob('perfetto_trace.json.gz'))
