"""Networks without shortcuts: VGG with BatchNorm. Not in the paper.

  python -m bnonly_jax.sweep --config=configs/figures/vgg.py:SCALE --workdir=DIR
  python -m bnonly_jax.figures --config=configs/figures/vgg.py:SCALE --workdir=DIR

What to expect is not known: it has not been run at this scale.

Cost at `paper`: 80 runs, 0.61 EFLOP of training steps (counted). At a fifth of one H100's dense
TF32 peak (495 TFLOP/s; in TF32 XLA multiplies float32 there) that is 1.7 hours, an estimate:
nothing of this length has been run.
"""

import ml_collections

from bnonly_jax.sweep.config import base
from bnonly_jax.sweep.config import Point
from bnonly_jax.sweep.config import sweep

DEPTHS = {'smoke': (11,), 'short': (11,), 'paper': (11, 13, 16, 19)}
LINES = {'all': 'all', 'BatchNorm': 'batchnorm', 'output layer': 'output', 'nothing': 'nothing'}


def get_config(scale: str = 'paper') -> ml_collections.ConfigDict:
  """Args: scale, smoke, short or paper."""
  config = base(scale)
  if scale == 'smoke':  # VGG halves its images four times
    config.data.image_size = config.data.eval_resize = 32
    config.data.pad = 0
  points = [Point(line, depth, {'network': f'cifar_vgg{depth}', 'train': train})
            for line, train in LINES.items() for depth in DEPTHS.get(scale, ())]
  return sweep('vgg', 'What trains, VGG by depth', scale, 'depth', points, base_config=config)
