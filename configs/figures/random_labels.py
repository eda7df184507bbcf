"""What can be learned by heart: a share of the labels is drawn at random. Not in the paper.

  python -m bnonly_jax.sweep --config=configs/figures/random_labels.py:SCALE --workdir=DIR
  python -m bnonly_jax.figures --config=configs/figures/random_labels.py:SCALE --workdir=DIR

The images are not augmented, so that each can be learned by heart (Zhang et al., arXiv 1611.03530).

What to expect is not known: it has not been run at this scale.

Cost at `paper`: 75 runs, 0.4 EFLOP of training steps (counted). At a fifth of one H100's dense TF32
peak (495 TFLOP/s; in TF32 XLA multiplies float32 there) that is 1.1 hours, an estimate: nothing of
this length has been run.
"""

import ml_collections

from bnonly_jax.sweep.config import base
from bnonly_jax.sweep.config import Point
from bnonly_jax.sweep.config import sweep

SHARES = {'smoke': (0.0, 1.0), 'short': (0.0, 0.5, 1.0), 'paper': (0.0, 0.25, 0.5, 0.75, 1.0)}
LINES = {'all': 'all', 'BatchNorm': 'batchnorm', 'two random weights a channel': 'random:2'}


def get_config(scale: str = 'paper') -> ml_collections.ConfigDict:
  """Args: scale, smoke, short or paper."""
  depth = {'smoke': 8, 'short': 14}.get(scale, 56)
  config = base(scale)
  config.network = f'cifar_resnet{depth}'
  config.data.pad = 0
  config.data.flip = False
  points = [Point(line, share, {'train': train, 'data.random_labels': share})
            for line, train in LINES.items() for share in SHARES.get(scale, ())]
  return sweep('random_labels', f'ResNet-{depth} on labels drawn at random', scale,
               'share of labels drawn at random', points,
               panels=('train_accuracy', 'test_accuracy'), base_config=config)
