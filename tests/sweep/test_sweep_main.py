import subprocess
import sys

from sweeps import ROOT


def test_the_program_trains_and_draws(data_dir, tmp_path):
  for program in ('sweep', 'figures'):
    done = subprocess.run(
        [sys.executable, '-m', f'bnonly_jax.{program}', f'--workdir={tmp_path}',
         '--config=configs/figures/main_depth.py:smoke', '--config.seeds=1',
         f'--config.base.data.dir={data_dir}', '--config.base.epochs=1',
         *(['--only=resnet8-nothing'] if program == 'sweep' else [])],
        cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
  assert 'nothing                           8     1' in done.stdout
  assert (tmp_path / 'figures/main_depth/report.html').exists()
