"""Which ReLUs fire on a batch, from what norms tell who asks for 'intermediates' (norm.py)."""

from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from bnonly_jax.models.parameters import flatten


def tells(network: nn.Module, shapes: dict[str, Any], image_shape: tuple[int, ...]) -> bool:
  """Whether a network has ReLUs that tell which of them fire; its variables' shapes will do."""
  images = jax.ShapeDtypeStruct((1, *image_shape), np.float32)
  told = jax.eval_shape(lambda variables, images: network.apply(
      variables, images, train=False, mutable=['intermediates'])[1], shapes, images)
  return any(name.endswith('/fired') for name in flatten(told))


def anywhere(told: Any, axis_name: str, counts: jax.Array | None = None) -> Any:
  """Whether ReLUs fire on a batch, over all devices.

  Args:
    told: the intermediates of the network: 'fired' of each norm that ends in ReLUs, bool [N, C].
    axis_name: of the axis of devices.
    counts: bool [N], which images count; None: all.

  Returns:
    A tree with a leaf bool [C] or, for a stack of blocks, [blocks, C] for each call of such a norm:
    whether any position of any image that counts has an output above 0.
  """
  told = flax.traverse_util.unflatten_dict({  # a network may tell other things too
      name: leaf for name, leaf in flatten(told).items() if name.endswith('/fired')}, sep='/')
  if counts is not None:
    counts = counts[:, None]
    told = jax.tree.map(  # those of a stack have a further first axis
        lambda fires: fires & counts.reshape((1,) * (fires.ndim - 2) + counts.shape), told)
  fired = jax.tree.map(lambda fires: jnp.any(fires, -2), told)
  return jax.tree.map(lambda any_here: jax.lax.psum(any_here.astype(jnp.int32), axis_name) > 0,
                      fired)


def silent_share(fired: Any) -> jax.Array:
  """Returns which share of the ReLUs is silent, float32; one called several times counts once.

  Args:
    fired: from `anywhere`.
  """
  each = [jnp.any(jnp.stack(calls), 0) for calls in flatten(fired).values()]
  return sum(jnp.sum(~fires) for fires in each) / np.float32(sum(fires.size for fires in each))
