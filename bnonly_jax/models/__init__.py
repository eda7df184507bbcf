"""Networks by name."""

import re

import flax.linen as nn

from bnonly_jax.config import UserError
from bnonly_jax.models.cifar_resnet import CifarResNet
from bnonly_jax.models.initialise import initialise
from bnonly_jax.models.initialise import variable_shapes

__all__ = ['create', 'initialise', 'variable_shapes']


def create(name: str, classes: int, sync_axis: str | None = None) -> nn.Module:
  """Builds the network that a config names.

  Args:
    name: cifar_resnetN or cifar_resnetNxK, with N = 6 D + 2 and the width K times 16.
    classes: number of logits.
    sync_axis: the axis of devices over which BatchNorm takes its statistics, or None.

  Raises:
    UserError: no network has this name.
  """
  match = re.fullmatch(r'cifar_resnet(\d+)(?:x(\d+))?', name)
  depth, factor = (int(match[1]), int(match[2] or 1)) if match else (0, 0)
  if depth < 8 or depth % 6 != 2 or factor < 1:
    raise UserError(
        f'config.network is {name!r}; allowed are cifar_resnetN and cifar_resnetNxK, N = 6 D + 2'
        ' (8, 14, 20, 32, 56, 110, 218, 434, 866, ...), K = 1, 2, ... times 16 channels.'
        ' Try cifar_resnet14.')
  return CifarResNet((depth - 2) // 6, 16 * factor, classes, sync_axis)
