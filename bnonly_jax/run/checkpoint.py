"""Saving and restoring: the state as training goes; once a run, what of it stays as it is.

Every checkpoint holds a digest of its content. With several processes all of them call these
functions together, as Orbax wants it; each has the whole state, and the first writes.
"""

from collections.abc import Iterator
import contextlib
import hashlib
import json
import time
from typing import Any

from etils import epath
import jax
import numpy as np
from orbax.checkpoint import utils as orbax_utils
from orbax.checkpoint import v1 as ocp

from bnonly_jax.config import UserError
from bnonly_jax.run import full_disk
from bnonly_jax.run import metrics
from bnonly_jax.run import processes
from bnonly_jax.run import workdir as workdir_lib


@contextlib.contextmanager
def open_checkpointer(workdir: epath.Path, keep: int, keep_every: int = 0
                      ) -> Iterator[ocp.training.Checkpointer]:
  """Opens workdir/checkpoints; at the end waits until all is written.

  It saves at whatever step it is asked to, so that the training loop alone decides.

  Args:
    workdir: the run's.
    keep: number of checkpoints that stay, the newest.
    keep_every: checkpoints at multiples of this many steps stay besides; 0: none.

  Raises:
    OSError: what was to be saved could not be written.
  """
  policies = ocp.training.preservation_policies
  policy = policies.LatestN(keep)
  if keep_every:
    policy = policies.AnyPreservationPolicy([policy, policies.EveryNSteps(keep_every)])
  with full_disk.quietly():
    checkpointer = ocp.training.Checkpointer(
        workdir / 'checkpoints',
        save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
        preservation_policy=policy, cleanup_tmp_directories=True)
    try:
      yield checkpointer
    except Exception:
      with contextlib.suppress(Exception):  # what ends the run is to be told, not what follows
        checkpointer.close()
      raise
    except BaseException:  # a signal: the checkpoint that was begun is to be written
      with full_disk.as_os_error():
        checkpointer.close()
      raise
    with full_disk.as_os_error():
      checkpointer.close()


def save(checkpointer: ocp.training.Checkpointer, step: int, state: Any,
         pending: list[dict[str, float]] = ()) -> bool:
  """Starts to save a state; the files are written while training goes on.

  Args:
    checkpointer: from `open_checkpointer`.
    step: training steps done.
    state: on the device or the host.
    pending: metrics of the last steps, which are in no line of metrics.jsonl yet.

  Returns:
    False, and saves nothing, if a number in the state is not finite.

  Raises:
    OSError: this or the last checkpoint cannot be written.
  """
  # A copy: the next step takes the state's buffers, which on CPU are the host's own memory.
  state = jax.tree.map(np.array, jax.device_get(state))
  if not all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(state)):
    return False
  pending = list(pending)
  with full_disk.as_os_error():
    checkpointer.save_async(step, state, custom_metadata={
        'pending': pending, 'sha256': _digest(state, pending)})
  return True


class Saver:
  """Writes a run's checkpoints, none twice.

  Attributes:
    minutes: since the last one.
  """

  def __init__(self, checkpointer: ocp.training.Checkpointer, step: int):
    self._checkpointer, self._step, self._clock = checkpointer, step, time.monotonic()

  @property
  def minutes(self) -> float:
    return (time.monotonic() - self._clock) / 60

  def save(self, step: int, state: Any, pending: list[dict[str, float]]) -> None:
    """Starts to save a state, as `save` does, unless it is that of the last checkpoint.

    Raises:
      Diverged: a number in the state is not finite; nothing is saved.
      OSError: as `save`.
    """
    if step != self._step and not save(self._checkpointer, step, state, pending):
      raise metrics.Diverged(step)
    self._step, self._clock = step, time.monotonic()


@contextlib.contextmanager
def open_saver(workdir: epath.Path, step: int, keep: int, keep_every: int = 0) -> Iterator[Saver]:
  """Opens what writes the checkpoints after that of a step; the rest as `open_checkpointer`."""
  with open_checkpointer(workdir, keep, keep_every) as checkpointer:
    yield Saver(checkpointer, step)


def restore(workdir: epath.Path, like: Any) -> tuple[Any, list[dict[str, float]], list[str]]:
  """Returns the newest whole checkpoint; damaged ones newer than it are moved to damaged/.

  Args:
    workdir: the run's.
    like: a state of the same structure, shapes and dtypes.

  Returns:
    The state as NumPy arrays, or None if there is none; the metrics that were pending; and what
    was damaged, a line each.

  Raises:
    UserError: the checkpoint is of another selection or network; the message compares both.
  """
  state, pending, damaged = read(workdir, like, kept(workdir))

  def move():
    for step, _ in damaged:
      (workdir / 'damaged').mkdir(exist_ok=True)
      target = workdir / 'damaged' / str(step)
      while target.exists():
        target = target.with_name(target.name + '_')
      workdir_lib.move(workdir / 'checkpoints' / str(step), target)

  processes.on_main(move)
  return state, pending, [f'the checkpoint of step {step} is damaged ({reason}); it is in'
                          f' {workdir / "damaged"} now' for step, reason in damaged]


