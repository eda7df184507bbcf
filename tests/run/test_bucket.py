"""Runs in a bucket, against an emulator of the store: pip install -e '.[test_bucket]'."""

import json
import os
import pathlib
import subprocess
import sys

from etils import epath
import pytest

from bnonly_jax.run import checkpoint

ROOT = pathlib.Path(__file__).parents[2]
REASON = "needs gcsfs and gcp-storage-emulator: pip install -e '.[test_bucket]'"
pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def bucket():
  """The path of a bucket that an emulator in this process keeps in memory."""
  pytest.importorskip('gcsfs', reason=REASON)
  objects = pytest.importorskip('gcp_storage_emulator.handlers.objects', reason=REASON)
  server = pytest.importorskip('gcp_storage_emulator.server', reason=REASON)
  download = objects.download

  def with_generation(request, response, storage, *_, **__):
    """Adds the header that TensorStore wants and the emulator leaves out."""
    download(request, response, storage)
    if response.status < 300:
      name = request.params['bucket_name'], request.params['object_id']
      response['x-goog-generation'] = storage.get_file_obj(*name)['generation']

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(objects, 'download', with_generation)
    with server.create_server('localhost', 0, in_memory=True, default_bucket='bucket') as running:
      url = f'http://localhost:{running._api._httpd.server_port}'
      for name in ('STORAGE_EMULATOR_HOST', 'TENSORSTORE_GCS_HTTP_URL'):
        patch.setenv(name, url)
      patch.setenv('NO_GCE_CHECK', 'true')  # else the client looks for Google's machines first
      yield epath.Path('gs://bucket')


def train(data_dir, workdir, *more):
  done = subprocess.run(
      [sys.executable, '-m', 'bnonly_jax.main', '--config=configs/digits.py:resnet8',
       f'--config.data.dir={data_dir}', '--config.epochs=2', f'--workdir={workdir}', *more],
      cwd=ROOT, env={**os.environ, 'XLA_FLAGS': ''},
      capture_output=True, text=True, check=False, timeout=300)
  assert done.returncode == 0, done.stderr
  return done.stdout, json.loads((workdir / 'result.json').read_text())['test_loss']


def test_a_run_in_a_bucket_goes_on_from_what_was_written_to_its_end(bucket, data_dir):
  workdir = bucket / 'run'
  _, whole = train(data_dir, workdir)
  assert checkpoint.kept(workdir) == [11, 22]
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  assert [json.loads(line)['step'] for line in lines][-1] == 22

  # As a preemption leaves them that comes while they are written.
  for name in ('checkpoints/22/commit_success.txt', 'frozen/commit_success.txt', 'result.json'):
    (workdir / name).unlink()
  assert checkpoint.kept(workdir) == [11]
  said, again = train(data_dir, workdir)
  assert 'going on after step 11 of 22' in said and 'damaged' not in said and again == whole
  assert checkpoint.kept(workdir) == [11, 22] and checkpoint.finished(workdir / 'frozen')

  (workdir / 'result.json').unlink()
  for path in (workdir / 'checkpoints/22/state/d').iterdir():
    path.write_bytes(b'')
  said, again = train(data_dir, workdir)
  assert 'the checkpoint of step 22 is damaged' in said and 'going on after step 11' in said
  assert again == whole and (workdir / 'damaged/22/commit_success.txt').exists()

  said, longer = train(data_dir, workdir, '--config.epochs=3')
  assert 'going on after step 22 of 33' in said and checkpoint.kept(workdir) == [22, 33]
  assert (workdir / 'result_2_epochs.json').exists()
