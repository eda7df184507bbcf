"""From a selection, as config.train says it, to a mask of one network's parameters."""

import json
import re
from typing import Any

import flax.traverse_util
import numpy as np

from bnonly_jax import seeds
from bnonly_jax.config import UserError
from bnonly_jax.masks.subspace import Span
from bnonly_jax.models import frozen_half
from bnonly_jax.models.parameters import NORM_KINDS
from bnonly_jax.models.parameters import Parameter

# In the order of tables. Which is a parameter's, models/parameters.py sees.
GROUPS = ('gamma', 'beta', 'shortcut', 'conv', 'dense', 'attention', 'embedding', 'other', 'output')
SETS = {'batchnorm': ('gamma', 'beta'), 'all': GROUPS, 'nothing': ()}
_SUBSPACE = r'subspace:([1-9]\d{0,2})'
_ALL_NAMES = 'python -m bnonly_jax.main --describe --names --config=... lists all of them'


def make_mask(selection: str, parameters: dict[str, Parameter], seed: int = 0) -> dict[str, Any]:
  """Turns a selection into a mask.

  Args:
    selection: groups or sets joined by + and -, read from left to right ('all-batchnorm'). Among
      them are norm:KIND, the norms of that kind, and random:K: of every output channel of every
      convolution K weights, or all if it has fewer. Each may have a place: 'conv@stage3/block2' is
      what lies below that name, 'batchnorm@last:4' the last four modules that own such. Without a
      place there may be subspace:K, of all convolutions, none of whose weights then may be chosen
      (see subspace.py). Or else a JSON list of rules, '[["norm1/scale$", true], ["", false]]': the
      first expression found in a parameter's name, as `Parameter.names` or the tree has it, says
      whether it trains.
    parameters: what is known of the network's, from `models.look`.
    seed: the experiment's, for random:K and subspace:K.

  Returns:
    A pytree like the parameters of bools, of bool arrays where single weights or single blocks of a
    stack train, and of `Span`.

  Raises:
    UserError: an unknown group or place, one that the network lacks, no list of rules, an
      expression without a match, a parameter without an expression, or a selection that matches
      nothing and is not 'nothing'.
  """
  if selection.strip().startswith('['):
    mask = _mask_of_rules(selection, parameters)
  else:
    mask = _mask_of_groups(selection, parameters, seed)
  if not any(np.any(keep) for keep in mask.values()) and selection.strip() != 'nothing':
    raise UserError(
        f'config.train is {selection!r}, which matches no parameter. This network has'
        f' {_what_there_is(parameters)}. To train none of them say --config.train=nothing.')
  return flax.traverse_util.unflatten_dict(mask, sep='/')


def _mask_of_groups(selection, parameters, seed):
  mask = dict.fromkeys(parameters, False)
  for sign, term in _terms(selection):
    if re.fullmatch(_SUBSPACE, term):
      continue
    what, at, place = term.partition('@')
    chosen = _chosen(what, parameters, seed)
    if chosen is None or (at and (not place or what == 'nothing')):
      raise UserError(
          f'config.train is {selection!r}: {term!r} is no group. Allowed are, joined by + and -:'
          f' {", ".join(GROUPS)}, {", ".join(SETS)}, random:K with K = 1, 2, ..., subspace:K with K'
          ' = 1 to 999 (without place, after no -),'
          f' {", ".join(f"norm:{kind}" for kind in NORM_KINDS)}, each also with a place, as in'
          ' batchnorm@last:4. Try --config.train=batchnorm+output.')
    if not chosen and what != 'nothing':
      raise UserError(f'config.train is {selection!r}: this network has no {what}. It has'
                      f' {_what_there_is(parameters)}. Leave {what} out of --config.train.')
    if place:
      chosen = _at(place, chosen, parameters, selection)
    for name, keep in chosen.items():
      mask[name] = simple(np.logical_or(mask[name], keep) if sign == '+'
                           else np.logical_and(mask[name], np.logical_not(keep)))
  return {**mask, **_spans(selection, mask, parameters, seed)}


def _spans(selection, mask, parameters, seed):
  """The leaves of a mask for the kernels whose channels subspace:K trains, by name."""
  numbers = [int(re.fullmatch(_SUBSPACE, term)[1]) for _, term in _terms(selection)
             if re.fullmatch(_SUBSPACE, term)]
  if not numbers:
    return {}
  kernels = frozen_half.kernels(parameters)
  if not kernels:
    raise UserError(f'config.train is {selection!r}: this network has no convolutions. It has'
                    f' {_what_there_is(parameters)}. Leave subspace:K out of --config.train.')
  both = [name for name in kernels if np.any(mask[name])]
  if both or len(numbers) > 1 or ('-', f'subspace:{numbers[0]}') in _terms(selection):
    raise UserError(f'config.train is {selection!r}: subspace:K is of all convolutions, and nothing'
                    ' else may train their weights; allowed is one, added to other groups. Try'
                    ' --config.train=batchnorm+subspace:2.')
  return {name: Span(numbers[0], seed, name, len(known.stack)) for name, known in kernels.items()}


