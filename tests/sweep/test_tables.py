from sweeps import make

from bnonly_jax.sweep import tables
from bnonly_jax.sweep.config import Point
from bnonly_jax.sweep.rows import Row


def test_the_title_names_the_data_sets_of_the_points():
  config = make()
  with config.unlocked():
    config.points = tuple(
        Point(point.line, point.x, {**point.changes, 'data.name': 'cifar100'})
        for point in config.points)
  assert tables.source(config) == '10% of cifar100, 8 epochs, 2 seeds'
  config.base.epochs = config.seeds = 1
  assert tables.source(config) == '10% of cifar100, 1 epoch, 1 seed'


def test_a_column_says_how_far_lines_are_above_another_at_the_same_x():
  config = make()
  config.over = ('nothing',)
  means = {('all', 14): 50.0, ('all', 32): 40.0, ('nothing', 14): 10.5, ('nothing', 32): None}
  table = [Row(line, x, None, 1, 0, mean, None, None) for (line, x), mean in means.items()]
  head, lines = tables.cells(config, 'test_accuracy', table)
  assert head[-1] == 'over nothing' and [line[-1] for line in lines] == ['+39.50', '', '', '']
  config.over = ()
  assert 'over nothing' not in tables.cells(config, 'test_accuracy', table)[0]
