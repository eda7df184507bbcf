"""A trained network written out as plain convolutions: no norms, no stacks, no blocks.

A plain network is a list of nodes in the order of computation, each a dictionary as JSON holds it:

  {"op": "conv", "name", "input", "stride", "relu", "residual"}: NAME/kernel [size, size, in, out],
    NAME/bias [out], padded as PyTorch pads. `residual` names what is added before the ReLU, or is
    null. With "rows" [H] and "columns" [W] the bias is a map [R, C, out] of R kinds of rows and C
    kinds of columns, and these say which kind each row and column of the output is.
  {"op": "max_pool", "name", "input", "size", "stride", "padding"}
  {"op": "dense", "name", "input"}: mean over all positions, then NAME/kernel [in, out], NAME/bias.

A node's `input` and `residual` name other nodes, or "images", which are normalised.
"""

from collections.abc import Mapping
from typing import Any
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bnonly_jax import masks
from bnonly_jax.config import UserError
from bnonly_jax.export.network import Trained
from bnonly_jax.models import conv
from bnonly_jax.models import layers
from bnonly_jax.models import norm
from bnonly_jax.models.cifar_resnet import CifarResNet
from bnonly_jax.models.cifar_vgg import CifarVGG
from bnonly_jax.models.cifar_vgg import GROUPS
from bnonly_jax.models.imagenet_resnet import ImageNetResNet


class Plain(NamedTuple):
  """A plain network; `apply` stands in for a Flax module's.

  Attributes:
    nodes: see above.
    backend: for which it is to be fast: cpu, gpu or tpu.
  """
  nodes: list[dict[str, Any]]
  backend: str = 'cpu'

  def apply(self, variables: dict[str, Any], images: jax.Array, train: bool = False) -> jax.Array:
    """Maps normalised images [N, H, W, C] to logits; variables['params'] are arrays by name.

    It cannot train: `train` is there for what evaluates any network.
    """
    assert not train
    params, values = variables['params'], {'images': images.astype(jnp.float32)}
    for node in self.nodes:
      values[node['name']] = _compute(node, params, values, self.backend)
    return values[self.nodes[-1]['name']]


def _compute(node, params, values, backend):
  x, name = values[node['input']], node['name']
  if node['op'] == 'max_pool':
    padding = ((node['padding'],) * 2,) * 2
    return nn.max_pool(x, (node['size'],) * 2, (node['stride'],) * 2, padding)
  kernel, bias = params[f'{name}/kernel'], params[f'{name}/bias']
  if node['op'] == 'dense':
    return jnp.mean(x, (1, 2)) @ kernel + bias[None]
  y = conv.conv(x, kernel, node['stride'], backend) + spread(node, bias)
  if node['residual'] is not None:
    y = y + values[node['residual']]
  return jnp.maximum(y, 0) if node['relu'] else y


def spread(node: dict[str, Any], bias: Any) -> Any:
  """Returns a convolution's bias in a shape that meets its output [N, H, W, C]."""
  if 'rows' in node:
    bias = bias[np.asarray(node['rows'])][:, np.asarray(node['columns'])]
  return bias.reshape((1, *(1,) * (3 - bias.ndim), *bias.shape))


def nodes_of(network: Any, names: Mapping[str, Any]) -> list[dict[str, Any]]:
  """Returns a network's nodes; each convolution's has besides "norm", the name of its norm.

  Args:
    network: one of `models`.
    names: of the parameters, as `layers.unstack` has them.

  Raises:
    UserError: it is another network.
  """
  if isinstance(network, CifarVGG):
    return _vgg(network)
  if isinstance(network, CifarResNet | ImageNetResNet):
    return _resnet(isinstance(network, ImageNetResNet), names)
  raise UserError(f'the network is a {type(network).__name__}, whose layers are not known here;'
                  ' allowed are cifar_resnet, imagenet_resnet and cifar_vgg. Export it by'
                  ' stablehlo, without --threshold.')


def _conv(name, norm_name, source, stride=1, relu=True):
  return {'op': 'conv', 'name': name, 'norm': norm_name, 'input': source, 'stride': stride,
          'relu': relu, 'residual': None}


