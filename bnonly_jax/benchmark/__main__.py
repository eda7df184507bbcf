r"""Measures what this package costs.

  python -m bnonly_jax.benchmark data [--config=FILE.py[:ARGUMENT]] [--data_dir=DIR] [--out=FILE]
  python -m bnonly_jax.benchmark step --config=FILE.py[:ARGUMENT] [--against=all|torch|flax]
      [--on=v5e:4x4|h100] [--out=FILE]
  python -m bnonly_jax.benchmark scale [--config=FILE.py[:ARGUMENT]] [--out=FILE]
  python -m bnonly_jax.benchmark table --rows=DIR

data: images per second that every prepared data set gives on one core, resident and streamed, and
  224x224 crops of JPEGs of ImageNet's size, made for the purpose; with --config beside the rate
  that the training step of that experiment takes them at.
step: time, memory, FLOPs, convolutions and all-reduced bytes of the training step of --config, side
  by side with training --against instead; start-up and compile time. --against=torch: side by side
  with PyTorch's step of the same network, batch, selection and precision, on one CPU or GPU.
  --against=flax: side by side with the same network as one would write it in Flax.
step --on: the training and the evaluation step compiled for devices that are not there, a TPU slice
  or an H100: whether they fit, and the compiler's estimate of cycles (TPU) or kernels and bytes
  (GPU), by stage of the step. No measurement. It needs pip install -e '.[tpu]' or '.[cuda12]'.
scale: bytes all-reduced a step for each network, BatchNorm only and all, by the compiled step; the
  least time of a step on a pod by the devices' peaks; and the step of --config on 1, 2 and 4
  simulated devices.
table: what `step` wrote to JSON files of one folder, as Markdown: a table of what was measured and
  one of the compiler's estimates.

The others print tables, and write them as JSON to --out.
"""

import json
import os
import pathlib

from absl import flags

from bnonly_jax import command_line
from bnonly_jax.benchmark import table

_CONFIG = command_line.define_config()
_DATA_DIR = flags.DEFINE_string(
    'data_dir', '', "data: folder of prepared data sets; '' is TFDS's own.")
_AGAINST = flags.DEFINE_string(
    'against', 'all', "step: what is trained instead, to compare with; torch or flax for their"
    " step; '' for nothing.")
_ON = flags.DEFINE_string(
    'on', '', 'step: devices that are not there, to compile for: h100, or a TPU slice such as'
    ' v5e:4x4, v5p:2x2x1 or v6e:16x16.')
_COMPILE_LIMIT = flags.DEFINE_float(
    'compile_limit', 300.0, 'step --against=torch on a GPU: seconds that torch.compile may take; 0:'
    ' eager only.', lower_bound=0)
_ROWS = flags.DEFINE_string('rows', '', 'table: the folder of JSON files.')
_OUT = flags.DEFINE_string('out', '', 'A JSON file to write the figures to.')


def main(topic: str) -> None:
  if topic == 'table':
    print(table.markdown(_ROWS.value))
    return
  if _ON.value:
    os.environ.setdefault('JAX_PLATFORMS', 'cpu')  # nothing runs
  # Here, so that a mistake in the flags is told at once.
  from bnonly_jax.benchmark import data
  from bnonly_jax.benchmark import elsewhere
  from bnonly_jax.benchmark import scale
  from bnonly_jax.benchmark import step
  from bnonly_jax.config import UserError
  if topic == 'step' and _CONFIG.value is None:
    raise UserError('step measures one experiment: add --config=FILE.py[:ARGUMENT].')
  if _ON.value and topic != 'step':
    raise UserError(f'--on={_ON.value} goes with step, not with {topic}. Leave it out.')
  if _OUT.value and (os.path.isdir(_OUT.value)
                     or not os.path.isdir(os.path.dirname(_OUT.value) or '.')):
    raise UserError(f'--out={_OUT.value} cannot be written; allowed is a file in a folder that'
                    ' there is. Make the folder, or name another.')
  # Else this process would hold most of a GPU's memory, which the others it starts need too.
  os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
  result = {'data': lambda: data.measure(_CONFIG.value, _DATA_DIR.value),
            'step': lambda: (
                elsewhere.measure(_CONFIG.value, _AGAINST.value, _ON.value) if _ON.value else
                step.measure(_CONFIG.value, _AGAINST.value, _COMPILE_LIMIT.value)),
            'scale': lambda: scale.measure(_CONFIG.value)}[topic]()
  if _OUT.value:
    pathlib.Path(_OUT.value).write_text(json.dumps(result, indent=2) + '\n')


if __name__ == '__main__':
  command_line.run(main, lambda: '', topics=('data', 'step', 'scale', 'table'))
