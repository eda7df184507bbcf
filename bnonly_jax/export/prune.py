"""Takes constant features out of a plain network, exactly.

A feature whose kernel is 0 is its bias at every position, after the ReLU too. What reads it gets
the same from every image: that goes into its own bias. Where a reader's padding hides some of its
taps at the border, the sum differs there, so that the bias becomes a small map.
"""

from typing import Any

import numpy as np

# Layers keep a multiple of so many features, if they have as many. On a CPU, convolutions of 13
# channels take longer than those of 16: with 1 in its place a ResNet-14 was no faster than whole.
_MULTIPLE = 4


def prune(nodes: list[dict[str, Any]], tensors: dict[str, np.ndarray],
          image_shape: tuple[int, int, int]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
  """Removes the features that are constant, and the weights that read them.

  Features that are added to each other go together: if each of them is constant. Some constant
  features stay, so that a layer has a multiple of 4.

  Args:
    nodes: from `plain.fold`.
    tensors: from `plain.fold`.
    image_shape: height, width, channels.

  Returns:
    Nodes and tensors, float32, of a smaller network with the same logits.
  """
  constants = _constants(nodes, tensors, image_shape[2])
  kept = _kept(nodes, constants)
  sides, found, smaller = {'images': image_shape[:2]}, [], {}
  for node in nodes:
    node = {key: value for key, value in node.items() if key != 'norm'}
    name, source = node['name'], node['input']
    stay = kept[source]
    gone = np.setdiff1d(np.arange(len(constants[source])), stay)
    values = constants[source][gone]
    sides[name] = height_width = _sides(node, sides[source], tensors)
    if node['op'] == 'dense':
      kernel, bias = tensors[f'{name}/kernel'], tensors[f'{name}/bias']
      smaller |= {f'{name}/kernel': kernel[stay], f'{name}/bias': bias + values @ kernel[gone]}
    elif node['op'] == 'conv':
      kernel = tensors[f'{name}/kernel'][..., kept[name]]
      bias = tensors[f'{name}/bias'][kept[name]]
      seen = np.einsum('c,yxco->yxo', values, kernel[:, :, gone])
      if np.any(seen):
        bias, kinds = _bias_map(bias, seen, node['stride'], sides[source], height_width)
        node |= kinds
      smaller |= {f'{name}/kernel': kernel[:, :, stay], f'{name}/bias': bias}
    found.append(node)
  return found, {name: np.ascontiguousarray(value, np.float32) for name, value in smaller.items()}


def _constants(nodes, tensors, channels):
  """Returns of every node's output the value of each constant channel, NaN for the others."""
  constants = {'images': np.full(channels, np.nan)}
  for node in nodes:
    name, before = node['name'], constants[node['input']]
    if node['op'] == 'max_pool':
      constants[name] = before
    elif node['op'] == 'conv':
      never = ~np.any(tensors[f'{name}/kernel'], (0, 1, 2))
      value = np.where(never, tensors[f'{name}/bias'], np.nan)
      if node['residual'] is not None:
        value = value + constants[node['residual']]
      constants[name] = np.maximum(value, 0) if node['relu'] else value  # NaN stays NaN
  return constants


def _kept(nodes, constants):
  """Returns of every node's output which channels stay, ascending."""
  together = {name: [name] for name in constants}  # the same list for all that are added
  for node in nodes:
    others = [node['residual']] if node.get('residual') else []
    if node['op'] == 'max_pool':
      others = [node['input']]
    for other in others:
      if together[other] is not together[node['name']]:
        together[other] += together[node['name']]
        for name in together[other]:
          together[name] = together[other]
  kept = {}
  for name, group in together.items():
    varies = np.any([np.isnan(constants[other]) for other in group], 0)
    number = max(-(-np.sum(varies) // _MULTIPLE), 1) * _MULTIPLE
    # Those that vary, and of the others as many as the number wants.
    kept[name] = np.sort(np.argsort(~varies, kind='stable')[:number])
  return kept


def _sides(node, sides, tensors):
  """Returns height and width of a node's output."""
  if node['op'] == 'dense':
    return (1, 1)
  size = node['size'] if node['op'] == 'max_pool' else len(tensors[f'{node["name"]}/kernel'])
  padding = node['padding'] if node['op'] == 'max_pool' else (size - 1) // 2
  return tuple((side + 2 * padding - size) // node['stride'] + 1 for side in sides)


def _bias_map(bias, seen, stride, sides, sides_after):
  """Adds what a convolution sees of constant channels to its bias.

  Args:
    bias: [out].
    seen: [size, size, out], what each tap brings where it lies within the image.
    stride: of the convolution.
    sides: height and width of its input.
    sides_after: of its output.

  Returns:
    The bias, [out] or a map, and what says so in the node; see `plain`.
  """
  size, taps, kinds = len(seen), [], []
  for side, after in zip(sides, sides_after, strict=True):
    place = np.arange(after)[:, None] * stride + np.arange(size) - (size - 1) // 2
    inside = (place >= 0) & (place < side)
    unique, kind = np.unique(inside, axis=0, return_inverse=True)
    taps.append(unique.astype(np.float64))
    kinds.append(kind.reshape(-1).tolist())
  found = bias + np.einsum('ry,cx,yxo->rco', *taps, seen)
  if found.shape[:2] == (1, 1):
    return found[0, 0], {}
  return found, {'rows': kinds[0], 'columns': kinds[1]}
