"""Fine-tuning on scans of digits: BatchNorm alone, the output layer, both, or everything.

  python -m bnonly_jax.sweep --config=configs/figures/fine_tuning.py:SCALE --workdir=DIR
  python -m bnonly_jax.figures --config=configs/figures/fine_tuning.py:SCALE --workdir=DIR

The start is a ResNet-14 that was trained whole on `cifar10_jpeg` (docs/runs), its output layer
included, and beside it the random start. Not in the paper. RESULTS.md has it at `short`.
--config.base.init_from=WORKDIR takes another start, --config.base.data... another data set.
"""

import ml_collections

from bnonly_jax.sweep.config import base
from bnonly_jax.sweep.config import Point
from bnonly_jax.sweep.config import sweep

START = 'docs/runs/cifar_resnet14-all/seed0/net.safetensors'
LINES = {'BatchNorm': 'batchnorm', 'output layer': 'output',
         'BatchNorm, output': 'batchnorm+output', 'all': 'all', 'nothing': 'nothing'}
EPOCHS = {'smoke': 2, 'short': 40, 'paper': 160}


def get_config(scale: str = 'paper') -> ml_collections.ConfigDict:
  """Args: scale, smoke, short or paper."""
  config = base('smoke')
  config.network = 'cifar_resnet14'
  config.init_from = START
  config.epochs = EPOCHS.get(scale, 0)
  starts = {'trained on cifar10_jpeg': {}, 'random': {'init_from': ''}}
  points = [Point(line, start, {'train': train, 'data.channels': 3, **changes})
            for line, train in LINES.items() for start, changes in starts.items()]
  return sweep('fine_tuning', 'Fine-tuning on digits', scale, 'start', points, base_config=config)
