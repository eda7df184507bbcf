"""How sparse random features may be: test accuracy by the share of zero weights.

  python -m bnonly_jax.sweep --config=configs/figures/sparsity.py:SCALE --workdir=DIR
  python -m bnonly_jax.figures --config=configs/figures/sparsity.py:SCALE --workdir=DIR

Zeros are at the start and for good. Of BatchNorm alone they are spread evenly over the kernels, and
by Erdos-Renyi kernels (docs/random_features.md); of everything, which is then sparse training from
random pruning, evenly. Not in the paper. RESULTS.md has it at `short`.
"""

import ml_collections

from bnonly_jax.sweep.config import Point
from bnonly_jax.sweep.config import sweep

NETWORKS = {'smoke': 'cifar_resnet8', 'short': 'cifar_resnet14', 'paper': 'cifar_resnet14'}
SPARSITIES = {'smoke': (0, 0.9), 'short': (0, 0.5, 0.9, 0.99),
              'paper': (0, 0.5, 0.8, 0.9, 0.95, 0.99)}
LINES = {'BatchNorm': {'train': 'batchnorm'},
         'BatchNorm, erk': {'train': 'batchnorm', 'weight_sparsity_layers': 'erk'},
         'all': {'train': 'all'}}


def get_config(scale: str = 'paper') -> ml_collections.ConfigDict:
  """Args: scale, smoke, short or paper."""
  points = [Point(line, sparsity, {
      'network': NETWORKS.get(scale, ''),
      **(changes | {'weight_sparsity': sparsity} if sparsity else {'train': changes['train']})})
            for line, changes in LINES.items() for sparsity in SPARSITIES.get(scale, ())]
  return sweep('sparsity', 'Sparse random features', scale, 'share of zero weights', points)
