"""Test accuracy by learning rate: BatchNorm only against everything, by width and by depth.

  python -m bnonly_jax.sweep --config=configs/figures/rates.py:SCALE --workdir=DIR
  python -m bnonly_jax.figures --config=configs/figures/rates.py:SCALE --workdir=DIR

The recipe for CIFAR-10 has one rate, 0.1, whatever trains. This asks whether BatchNorm alone would
rather have another one, and whether the best rate moves with width and depth as it does when
everything trains. Runs at 0.1 are those of the main figures.

Cost at `paper`: 420 runs, 6.4 EFLOP of training steps (counted). At a fifth of one H100's dense
TF32 peak (495 TFLOP/s; in TF32 XLA multiplies float32 there) that is 18 hours, an estimate: of this
length only the runs in docs/runs are there. At `short`: 180 runs, 4.3 PFLOP.
"""

import ml_collections

from bnonly_jax.config import default_config
from bnonly_jax.sweep.config import Point
from bnonly_jax.sweep.config import sweep

_RATES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
RATES = {'smoke': (0.03, 0.1), 'short': _RATES, 'paper': _RATES}
# Widths of ResNet-14, then the other depths.
NETWORKS = {'smoke': ('8',), 'short': ('14', '14x2', '14x4', '8', '20'),
            'paper': ('14', '14x2', '14x4', '14x8', '32', '56', '110')}
LINES = {'BatchNorm': 'batchnorm', 'all': 'all'}


def get_config(scale: str = 'paper') -> ml_collections.ConfigDict:
  """Args: scale, smoke, short or paper."""
  usual = default_config().optimizer.learning_rate  # left out, as the other figures do
  points = [Point(f'{line}, ResNet-{network}', rate, {
      'network': f'cifar_resnet{network}', 'train': train,
      **({} if rate == usual else {'optimizer.learning_rate': rate})})
            for line, train in LINES.items() for network in NETWORKS.get(scale, ())
            for rate in RATES.get(scale, ())]
  return sweep('rates', 'What trains, by learning rate', scale, 'learning rate', points)
