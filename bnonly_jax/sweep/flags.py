"""The flags that training the runs of a sweep and drawing them share."""

from collections.abc import Callable
from typing import Any

from absl import flags
import ml_collections
from ml_collections import config_flags

from bnonly_jax import command_line
from bnonly_jax.config import default_config
from bnonly_jax.config import flat

flags.disclaim_key_flags()  # --help of a program shows the flags that are defined here as its own


def define() -> tuple[flags.FlagHolder, flags.FlagHolder, Callable[[], str]]:
  """Defines --config and --workdir; returns both, and what says what is wrong with them or ''."""
  config = command_line.define_config()
  workdir = flags.DEFINE_string('workdir', None, 'Folder of all the runs of the sweep.')

  def wrong():
    if not config.value or not workdir.value:
      return ('--config=FILE.py[:SCALE] and --workdir=DIR are both needed. Try --config='
              'configs/figures/main_depth.py:smoke --workdir=runs/smoke, or --help.')
    return ignored(config.value, config_flags.get_override_values(flags.FLAGS['config']))

  return config, workdir, wrong


def define_figures() -> tuple[flags.FlagHolder, flags.FlagHolder, flags.FlagHolder,
                              flags.FlagHolder, Callable[[], str]]:
  """Defines what `define` does, and --runs and --output, between the same."""
  config, workdir, wrong = define()
  runs = flags.DEFINE_list(
      'runs', None, 'Instead of --config and --workdir: folders of any runs, finished or not, whose'
      ' accuracies are drawn into one figure. --runs A B C or --runs=A,B,C.')
  output = flags.DEFINE_string(
      'output', None, 'With --runs: folder that the figure and the table go to.')

  def wrong_here():
    if output.value and not runs.value:
      return f'--output={output.value} is of --runs: add --runs A B C, or leave it out.'
    if not runs.value:
      return wrong() and f'{wrong()} Or give --output=DIR --runs A B C, the folders of any runs.'
    if config.value or workdir.value:
      return '--runs stands instead of --config and --workdir. Leave these out.'
    return '' if output.value else ('--runs needs --output=DIR, the folder that the figure and the'
                                    ' table go to.')

  return config, workdir, runs, output, wrong_here


def ignored(config: ml_collections.ConfigDict, given: dict[str, Any]) -> str:
  """Says which field given on the command line the points of a sweep would override; '' if none.

  Args:
    config: the sweep's.
    given: values by dotted field, those of the command line alone.
  """
  usual = flat(default_config())
  for name, value in given.items():
    field = name.removeprefix('base.')
    points = config.get('points', ())
    own = [point.changes[field] for point in points if field in point.changes]
    # Where some leave it as it is by default, it is meant for the others.
    if name != field and own and (len(own) == len(points) or set(own) != {usual[field]}):
      values = ', '.join(map(str, dict.fromkeys(own)))
      return (f'--config.{name}={value} would not reach all runs: points of this sweep set {field}'
              f' themselves, to {values}. Leave it out. --only=EXPRESSION of bnonly_jax.sweep'
              ' chooses points by the names that its --list shows.')
  return ''
