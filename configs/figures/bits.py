"""How many bits random features need: test accuracy by the codes of the frozen weights.

  python -m bnonly_jax.sweep --config=configs/figures/bits.py:SCALE --workdir=DIR
  python -m bnonly_jax.figures --config=configs/figures/bits.py:SCALE --workdir=DIR

BatchNorm alone trains. 32 bits are the float32 numbers themselves; e4m3 and e5m2 are 8-bit floats
(docs/random_features.md). Not in the paper. RESULTS.md has it at `short`.
"""

import ml_collections

from bnonly_jax.sweep.config import Point
from bnonly_jax.sweep.config import sweep

NETWORKS = {'smoke': 'cifar_resnet8', 'short': 'cifar_resnet14', 'paper': 'cifar_resnet14'}
BITS = {'smoke': ('1', '32'), 'short': ('1', '2', '4', '8', '32'),
        'paper': ('1', '2', '4', '8', 'e4m3', 'e5m2', '32')}


def get_config(scale: str = 'paper') -> ml_collections.ConfigDict:
  """Args: scale, smoke, short or paper."""
  points = [Point('BatchNorm', bits, {'network': NETWORKS.get(scale, ''), 'train': 'batchnorm',
                                      **({} if bits == '32' else {'weight_bits': bits})})
            for bits in BITS.get(scale, ())]
  return sweep('bits', 'Random features of few bits', scale, 'bits of a weight', points)
