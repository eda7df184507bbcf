"""The small end of the paper's figures at full length, on JPEG files of CIFAR-10's images.

  python -m bnonly_jax.sweep --config=configs/figures/small_end.py:SCALE --workdir=DIR
  python -m bnonly_jax.figures --config=configs/figures/small_end.py:SCALE --workdir=DIR

What two CPU cores can train in days and a GPU in minutes: BatchNorm alone by depth and width, and
every control at ResNet-14. The paper, on CIFAR-10: 47.8 % for ResNet-14, 57.6 % for ResNet-32 and
53.3 % for ResNet-14x2 when only BatchNorm trains. RESULTS.md shows what came out.

Cost at `paper`: 36 runs, 0.13 EFLOP of training steps (counted). At a fifth of one H100's dense
TF32 peak (495 TFLOP/s; in TF32 XLA multiplies float32 there) that is 0.4 hours, an estimate.
"""

import ml_collections

from bnonly_jax.sweep.config import base
from bnonly_jax.sweep.config import Point
from bnonly_jax.sweep.config import sweep

NETWORKS = {'smoke': ('8',), 'short': ('14', '20'), 'paper': ('14', '20', '32', '14x2')}
# Every line but BatchNorm and all is of the first network alone.
LINES = {'BatchNorm': 'batchnorm', 'all': 'all',
         'BatchNorm, output, shortcuts': 'batchnorm+output+shortcut', 'gamma': 'gamma',
         'beta': 'beta', 'two random weights a channel': 'random:2', 'output, shortcuts':
         'output+shortcut', 'output layer': 'output', 'nothing': 'nothing'}


def get_config(scale: str = 'paper') -> ml_collections.ConfigDict:
  """Args: scale, smoke, short or paper."""
  networks = NETWORKS.get(scale, ())
  points = [Point(line, f'ResNet-{network}', {'network': f'cifar_resnet{network}', 'train': train})
            for line, train in LINES.items()
            for network in (networks if train in ('batchnorm', 'all') else networks[:1])]
  config = base(scale)
  if scale == 'paper':
    config.data.name = 'cifar10_jpeg'
  return sweep('small_end', 'The small end of the paper', scale, 'network', points, seeds=0,
               base_config=config)
