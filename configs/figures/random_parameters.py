"""How many random weights of every channel it takes to match BatchNorm.

  python -m bnonly_jax.sweep --config=configs/figures/random_parameters.py:SCALE --workdir=DIR
  python -m bnonly_jax.figures --config=configs/figures/random_parameters.py:SCALE --workdir=DIR

K weights of each output channel of every convolution train, chosen by the seed, and nothing else; 2
are as many parameters as BatchNorm has. The level line is BatchNorm. The paper: an equal number of
random parameters does far worse.

Cost at `paper`: 120 runs, 0.64 EFLOP of training steps (counted). At a fifth of one H100's dense
TF32 peak (495 TFLOP/s; in TF32 XLA multiplies float32 there) that is 1.8 hours, an estimate: of
this length only the runs in docs/runs are there.
"""

import ml_collections

from bnonly_jax.sweep.config import Point
from bnonly_jax.sweep.config import sweep

NETWORKS = {'smoke': (8,), 'short': (14,), 'paper': (14, 32, 110)}
NUMBERS = {'smoke': (2, 8), 'short': (1, 2, 4, 8, 16), 'paper': (1, 2, 4, 8, 16, 32, 64)}


def get_config(scale: str = 'paper') -> ml_collections.ConfigDict:
  """Args: scale, smoke, short or paper."""
  points = []
  for depth in NETWORKS.get(scale, ()):
    network = f'cifar_resnet{depth}'
    points += [Point(f'ResNet-{depth}, random weights', number,
                     {'network': network, 'train': f'random:{number}'})
               for number in NUMBERS[scale]]
    points.append(Point(f'ResNet-{depth}, BatchNorm', None,
                        {'network': network, 'train': 'batchnorm'}))
  return sweep('random_parameters', 'Random weights against BatchNorm', scale,
               'random weights a channel', points)
