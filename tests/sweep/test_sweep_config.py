import pytest
from sweeps import FILES
from sweeps import load

from bnonly_jax.config import UserError
from bnonly_jax.sweep import config as config_lib
from bnonly_jax.sweep import runs as runs_lib


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_a_figure_is_one_file_with_its_command(path):
  names = {}
  for scale in config_lib.SCALES:
    config, documentation = load(path, scale)
    assert config.name == path.stem and config.scale == scale
    names[scale] = [run.name for run in runs_lib.runs(config, 'x')]
    assert set(config.panels) <= {*config_lib.RESULTS, *config_lib.ANALYSES}
  assert len(names['smoke']) <= len(names['short']) < len(names['paper'])
  for program in ('sweep', 'figures'):
    assert f'bnonly_jax.{program} --config=configs/figures/{path.name}' in documentation
  with pytest.raises(UserError, match="the scale is 'long'; allowed is smoke, short, paper"):
    load(path, 'long')


@pytest.mark.parametrize('scale', config_lib.SCALES)
def test_runs_of_one_name_in_two_figures_are_the_same_run(scale):
  seen = {}
  for path in FILES:
    for run in runs_lib.runs(load(path, scale)[0], 'x'):
      assert seen.setdefault(run.name, run.config).to_json() == run.config.to_json(), run.name
