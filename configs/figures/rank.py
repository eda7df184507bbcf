"""Of what rank random features must be: test accuracy by the rank of the frozen kernels.

  python -m bnonly_jax.sweep --config=configs/figures/rank.py:SCALE --workdir=DIR
  python -m bnonly_jax.figures --config=configs/figures/rank.py:SCALE --workdir=DIR

BatchNorm alone trains. A kernel is a matrix of [height * width * input channels, output channels];
the narrowest of ResNet-14 have 16 output channels, and are then of full rank at 16. The level line
is the usual start (docs/random_features.md). Not in the paper. RESULTS.md has it at `short`.
"""

import ml_collections

from bnonly_jax.sweep.config import Point
from bnonly_jax.sweep.config import sweep

NETWORKS = {'smoke': 'cifar_resnet8', 'short': 'cifar_resnet14', 'paper': 'cifar_resnet14'}
RANKS = {'smoke': (1, 4), 'short': (1, 2, 4, 8, 16), 'paper': (1, 2, 4, 8, 16, 32)}


def get_config(scale: str = 'paper') -> ml_collections.ConfigDict:
  """Args: scale, smoke, short or paper."""
  of = {'network': NETWORKS.get(scale, ''), 'train': 'batchnorm'}
  points = [Point('BatchNorm', rank, {**of, 'weight_rank': rank}) for rank in RANKS.get(scale, ())]
  points.append(Point('BatchNorm, full rank', None, of))
  return sweep('rank', 'Random features of low rank', scale, 'rank of a kernel', points)
