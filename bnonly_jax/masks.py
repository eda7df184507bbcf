"""From a selection ('batchnorm+output') to a mask, from a mask to what trains and what is frozen.

A mask is a pytree like the parameters with a bool for each tensor, or a bool array for a tensor of
which only single weights train.
"""

import json
import re
from typing import Any
from typing import NamedTuple

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from bnonly_jax import seeds
from bnonly_jax.config import UserError
from bnonly_jax.models import layers

# Every parameter belongs to the first group whose expression is found in its name.
GROUPS = {
    'gamma': r'norm\d*/scale$',
    'beta': r'norm\d*/bias$',
    'shortcut': r'shortcut_conv/kernel$',
    'conv': r'conv\d*/(kernel|bias)$',
    'output': r'^output/',
}
SETS = {'batchnorm': ('gamma', 'beta'), 'all': tuple(GROUPS), 'nothing': ()}


class GroupRow(NamedTuple):
  """A line of the parameter table: sizes of one group."""
  group: str
  tensors: int
  parameters: int
  trained: int

  @property
  def trains(self) -> str:
    """'trains', 'frozen' or, where single weights train, 'in part'."""
    return {0: 'frozen', self.parameters: 'trains'}.get(self.trained, 'in part')


class Chosen(NamedTuple):
  """The frozen half of a tensor of which single weights train."""
  tensor: jax.Array  # the whole tensor at its start
  index: jax.Array  # int32 [n], where the trained weights lie in the flattened tensor


def group_of(name: str) -> str:
  """Returns the group of the parameter with this name, its path joined by slashes.

  Raises:
    ValueError: no group knows it; a network with other names needs a line in GROUPS.
  """
  for group, expression in GROUPS.items():
    if re.search(expression, name):
      return group
  raise ValueError(f'parameter {name!r} belongs to none of the groups {", ".join(GROUPS)}')


def flatten(tree: dict[str, Any]) -> dict[str, Any]:
  """Returns a tree's leaves by name, the path joined by slashes."""
  return flax.traverse_util.flatten_dict(tree, sep='/')


def group_names(params: dict[str, Any]) -> dict[str, str]:
  """Returns the group of each parameter by the parameter's name."""
  return {name: group_of(name) for name in flatten(params)}


def make_mask(selection: str, params: dict[str, Any], seed: int = 0) -> dict[str, Any]:
  """Turns a selection into a mask.

  Args:
    selection: groups or sets joined by + and -, read from left to right ('all-batchnorm'). Among
      them is random:K: of every output channel of every convolution K weights, or all if it has
      fewer. Or else a JSON list of rules, '[["norm1/scale$", true], ["", false]]': the first
      expression found in a parameter's name says whether it trains.
    params: the network's parameters, or their shapes.
    seed: the experiment's, for random:K.

  Returns:
    A pytree like `params` of bools, and of bool arrays where single weights train.

  Raises:
    UserError: an unknown group, one that the network lacks, no list of rules, an expression without
      a match, a parameter without an expression, or a selection that matches nothing and is not
      'nothing'.
  """
  if selection.strip().startswith('['):
    mask = _mask_of_rules(selection, params)
  else:
    mask = _mask_of_groups(selection, params, seed)
  if not any(np.any(keep) for keep in mask.values()) and selection.strip() != 'nothing':
    raise UserError(f'config.train is {selection!r}, which matches no parameter. This network has'
                    f' {_what_there_is(params)}. To train none of them say --config.train=nothing.')
  return flax.traverse_util.unflatten_dict(mask, sep='/')


def _mask_of_groups(selection, params, seed):
  groups = group_names(params)
  shapes = {name: leaf.shape for name, leaf in flatten(params).items()}
  mask = dict.fromkeys(groups, False)
  for sign, term in _terms(selection):
    number = re.fullmatch(r'random:([1-9]\d*)', term)
    if number:
      named = ('conv', 'shortcut')
      chosen = {name: _random_weights(name, shapes[name], int(number[1]), seed)
                for name, group in groups.items() if group in named and name.endswith('kernel')}
    elif term in GROUPS or term in SETS:
      named = SETS.get(term, (term,))
      chosen = {name: True for name, group in groups.items() if group in named}
    else:
      raise UserError(
          f'config.train is {selection!r}: {term!r} is no group. Allowed are, joined by + and -:'
          f' {", ".join(GROUPS)}, {", ".join(SETS)}, random:K with K = 1, 2, ...'
          ' Try --config.train=batchnorm+output.')
    if named and not chosen:
      raise UserError(f'config.train is {selection!r}: this network has no {term}. It has'
                      f' {_what_there_is(params)}. Leave {term} out of --config.train.')
    for name, keep in chosen.items():
      mask[name] = _simple(np.logical_or(mask[name], keep) if sign == '+'
                           else np.logical_and(mask[name], np.logical_not(keep)))
  return mask


