"""A trained network under PyTorch's names: those that `config.init_from` reads."""

import pathlib

import flax.traverse_util
import numpy as np
import safetensors.numpy

from bnonly_jax import models
from bnonly_jax.config import UserError
from bnonly_jax.export import loading
from bnonly_jax.export import network
from bnonly_jax.export.network import Trained
from bnonly_jax.models import from_torch
from bnonly_jax.models import layers
from bnonly_jax.run import metrics

# From a kernel's order of axes to PyTorch's: HWIO to OIHW, LIO to OIL, IO to OI.
_AXES = {4: (3, 2, 0, 1), 3: (2, 1, 0), 2: (1, 0)}


def state_dict(trained: Trained) -> dict[str, np.ndarray]:
  """Returns a network's variables as PyTorch has them. The inverse of `from_torch.convert`.

  Raises:
    UserError: PyTorch's networks of these names have BatchNorm, and this one has another norm.
  """
  if trained.config.norm not in models.WITH_BATCHNORM:
    raise UserError(f"config.norm is {trained.config.norm!r}; open_lth's and torchvision's networks"
                    ' have BatchNorm. Export it by stablehlo.')
  found = {}
  for name, value in flax.traverse_util.flatten_dict(trained.variables, sep='/').items():
    names = list(from_torch.torch_names(name, value.shape, trained.network))
    tensors = value if layers.is_stacked(name) else [value]
    for torch_name, tensor in zip(names, tensors, strict=True):
      found[torch_name] = _turned(name, tensor)
  return found


def _turned(name, tensor):
  turned = np.transpose(tensor, _AXES[tensor.ndim]) if name.endswith('/kernel') else tensor
  return np.ascontiguousarray(turned)


def export(source: str, output: str, step: int | None = None, data_dir: str = '',
           replicate: int = 0) -> None:
  """Writes a network under PyTorch's names.

  Raises:
    UserError: as `loading.open_network` and `state_dict`, or the file cannot be written.
  """
  if not output.endswith('.safetensors'):
    raise UserError(f'--output={output}; allowed is a name that ends in .safetensors, as'
                    ' --config.init_from wants it.')
  trained = loading.open_network(source, step, data_dir, replicate)
  tensors = state_dict(trained)
  with network.written(output) as path:
    safetensors.numpy.save_file(tensors, path, {'format': 'pt'})
  size = pathlib.Path(output).expanduser().stat().st_size
  metrics.console.print(f'{output}: {len(tensors)} tensors under PyTorch\'s names, {size:,} bytes')
