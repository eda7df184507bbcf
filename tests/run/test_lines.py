import time

from conftest import data_config
import pytest

from bnonly_jax import train
from bnonly_jax.run import checkpoint
from bnonly_jax.run import lines
from bnonly_jax.run import metrics
from bnonly_jax.run import reading
from bnonly_jax.run import workdir as workdir_lib


@pytest.fixture
def uploads(monkeypatch):
  """Makes a bucket's object of every metrics.jsonl; what is uploaded, each time all of it."""
  found, write = [], workdir_lib.write_text

  def write_text(file, text):
    if file.name == 'metrics.jsonl':
      found.append(text)
    write(file, text)

  monkeypatch.setattr(workdir_lib, 'write_text', write_text)
  monkeypatch.setattr(workdir_lib, 'is_remote', lambda path: path.name == 'metrics.jsonl')
  monkeypatch.setattr(lines, 'SECONDS', 1000.0)
  return found


def write(writer, *steps):
  for step in steps:
    writer.write(step, {'train_loss': 1.0})


def test_on_a_disk_a_line_is_there_at_once(tmp_path):
  writer = metrics.Writer(tmp_path, 0)
  write(writer, 1, 2)
  assert [line['step'] for line in reading.lines(tmp_path)] == [1, 2]
  writer.close()


def test_to_a_bucket_many_lines_go_at_once(tmp_path, uploads):
  writer = metrics.Writer(tmp_path, 0)
  write(writer, 1, 2, 3)
  assert uploads == ['']
  writer.flush()
  writer.flush()
  write(writer, 4)
  writer.close()
  assert [len(text.splitlines()) for text in uploads] == [0, 3, 4]
  assert [line['step'] for line in reading.lines(tmp_path)] == [1, 2, 3, 4]


def test_to_a_bucket_lines_go_while_training_goes_on(tmp_path, uploads, monkeypatch):
  monkeypatch.setattr(lines, 'SECONDS', 0.01)
  writer = metrics.Writer(tmp_path, 0)
  write(writer, 1)
  deadline = time.monotonic() + 10
  while not reading.lines(tmp_path) and time.monotonic() < deadline:
    time.sleep(0.01)
  assert [line['step'] for line in reading.lines(tmp_path)] == [1]
  writer.close()


def test_an_upload_that_fails_is_tried_again_and_told_where_it_counts(tmp_path, uploads,
                                                                      monkeypatch):
  def fail(*_):
    uploads.append('failed')
    raise LookupError('503')

  monkeypatch.setattr(lines, 'SECONDS', 0.01)
  writer = metrics.Writer(tmp_path, 0)
  with monkeypatch.context() as patch:
    patch.setattr(workdir_lib, 'write_text', fail)
    write(writer, 1)
    deadline = time.monotonic() + 10
    while uploads.count('failed') < 3 and time.monotonic() < deadline:
      time.sleep(0.01)
    with pytest.raises(OSError, match='LookupError: 503.*metrics.jsonl'):
      writer.flush()
  writer.close()
  assert uploads.count('failed') >= 4
  assert [line['step'] for line in reading.lines(tmp_path)] == [1]


def test_no_checkpoint_is_ahead_of_its_lines(data_dir, tmp_path, uploads, monkeypatch):
  config = data_config('digits', data_dir, mean=(0.3,), std=(0.4,))
  config.update(network='cifar_resnet8', epochs=1, batch_size=256, log_every=1,
                checkpoint_every_steps=2)
  there, real = {}, checkpoint.save

  def save(checkpointer, step, *rest):
    there[step] = [line['step'] for line in reading.lines(tmp_path)]
    return real(checkpointer, step, *rest)

  monkeypatch.setattr(checkpoint, 'save', save)
  train.train_and_evaluate(config, tmp_path)
  assert sorted(there) == [2, 4, 5]
  for step, found in there.items():
    assert max(found) == step