def _pool(name, source, size, padding):
  return {'op': 'max_pool', 'name': name, 'input': source, 'size': size, 'stride': 2,
          'padding': padding}


def _vgg(network):
  nodes, last = [], 'images'
  for i, convolutions in enumerate(GROUPS[network.depth]):
    if i:
      nodes.append(_pool(f'pool{i}', last, 2, 0))
      last = nodes[-1]['name']
    for _ in range(convolutions):
      number = sum(node['op'] == 'conv' for node in nodes) + 1
      nodes.append(_conv(f'conv{number}', f'norm{number}', last))
      last = nodes[-1]['name']
  return [*nodes, {'op': 'dense', 'name': 'output', 'input': last}]


def _resnet(for_imagenet, names):
  nodes = [_conv('stem_conv', 'stem_norm', 'images', 2 if for_imagenet else 1)]
  if for_imagenet:
    nodes.append(_pool('stem_pool', 'stem_conv', 3, 1))
  # In the network's order: `unstack` has put them so.
  blocks = dict.fromkeys('/'.join(name.split('/')[:2]) for name in names
                         if name.startswith('stage'))
  for block in blocks:
    nodes += _block(block, nodes[-1]['name'], names)
  return [*nodes, {'op': 'dense', 'name': 'output', 'input': nodes[-1]['name']}]


def _block(block, source, names):
  """A residual block: its last convolution adds the shortcut, which comes before it."""
  stride = 2 if block.endswith('block1') and not block.startswith('stage1') else 1
  convolutions = sum(f'{block}/conv{i}/kernel' in names for i in (1, 2, 3))
  strided = 2 if convolutions == 3 else 1  # which of them: the 3x3 one of a bottleneck
  nodes, last, residual = [], source, source
  for i in range(1, convolutions + 1):
    nodes.append(_conv(f'{block}/conv{i}', f'{block}/norm{i}', last, stride if i == strided else 1))
    last = nodes[-1]['name']
  if f'{block}/shortcut_conv/kernel' in names:
    residual = f'{block}/shortcut_conv'
    nodes.insert(-1, _conv(residual, f'{block}/shortcut_norm', source, stride, relu=False))
  nodes[-1]['residual'] = residual
  return nodes


def fold(trained: Trained, threshold: float = 0.0) -> tuple[list[dict[str, Any]], dict[str, Any]]:
  """Writes a network as plain nodes, its BatchNorms folded into its convolutions.

  Args:
    trained: with BatchNorm.
    threshold: gammas with a smaller absolute value count as 0: the convolution's kernel is then 0
      in that output channel.

  Returns:
    The nodes and their tensors by name, float64.

  Raises:
    UserError: as `nodes_of`, or the network has another norm.
  """
  if trained.config.norm != 'batch':
    raise UserError(f'config.norm is {trained.config.norm!r}, which no convolution can take up;'
                    ' allowed is batch. Export it by stablehlo, without --threshold.')
  if trained.config.attention != 'none':
    raise UserError(f'config.attention is {trained.config.attention!r}, which is not known here;'
                    ' allowed is none. Export it by stablehlo, without --threshold.')
  named = {}
  for collection in ('params', 'batch_stats'):
    named |= layers.unstack(masks.flatten(trained.variables[collection]))
  named = {name: np.asarray(value, np.float64) for name, value in named.items()}
  nodes, tensors = nodes_of(trained.network, named), {}
  for node in nodes:
    name = node['name']
    if node['op'] == 'dense':
      tensors |= {f'{name}/{leaf}': named[f'{name}/{leaf}'] for leaf in ('kernel', 'bias')}
    elif node['op'] == 'conv':
      scale, bias, mean, var = (named[f'{node["norm"]}/{leaf}']
                                for leaf in ('scale', 'bias', 'mean', 'var'))
      slope = np.where(np.abs(scale) < threshold, 0, scale) / np.sqrt(var + norm.EPSILON)
      tensors[f'{name}/kernel'] = named[f'{name}/kernel'] * slope
      tensors[f'{name}/bias'] = bias + (named.get(f'{name}/bias', 0) - mean) * slope
  return nodes, tensors