def _mask_of_rules(selection, params):
  try:
    rules = [(re.compile(expression), trains) for expression, trains in json.loads(selection)]
    if not all(isinstance(trains, bool) for _, trains in rules):
      raise ValueError('true or false is missing')
  except (ValueError, TypeError, re.error) as error:
    raise UserError(f'config.train is {selection!r}, no list of rules ({error}). Allowed is as'
                    ' [["norm1/scale$", true], ["", false]].') from error
  names = list(flatten(params))
  first = {name: next((rule for rule in rules if rule[0].search(name)), None) for name in names}
  for expression, _ in rules:
    if not any(expression.search(name) for name in names):
      raise UserError(f'config.train has the expression {expression.pattern!r}, found in no'
                      f' parameter. There are {", ".join(names)}. Correct it or leave it out.')
  for name, rule in first.items():
    if rule is None:
      raise UserError(f'config.train has no expression that is found in {name}. Add one, or end'
                      ' with ["", false].')
  return {name: rule[1] for name, rule in first.items()}


def _random_weights(name, shape, number, seed):
  """Chooses `number` weights, or all, of every output channel of a kernel or a stack of them."""
  inputs = int(np.prod(shape[-4:-1]))
  number = min(number, inputs)
  draws = seeds.host_generator(seed, f'random/{name}').random((*shape[:-4], inputs, shape[-1]),
                                                              np.float32)
  chosen = np.zeros(draws.shape, bool)
  index = np.argpartition(draws, number - 1, axis=-2)[..., :number, :]
  np.put_along_axis(chosen, index, True, axis=-2)
  return chosen.reshape(shape)


def _simple(keep):
  """A bool for an array that is all True or all False."""
  return bool(keep.flat[0]) if keep.all() or not keep.any() else keep


def _what_there_is(params):
  return ', '.join(f'{row.group} ({row.parameters:,})' for row in table(params) if row.tensors)


def _terms(selection):
  """'batchnorm-beta' as [('+', 'batchnorm'), ('-', 'beta')]; malformed text as one unknown term."""
  text = '+' + selection.strip()
  if not re.fullmatch(r'(\s*[+-]\s*[^+\-\s]+)+', text):
    return [('+', selection)]
  return re.findall(r'([+-])\s*([^+\-\s]+)', text)


def partition(params: dict[str, Any],
              mask: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
  """Splits parameters into what trains and what is frozen.

  Returns:
    (trainable, frozen), each shaped like `params`, with None where the other half has the tensor.
    Where a mask's leaf is an array, trainable holds the chosen weights as one vector and frozen a
    `Chosen`.
  """
  def split(keep, tensor):
    if isinstance(keep, (bool, np.bool_)):
      return (tensor, None) if keep else (None, tensor)
    index = np.flatnonzero(keep).astype(np.int32)
    return tensor.reshape(-1)[index], Chosen(tensor, index)

  pairs = jax.tree.map(split, mask, params)
  return tuple(jax.tree.map(lambda _, pair, i=i: pair[i], mask, pairs) for i in (0, 1))


def merge(trainable: dict[str, Any], frozen: dict[str, Any]) -> dict[str, Any]:
  """Puts the two halves together again. The inverse of `partition`."""
  def join(t, f):
    if t is None:
      return f
    if isinstance(f, Chosen):
      flat = jnp.asarray(f.tensor).reshape(-1).at[f.index].set(t, unique_indices=True)
      return flat.reshape(f.tensor.shape)
    return t

  return jax.tree.map(join, trainable, frozen, is_leaf=lambda x: x is None)


def total(rows: list[GroupRow]) -> int:
  """Returns the number of parameters in a table."""
  return sum(row.parameters for row in rows)


def as_json(rows: list[GroupRow]) -> list[dict[str, Any]]:
  """Returns a table as JSON holds it, with each group's share of all parameters."""
  return [{**row._asdict(), 'trains': row.trains, 'share': row.parameters / total(rows)}
          for row in rows]


def tensors_trained(mask: dict[str, Any]) -> dict[str, Any]:
  """Returns for each tensor whether any weight of it trains: the mask that optax.masked takes."""
  return jax.tree.map(lambda keep: bool(np.any(keep)), mask)


def table(params: dict[str, Any], mask: dict[str, Any] | None = None) -> list[GroupRow]:
  """Counts tensors, parameters and trained parameters of each group, in the order of GROUPS.

  A stack of equal blocks counts as the tensors that it stacks.
  """
  groups, params = group_names(params), flatten(params)
  mask = flatten(mask) if mask else dict.fromkeys(params, False)
  rows = []
  for group in GROUPS:
    names = [name for name in params if groups[name] == group]
    rows.append(GroupRow(
        group,
        sum(params[n].shape[0] if layers.is_stacked(n) else 1 for n in names),
        sum(int(np.prod(params[n].shape)) for n in names),
        sum(int(np.sum(np.broadcast_to(mask[n], params[n].shape))) for n in names)))
  return rows
