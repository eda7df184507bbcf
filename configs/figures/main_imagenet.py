"""The main figure on ImageNet, top-1 and top-5.

  python -m bnonly_jax.sweep --config=configs/figures/main_imagenet.py:SCALE --workdir=DIR
  python -m bnonly_jax.figures --config=configs/figures/main_imagenet.py:SCALE --workdir=DIR

The paper: 32 % top-5 for ResNet-200, BatchNorm only. `short` has no ImageNet: it trains ImageNet's
ResNet-18 on the 32x32 images of the JPEG variant of CIFAR-10.

Cost at `paper`: 75 runs, 223 EFLOP of training steps (counted). At a fifth of one H100's dense TF32
peak (495 TFLOP/s; in TF32 XLA multiplies float32 there) that is 626 hours, an estimate: nothing of
this length has been run.
"""

import ml_collections

from bnonly_jax.sweep.config import base
from bnonly_jax.sweep.config import Point
from bnonly_jax.sweep.config import sweep

DEPTHS = {'smoke': (18,), 'short': (18,), 'paper': (18, 34, 50, 101, 200)}
LINES = {'all': 'all', 'BatchNorm': 'batchnorm', 'two random weights a channel': 'random:2',
         'output layer': 'output', 'nothing': 'nothing'}


def get_config(scale: str = 'paper') -> ml_collections.ConfigDict:
  """Args: scale, smoke, short or paper."""
  points = [Point(line, depth, {'network': f'imagenet_resnet{depth}', 'train': train})
            for line, train in LINES.items() for depth in DEPTHS.get(scale, ())]
  return sweep('main_imagenet', 'What trains, ImageNet networks by depth', scale, 'depth', points,
               panels=('test_accuracy', 'test_top5_accuracy'), seeds=3 * (scale == 'paper'),
               base_config=base(scale, 'imagenet'))
