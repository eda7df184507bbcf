"""The two halves of parameters under a mask: what trains, and what is frozen. Of any pytree."""

from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bnonly_jax.masks import codes
from bnonly_jax.masks import subspace
from bnonly_jax.masks.codes import Codes
from bnonly_jax.masks.subspace import Span
from bnonly_jax.masks.subspace import Spanned


class Chosen(NamedTuple):
  """The frozen half of a tensor of which single weights train."""
  tensor: jax.Array  # the whole tensor at its start
  index: jax.Array  # int32 [n], where the trained weights lie in the flattened tensor


# What stands in the place of a tensor in a frozen half, besides arrays and None.
PARTS = (Chosen, Codes, Spanned)


def partition(params: Any, mask: Any) -> tuple[Any, Any]:
  """Splits parameters into what trains and what is frozen.

  Args:
    params: any pytree; tensors of which nothing trains may be `Codes`.
    mask: one like it, of bools, bool arrays and `Span`.

  Returns:
    (trainable, frozen), each shaped like `params`, with None where the other half has the tensor.
    Where a mask's leaf is an array, trainable holds the chosen weights as one vector and frozen a
    `Chosen`; where it is a `Span`, trainable holds coefficients and frozen a `Spanned`.
  """
  def split(keep, tensor):
    if isinstance(keep, (bool, np.bool_)):
      return (tensor, None) if keep else (None, tensor)
    if isinstance(keep, Span):
      return subspace.split(keep, tensor)
    index = np.flatnonzero(keep).astype(np.int32)
    return tensor.reshape(-1)[index], Chosen(tensor, index)

  leaves, structure = jax.tree.flatten(params, is_leaf=lambda x: isinstance(x, Codes))
  pairs = [split(keep, leaf)
           for keep, leaf in zip(structure.flatten_up_to(mask), leaves, strict=True)]
  return tuple(structure.unflatten([pair[i] for pair in pairs]) for i in (0, 1))


def merge(trainable: Any, frozen: Any, dtype: str = 'float32') -> Any:
  """Puts the two halves together again, the inverse of `partition`; codes it decodes.

  Args:
    trainable: the one.
    frozen: the other.
    dtype: of the kernels that are decoded.
  """
  def join(t, f):
    if isinstance(f, Codes):
      return codes.decode(f).astype(dtype)
    if t is None:
      return f
    if isinstance(f, Chosen):
      flat = jnp.asarray(f.tensor).reshape(-1).at[f.index].set(t, unique_indices=True)
      return flat.reshape(f.tensor.shape)
    if isinstance(f, Spanned):
      return subspace.join(t, f)
    return t

  return jax.tree.map(join, trainable, frozen, is_leaf=lambda x: x is None)


def tensors_trained(mask: Any) -> Any:
  """Returns for each tensor whether any weight of it trains: the mask that optax.masked takes."""
  return jax.tree.map(lambda keep: isinstance(keep, Span) or bool(np.any(keep)), mask)
