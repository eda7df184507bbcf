"""The small end of the paper's figures: BatchNorm alone by depth and width, and every control.

  python -m bnonly_jax.sweep --config=configs/figures/small_end.py:SCALE --workdir=DIR
  python -m bnonly_jax.figures --config=configs/figures/small_end.py:SCALE --workdir=DIR

RESULTS.md has it at `paper`, with --config.base.data.name=cifar10_jpeg. The paper, on CIFAR-10:
47.8 % for ResNet-14, 57.6 % for ResNet-32 and 53.3 % for ResNet-14x2 when only BatchNorm trains.

Cost at `paper`: 60 runs, 0.071 EFLOP of training steps (counted). A run of ResNet-14, BatchNorm
only, took 135 s on an H200 that another run shared (--config.base.steps_per_call=78).
"""

import ml_collections

from bnonly_jax.sweep.config import Point
from bnonly_jax.sweep.config import sweep

NETWORKS = {'smoke': ('8',), 'short': ('14', '20'), 'paper': ('14', '20', '32', '14x2')}
# Every line but BatchNorm is of the first network alone.
LINES = {'BatchNorm': 'batchnorm', 'all': 'all', 'gamma': 'gamma', 'beta': 'beta',
         'BatchNorm, output, shortcuts': 'batchnorm+output+shortcut',
         'output, shortcuts': 'output+shortcut', 'output layer': 'output',
         'two random weights a channel': 'random:2', 'nothing': 'nothing'}


def get_config(scale: str = 'paper') -> ml_collections.ConfigDict:
  """Args: scale, smoke, short or paper."""
  networks = NETWORKS.get(scale, ())
  points = [Point(line, f'ResNet-{network}', {'network': f'cifar_resnet{network}', 'train': train})
            for line, train in LINES.items()
            for network in (networks if train == 'batchnorm' else networks[:1])]
  return sweep('small_end', 'The small end of the paper', scale, 'network', points,
               panels=('test_accuracy', 'small_gammas', 'zeroed', 'silent_relus'))
