"""What a network can do if only a chosen few of its parameters train.

  from bnonly_jax import analysis, train_and_evaluate
  from bnonly_jax.config import default_config

`bnonly_jax.load` reads a trained network from a file of `python -m bnonly_jax.export seed`.
"""

from typing import Any

__version__ = '0.1.0'


def __getattr__(name: str) -> Any:
  # Imported where it is used: programs tell a mistake in their flags before they load JAX.
  if name == 'train_and_evaluate':
    from bnonly_jax.train import train_and_evaluate
    return train_and_evaluate
  if name == 'load':
    from bnonly_jax.export.loading import load
    return load
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
