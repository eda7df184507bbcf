"""Scale and bias of GroupNorm and LayerNorm in BatchNorm's place. Not in the paper.

  python -m bnonly_jax.sweep --config=configs/figures/norms.py:SCALE --workdir=DIR
  python -m bnonly_jax.figures --config=configs/figures/norms.py:SCALE --workdir=DIR

What to expect of the other norms is not known: they have not been run at this scale.

Cost at `paper`: 60 runs, 0.23 EFLOP of training steps (counted). At a fifth of one H100's dense
TF32 peak (495 TFLOP/s; in TF32 XLA multiplies float32 there) that is 0.6 hours, an estimate: of
this length only the runs in docs/runs are there.
"""

import ml_collections

from bnonly_jax.sweep.config import Point
from bnonly_jax.sweep.config import sweep

DEPTHS = {'smoke': (8,), 'short': (14, 20), 'paper': (14, 32, 56, 110)}
LINES = {'BatchNorm': {}, 'GroupNorm, 8 channels a group': {'norm': 'group'},
         'LayerNorm': {'norm': 'layer'}}


def get_config(scale: str = 'paper') -> ml_collections.ConfigDict:
  """Args: scale, smoke, short or paper."""
  points = [Point(line, depth,
                  {'network': f'cifar_resnet{depth}', 'train': 'batchnorm', **changes})
            for line, changes in LINES.items() for depth in DEPTHS.get(scale, ())]
  return sweep('norms', "Scale and bias of other norms, and nothing else, trained", scale, 'depth',
               points)
