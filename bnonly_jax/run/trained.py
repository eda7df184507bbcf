"""The variables that a run has trained, from its folder alone: neither data nor network are built.

Shared by what looks into a run and by what starts from one.
"""

import os
import re
from typing import Any
from typing import NamedTuple

from etils import epath
import flax.traverse_util
import jax

from bnonly_jax import masks
from bnonly_jax.config import UserError
from bnonly_jax.run import checkpoint
from bnonly_jax.run import metrics
from bnonly_jax.run import workdir as workdir_lib


class Trained(NamedTuple):
  """A run as a checkpoint has it, on the host."""
  step: int  # training steps done
  replicates: list[dict[str, Any]]  # 'params' (trained and frozen) and 'batch_stats' of each, NumPy


def split_step(text: str | os.PathLike) -> tuple[epath.Path, int | None]:
  """Takes WORKDIR[@STEP] apart.

    split_step('runs/a@50')  # the path of runs/a, 50

  Raises:
    UserError: as `workdir.path`.
  """
  match = re.fullmatch(r'(.+)@(\d+)', os.fspath(text))
  if match and not workdir_lib.path(text).is_dir():  # else it is the folder's own name
    return workdir_lib.path(match[1]), int(match[2])
  return workdir_lib.path(text), None


def read(workdir: epath.Path, replicates: int, step: int | None = None) -> Trained:
  """Reads what a run has trained. Writes nothing into its folder.

  Args:
    workdir: of a run that is finished, interrupted or going on, on whatever devices.
    replicates: how many it trains together.
    step: whose checkpoint; None is the newest whole one.

  Raises:
    UserError: the folder does not hold that checkpoint, or what it holds is damaged.
  """
  state = _read_state(workdir, step)
  trainable = masks.flatten(state['trainable'])
  frozen = dict.fromkeys(trainable)
  if any(value is None for value in trainable.values()) or (workdir / 'frozen').exists():
    frozen = masks.flatten(_with_parts(checkpoint.read_kept(workdir / 'frozen')))
  halves = (trainable, frozen, state.get('batch_stats') or {})

  def one(number):
    own = jax.tree.map(lambda leaf: leaf[number], halves) if replicates > 1 else halves
    params = jax.device_get(masks.merge(own[0], own[1]))
    return {'params': flax.traverse_util.unflatten_dict(params, sep='/'), 'batch_stats': own[2]}

  return Trained(int(state['step']), [one(number) for number in range(replicates)])


def _with_parts(tree):
  """Puts one of masks.PARTS where there is a dictionary of its fields, as which Orbax reads it."""
  if not isinstance(tree, dict):
    return tree
  for part in masks.PARTS:
    if tree.keys() == set(part._fields):
      return part(**tree)
  return {name: _with_parts(value) for name, value in tree.items()}


def _read_state(workdir, step):
  kept = checkpoint.kept(workdir)
  if not kept:
    raise UserError(f'{workdir} holds no checkpoint yet; needed is one. Let the run go on to its'
                    ' first one (see its config.checkpoint_every).')
  there = ', '.join(map(str, kept))
  if step is not None and step not in kept:
    raise UserError(f'{workdir} holds no checkpoint of step {step}; allowed are {there}. Choose one'
                    ' of them, or name no step to take the newest.')
  state, _, damaged = checkpoint.read(workdir, None, kept if step is None else [step])
  if state is None and step is None and checkpoint.kept(workdir) != kept:
    return _read_state(workdir, step)  # the run that goes on has put a new one in their place
  for number, reason in damaged:
    metrics.console.print(f'{workdir}: the checkpoint of step {number} is damaged ({reason})')
  if state is None:
    raise UserError(f'{workdir} holds no whole checkpoint of step {there}. Start the run again: it'
                    ' puts them aside.' if step is None else
                    f'the checkpoint of step {step} in {workdir} is damaged; there are {there}.'
                    ' Choose another, or name no step to take the newest.')
  return state


def misfits(variables: dict[str, Any], shapes: dict[str, Any]) -> list[str]:
  """Names the tensors that a network lacks or has with another shape, and those it has besides.

  Args:
    variables: arrays, 'params' and 'batch_stats'.
    shapes: of the network's variables, from `models.variable_shapes`.
  """
  there, here = ({name: tuple(leaf.shape) for name, leaf in masks.flatten(tree).items()
                  if hasattr(leaf, 'shape')}  # an empty dictionary is a leaf, too
                 for tree in (variables, shapes))
  return [f'{name}: {there.get(name, "none")} there and {here.get(name, "none")} here'
          for name in sorted(there.keys() | here.keys()) if there.get(name) != here.get(name)]
