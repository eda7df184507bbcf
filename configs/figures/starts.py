"""Other starts of the frozen weights, and of gamma and beta.

  python -m bnonly_jax.sweep --config=configs/figures/starts.py:SCALE --workdir=DIR
  python -m bnonly_jax.figures --config=configs/figures/starts.py:SCALE --workdir=DIR

The paper's appendix tries these; its main figure has a second start of BatchNorm, probably gamma 1
and beta 1, with 50.9 % for ResNet-14 (47.8 with the default) and 71.8 % for ResNet-110 (69.7).

Cost at `paper`: 140 runs, 0.53 EFLOP of training steps (counted). At a fifth of one H100's dense
TF32 peak (495 TFLOP/s; in TF32 XLA multiplies float32 there) that is 1.5 hours, an estimate: of
this length only the runs in docs/runs are there.
"""

import ml_collections

from bnonly_jax.sweep.config import Point
from bnonly_jax.sweep.config import sweep

DEPTHS = {'smoke': (8,), 'short': (14,), 'paper': (14, 32, 56, 110)}
STARTS = {
    'default: he_normal, gamma U[0,1)': {},
    'he_uniform': {'weight_start': 'he_uniform'},
    'orthogonal': {'weight_start': 'orthogonal'},
    'binary': {'weight_start': 'binary'},
    'gamma 1, beta 0': {'norm_start': 'one_zero'},
    'gamma 1, beta 1': {'norm_start': 'one_one'},
    'gamma U[-1,1)': {'norm_start': 'symmetric'},
}


def get_config(scale: str = 'paper') -> ml_collections.ConfigDict:
  """Args: scale, smoke, short or paper."""
  points = [Point(start, f'ResNet-{depth}',
                  {'network': f'cifar_resnet{depth}', 'train': 'batchnorm', **changes})
            for start, changes in STARTS.items() for depth in DEPTHS.get(scale, ())]
  return sweep('starts', 'Other starts, BatchNorm only', scale, 'network', points)
