"""How many gammas are small, and what the network loses if they are set to zero.

  python -m bnonly_jax.sweep --config=configs/figures/thresholds.py:SCALE --workdir=DIR
  python -m bnonly_jax.figures --config=configs/figures/thresholds.py:SCALE --workdir=DIR

Small is |gamma| < t for t = 0.01, 0.05, 0.1. The paper: with BatchNorm only about a third of the
features are disabled by gammas that go to zero; its first version has 27 % of gammas below 0.01,
and 9 % when everything trains.

Cost at `paper`: 70 runs, 1.6 EFLOP of training steps (counted). At a fifth of one H100's dense TF32
peak (495 TFLOP/s; in TF32 XLA multiplies float32 there) that is 4.5 hours, an estimate: of this
length only the runs in docs/runs are there.
"""

import ml_collections

from bnonly_jax.sweep.config import Point
from bnonly_jax.sweep.config import sweep

DEPTHS = {'smoke': (8,), 'short': (14,), 'paper': (14, 32, 56, 110, 218, 434, 866)}
LINES = {'all': 'all', 'BatchNorm': 'batchnorm'}


def get_config(scale: str = 'paper') -> ml_collections.ConfigDict:
  """Args: scale, smoke, short or paper."""
  points = [Point(line, f'ResNet-{depth}', {'network': f'cifar_resnet{depth}', 'train': train})
            for line, train in LINES.items() for depth in DEPTHS.get(scale, ())]
  return sweep('thresholds', 'Small gammas', scale, 'network', points,
               panels=('small_gammas', 'zeroed'))
