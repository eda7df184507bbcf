"""A random basis or single weights: K coefficients of every channel in a random subspace.

  python -m bnonly_jax.sweep --config=configs/figures/subspace.py:SCALE --workdir=DIR
  python -m bnonly_jax.figures --config=configs/figures/subspace.py:SCALE --workdir=DIR

K coefficients of each output channel of every convolution train, of frozen random directions, and
nothing else; beside them K of its weights, chosen by the seed, which are as many numbers
(docs/random_features.md). 2 are as many as BatchNorm has, which is the level line. Not in the
paper. RESULTS.md has it at `short`.
"""

import ml_collections

from bnonly_jax.sweep.config import Point
from bnonly_jax.sweep.config import sweep

NETWORKS = {'smoke': 'cifar_resnet8', 'short': 'cifar_resnet14', 'paper': 'cifar_resnet14'}
NUMBERS = {'smoke': (2, 8), 'short': (1, 2, 4, 8, 16), 'paper': (1, 2, 4, 8, 16, 32)}
LINES = {'random subspace': 'subspace', 'random weights': 'random'}


def get_config(scale: str = 'paper') -> ml_collections.ConfigDict:
  """Args: scale, smoke, short or paper."""
  network = NETWORKS.get(scale, '')
  points = [Point(line, number, {'network': network, 'train': f'{train}:{number}'})
            for line, train in LINES.items() for number in NUMBERS.get(scale, ())]
  points.append(Point('BatchNorm', None, {'network': network, 'train': 'batchnorm'}))
  return sweep('subspace', 'A random subspace against random weights', scale,
               'numbers a channel', points)
