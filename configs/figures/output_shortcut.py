"""What the output layer and the shortcuts' convolutions add to BatchNorm.

  python -m bnonly_jax.sweep --config=configs/figures/output_shortcut.py:SCALE --workdir=DIR
  python -m bnonly_jax.figures --config=configs/figures/output_shortcut.py:SCALE --workdir=DIR

The paper, BatchNorm with both: 63.2 % for ResNet-14 (47.8 without) to 82.1 % for ResNet-866 (82);
both without BatchNorm: 48.9 % falling to 13.1 %.

Cost at `paper`: 300 runs, 30 EFLOP of training steps (counted). At a fifth of one H100's dense TF32
peak (495 TFLOP/s; in TF32 XLA multiplies float32 there) that is 85 hours, an estimate: of this
length only the runs in docs/runs are there.
"""

import ml_collections

from bnonly_jax.sweep.config import Point
from bnonly_jax.sweep.config import sweep

NETWORKS = {'smoke': ('8', '14'), 'short': ('14', '20', '32', '14x2'),
            'paper': ('14', '32', '56', '110', '218', '434', '866',
                      '14x2', '14x4', '14x8', '14x16', '14x32')}
LINES = {'BatchNorm, output, shortcuts': 'batchnorm+output+shortcut',
         'BatchNorm, output': 'batchnorm+output', 'BatchNorm, shortcuts': 'batchnorm+shortcut',
         'BatchNorm': 'batchnorm', 'output, shortcuts': 'output+shortcut'}


def get_config(scale: str = 'paper') -> ml_collections.ConfigDict:
  """Args: scale, smoke, short or paper."""
  points = [Point(line, f'ResNet-{network}', {'network': f'cifar_resnet{network}', 'train': train})
            for line, train in LINES.items() for network in NETWORKS.get(scale, ())]
  return sweep('output_shortcut', 'What output layer and shortcuts add', scale, 'network', points)
