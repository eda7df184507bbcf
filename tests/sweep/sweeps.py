"""Small sweeps, and runs that are there without training."""

import importlib.util
import json
import pathlib
import re

from bnonly_jax import train
from bnonly_jax.config import flat
from bnonly_jax.sweep import runs as runs_lib
from bnonly_jax.sweep.config import base
from bnonly_jax.sweep.config import Point
from bnonly_jax.sweep.config import sweep

ROOT = pathlib.Path(__file__).parents[2]
FILES = sorted((ROOT / 'configs/figures').glob('*.py'))
NETWORKS = {14: 'cifar_resnet14', 32: 'cifar_resnet32'}


def load(path, scale):
  """Returns the sweep of a config file, and the file's docstring."""
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(scale), module.__doc__


def tiny(data_dir, seeds=2, trains=('batchnorm', 'nothing')):
  """A sweep of ResNet-8 on the embedded data set, one epoch."""
  config = base('smoke')
  config.data.dir = str(data_dir)
  config.epochs = 1
  points = [Point(line, 8, {'network': 'cifar_resnet8', 'train': line}) for line in trains]
  return sweep('tiny', 'Tiny', 'smoke', 'depth', points, seeds=seeds, base_config=config)


def make(panels=('test_accuracy',), words=False, scale='short'):
  """A sweep of two lines over two depths, and a level line."""
  points = [Point(line, f'ResNet-{depth}' if words else depth, {'network': network, 'train': line})
            for line in ('all', 'batchnorm') for depth, network in NETWORKS.items()]
  points.append(Point('level', None, {'network': 'cifar_resnet14', 'train': 'output'}))
  return sweep('drawn', 'Drawn & told', scale, 'depth', points, panels, seeds=2)


def finish(config, workdir, name, accuracy, analysis=None, **more):
  """Writes what a run of a sweep leaves in its folder, which it returns."""
  (run,) = [run for run in runs_lib.runs(config, workdir) if run.name == name]
  run.workdir.mkdir(parents=True)
  result = {'test_accuracy': accuracy, 'test_top5_accuracy': accuracy, 'diverged': False,
            'epochs': config.base.epochs, 'steps': 9, 'untrained_test_accuracy': 0.1,
            'trained_parameters': 1120, 'devices': 1, 'device_kind': 'cpu',
            'versions': {'jax': '1.2.3'}, **more}
  facts = {**flat(run.config), 'data.version': '1.0.0'}
  (run.workdir / 'config.json').write_text(json.dumps(facts))
  (run.workdir / 'result.json').write_text(json.dumps(result))
  (run.workdir / 'metrics.jsonl').write_text(
      '{"step": 9, "epoch": 7.5, "train_accuracy": 0.6, "time_seconds": 60}\n')
  if analysis:
    (run.workdir / 'analysis.json').write_text(json.dumps(
        {'step': 9, 'gamma': None, **analysis}))
  return pathlib.Path(run.workdir)


def set_fields(file, **fields):
  """Changes values in a JSON file."""
  file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def tear(file):
  """Leaves the first half of a file, as a full disk does."""
  file.write_text(file.read_text()[:len(file.read_text()) // 2])


def texts(path):
  """Returns the texts in a drawing: matplotlib names them in its SVG."""
  return ' '.join(re.findall(r'<!-- (.*?) -->', path.read_text()))


class Trained(list):
  """The names of the runs that `train` was asked for; each does first what `act` holds for it."""

  def __init__(self):
    self.act = {}


def train_at_once(monkeypatch):
  """Lets runs finish at once; returns what lists their names."""
  trained = Trained()

  def train_and_evaluate(config, workdir):
    name = f'{workdir.parent.name}/{workdir.name}'
    trained.append(name)
    trained.act.get(name, lambda: None)()
    workdir.mkdir(parents=True, exist_ok=True)
    result = {'test_accuracy': 0.5 + 0.1 * config.seed, 'diverged': False, 'epochs': config.epochs,
              'steps': 5, 'replicates': [{'test_accuracy': 0.5 + 0.1 * (config.seed + i)}
                                         for i in range(config.replicates)]}
    (workdir / 'config.json').write_text(json.dumps(flat(config)))
    (workdir / 'result.json').write_text(json.dumps(result))
    (workdir / 'metrics.jsonl').write_text('{"step": 5, "time_seconds": 2.0}\n')
    return result

  monkeypatch.setattr(train, 'train_and_evaluate', train_and_evaluate)
  return trained
