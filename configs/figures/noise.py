"""Whether noise on the gradients lets BatchNorm alone start faster in a deep network.

  python -m bnonly_jax.sweep --config=configs/figures/noise.py:SCALE --workdir=DIR
  python -m bnonly_jax.figures --config=configs/figures/noise.py:SCALE --workdir=DIR

The noise's variance falls as eta / (1 + t)^0.55 over steps t (docs/beyond.md). Not in the paper.
RESULTS.md has it at `short`.
"""

import ml_collections

from bnonly_jax.sweep.config import Point
from bnonly_jax.sweep.config import sweep

NETWORKS = {'smoke': ('8',), 'short': ('14', '110'), 'paper': ('14', '110', '218')}
ETAS = {'smoke': (0, 0.1), 'short': (0, 0.001, 0.01, 0.1), 'paper': (0, 0.001, 0.01, 0.1, 0.3, 1)}


def get_config(scale: str = 'paper') -> ml_collections.ConfigDict:
  """Args: scale, smoke, short or paper."""
  points = [Point(f'ResNet-{network}', str(eta), {
      'network': f'cifar_resnet{network}', 'train': 'batchnorm',
      **({'optimizer.gradient_noise': eta} if eta else {})})
            for network in NETWORKS.get(scale, ()) for eta in ETAS.get(scale, ())]
  return sweep('noise', 'Noise on the gradients, BatchNorm only', scale, 'eta', points,
               panels=('test_accuracy', 'train_accuracy'))
