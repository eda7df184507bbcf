"""Saving and restoring: the state every few steps, the frozen half of the parameters once a run."""

import pathlib
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from bnonly_jax.config import UserError


def open_checkpointer(workdir: pathlib.Path, keep: int) -> ocp.training.Checkpointer:
  """Returns the checkpointer of workdir/checkpoints, which keeps the newest `keep`.

  It saves at whatever step it is asked to, so that the training loop alone decides.
  """
  return ocp.training.Checkpointer(
      workdir / 'checkpoints',
      save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
      preservation_policy=ocp.training.preservation_policies.LatestN(keep),
      cleanup_tmp_directories=True)


def latest_step(checkpointer: ocp.training.Checkpointer) -> int | None:
  """Returns the step of the newest checkpoint, or None."""
  return checkpointer.latest.step if checkpointer.latest else None


def save(checkpointer: ocp.training.Checkpointer, step: int, state: Any) -> None:
  """Starts to save a state; the files are written while training goes on."""
  # A copy: the next step takes the state's buffers, which on CPU are the host's own memory.
  checkpointer.save_async(step, jax.tree.map(np.array, state))


def restore(checkpointer: ocp.training.Checkpointer, like: Any) -> Any:
  """Returns the newest checkpoint, as NumPy arrays.

  Args:
    checkpointer: with at least one checkpoint.
    like: a state of the same structure, shapes and dtypes.

  Raises:
    UserError: the checkpoint is of another selection or network; the message compares both.
  """
  saved = checkpointer.metadata().metadata
  _require_equal(_shapes(saved), _shapes(like), checkpointer.latest.path)
  return checkpointer.load(abstract_state=_abstract(like))


def keep_frozen(workdir: pathlib.Path, frozen: Any) -> Any:
  """Writes the frozen half of the parameters once a run, and from then on returns what was written.

  Args:
    workdir: the run's.
    frozen: the frozen half as the config gives it.

  Raises:
    UserError: as `restore`.
  """
  path = workdir / 'frozen'
  if not jax.tree.leaves(frozen):
    return frozen
  if path.exists():
    _require_equal(_shapes(ocp.metadata(path).metadata), _shapes(frozen), path)
    return ocp.load(path, _abstract(frozen))
  ocp.save(path, jax.tree.map(np.asarray, frozen))
  return frozen


def _abstract(tree):
  return jax.tree.map(lambda x: np.empty(x.shape, x.dtype), tree)


def _shapes(tree):
  """Leaf shapes by name; the same for a NamedTuple and for the dictionary Orbax has of it."""
  def key(k):
    return str(getattr(k, 'key', getattr(k, 'name', getattr(k, 'idx', k))))
  return {'/'.join(map(key, path)): tuple(leaf.shape)
          for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def _require_equal(saved, wanted, path):
  if saved == wanted:
    return

  def describe(shapes):
    total = sum(int(np.prod(shape)) for shape in shapes.values())
    return f'{len(shapes)} tensors with {total:,} numbers'

  names = sorted(n for n in saved.keys() | wanted.keys() if saved.get(n) != wanted.get(n))
  listed = '; '.join(f'{n}: {saved.get(n, "none")} there, {wanted.get(n, "none")} here'
                     for n in names[:3])
  raise UserError(f'{path} holds another selection or network: {describe(saved)} there,'
                  f' {describe(wanted)} here. {len(names)} differ ({listed}'
                  f'{"; ..." if len(names) > 3 else ""}). Use its config, or another --workdir.')
