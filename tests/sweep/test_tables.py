from sweeps import make

from bnonly_jax.sweep import tables
from bnonly_jax.sweep.config import Point


def test_the_title_names_the_data_sets_of_the_points():
  config = make()
  with config.unlocked():
    config.points = tuple(
        Point(point.line, point.x, {**point.changes, 'data.name': 'cifar100'})
        for point in config.points)
  assert tables.source(config) == '10% of cifar100, 8 epochs, 2 seeds'
  config.base.epochs = config.seeds = 1
  assert tables.source(config) == '10% of cifar100, 1 epoch, 1 seed'
