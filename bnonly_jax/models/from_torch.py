"""PyTorch weights in, under the names of the public code of each network.

Each network's `torch_module(module, block)` says which module of that code is one of its own;
`block` counts from 0 within a stack of equal blocks.
"""

from collections.abc import Iterator
import importlib.util
import pathlib
from typing import Any

import flax.linen as nn
import flax.traverse_util
import numpy as np
import safetensors.numpy

from bnonly_jax.config import UserError
from bnonly_jax.models import layers

SUFFIXES = ('.npz', '.safetensors', '.pt', '.pth')  # of the files that `read` reads
TIMM = {'conv': 'conv', 'norm': 'bn'}  # what timm calls the parts of a layer
_LEAVES = {'kernel': 'weight', 'scale': 'weight', 'mean': 'running_mean', 'var': 'running_var',
           'layer_scale': 'gamma'}


def read(path: str | pathlib.Path) -> dict[str, np.ndarray]:
  """Reads a state dict from a .npz, .safetensors or (with torch installed) .pt or .pth file.

  Raises:
    UserError: no such file, another format, a broken file, or torch is missing.
  """
  path = pathlib.Path(path).expanduser()
  if not path.is_file():
    raise UserError(f'config.init_from is {str(path)!r}, and there is no such file. Allowed is a'
                    ' .npz, .safetensors, .pt or .pth file, or the folder of a run.')
  if path.suffix not in SUFFIXES:
    raise UserError(f'config.init_from is {str(path)!r}; allowed is a .npz, .safetensors, .pt or'
                    ' .pth file, or the folder of a run.')
  if path.suffix.startswith('.pt') and importlib.util.find_spec('torch') is None:
    raise UserError(f'config.init_from is {str(path)!r}, which only torch reads. Install torch, or'
                    ' save the state dict with numpy.savez or safetensors.')
  try:
    if path.suffix == '.npz':
      with np.load(path) as file:
        return dict(file)
    if path.suffix == '.safetensors':
      return safetensors.numpy.load_file(path)
    import torch
    state_dict = torch.load(path, map_location='cpu', weights_only=True)
    return {name: tensor.numpy() for name, tensor in state_dict.items()}
  except Exception as error:  # each library has its own errors for a file that is not what it says
    raise UserError(f'config.init_from is {str(path)!r}, which cannot be read as what its name says'
                    f' ({type(error).__name__}: {error}). Save the state dict again.') from error


def convert(state_dict: dict[str, np.ndarray], network: nn.Module,
            shapes: dict[str, Any]) -> dict[str, Any]:
  """Turns a PyTorch state dict into a network's variables.

  Args:
    state_dict: arrays by PyTorch's names, all perhaps below 'model.' or 'module.'.
    network: one of ours, of the same architecture.
    shapes: from `initialise.variable_shapes`.

  Returns:
    {'params': ..., 'batch_stats': ...} with float32 NumPy arrays as leaves. Running variances are
    unbiased on both sides.

  Raises:
    UserError: tensors are missing, surplus or of another shape; the message names them.
  """
  for prefix in ('module.', 'model.', 'visual.'):
    if all(name.startswith(prefix) for name in state_dict):
      state_dict = {name.removeprefix(prefix): value for name, value in state_dict.items()}
  left = {name for name in state_dict if not name.endswith('num_batches_tracked')}
  missing, other_shape, variables = [], [], {}
  for name, leaf in flax.traverse_util.flatten_dict(shapes, sep='/').items():
    sources = list(torch_names(name, leaf.shape, network))
    missing += [source for source in sources if source not in left]
    if missing:
      continue
    tensors = [np.asarray(state_dict[source], np.float32) for source in sources]
    if name.endswith('/kernel'):
      tensors = [_transposed(tensor) for tensor in tensors]
    left -= set(sources)
    stacked = layers.is_stacked(name)
    wanted = leaf.shape[1:] if stacked else leaf.shape
    other_shape += [f'{source} is {tensor.shape} and must be {wanted}'
                    for source, tensor in zip(sources, tensors, strict=True)
                    if tensor.shape != wanted]
    if not other_shape:
      variables[name] = np.stack(tensors) if stacked else tensors[0]
  problems = [f'{len(names)} {what}: {", ".join(sorted(names)[:5])}{", ..." if names[5:] else ""}'
              for what, names in (('missing', missing), ('of another shape, last axis features',
                                                         other_shape),
                                  ('surplus', [] if missing else list(left))) if names]
  if problems:
    raise UserError(f'config.init_from does not fit config.network: tensors {"; ".join(problems)}.'
                    ' Choose the network that the file is of.')
  return {'batch_stats': {}, **flax.traverse_util.unflatten_dict(variables, sep='/')}


def _transposed(tensor):
  """A convolution's OIHW as HWIO, a dense layer's OI as IO."""
  return tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor.T


def torch_names(name: str, shape: tuple[int, ...], network: nn.Module) -> Iterator[str]:
  """Yields PyTorch's name of a tensor of ours, or the names of those that a stack of ours holds.

  Raises:
    UserError: the network, one from elsewhere, has no `torch_module` that tells them.
  """
  if not hasattr(network, 'torch_module'):
    raise UserError(f'the network is a {type(network).__name__}, whose names in PyTorch are not'
                    ' known: it has no torch_module(module, block). Allowed is the folder of a run'
                    ' of the same network.')
  *path, leaf = name.split('/')[1:]
  module = '/'.join(path)
  for block in range(shape[0] if layers.is_stacked(name) else 1):
    yield f'{network.torch_module(module, block)}.{_LEAVES.get(leaf, leaf)}'.lstrip('.')


def torch_block(top: str, block: int, apart: bool) -> tuple[int, int]:
  """Returns the stage of a module, from 1, and its block's place there, from 0, as PyTorch counts.

  Args:
    top: 'stage2_first', 'stage2_stack' or 'stage2_block4'.
    block: which of the stack.
    apart: whether the stage's first block stands apart from its stack.
  """
  stage, place = top.removeprefix('stage').split('_')
  start = {'first': 0, 'stack': int(apart)}.get(place)
  return int(stage), block + (int(place.removeprefix('block')) - 1 if start is None else start)


def torch_part(part: str, down: str = 'downsample', first: int = 0) -> str:
  """Returns PyTorch's name of a residual block's module.

  Args:
    part: ours, 'norm1'.
    down: what the shortcut is called.
    first: the place of its convolution in it, before which there may be a pool.
  """
  place = {'shortcut_conv': f'{down}.{first}', 'shortcut_norm': f'{down}.{first + 1}',
           'attention': 'eca.conv', 'attention/fc1': 'se.fc1', 'attention/fc2': 'se.fc2',
           'attention/fc': 'se.fc', 'norm1/in_norm': 'bn1.IN', 'norm1/bn_norm': 'bn1.BN',
           'end_norm': 'IN'}
  return place.get(part, part.replace('norm', 'bn', 1))
