"""Gamma alone, beta alone, and both. Not in the paper.

  python -m bnonly_jax.sweep --config=configs/figures/gamma_or_beta.py:SCALE --workdir=DIR
  python -m bnonly_jax.figures --config=configs/figures/gamma_or_beta.py:SCALE --workdir=DIR
"""

import ml_collections

from bnonly_jax.sweep_config import Point
from bnonly_jax.sweep_config import sweep

DEPTHS = {'smoke': (8, 14), 'short': (14, 20), 'paper': (14, 32, 56, 110)}
LINES = {'gamma and beta': 'batchnorm', 'gamma': 'gamma', 'beta': 'beta'}


def get_config(scale: str = 'paper') -> ml_collections.ConfigDict:
  """Args: scale, smoke, short or paper."""
  points = [Point(line, depth, {'network': f'cifar_resnet{depth}', 'train': train})
            for line, train in LINES.items() for depth in DEPTHS.get(scale, ())]
  return sweep('gamma_or_beta', 'Gamma, beta, and both', scale, 'depth', points)