def _chosen(what, parameters, seed):
  """What a term without its place chooses, by name; None: it is none."""
  number = re.fullmatch(r'random:([1-9]\d*)', what)
  if number:
    return {name: _random_weights(name, known, int(number[1]), seed)
            for name, known in parameters.items()
            if known.group in ('conv', 'shortcut') and name.endswith('kernel')}
  if what.startswith('norm:') and what[5:] in NORM_KINDS:
    return {name: True for name, known in parameters.items() if known.norm == what[5:]}
  if what not in GROUPS and what not in SETS:
    return None
  return {name: True for name, known in parameters.items()
          if known.group in SETS.get(what, (what,))}


def _at(place, chosen, parameters, selection):
  """The part of what is chosen that lies at a place."""
  owners = {name.rpartition('/')[0]: order for whole in chosen
            for name, order in zip(parameters[whole].names, parameters[whole].order, strict=True)}
  last = re.fullmatch(r'last:([1-9]\d*)', place)
  if last:
    within = set(sorted(owners, key=owners.get)[-int(last[1]):])
    held = lambda name: name.rpartition('/')[0] in within
  else:
    held = lambda name: name == place or name.startswith(f'{place}/')
  kept = {whole: _blocks(parameters[whole], held) for whole in chosen}
  if (int(last[1]) > len(owners)) if last else not any(np.any(keep) for keep in kept.values()):
    tops = dict.fromkeys(name.partition('/')[0] for whole in chosen
                         for name in parameters[whole].names)
    raise UserError(f'config.train is {selection!r}: this network has none of that at {place!r}.'
                    f' There are {", ".join(sorted(tops))}, with what lies below them, and last:1'
                    f' to last:{len(owners)}; {_ALL_NAMES}.')
  return {whole: np.logical_and(chosen[whole], keep) for whole, keep in kept.items()}


def _blocks(known, held):
  """Which of a stack are held, by their names: a bool, or an array in the whole stack's shape."""
  keep = simple(np.array([held(name) for name in known.names]).reshape(known.stack))
  if isinstance(keep, bool):
    return keep
  return np.broadcast_to(keep.reshape(*known.stack, *(1 for _ in known.shape)), known.whole_shape)


def _mask_of_rules(selection, parameters):
  try:
    rules = [(re.compile(expression), trains) for expression, trains in json.loads(selection)]
    if not all(isinstance(trains, bool) for _, trains in rules):
      raise ValueError('true or false is missing')
  except (ValueError, TypeError, re.error) as error:
    raise UserError(f'config.train is {selection!r}, no list of rules ({error}). Allowed is as'
                    ' [["norm1/scale$", true], ["", false]].') from error
  wholes = {name: whole for whole, known in parameters.items() for name in known.names}

  def found(expression, name):
    return expression.search(name) or expression.search(wholes[name])

  for expression, _ in rules:
    if not any(found(expression, name) for name in wholes):
      more = f', and {len(wholes) - 20} more; {_ALL_NAMES}' if len(wholes) > 20 else ''
      raise UserError(f'config.train has the expression {expression.pattern!r}, found in no'
                      f' parameter. There are {", ".join(list(wholes)[:20])}{more}. Correct it or'
                      ' leave it out.')
  trains = {}
  for name in wholes:
    rule = next((rule for rule in rules if found(rule[0], name)), None)
    if rule is None:
      raise UserError(f'config.train has no expression that is found in {name}. Add one, or end'
                      ' with ["", false].')
    trains[name] = rule[1]
  return {whole: _blocks(known, trains.get) for whole, known in parameters.items()}


def _random_weights(name, known, number, seed):
  """Chooses `number` weights, or all, of every output channel of a kernel or a stack of them."""
  inputs, features = int(np.prod(known.shape[:-1])), known.shape[-1]
  number = min(number, inputs)
  draws = seeds.host_generator(seed, f'random/{name}').random((*known.stack, inputs, features),
                                                              np.float32)
  chosen = np.zeros(draws.shape, bool)
  index = np.argpartition(draws, number - 1, axis=-2)[..., :number, :]
  np.put_along_axis(chosen, index, True, axis=-2)
  return chosen.reshape(known.whole_shape)


def simple(keep: np.ndarray) -> bool | np.ndarray:
  """Returns a bool for an array that is all True or all False."""
  return bool(keep.flat[0]) if keep.all() or not keep.any() else keep


def _what_there_is(parameters):
  counts = {group: sum(int(np.prod(known.whole_shape)) for known in parameters.values()
                       if known.group == group) for group in GROUPS}
  return ', '.join(f'{group} ({count:,})' for group, count in counts.items() if count)


def _terms(selection):
  """'batchnorm-beta' as [('+', 'batchnorm'), ('-', 'beta')]; malformed text as one unknown term."""
  text = '+' + selection.strip()
  if not re.fullmatch(r'(\s*[+-]\s*[^+\-\s]+)+', text):
    return [('+', selection)]
  return re.findall(r'([+-])\s*([^+\-\s]+)', text)
