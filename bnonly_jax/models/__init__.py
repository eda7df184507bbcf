"""Networks by name."""

import re

import flax.linen as nn

from bnonly_jax.config import UserError
from bnonly_jax.models import public
from bnonly_jax.models.cifar_resnet import CifarResNet
from bnonly_jax.models.cifar_vgg import GROUPS
from bnonly_jax.models.imagenet_resnet import ImageNetResNet
from bnonly_jax.models.imagenet_resnet import STAGES
from bnonly_jax.models.initialise import initialise
from bnonly_jax.models.initialise import look
from bnonly_jax.models.initialise import NORM_STARTS
from bnonly_jax.models.initialise import variable_shapes
from bnonly_jax.models.initialise import WEIGHT_STARTS
from bnonly_jax.models.layers import Style
from bnonly_jax.models.norm import KINDS as NORMS
from bnonly_jax.models.norm import Statistics
from bnonly_jax.models.norm import WITH_BATCHNORM
from bnonly_jax.models.own import check as check_own
from bnonly_jax.models.own import create as create_own
from bnonly_jax.models.own import is_own
from bnonly_jax.models.parameters import Parameter
from bnonly_jax.models.public import image_size

__all__ = ['check_own', 'create', 'image_size', 'initialise', 'is_own', 'look', 'NORM_STARTS',
           'NORMS', 'Parameter', 'Statistics', 'Style', 'variable_shapes', 'WEIGHT_STARTS',
           'WITH_BATCHNORM']

_FAMILIES = (
    'cifar_resnetN and cifar_resnetNxK with N = 6 D + 2 (8, 14, 20, 32, 56, 110, 218, 434, 866,'
    ' ...) and K times 16 channels; imagenet_resnetN and imagenet_resnetNxK with N in'
    f' {", ".join(map(str, STAGES))} and K times 64 channels; cifar_vggN with N in'
    f' {", ".join(map(str, GROUPS))}; or module:function, a network of your own')


def create(name: str, classes: int, style: Style = Style()) -> nn.Module:  # noqa: B008
  """Builds the network that a config names.

  Args:
    name: cifar_resnetN[xK], imagenet_resnetN[xK] or cifar_vggN, N the depth, K the width factor.
      Or module:function, see `own`.
    classes: number of logits.
    style: how it computes; a network of one's own says so itself.

  Raises:
    UserError: no network has this name, or it has not what `style` asks for.
  """
  if is_own(name):
    return create_own(name, classes)
  match = re.fullmatch(r'(cifar_resnet|imagenet_resnet)(\d+)(?:x([1-9]\d*))?', name)
  family, depth, factor = (match[1], int(match[2]), int(match[3] or 1)) if match else ('', 0, 1)
  if family == 'cifar_resnet' and depth >= 8 and depth % 6 == 2:
    return CifarResNet((depth - 2) // 6, 16 * factor, classes, style)
  if family == 'imagenet_resnet' and depth in STAGES:
    return ImageNetResNet(depth, 64 * factor, classes, style)
  network = public.create(name, classes, style)
  if network:
    return network
  raise UserError(f'config.network is {name!r}; allowed are {_FAMILIES};'
                  f' {public.FAMILIES}. Try cifar_resnet14 (after'
                  ' configs/cifar10.py: just resnet14).')
