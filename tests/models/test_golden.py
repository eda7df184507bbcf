"""Networks against the logits that their public PyTorch code gives to weights filled by name."""

import gzip
import json
import pathlib
import zlib

import flax.traverse_util
import jax
import numpy as np
import pytest

from bnonly_jax import models
from bnonly_jax.export import torch_names
from bnonly_jax.models import from_torch
from bnonly_jax.models import layers

HOSTS = pathlib.Path(__file__).parents[3] / 'shared' / 'hosts'
# Ours by the name there, and the fields of Style that differ from the default.
NETWORKS = {
    'SimpleNet_Pytorch/simplenet_cifar_310k': ('simplenet_310k', {}),
    'timm/resnetrs50': ('imagenet_resnetrs50', {}),
    'VoVNet.pytorch/vovnet27_slim': ('vovnet27s', {}),
    'VoVNet.pytorch/vovnet39': ('vovnet39', {}),
    'timm/inception_next_atto': ('inceptionnext_atto', {}),
    'timm/inception_v4': ('inception_v4', {}),
    'CLIP/ModifiedResNet-50 (output_dim 10, resolution 64)': ('clip_resnet50', {}),
    'timm/deit_tiny_patch16_224': ('vit_tiny', {}),
    'timm/deit_tiny_patch4_32 (img_size 32, patch_size 4)': ('vit_tiny', {}),
    'torchvision/resnet18': ('imagenet_resnet18', {}),
    'ECANet/eca_resnet18_k3333': ('imagenet_resnet18', {'attention': 'eca:3,3,3,3'}),
    'ECANet/eca_resnet50_k3557': ('imagenet_resnet50', {'attention': 'eca:3,5,5,7'}),
    'IBN-Net/resnet18_ibn_a': ('imagenet_resnet18', {'norm': 'ibn_a'}),
    'IBN-Net/resnet50_ibn_a': ('imagenet_resnet50', {'norm': 'ibn_a'}),
    'IBN-Net/resnet50_ibn_b': ('imagenet_resnet50', {'norm': 'ibn_b'}),
}
_SLOW = ('resnet50', 'resnetrs50', 'inception_v4', 'CLIP', '224')  # seconds each to compile


@pytest.fixture(scope='module')
def golden():
  if not (HOSTS / 'golden.json').is_file():
    pytest.skip(f'{HOSTS} with the golden logits is not there')
  names = json.loads(gzip.decompress((HOSTS / 'names.json.gz').read_bytes()))
  return json.loads((HOSTS / 'golden.json').read_text()), names


def fill(name, shape, gain):
  """The value of a PyTorch tensor, by its name alone."""
  generator = np.random.Generator(np.random.Philox(zlib.crc32(name.encode())))
  leaf, inputs = name.rpartition('.')[2], np.prod(shape[1:])
  if leaf == 'running_var':
    value = 0.5 + generator.random(shape, np.float32)
  elif leaf == 'running_mean':
    value = 0.1 * generator.standard_normal(shape, np.float32)
  elif len(shape) == 4:
    value = np.sqrt(gain / inputs) * generator.standard_normal(shape, np.float32)
  elif len(shape) > 1:
    value = np.sqrt(1 / inputs) * generator.standard_normal(shape, np.float32)
  elif leaf == 'weight':
    value = 0.5 + generator.random(shape, np.float32)
  else:
    value = 0.1 * generator.standard_normal(shape, np.float32)
  return np.float32(value)


def close(network, state_dict, known):
  """Whether a network with these tensors has the parameters and the logits that are known."""
  size = known['size']
  variables = from_torch.convert(state_dict, network,
                                 models.variable_shapes(network, (size, size, 3)))
  assert sum(leaf.size for leaf in jax.tree.leaves(variables['params'])) == known['parameters']
  images = np.random.Generator(np.random.Philox(0)).standard_normal((2, 3, size, size), np.float32)
  logits = jax.jit(network.apply)(variables, images.transpose(0, 2, 3, 1))
  np.testing.assert_allclose(logits[:, :5], known['logits5'],
                             rtol=0, atol=1e-4 + 1e-3 * known['rms'])


@pytest.mark.parametrize('theirs', [
    pytest.param(name, marks=[pytest.mark.slow] * any(part in name for part in _SLOW))
    for name in NETWORKS])
def test_the_logits_are_those_of_the_public_code(golden, theirs):
  found, shapes = golden[0][theirs], golden[1][theirs]
  name, style = NETWORKS[theirs]
  network = models.create(name, found['classes'], models.Style(**style))
  close(network, {tensor: fill(tensor, shape, found['gain']) for tensor, shape in shapes.items()},
        found)


RELATIVES = json.loads((pathlib.Path(__file__).parent / 'relatives.json').read_text())


@pytest.mark.parametrize('name', [
    pytest.param(name, marks=[pytest.mark.slow] * (name != 'ese_vovnet19s'))
    for name in RELATIVES if name != '_about'])
def test_relatives_have_the_logits_of_the_public_code_under_its_names(name):
  known = RELATIVES[name]
  network = models.create(name, 10, models.Style())
  shapes = models.variable_shapes(network, (known['size'], known['size'], 3))
  state_dict = {}
  for own, leaf in flax.traverse_util.flatten_dict(shapes, sep='/').items():
    shape = leaf.shape[1:] if layers.is_stacked(own) else leaf.shape
    if own.endswith('/kernel'):
      shape = tuple(shape[axis] for axis in torch_names._AXES[len(shape)])
    state_dict |= {tensor: fill(tensor, shape, known['gain'])
                   for tensor in from_torch.torch_names(own, leaf.shape, network)}
  close(network, state_dict, known)
