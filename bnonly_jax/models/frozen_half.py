"""Other random weights for convolutions to be frozen at: sparse, or of low rank.

Functions on the drawn kernels, by name. A kernel's last axis is its output channels; as a matrix it
is [height * width * input channels, output channels]. Nothing else is touched: neither biases nor
dense layers, attention or the output.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from bnonly_jax import seeds
from bnonly_jax.models.parameters import Parameter


def kernels(parameters: Mapping[str, Parameter]) -> dict[str, Parameter]:
  """Returns what is known of the convolutions' kernels, the shortcuts' too, by name."""
  return {name: known for name, known in parameters.items()
          if known.group in ('conv', 'shortcut') and name.endswith('kernel') and known.fan_in}


def kept_numbers(parameters: Mapping[str, Parameter], sparsity: float, layers: str
                 ) -> dict[str, int]:
  """Returns how many weights of each kernel stay, by name; of a stack, of each kernel in it.

  That is round(density * weights), but at least one for each output channel: without any, a
  channel would be constant, and its gamma would have no gradient.

  Args:
    parameters: of the network.
    sparsity: share of all weights of convolutions that is zero.
    layers: `uniform`: every kernel has the same density. `erk`: see `_erk`.
  """
  found = kernels(parameters)
  densities = _erk(found, 1 - sparsity) if layers == 'erk' else dict.fromkeys(found, 1 - sparsity)
  return {name: max(round(densities[name] * np.prod(known.shape)), known.shape[-1])
          for name, known in found.items()}


def _erk(found, density):
  """The densities, by name, of Erdos-Renyi kernels (Evci et al. 2020, arXiv 1911.11134, section 3).

  A kernel's density is proportional to sum(shape) / prod(shape), and at most 1; all together have
  the density that is asked for.
  """
  size = lambda name: int(np.prod(found[name].shape))
  dense = set()
  while True:
    weights = density * sum(len(known.names) * size(name) for name, known in found.items())
    weights -= sum(len(found[name].names) * size(name) for name in dense)
    factor = weights / max(1, sum(len(known.names) * sum(known.shape)
                                  for name, known in found.items() if name not in dense))
    over = {name for name, known in found.items()
            if name not in dense and factor * sum(known.shape) > size(name)}
    if not over:
      return {name: 1.0 if name in dense else factor * sum(known.shape) / size(name)
              for name, known in found.items()}
    dense |= over


def kept(name: str, known: Parameter, number: int, seed: int) -> np.ndarray:
  """Returns which weights of a kernel stay: bools in its whole shape, `number` in each of a stack.

  They depend on the seed and the name. At a higher density the same weights stay, and more.
  """
  inputs, features = int(np.prod(known.shape[:-1])), known.shape[-1]
  # float64, so that there are no ties, which machines might break differently.
  draws = seeds.host_generator(seed, f'kept/{name}').random((len(known.names), inputs, features))
  first = draws.argmin(1)[:, None]  # one of each output channel comes before all others
  np.put_along_axis(draws, first, np.take_along_axis(draws, first, 1) - 1, 1)
  flat = draws.reshape(len(draws), -1)
  last = np.partition(flat, number - 1)[:, number - 1:number]
  return (flat <= last).reshape(known.whole_shape)


def sparsify(params: Mapping[str, np.ndarray], parameters: Mapping[str, Parameter],
             sparsity: float, layers: str, seed: int) -> dict[str, Any]:
  """Returns parameters, by name, in whose kernels only some weights are not zero.

  These are divided by the square root of their share, so that activations keep their size.
  """
  changed = {}
  for name, number in kept_numbers(parameters, sparsity, layers).items():
    known = parameters[name]
    scale = np.float32(np.sqrt(np.prod(known.shape) / number))
    changed[name] = np.where(kept(name, known, number, seed), scale * params[name], np.float32(0))
  return {**params, **changed}


def low_rank(params: Mapping[str, np.ndarray], parameters: Mapping[str, Parameter], rank: int,
             seed: int) -> dict[str, Any]:
  """Returns parameters, by name, whose kernels as matrices are of a rank.

  Each is a product of two normal matrices, scaled to the variance of He normal with fan-in. Kernels
  whose smaller side is no more than the rank stay as they are.
  """
  changed = {}
  for name, known in kernels(parameters).items():
    inputs, features = known.fan_in, known.shape[-1]
    if min(inputs, features) > rank:
      generator = seeds.host_generator(seed, f'low_rank/{name}')
      scale = np.float32(np.sqrt(2 / (inputs * rank)))
      products = [scale * _product(generator.standard_normal((rank, inputs), np.float32),
                                   generator.standard_normal((rank, features), np.float32))
                  for _ in known.names]
      changed[name] = np.stack(products).reshape(known.whole_shape)
  return {**params, **changed}


def _product(left, right):
  """left.T @ right, summed in one order; libraries of matrix products have one for each machine."""
  return sum(row[:, None] * column[None] for row, column in zip(left, right, strict=True))
