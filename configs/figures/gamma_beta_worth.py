"""What gamma and beta are worth when everything else trains (the paper's Figure 1).

  python -m bnonly_jax.sweep --config=configs/figures/gamma_beta_worth.py:SCALE --workdir=DIR
  python -m bnonly_jax.figures --config=configs/figures/gamma_beta_worth.py:SCALE --workdir=DIR

The paper: training them on top of everything else adds 0.5 to 2 points on CIFAR-10.

Cost at `paper`: 70 runs, 1.9 EFLOP of training steps (counted). At a fifth of one H100's dense TF32
peak (495 TFLOP/s; in TF32 XLA multiplies float32 there) that is 5.4 hours, an estimate: of
this length only the runs in docs/runs are there.
"""

import ml_collections

from bnonly_jax.sweep.config import Point
from bnonly_jax.sweep.config import sweep

DEPTHS = {'smoke': (8, 14), 'short': (14, 20), 'paper': (14, 32, 56, 110, 218, 434, 866)}
LINES = {'all': 'all', 'all but BatchNorm': 'all-batchnorm'}


def get_config(scale: str = 'paper') -> ml_collections.ConfigDict:
  """Args: scale, smoke, short or paper."""
  points = [Point(line, depth, {'network': f'cifar_resnet{depth}', 'train': train})
            for line, train in LINES.items() for depth in DEPTHS.get(scale, ())]
  return sweep('gamma_beta_worth', 'What gamma and beta are worth', scale, 'depth', points)
