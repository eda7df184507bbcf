"""The main figure by depth on CIFAR-100. Not in the paper.

  python -m bnonly_jax.sweep --config=configs/figures/cifar100.py:SCALE --workdir=DIR
  python -m bnonly_jax.figures --config=configs/figures/cifar100.py:SCALE --workdir=DIR

`short` takes a tenth of CIFAR-100 (prepare it first), `smoke` the embedded scans.

What to expect is not known: it has not been run at this scale.

Cost at `paper`: 125 runs, 0.79 EFLOP of training steps (counted). At a fifth of one H100's dense
TF32 peak (495 TFLOP/s; in TF32 XLA multiplies float32 there) that is 2.2 hours, an estimate:
nothing of this length has been run.
"""

import ml_collections

from bnonly_jax.sweep.config import Point
from bnonly_jax.sweep.config import sweep

DEPTHS = {'smoke': (8,), 'short': (14, 20), 'paper': (14, 32, 56, 110, 218)}
LINES = {'all': 'all', 'BatchNorm': 'batchnorm', 'two random weights a channel': 'random:2',
         'output layer': 'output', 'nothing': 'nothing'}


def get_config(scale: str = 'paper') -> ml_collections.ConfigDict:
  """Args: scale, smoke, short or paper."""
  data = {} if scale == 'smoke' else {'data.name': 'cifar100'}
  points = [Point(line, depth, {'network': f'cifar_resnet{depth}', 'train': train, **data})
            for line, train in LINES.items() for depth in DEPTHS.get(scale, ())]
  return sweep('cifar100', 'What trains, CIFAR-100 by depth', scale, 'depth', points)
