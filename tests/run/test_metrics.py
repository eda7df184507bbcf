import json
import math

import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from bnonly_jax import masks
from bnonly_jax.config import UserError
from bnonly_jax.run import metrics
from bnonly_jax.run import reading


def test_lines_after_the_checkpoint_go_and_a_torn_one_too(tmp_path):
  writer = metrics.Writer(tmp_path, 0)
  for step in (0, 10, 20):
    writer.write(step, {'epoch': step / 10, 'test_loss': 1.0})
  writer.close()
  with open(tmp_path / 'metrics.jsonl', 'a') as file:
    file.write('{"step": 30, "epo')
  assert [line['step'] for line in reading.lines(tmp_path)] == [0, 10, 20]
  writer = metrics.Writer(tmp_path, 10)
  writer.write(20, {'epoch': 2.0, 'test_loss': 0.5})
  writer.close()
  assert [(line['step'], line['test_loss']) for line in reading.lines(tmp_path)] == [
      (0, 1.0), (10, 1.0), (20, 0.5)]
  metrics.Writer(tmp_path, 0).close()
  assert reading.lines(tmp_path) == []


def test_a_line_is_the_mean_since_the_last(tmp_path):
  writer = metrics.Writer(tmp_path, 0)
  log = metrics.TrainLog(writer, steps=8, steps_per_epoch=4, batch_size=16, log_every=3,
                         start_step=0, pending=[])
  for step in range(1, 9):
    if log.line_due:
      log.flush()
    log.add(step, {'loss': np.float32(step)})
    if step % 4 == 0:
      log.flush()
  log.close()
  writer.close()
  lines = reading.lines(tmp_path)
  # Every third step of an epoch and the epoch's last; step 3's line is written while step 4 runs.
  assert [(line['step'], line['train_loss']) for line in lines] == [(3, 2), (4, 4), (7, 6), (8, 8)]
  assert [line['epoch'] for line in lines] == [0.75, 1, 1.75, 2]
  assert all(line['time_images_per_second'] > 0 for line in lines)


def test_tensorboard_gets_the_same_scalars(tmp_path):
  writer = metrics.Writer(tmp_path, 0)
  writer.write(7, {'test_accuracy': 0.25})
  writer.close()
  assert events(tmp_path) == {('test/accuracy', 7): 0.25}


def test_tensorboard_has_all_lines_after_a_kill_too(tmp_path):
  killed = metrics.Writer(tmp_path, 0)
  for step in (1, 2, 3):
    killed.write(step, {'test_accuracy': step / 4})
  # Never closed: what its buffer holds of the events is lost.
  writer = metrics.Writer(tmp_path, 2)
  writer.write(3, {'test_accuracy': 0.5})
  writer.close()
  assert events(tmp_path) == {('test/accuracy', 1): 0.25, ('test/accuracy', 2): 0.5,
                              ('test/accuracy', 3): 0.5}


def test_what_is_not_finite_is_null(tmp_path):
  writer = metrics.Writer(tmp_path, 0)
  writer.write(1, {'train_loss': math.nan, 'test_loss': math.inf})
  writer.close()
  metrics.Writer(tmp_path, 1).close()
  assert reading.lines(tmp_path) == [{'step': 1, 'train_loss': None, 'test_loss': None}]


def events(workdir):
  (path,) = (workdir / 'tensorboard').glob('events.*')
  content, found = path.read_bytes(), {}
  while content:  # records of length (8 bytes), checksum (4), event, checksum (4)
    length = int.from_bytes(content[:8], 'little')
    event = event_pb2.Event.FromString(content[12:12 + length])
    found.update({(value.tag, event.step): value.simple_value for value in event.summary.value})
    content = content[16 + length:]
  return found


def test_names_of_the_users_are_no_markup(capsys):
  said = '[["stage[a-z]+/norm[/]", true]] in runs/[b]x on folder:cat: and :smile:'
  metrics.console.print(said)
  metrics.print_columns([said], [[said]])
  assert capsys.readouterr().out.count(said) == 3


def test_the_table_says_what_trains(capsys):
  metrics.print_table([masks.GroupRow('gamma', 2, 30, 30), masks.GroupRow('conv', 3, 60, 0),
                       masks.GroupRow('output', 2, 10, 4)])
  printed = capsys.readouterr().out
  rows = {words[0]: words[1:] for words in map(str.split, printed.splitlines()) if words}
  assert rows['gamma'] == ['2', '30', '30.00%', '30']
  assert rows['conv'] == ['3', '60', '60.00%', 'frozen']
  assert rows['output'] == ['2', '10', '10.00%', '4']
  assert rows['all'] == ['7', '100', '100.00%', '34', '(34.00%)']


def test_pending_metrics_go_on_in_the_next_line(tmp_path):
  def log_of(writer, start_step, pending):
    return metrics.TrainLog(writer, steps=8, steps_per_epoch=8, batch_size=16, log_every=4,
                            start_step=start_step, pending=pending)

  writer = metrics.Writer(tmp_path, 0)
  first = log_of(writer, 0, [])
  for step in (1, 2):
    first.add(step, {'loss': np.float32(step / 3)})
  pending = json.loads(json.dumps(first.pending()))
  first.close()
  second = log_of(writer, 2, pending)
  for step in (3, 4):
    second.add(step, {'loss': np.float32(step / 3)})
  assert second.line_due
  second.flush()
  second.close()
  writer.close()
  (line,) = reading.lines(tmp_path)
  expected = np.mean([np.float32(step / 3) for step in (1, 2, 3, 4)], dtype=np.float64)
  assert line['step'] == 4 and line['train_loss'] == expected


def test_a_loss_that_is_not_finite_names_its_step(tmp_path):
  writer = metrics.Writer(tmp_path, 0)
  log = metrics.TrainLog(writer, steps=8, steps_per_epoch=8, batch_size=16, log_every=4,
                         start_step=2, pending=[{'loss': 1.0}, {'loss': 1.0}])
  for step, loss in ((3, 1.0), (4, math.inf), (5, math.nan)):
    log.add(step, {'loss': np.float32(loss)})
  with pytest.raises(metrics.Diverged) as error:
    log.flush()
  assert error.value.step == 4 and reading.lines(tmp_path) == []
  log.close()
  writer.close()


@pytest.mark.parametrize('damage, message', [
    ('{"step": 10, "epo', 'line 2: Unterminated string'), ('[]', 'line 2: that is no line of metr'),
    ('{}', 'line 2: that is no line'), ('{"step": null}', 'line 2: that is no line')])
def test_a_damaged_line_is_told_and_those_after_it_stay(tmp_path, damage, message):
  text = '\n'.join(['{"step": 0}', damage, '{"step": 20}']) + '\n'
  (tmp_path / 'metrics.jsonl').write_text(text)
  said = rf'metrics.jsonl is damaged or cannot be read .{message}.*Put a whole copy'
  with pytest.raises(UserError, match=said):
    metrics.Writer(tmp_path, 20)
  assert (tmp_path / 'metrics.jsonl').read_text() == text
  (tmp_path / 'metrics.jsonl').write_bytes(b'\xff\xfe')
  with pytest.raises(UserError, match='metrics.jsonl is damaged'):
    reading.lines(tmp_path)
