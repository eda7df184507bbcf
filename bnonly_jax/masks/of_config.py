"""The mask of an experiment: of what its selection names, all that is not zero for good."""

import dataclasses
from typing import Any

import flax.traverse_util
import ml_collections
import numpy as np

from bnonly_jax.masks.selection import make_mask
from bnonly_jax.masks.selection import simple
from bnonly_jax.masks.subspace import Span
from bnonly_jax.models import frozen_half
from bnonly_jax.models.parameters import flatten
from bnonly_jax.models.parameters import Parameter


def of_config(config: ml_collections.ConfigDict, parameters: dict[str, Parameter], seed: int
              ) -> dict[str, Any]:
  """Returns the mask of config.train, without the weights that config.weight_sparsity leaves out.

  These are thereby frozen, as all is that does not train: no gradient, decay or optimizer reaches
  their zeros. Every seed has as many weights in each tensor.

  Args:
    config: the experiment's.
    parameters: of its network.
    seed: of one replicate.

  Raises:
    UserError: as `make_mask`.
  """
  mask = make_mask(config.train, parameters, seed)
  if not config.weight_sparsity:
    return mask
  named = flatten(mask)
  numbers = frozen_half.kept_numbers(parameters, config.weight_sparsity,
                                     config.weight_sparsity_layers)
  for name, number in numbers.items():
    keep = named[name]
    if isinstance(keep, Span) or np.any(keep):
      kept = frozen_half.kept(name, parameters[name], number, seed)
      named[name] = (dataclasses.replace(keep, kept=kept) if isinstance(keep, Span) else
                     simple(np.logical_and(keep, kept)))
  return flax.traverse_util.unflatten_dict(named, sep='/')
