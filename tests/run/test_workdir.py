import contextlib
import errno
import fcntl
import json

import conftest
from etils import epath
import pytest

from bnonly_jax import config as config_lib
from bnonly_jax import train
from bnonly_jax.config import UserError
from bnonly_jax.run import reading
from bnonly_jax.run import workdir as workdir_lib


def test_a_folder_is_one_processs(tmp_path):
  with contextlib.ExitStack() as first, contextlib.ExitStack() as second:
    workdir_lib.claim(epath.Path(tmp_path), first, {})
    assert workdir_lib.is_locked(epath.Path(tmp_path))
    with pytest.raises(UserError, match='is in use by process '):
      workdir_lib.claim(epath.Path(tmp_path), second, {})
  assert not workdir_lib.is_locked(epath.Path(tmp_path))


def test_a_file_system_without_locks_will_do(tmp_path, monkeypatch):
  def flock(*_):
    raise OSError(errno.ENOSYS, 'Function not implemented')

  monkeypatch.setattr(fcntl, 'flock', flock)
  with contextlib.ExitStack() as lock:
    workdir_lib.claim(epath.Path(tmp_path), lock, {'a.json': 1})
  assert workdir_lib.read_json(tmp_path / 'a.json') == 1
  assert not workdir_lib.is_locked(epath.Path(tmp_path))


FACTS = {**config_lib.flat(config_lib.default_config()), 'data.version': '1'}


def begun(workdir, *lines, saved=''):
  """Leaves what a run with FACTS may have; returns the folder."""
  workdir = epath.Path(workdir)
  with contextlib.ExitStack() as lock:
    workdir_lib.claim(workdir, lock, {'config.json': FACTS})
  (workdir / 'frozen').mkdir()
  (workdir / 'metrics.jsonl').write_text(''.join(json.dumps({'step': s}) + '\n' for s in lines))
  if saved:
    (workdir / saved).mkdir(parents=True)
  return workdir


@pytest.mark.parametrize('lines', [(), (0,)])
def test_what_trained_no_step_may_become_another_run(tmp_path, lines):
  workdir, other = begun(tmp_path, *lines), {**FACTS, 'seed': 1, 'epochs': 1}
  assert workdir_lib.check(workdir, other) is None
  assert (workdir / 'frozen').exists()
  with contextlib.ExitStack() as lock:
    workdir_lib.claim(workdir, lock, {'config.json': other})
  assert workdir_lib.read_json(workdir / 'config.json') == other
  assert not (workdir / 'frozen').exists()  # it is seed 0's


def test_the_frozen_half_of_the_same_run_stays(tmp_path):
  workdir = begun(tmp_path, 0)
  with contextlib.ExitStack() as lock:
    workdir_lib.claim(workdir, lock, {'config.json': {**FACTS, 'log_every': 7, 'epochs': 200}})
  assert (workdir / 'frozen').exists()


@pytest.mark.parametrize('saved, may', [
    ('', True), ('checkpoints/50.orbax-checkpoint-tmp', True), ('checkpoints/50', False),
    ('damaged/50', False), ('result_5_epochs.json', False)])
def test_before_the_first_checkpoint_bad_images_may_be_skipped(tmp_path, saved, may):
  workdir, skipping = begun(tmp_path, 0, 50, saved=saved), {**FACTS, 'data.bad_images': 'skip'}
  if may:
    assert workdir_lib.check(workdir, skipping) is None
  else:
    with pytest.raises(UserError, match='data.bad_images = .stop. there and .skip. here'):
      workdir_lib.check(workdir, skipping)
  with pytest.raises(UserError, match='another experiment: .*seed = 0 there and 1 here'):
    workdir_lib.check(workdir, {**skipping, 'seed': 1})