def kept(workdir: epath.Path) -> list[int]:
  """Returns the steps of which the workdir has checkpoints written to their end, ascending."""
  folder = workdir / 'checkpoints'
  return sorted(int(path.name) for path in folder.iterdir()
                if path.name.isdigit() and finished(path)) if folder.exists() else []


def finished(path: epath.Path) -> bool:
  """Whether what Orbax saved to a path is there, and written to its end.

  On a disk a folder gets its name when all is written. In a bucket, where nothing can be renamed,
  its files appear one by one and a last one says that all are there.
  """
  return orbax_utils.is_checkpoint_finalized(path)


def read(workdir: epath.Path, like: Any, found: list[int]
         ) -> tuple[Any, list[dict[str, float]], list[tuple[int, str]]]:
  """Reads the newest whole checkpoint of those found, and changes nothing in the workdir.

  Args:
    workdir: the run's.
    like: a state of the same structure, shapes and dtypes; jax.ShapeDtypeStruct will do as leaves.
      None: whatever is there comes, as dictionaries and lists.
    found: steps, ascending.

  Returns:
    The state as NumPy arrays, or None if there is none; the metrics that were pending; and which
    steps could not be read, with the reason.

  Raises:
    UserError: as `restore`.
  """
  state, pending, damaged = None, [], []
  for step in reversed(found):
    path = workdir / 'checkpoints' / str(step)
    try:
      metadata, shapes = _metadata(path)
    except Exception as error:  # whatever Orbax and its stores raise at torn files
      damaged.append((step, _first_line(error)))
      continue
    if like is not None:
      _require_equal(shapes, _shapes(like), path)
    try:
      state = _load(path, metadata, like)
      pending = metadata.custom_metadata['pending']
      if _digest(state, pending) == metadata.custom_metadata['sha256']:
        break
      reason = 'its content does not have the sha256 it was written with'
    except Exception as error:
      reason = _first_line(error)
    state, pending = None, []
    damaged.append((step, reason))
  return state, pending, damaged


def keep(path: epath.Path, tree: Any) -> Any:
  """Writes once a run what stays as it is, and from then on returns what was written.

  Args:
    path: where in the run's folder: frozen/ for the frozen half of the parameters, start/ for the
      variables of a run that starts from others'.
    tree: as the config gives it.

  Raises:
    UserError: it is of another selection or network, or a tensor has changed since it was written.
  """
  if not jax.tree.leaves(tree):
    return tree

  def there():
    if finished(path):
      return True
    if path.exists():  # its writing was cut off
      path.rmtree()
    return False

  if processes.on_main(there):
    return read_kept(path, tree)
  values = jax.tree.map(np.asarray, tree)
  with full_disk.quietly(), full_disk.as_os_error():
    ocp.save(path, values, custom_metadata={'sha256': _digests(values)})
  return tree


def read_kept(path: epath.Path, like: Any = None) -> Any:
  """Reads what `keep` has written, which must be there.

  Args:
    path: as for `keep`.
    like: a tree of the same structure, shapes and dtypes; jax.ShapeDtypeStruct will do as leaves.
      None: whatever is there comes, as dictionaries.

  Raises:
    UserError: as `keep`.
  """
  if not path.exists():
    raise UserError(f'{path} is missing, and the run cannot be read without it. Copy it from where'
                    ' the run was trained.')
  remedy = f'Move {path} away: it is written anew from the config.'
  try:
    metadata, shapes = _metadata(path)
  except Exception as error:
    raise UserError(f'{path} is damaged ({_first_line(error)}). {remedy}') from error
  if like is not None:
    _require_equal(shapes, _shapes(like), path)
  try:
    values = _load(path, metadata, like)
    written = metadata.custom_metadata['sha256']
    changed = [name for name, digest in _digests(values).items() if written.get(name) != digest]
  except Exception as error:
    raise UserError(f'{path} is damaged ({_first_line(error)}). {remedy}') from error
  if changed:
    raise UserError(f'{path} is damaged: {", ".join(changed[:5])} changed since it was written.'
                    f' {remedy}')
  return values


def _load(path, metadata, like):
  """NumPy arrays in the structure of `like`, or in that which is there."""
  return ocp.load(path, _abstract(metadata.metadata if like is None else like))


def _metadata(path):
  metadata = ocp.metadata(path)
  shapes = _shapes(metadata.metadata)
  if not shapes:  # what Orbax finds in some torn ones
    raise ValueError('it holds no tensor')
  return metadata, shapes


def _first_line(error):
  return f'{type(error).__name__}: {(str(error).strip().splitlines() or [""])[0][:200]}'


def _digests(tree):
  """SHA-256 of every tensor by name."""
  return {name: hashlib.sha256(np.ascontiguousarray(leaf).tobytes()).hexdigest()
          for name, leaf in _named(tree).items()}


def _digest(state, pending):
  text = json.dumps([sorted(_digests(state).items()), pending], sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def _abstract(tree):
  return jax.tree.map(lambda x: np.empty(x.shape, x.dtype), tree)


def _named(tree):
  """Leaves by name; the same for a NamedTuple and for the dictionary Orbax has of it."""
  def key(k):
    return str(getattr(k, 'key', getattr(k, 'name', getattr(k, 'idx', k))))
  return {'/'.join(map(key, path)): leaf
          for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def _shapes(tree):
  return {name: tuple(leaf.shape) for name, leaf in _named(tree).items()}


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
