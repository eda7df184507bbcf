"""How many ReLUs never fire on the test set, BatchNorm only against everything.

  python -m bnonly_jax.sweep --config=configs/figures/silent_relus.py:SCALE --workdir=DIR
  python -m bnonly_jax.figures --config=configs/figures/silent_relus.py:SCALE --workdir=DIR

A ReLU is a feature of one layer; it is silent if it gives zero at every place of every test image.
The paper compares the two by their share; its numbers are not known here. RESULTS.md has ours of
some networks.

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
  points = [Point(line, depth, {'network': f'cifar_resnet{depth}', 'train': train})
            for line, train in LINES.items() for depth in DEPTHS.get(scale, ())]
  return sweep('silent_relus', 'Silent ReLUs', scale, 'depth', points, panels=('silent_relus',))