def test_another_experiment_begun_since_the_check_is_refused(tmp_path):
  workdir, other = begun(tmp_path), {**FACTS, 'seed': 1}
  assert workdir_lib.check(workdir, other) is None
  (workdir / 'metrics.jsonl').write_text('{"step": 50}\n')
  with contextlib.ExitStack() as lock, pytest.raises(UserError, match='another experiment'):
    workdir_lib.claim(workdir, lock, {'config.json': other})
  assert (workdir / 'frozen').exists()


@pytest.mark.parametrize('name, text, message', [
    ('result.json', '{"diverged": fal', r'result.json is damaged or .* \(Expect.*move it away'),
    ('result.json', 'null', 'result.json is damaged .*it holds no values by name'),
    ('result.json', '{"epochs": 3}', 'result.json .*it has no diverged, steps, test_accuracy'),
    ('metrics.jsonl', '{"st\n{"step": 0}\n', r'metrics.jsonl is damaged .*\(line 1: '),
    ('config.json', '{"epochs": 16', 'config.json there is not that of a run .Expecting'),
    ('config.json', '{"epochs": null}', 'config.json there is not that of a run')])
def test_a_damaged_file_is_one_line_and_stays(tmp_path, name, text, message):
  workdir = begun(tmp_path, 0, 50)
  (workdir / name).write_text(text)
  before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob('*')}
  with pytest.raises(UserError, match=message) as error:
    workdir_lib.check(workdir, FACTS)
  assert '\n' not in str(error.value)
  assert before == {p: p.stat().st_mtime_ns for p in tmp_path.rglob('*')}


def test_a_bucket_needs_a_package(monkeypatch):
  packages = []
  monkeypatch.setattr(workdir_lib.importlib.util, 'find_spec', lambda name: name in packages)
  with pytest.raises(UserError, match='gs://b/run: buckets .* gcsfs, which is not installed. pip'):
    workdir_lib.path('gs://b/run')
  packages.append('gcsfs')
  assert str(workdir_lib.path('gs://b/run')) == 'gs://b/run'


def test_a_bucket_that_cannot_be_reached_is_told():
  class Path(type(epath.Path())):
    def exists(self):
      raise LookupError('no credentials')

  with pytest.raises(UserError, match='gs:/b/run cannot be reached .LookupError: no credentials'):
    workdir_lib.check_folder(Path('gs:/b/run'))


@pytest.mark.slow
def test_after_a_bad_image_stopped_a_run_the_same_command_may_skip_it(tmp_path):
  conftest.write_folder(tmp_path / 'data', one_size=True)
  bad = sorted((tmp_path / 'data/train').glob('*/*.jpg'))[3]
  bad.write_bytes(bad.read_bytes()[:-50])
  config = conftest.data_config(f'folder:{tmp_path}/data', resident_limit=0.0)
  config.update(network='cifar_resnet8', epochs=1, batch_size=4, log_every=1)
  with pytest.raises(UserError, match='--config.data.bad_images=skip'):
    train.train_and_evaluate(config, tmp_path / 'run')
  assert max(line['step'] for line in reading.lines(tmp_path / 'run')) > 0
  config.data.bad_images = 'skip'
  result = train.train_and_evaluate(config, tmp_path / 'run')
  assert (result['steps'], result['diverged']) == (10, False)
  lines = [line['step'] for line in reading.lines(tmp_path / 'run')]
  assert lines == [0, *range(1, 11), 10]


def test_in_a_bucket_a_folder_moves_file_by_file(tmp_path, monkeypatch):
  files = {'a': '1', 'd/b': '2', 'd/e/c': '3'}
  for name, text in files.items():
    (tmp_path / 'there' / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / 'there' / name).write_text(text)
  monkeypatch.setattr(workdir_lib, 'is_remote', lambda _: True)
  workdir_lib.move(epath.Path(tmp_path / 'there'), epath.Path(tmp_path / 'damaged/5'))
  assert not (tmp_path / 'there').exists()
  assert {name: (tmp_path / 'damaged/5' / name).read_text() for name in files} == files
