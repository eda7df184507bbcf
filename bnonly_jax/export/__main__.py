r"""Writes a trained network as a file: that of a run, or one that `seed` has written.

  python -m bnonly_jax.export seed --workdir=DIR --output=net.bnonly [--dtype=bfloat16]
      [--include_frozen]
  python -m bnonly_jax.export torch --workdir=DIR --output=net.safetensors
  python -m bnonly_jax.export compact --workdir=DIR --output=net.compact [--threshold=0.01]
  python -m bnonly_jax.export onnx --workdir=DIR --output=net.onnx [--threshold=T]
  python -m bnonly_jax.export stablehlo --workdir=DIR --output=net.stablehlo [--threshold=T]
  python -m bnonly_jax.export page --workdir=DIR --output=page.html [--threshold=T]
      [--examples=IMAGE,IMAGE...]

All but seed take --network=net.bnonly, too, in place of --workdir=DIR.

seed: what trained and the seed of all that did not; `bnonly_jax.load` reads it.
torch: PyTorch's names, those of open_lth (CIFAR) or torchvision (ImageNet).
compact: BatchNorm folded into the convolutions, and the features whose abs(gamma) is below
  --threshold removed; prints parameters, FLOPs, time and accuracy by threshold.
onnx: for ONNX Runtime and others; checked against ONNX Runtime. It needs pip install -e '.[onnx]'.
stablehlo: one program for CPUs, NVIDIA GPUs and TPUs, as jax.export writes it.
page: a page that runs the network in a browser, and loads nothing: it classifies pictures and
  drawings and shows the gammas.

onnx and stablehlo take uint8 images, normalise them themselves, and hold the names of the classes;
they write the network as it is, or with --threshold=T the compact one. docs/export.md says more.
"""

import pathlib

from absl import flags

from bnonly_jax import command_line
from bnonly_jax.config import UserError

_WORKDIR = flags.DEFINE_string('workdir', None, 'Folder of a run, finished or not.')
_NETWORK = flags.DEFINE_string('network', None, 'Instead: a file that seed has written.')
_OUTPUT = flags.DEFINE_string('output', None, 'The file to write.')
_STEP = flags.DEFINE_integer('step', None, 'Whose checkpoint to take; default: the newest.')
_REPLICATE = flags.DEFINE_integer('replicate', 0, 'Which one of a run of several, from 0.')
_DATA_DIR = flags.DEFINE_string(
    'data_dir', '', 'Folder of the prepared data sets; default: where they were in training.')
_DTYPE = flags.DEFINE_enum(
    'dtype', 'float32', ['float32', 'bfloat16'],
    'seed: of the numbers in the file; with bfloat16 the accuracy before and after is printed.')
_INCLUDE_FROZEN = flags.DEFINE_bool(
    'include_frozen', False, 'seed: put what is frozen into the file, too.')
_THRESHOLD = flags.DEFINE_float(
    'threshold', None, 'compact, onnx, stablehlo, page: remove features with a smaller abs(gamma);'
    ' compact without it: 0.01.', lower_bound=0)
_EXAMPLES = flags.DEFINE_list(
    'examples', [], 'page: JPEG and PNG files to choose from on it, with commas in between.')


# Flags that only some topics read.
_READ = ((_DTYPE, ('seed',)), (_INCLUDE_FROZEN, ('seed',)), (_EXAMPLES, ('page',)),
         (_THRESHOLD, ('compact', 'onnx', 'stablehlo', 'page')))


def _missing() -> str:
  if not _OUTPUT.value or bool(_WORKDIR.value) == bool(_NETWORK.value):
    return ('--output=FILE is needed, and either --workdir=DIR, the folder of a run, or'
            ' --network=FILE, what seed has written. Or --help.')
  of_run = [flag.name for flag in (_STEP, _REPLICATE, _DATA_DIR) if flag.present]
  if _NETWORK.value and of_run:
    return f'--{of_run[0]} belongs to --workdir=DIR; leave it out with --network={_NETWORK.value}.'
  return ''


def main(topic: str) -> None:
  # Here, so that a mistake in the flags is told at once.
  from bnonly_jax.export import compact
  from bnonly_jax.export import network
  from bnonly_jax.export import onnx_file
  from bnonly_jax.export import page
  from bnonly_jax.export import seed
  from bnonly_jax.export import stablehlo
  from bnonly_jax.export import torch_names
  for flag, topics in _READ:
    if flag.present and topic not in topics:
      raise UserError(f'--{flag.name} is of {" and ".join(topics)}; leave it out with {topic}.')
  if _NETWORK.value and topic == 'seed':
    raise UserError(f'--network={_NETWORK.value} is what seed writes; seed takes --workdir=DIR.')
  if _NETWORK.value and not pathlib.Path(_NETWORK.value).expanduser().is_file():
    raise UserError(f'--network={_NETWORK.value}: there is no such file; allowed is one that seed'
                    ' has written. The folder of a run is --workdir=DIR.')
  network.check_output(_OUTPUT.value)
  run = (_WORKDIR.value or _NETWORK.value, _OUTPUT.value, _STEP.value, _DATA_DIR.value,
         _REPLICATE.value)
  if topic == 'seed':
    seed.export(*run, _DTYPE.value, _INCLUDE_FROZEN.value)
  elif topic == 'torch':
    torch_names.export(*run)
  elif topic == 'compact':
    compact.export(*run, 0.01 if _THRESHOLD.value is None else _THRESHOLD.value)
  elif topic == 'onnx':
    onnx_file.export(*run, _THRESHOLD.value)
  elif topic == 'page':
    page.export(*run, _THRESHOLD.value or 0.0, _EXAMPLES.value)
  else:
    stablehlo.export(*run, _THRESHOLD.value)


if __name__ == '__main__':
  command_line.run(main, _missing,
                   topics=('seed', 'torch', 'compact', 'onnx', 'stablehlo', 'page'))
