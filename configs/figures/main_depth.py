"""The main figure by depth: how far BatchNorm alone gets as the network becomes deeper.

  python -m bnonly_jax.sweep --config=configs/figures/main_depth.py:SCALE --workdir=DIR
  python -m bnonly_jax.figures --config=configs/figures/main_depth.py:SCALE --workdir=DIR

The paper: training gamma and beta alone reaches 47.8 % (ResNet-14) to 82 % (ResNet-866) on
CIFAR-10, far above two random parameters a channel, which are as many.

Cost at `paper`: 175 runs, 3.2 EFLOP of training steps (counted). At a fifth of one H100's dense
TF32 peak (495 TFLOP/s; in TF32 XLA multiplies float32 there) that is 9.1 hours, an estimate: of
this length only the runs in docs/runs are there.
"""

import ml_collections

from bnonly_jax.sweep.config import Point
from bnonly_jax.sweep.config import sweep

DEPTHS = {'smoke': (8, 14), 'short': (14, 20, 32), 'paper': (14, 32, 56, 110, 218, 434, 866)}
LINES = {'all': 'all', 'BatchNorm': 'batchnorm', 'two random weights a channel': 'random:2',
         'output layer': 'output', 'nothing': 'nothing'}


def get_config(scale: str = 'paper') -> ml_collections.ConfigDict:
  """Args: scale, smoke, short or paper."""
  points = [Point(line, depth, {'network': f'cifar_resnet{depth}', 'train': train})
            for line, train in LINES.items() for depth in DEPTHS.get(scale, ())]
  return sweep('main_depth', 'What trains, by depth', scale, 'depth', points)
