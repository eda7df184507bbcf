r"""Looks into a trained network: gamma and beta, small gammas, ReLUs that never fire.

  python -m bnonly_jax.analysis --workdir=DIR [--step=N] [--replicate=I] [--data_dir=DIR]

The run may be finished, interrupted or going on. Writes DIR/analysis.json and DIR/analysis_*.png,
and nothing else there. Instead of these,

  python -m bnonly_jax.analysis --workdir=DIR --cka=WORKDIR[@STEP] --probe --sharpness

compares it with another run layer by layer, fits a linear probe on its features, and finds the
largest eigenvalue of the loss's Hessian; any of these flags will do. docs/analysis.md and
docs/beyond.md say what is written.
"""

from absl import flags

from bnonly_jax import command_line

_WORKDIR = flags.DEFINE_string(
    'workdir', None, 'Folder of a run, finished or not; what is found goes there.')
_STEP = flags.DEFINE_integer('step', None, 'Whose checkpoint to take; default: the newest.')
_DATA_DIR = flags.DEFINE_string(
    'data_dir', '', 'Folder of the prepared data sets; default: where they were in training.')
_REPLICATE = flags.DEFINE_integer('replicate', 0, 'Which one of a run of several, from 0.')
_CKA = flags.DEFINE_string(
    'cka', '', 'WORKDIR[@STEP] of another run: how alike the layers of both are on the test set.')
_PROBE = flags.DEFINE_bool(
    'probe', False, 'What a linear classifier reads from the features before the output layer.')

_SHARPNESS = flags.DEFINE_bool(
    'sharpness', False, "The largest eigenvalue of the training loss's Hessian in what trains.")
_IMAGES = flags.DEFINE_integer(
    'sharpness_images', None, 'With --sharpness: on how many training images; default: 256.')


def _missing() -> str:
  if not _WORKDIR.value:
    return '--workdir=DIR, the folder of a run, is needed, or --help.'
  if _IMAGES.present and not _SHARPNESS.value:
    return '--sharpness_images is of --sharpness: add it, or leave both out.'
  return ''


def main() -> None:
  # Here, so that a mistake in the flags is told at once.
  from bnonly_jax import analysis
  which = _STEP.value, _DATA_DIR.value, _REPLICATE.value
  if _CKA.value:
    analysis.write_cka(_WORKDIR.value, _CKA.value, *which)
  if _PROBE.value:
    analysis.write_probe(_WORKDIR.value, *which)
  if _SHARPNESS.value:
    images = {} if _IMAGES.value is None else {'images': _IMAGES.value}
    analysis.write_sharpness(_WORKDIR.value, *which, **images)
  if not _CKA.value and not _PROBE.value and not _SHARPNESS.value:
    analysis.analyse(_WORKDIR.value, *which)


if __name__ == '__main__':
  command_line.run(main, _missing)
