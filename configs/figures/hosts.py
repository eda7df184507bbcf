"""The same question asked of other networks: what can the norms alone learn? Not in the paper.

  python -m bnonly_jax.sweep --config=configs/figures/hosts.py:SCALE --workdir=DIR
  python -m bnonly_jax.figures --config=configs/figures/hosts.py:SCALE --workdir=DIR

`norms alone` are scale and bias of whatever norms a network has. The tables say how far each line
is above `nothing` and above two random weights of every channel, which only convolutions have.
RESULTS.md has it at `short`.

Cost at `short`: 180 runs. Twelve at a time on an H100 they took seven minutes. By the steps that
docs/hosts.md has, that is some 13 hours on two CPU cores, an estimate; VoVNet and ViT are ten of
them. --only='resnet|simplenet|inceptionnext' leaves them out.
"""

import ml_collections

from bnonly_jax.sweep.config import Point
from bnonly_jax.sweep.config import sweep

LINES = {'norms alone': 'batchnorm', 'all': 'all', 'output layer': 'output',
         'two random weights a channel': 'random:2', 'nothing': 'nothing'}
CHANGES = {'': {}, ' SE': {'attention': 'se'}, ' ECA': {'attention': 'eca'},
           ' IBN-a': {'norm': 'ibn_a'}}
RESNETS = {'smoke': (8,), 'short': (14, 20), 'paper': (14, 20, 110)}
# The others at 32x32; docs/hosts.md has their stems.
OTHERS = {'SimpleNet 310k': 'simplenet_310k', 'VoVNet-27-slim': 'cifar_vovnet27s',
          'InceptionNeXt-A': 'cifar_inceptionnext_atto', 'ViT-Ti/4': 'vit_tiny'}


def get_config(scale: str = 'paper') -> ml_collections.ConfigDict:
  """Args: scale, smoke, short or paper."""
  hosts = {f'ResNet-{depth}{name}': {'network': f'cifar_resnet{depth}', **changes}
           for depth in RESNETS.get(scale, ()) for name, changes in CHANGES.items()}
  if scale != 'smoke':
    hosts |= {name: {'network': network} for name, network in OTHERS.items()}
  points = [Point(line, host, {'train': train, **changes})
            for line, train in LINES.items() for host, changes in hosts.items()]
  return sweep('hosts', 'Norms alone in other networks', scale, 'network', points,
               over=('nothing', 'two random weights a channel'))
