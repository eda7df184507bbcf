"""What a teacher adds: test accuracy by the share of the teacher in the loss.

  python -m bnonly_jax.sweep --config=configs/figures/distillation.py:SCALE --workdir=DIR
  python -m bnonly_jax.figures --config=configs/figures/distillation.py:SCALE --workdir=DIR

BatchNorm alone and everything, at temperature 4. The teacher must be there before; at `paper` and
`short` it is meant to be the run of `all` that configs/figures/small_end.py has:

  python -m bnonly_jax.sweep --config=configs/figures/small_end.py:paper --workdir=runs/small_end \
      --config.base.data.name=cifar10_jpeg --only='cifar_resnet14-all/seed0'

--config.base.teacher=WORKDIR takes another one. Not in the paper. RESULTS.md has it at `short`.
"""

import ml_collections

from bnonly_jax.sweep.config import base
from bnonly_jax.sweep.config import Point
from bnonly_jax.sweep.config import sweep

TEACHER = 'runs/small_end/cifar_resnet14-all/seed0'
NETWORKS = {'smoke': 'cifar_resnet8', 'short': 'cifar_resnet14', 'paper': 'cifar_resnet14'}
SHARES = {'smoke': (0.0, 0.9), 'short': (0.0, 0.5, 0.9, 1.0), 'paper': (0.0, 0.25, 0.5, 0.9, 1.0)}
LINES = {'BatchNorm': 'batchnorm', 'all': 'all'}


def get_config(scale: str = 'paper') -> ml_collections.ConfigDict:
  """Args: scale, smoke, short or paper."""
  config = base(scale)
  config.teacher = TEACHER
  points = [Point(line, share, {'network': NETWORKS[scale], 'train': train, 'distill': share})
            for line, train in LINES.items() for share in SHARES[scale]]
  return sweep('distillation', 'Taught by a network that trained whole', scale,
               'share of the teacher in the loss', points, base_config=config)
