"""Kernels that train within a random subspace: coefficients of random directions, which are frozen.

An output channel of a kernel is a vector of height * width * input channels weights. To it are
added K such vectors, drawn once, each times a coefficient of its own that trains from 0.
"""

import dataclasses
from typing import Any
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bnonly_jax import seeds


@dataclasses.dataclass(frozen=True, eq=False)
class Span:
  """What a mask has of a kernel, or a stack of them, whose output channels train so.

  Attributes:
    number: of directions of each output channel.
    seed: the experiment's.
    name: the kernel's; from both the directions follow.
    stack: how many of its first axes count kernels.
    kept: the weights that are not zero for good, as a bool array; None: all.
  """
  number: int
  seed: int
  name: str
  stack: int
  kept: np.ndarray | None = None


class Spanned(NamedTuple):
  """The frozen half of such a kernel."""
  tensor: jax.Array  # the kernel at its start
  directions: jax.Array  # float32 [*stack, K, ..., C_out], each of length 1


def split(span: Span, tensor: Any) -> tuple[np.ndarray, Spanned]:
  """Returns a kernel's coefficients [*stack, K, C_out], which are 0, and its frozen half."""
  stack, inputs, features = (tensor.shape[:span.stack], tensor.shape[span.stack:-1],
                             tensor.shape[-1])
  drawn = seeds.host_generator(span.seed, f'subspace/{span.name}').standard_normal(
      (int(np.prod(stack)), span.number, *inputs, features), np.float32)
  if span.kept is not None:
    drawn *= span.kept.reshape(-1, 1, *inputs, features)
  lengths = np.sqrt(np.sum(np.square(drawn, dtype=np.float64),
                           tuple(range(2, drawn.ndim - 1)), keepdims=True))
  directions = (drawn / lengths).astype(np.float32)
  return (np.zeros((*stack, span.number, features), np.float32),
          Spanned(tensor, directions.reshape(*stack, span.number, *inputs, features)))


def join(coefficients: jax.Array, spanned: Spanned) -> jax.Array:
  """Returns the kernel: at coefficients of 0 the one that it started as, exactly."""
  tensor, directions = spanned
  axis = coefficients.ndim - 2
  factors = coefficients.reshape(*coefficients.shape[:-1], *(1,) * (tensor.ndim - axis - 1),
                                 coefficients.shape[-1])
  return tensor + jnp.sum(factors * directions, axis)


def trained_numbers(keep: Any, whole_shape: tuple[int, ...], kernels: int) -> list[int]:
  """Returns how many numbers train of each in a stack, by the mask's leaf.

  Args:
    keep: the leaf, of a mask of whatever kind.
    whole_shape: of the stack.
    kernels: how many it stacks; 1 of what is no stack.
  """
  if isinstance(keep, Span):
    return [keep.number * whole_shape[-1]] * kernels
  return np.broadcast_to(keep, whole_shape).reshape(kernels, -1).sum(1).tolist()
