"""Where every random number comes from: the seed and a name, never a key carried along."""

import hashlib

import jax
import numpy as np


def host_generator(seed: int, name: str) -> np.random.Generator:
  """Returns NumPy's Philox keyed by (seed, name): what one name draws depends on no other name."""
  digest = hashlib.sha256(f'{seed}/{name}'.encode()).digest()
  return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], 'little')))


def step_key(seed: int | jax.Array, step: jax.Array, name: str = '') -> jax.Array:
  """Returns the key of what one name draws in one step; what it draws depends on no other name."""
  key = jax.random.fold_in(jax.random.key(seed), step)
  if not name:
    return key
  digest = hashlib.sha256(name.encode()).digest()
  return jax.random.fold_in(key, np.uint32(int.from_bytes(digest[:4], 'little')))


def image_bits(seed: int, step: jax.Array, positions: jax.Array, number: int,
               name: str = '') -> jax.Array:
  """Random bits for each image of a step, whatever device holds it.

  Args:
    seed: the experiment's.
    step: int32 scalar, the number of the step.
    positions: int32 [N], each image's place in the global batch.
    number: how many words an image gets.
    name: what they are for; '' is the crop and the flip.

  Returns:
    uint32 [N, number].
  """
  key = step_key(seed, step, name)
  return jax.vmap(
      lambda position: jax.random.bits(jax.random.fold_in(key, position), (number,)))(positions)
