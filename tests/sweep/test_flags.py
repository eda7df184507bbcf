import subprocess
import sys

import pytest
from sweeps import make
from sweeps import ROOT

from bnonly_jax.config import default_config
from bnonly_jax.sweep import flags
from bnonly_jax.sweep.config import Point


def test_a_field_that_points_set_is_not_to_be_given():
  config = make()
  config.base.train = 'gamma'  # as a program may: its points say what trains
  assert flags.ignored(config, {}) == ''
  assert flags.ignored(config, {'seeds': 1, 'base.epochs': 1, 'base.data.dir': 'x'}) == ''
  said = flags.ignored(config, {'base.epochs': 1, 'base.train': 'gamma'})
  assert said.startswith('--config.base.train=gamma would not reach all runs: points of this sweep'
                         ' set train themselves, to all, batchnorm, output.')
  assert '--only=' in said and '\n' not in said
  assert flags.ignored(default_config(), {'train': 'gamma'}) == ''


@pytest.mark.parametrize('program', ['sweep', 'figures'])
def test_a_mistake_in_the_flags_is_one_line_and_at_once(program, tmp_path):
  code = ('import runpy, sys\n'
          'try: runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)\n'
          'finally: print("jax" in sys.modules)')

  def run(*arguments):
    done = subprocess.run([sys.executable, '-c', code, f'bnonly_jax.{program}', *arguments],
                          cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == 'False\n' and done.returncode == 1 and not list(tmp_path.iterdir())
    (line,) = done.stderr.splitlines()
    return line

  where = f'--workdir={tmp_path}'
  assert '--config=FILE.py[:SCALE] and --workdir=DIR are both needed' in run(where)
  config = '--config=configs/figures/starts.py:smoke'
  assert '--config.base.weight_start=binary would not reach all runs' in run(
      where, config, '--config.base.epochs=1', '--config.base.weight_start=binary')


def test_a_field_that_some_points_leave_as_it_is_can_be_given_for_the_others():
  config = make()
  first, *rest = config.points
  start = lambda p: Point(p.line, p.x, {**p.changes, 'init_from': ''})
  config.points = (start(first), *rest)
  assert flags.ignored(config, {'base.init_from': 'runs/all'}) == ''
  config.points = tuple(map(start, config.points))
  assert '--config.base.init_from=runs/all would not reach' in flags.ignored(
      config, {'base.init_from': 'runs/all'})
