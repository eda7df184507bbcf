"""Gamma alone, beta alone, and both. Not in the paper.

  python -m bnonly_jax.sweep --config=configs/figures/gamma_or_beta.py:SCALE --workdir=DIR
  python -m bnonly_jax.figures --config=configs/figures/gamma_or_beta.py:SCALE --workdir=DIR

What came out for ResNet-14 on `cifar10_jpeg` (RESULTS.md): 42.0 % by gamma alone, 32.6 % by beta
alone (one seed), 47.0 % by both (three).

Cost at `paper`: 60 runs, 0.23 EFLOP of training steps (counted). At a fifth of one H100's dense
TF32 peak (495 TFLOP/s; in TF32 XLA multiplies float32 there) that is 0.6 hours, an estimate: of
this length only the runs in docs/runs are there.
"""

import ml_collections

from bnonly_jax.sweep.config import Point
from bnonly_jax.sweep.config import sweep

DEPTHS = {'smoke': (8, 14), 'short': (14, 20), 'paper': (14, 32, 56, 110)}
LINES = {'gamma and beta': 'batchnorm', 'gamma': 'gamma', 'beta': 'beta'}


def get_config(scale: str = 'paper') -> ml_collections.ConfigDict:
  """Args: scale, smoke, short or paper."""
  points = [Point(line, depth, {'network': f'cifar_resnet{depth}', 'train': train})
            for line, train in LINES.items() for depth in DEPTHS.get(scale, ())]
  return sweep('gamma_or_beta', 'Gamma, beta, and both', scale, 'depth', points)
