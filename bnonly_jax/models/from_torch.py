"""PyTorch weights in: the official code's networks (open_lth) and torchvision's ResNets.

The names on PyTorch's side are those of open_lth's models/cifar_resnet.py, models/cifar_vgg.py and
models/imagenet_resnet.py, the last being torchvision's own below a prefix 'model.'.
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
from bnonly_jax.models.cifar_resnet import CifarResNet
from bnonly_jax.models.cifar_vgg import CifarVGG
from bnonly_jax.models.cifar_vgg import GROUPS
from bnonly_jax.models.imagenet_resnet import STAGES

SUFFIXES = ('.npz', '.safetensors', '.pt', '.pth')  # of the files that `read` reads
_LEAVES = {'kernel': 'weight', 'scale': 'weight', 'bias': 'bias', 'mean': 'running_mean',
           'var': 'running_var'}


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
  for prefix in ('module.', 'model.'):
    if all(name.startswith(prefix) for name in state_dict):
      state_dict = {name.removeprefix(prefix): value for name, value in state_dict.items()}
  left = {name for name in state_dict if not name.endswith('num_batches_tracked')}
  missing, other_shape, variables = [], [], {}
  for name, leaf in flax.traverse_util.flatten_dict(shapes, sep='/').items():
    sources = list(torch_names(name, leaf.shape, network))
    missing += [source for source in sources if source not in left]
    if missing:
      continue
    tensors = [_transposed(np.asarray(state_dict[source], np.float32)) for source in sources]
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
  """Yields PyTorch's name of a tensor of ours, or the names of those that a stack of ours holds."""
  *module, leaf = name.split('/')[1:]
  leaf = _LEAVES[leaf]
  if module[0] == 'output':
    yield f'fc.{leaf}'
  elif isinstance(network, CifarVGG):
    kind, number = module[0][:4], int(module[0][4:])
    # PyTorch counts the max pools between the groups of convolutions, too.
    pools = sum(number > sum(GROUPS[network.depth][:i + 1]) for i in range(4))
    yield f'layers.{number - 1 + pools}.{"bn" if kind == "norm" else "conv"}.{leaf}'
  elif module[0].startswith('stem'):
    number = '' if isinstance(network, CifarResNet) else '1'
    yield f'{"bn" if module[0] == "stem_norm" else "conv"}{number}.{leaf}'
  else:
    stage, part = module[0].removeprefix('stage').split('_')
    cifar = isinstance(network, CifarResNet)
    blocks = network.blocks if cifar else STAGES[network.depth][int(stage) - 1]
    for number in [0] if part == 'first' else range(blocks - shape[0], blocks):
      block = (f'blocks.{(int(stage) - 1) * blocks + number}' if cifar
               else f'layer{stage}.{number}')
      down = 'shortcut' if cifar else 'downsample'
      layer = {'shortcut_conv': f'{down}.0', 'shortcut_norm': f'{down}.1'}.get(
          module[1], module[1].replace('norm', 'bn'))
      yield f'{block}.{layer}.{leaf}'
