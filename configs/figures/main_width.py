"""The main figure by width: ResNet-14 with 16, 32, ... channels in its first stage.

  python -m bnonly_jax.sweep --config=configs/figures/main_width.py:SCALE --workdir=DIR
  python -m bnonly_jax.figures --config=configs/figures/main_width.py:SCALE --workdir=DIR

The paper: training gamma and beta alone reaches 47.8 % (ResNet-14) to 73.2 % (32 times as wide) on
CIFAR-10. Depth does more for it than width, at the same number of trained parameters.

Cost at `paper`: 150 runs, 29 EFLOP of training steps (counted). At a fifth of one H100's dense TF32
peak (495 TFLOP/s; in TF32 XLA multiplies float32 there) that is 80 hours, an estimate: of this
length only the runs in docs/runs are there.
"""

import ml_collections

from bnonly_jax.sweep.config import Point
from bnonly_jax.sweep.config import sweep

WIDTHS = {'smoke': (1, 2), 'short': (1, 2), 'paper': (1, 2, 4, 8, 16, 32)}
LINES = {'all': 'all', 'BatchNorm': 'batchnorm', 'two random weights a channel': 'random:2',
         'output layer': 'output', 'nothing': 'nothing'}


def get_config(scale: str = 'paper') -> ml_collections.ConfigDict:
  """Args: scale, smoke, short or paper."""
  depth = 8 if scale == 'smoke' else 14
  points = [Point(line, width, {'network': f'cifar_resnet{depth}' + f'x{width}' * (width > 1),
                                'train': train})
            for line, train in LINES.items() for width in WIDTHS.get(scale, ())]
  return sweep('main_width', f'What trains, by width of ResNet-{depth}', scale,
               'width, times 16 channels', points)
