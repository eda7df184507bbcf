r"""Looks into a trained network: gamma and beta, small gammas, ReLUs that never fire.

  python -m bnonly_jax.analysis --workdir=DIR [--step=N] [--replicate=I] [--data_dir=DIR]

The run may be finished, interrupted or going on. Writes DIR/analysis.json and DIR/analysis_*.png,
and nothing else there. docs/analysis.md says what is in analysis.json.
"""

from absl import flags

from bnonly_jax import command_line
from bnonly_jax.analysis import analyse

if __name__ == '__main__':
  _WORKDIR = flags.DEFINE_string(
      'workdir', None, 'Folder of a run, finished or not; analysis.json and the plots go there.')
  _STEP = flags.DEFINE_integer('step', None, 'Whose checkpoint to take; default: the newest.')
  _DATA_DIR = flags.DEFINE_string(
      'data_dir', '', 'Folder of the prepared data sets; default: where they were in training.')
  _REPLICATE = flags.DEFINE_integer('replicate', 0, 'Which one of a run of several, from 0.')
  command_line.run(
      lambda: analyse(_WORKDIR.value, _STEP.value, _DATA_DIR.value, _REPLICATE.value),
      lambda: '' if _WORKDIR.value else '--workdir=DIR, the folder of a run, is needed, or --help.')
