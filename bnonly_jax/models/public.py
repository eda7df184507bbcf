"""Networks of public code, by name; their stems, sources and counts are in docs/hosts.md."""

import re

import flax.linen as nn

from bnonly_jax.config import UserError
from bnonly_jax.models import clip_resnet
from bnonly_jax.models import imagenet_resnetrs
from bnonly_jax.models import inceptionnext
from bnonly_jax.models import simplenet
from bnonly_jax.models import vit
from bnonly_jax.models import vovnet
from bnonly_jax.models.cifar_resnet import CifarResNet
from bnonly_jax.models.cifar_vgg import CifarVGG
from bnonly_jax.models.cifar_vgg import GROUPS
from bnonly_jax.models.inception_v4 import InceptionV4
from bnonly_jax.models.layers import Style

_IBN = ('ibn_a', 'ibn_b')
_RS = '|'.join(map(str, imagenet_resnetrs.STAGES))
# The expression that a whole name matches; what makes the network of the match, the classes and
# the style; whether it has residual blocks of ours, and with them attention and the norms of IBN;
# and the side of the images that are assumed where no data set is prepared.
_NETWORKS = (
    (r'cifar_resnet_([1-9]\d*)-([1-9]\d*)-([1-9]\d*)(?:x([1-9]\d*))?', lambda match, *rest:
     CifarResNet(tuple(map(int, match.groups()[:3])), 16 * int(match[4] or 1), *rest), True, 32),
    (rf'cifar_vgg({"|".join(map(str, GROUPS))})', lambda match, *rest:
     CifarVGG(int(match[1]), *rest), False, 32),
    (r'simplenet_(310k|460k|5m)', lambda match, *rest:
     simplenet.SimpleNet(simplenet.CHANNELS[match[1]], *rest), False, 32),
    (r'vit_(tiny|small)', lambda match, *rest:
     vit.ViT(vit.FEATURES[match[1]], 12, *rest), False, 224),
    (r'(cifar_)?(ese_)?vovnet(19s|27s|39|57)', lambda match, *rest:
     vovnet.VoVNet(vovnet.SIZES[match[3]], *rest, bool(match[2]), bool(match[1])), False, 224),
    (rf'(cifar|imagenet)_resnetrs({_RS})', lambda match, *rest: imagenet_resnetrs.ResNetRS(
        imagenet_resnetrs.STAGES[int(match[2])], 64, *rest, match[1] == 'cifar'), True, 224),
    (r'(cifar_)?clip_resnet(50|101)(gap)?', lambda match, *rest: clip_resnet.ClipResNet(
        clip_resnet.STAGES[int(match[2])], 64, *rest, bool(match[3]), bool(match[1])), True, 224),
    (r'(cifar_)?inceptionnext_(atto|tiny|small|base)', lambda match, *rest:
     inceptionnext.InceptionNeXt(inceptionnext.SIZES[match[2]], *rest, 2 if match[1] else 4),
     False, 224),
    (r'inception_v4', lambda match, *rest: InceptionV4(1, *rest), False, 299))

FAMILIES = ('cifar_resnet_A-B-C[xK] with A, B and C blocks, simplenet_310k, _460k or _5m, vit_tiny'
            ' or vit_small, [cifar_][ese_]vovnet19s, 27s, 39 or 57, imagenet_resnetrsN or'
            f' cifar_resnetrsN with N in {_RS.replace("|", ", ")}, [cifar_]clip_resnet50[gap] or'
            ' 101[gap], [cifar_]inceptionnext_atto, _tiny, _small or _base, inception_v4')


def create(name: str, classes: int, style: Style) -> nn.Module | None:
  """Builds a network of public code; None: there is none of this name.

  Raises:
    UserError: it has not what `style` asks for.
  """
  for expression, make, residual, _ in _NETWORKS:
    match = re.fullmatch(expression, name)
    if match:
      _check(name, style, residual)
      return make(match, classes, style)
  return None


def _check(name, style, residual):
  def refuse(field, value, why, allowed):
    raise UserError(f'config.{field} is {value!r}, and config.network {name!r} has {why}; allowed'
                    f' is {allowed}. Set --config.{field}={allowed.partition(" ")[0]}')

  if not residual and style.norm in _IBN:
    refuse('norm', style.norm, 'no residual blocks', 'batch or another without ibn')
  if not residual and style.attention != 'none' and 'vovnet' not in name:
    refuse('attention', style.attention, 'no residual blocks', 'none')
  if name.startswith('vit') and style.norm not in ('batch', 'layer_channels', 'rms', 'none'):
    refuse('norm', style.norm, 'tokens', 'layer_channels, rms, none or batch, here layer_channels')
  if name.startswith(('simplenet', 'cifar_vgg')) and style.remat:
    refuse('remat', 'block', 'no residual blocks', 'none')


def image_size(name: str) -> int:
  """Returns the side of the images that a network is made for, whether it is here or ours."""
  if name.startswith('cifar'):
    return 32
  sides = [side for expression, *_, side in _NETWORKS if re.fullmatch(expression, name)]
  return sides[0] if sides else 224 if name.startswith('imagenet') else 32
