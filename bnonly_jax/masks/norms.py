"""The mask that trains only the norms of a network from anywhere: Linen, nnx, Equinox, plain dicts.

Where modules are in the tree, as in those of nnx and Equinox, their types say which are norms. Of a
Linen network the parameters are dicts without types: the network itself tells them. Of dicts and
nnx.State alone names are all there is.
"""

import re
from typing import Any

import flax.linen as nn
import jax

from bnonly_jax.config import UserError
from bnonly_jax.models import parameters

_NAMED = re.compile(r'(?i)norm|(^|_)(bn|ln)_?\d*($|_)')
_CLASSES = {cls.__name__ for cls in parameters.NORM_KINDS.values()}


def norms_only(params: Any, network: nn.Module | None = None, *inputs: Any, **named: Any) -> Any:
  """Returns the mask under which scale and bias of every norm train, and nothing else.

    mask = norms_only(params, network, images, train=False)  # Linen, by the modules' types
    mask = norms_only(model)  # nnx.Module, eqx.Module, by the modules' types
    mask = norms_only(params)  # nested dicts, nnx.State: by names

  A norm is a module of a class called BatchNorm, LayerNorm, GroupNorm, RMSNorm or InstanceNorm, or
  derived from one, or that has is_norm = True. By names it is whatever has `norm` in its name, or
  is called bn or ln, perhaps with a number. What counts of it are scale, weight or gamma, and bias
  or beta.

  Args:
    params: any pytree of parameters.
    network: the Linen network whose parameters they are.
    *inputs: what that network is called with, arrays or their shapes.
    **named: likewise, by name.

  Returns:
    A pytree like `params` of bools.

  Raises:
    UserError: there is no norm; the message has the names.
  """
  if network is not None:
    groups = parameters.look(network, *inputs, **named)[1]
    mask = jax.tree_util.tree_map_with_path(
        lambda path, _: groups['/'.join(_keys(path))].group in ('gamma', 'beta'), params)
  else:
    mask = jax.tree_util.tree_map_with_path(_of_node, params, is_leaf=_is_norm)
  if not any(jax.tree.leaves(mask)):
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(params)]
    raise UserError(f'there is no norm in these parameters: {", ".join(names[:20])}'
                    f'{", ..." if names[20:] else ""}. Give the module itself in place of its'
                    ' parameters, or of Linen the network too; and a norm class of your own is_norm'
                    ' = True.')
  return mask


def by_name(name: str) -> str:
  """Returns the group of a norm's parameter, gamma or beta, by its name alone; '' of all else."""
  *_, owner, leaf = ['', *name.split('/')]
  return _part(leaf) if _NAMED.search(owner) else ''


def _part(leaf):
  return ('gamma' if leaf in parameters.SCALES else 'beta' if leaf in parameters.BIASES else '')


def _is_norm(node):
  return bool(getattr(node, 'is_norm', False)) or any(
      cls.__name__ in _CLASSES for cls in type(node).__mro__)


def _of_node(path, node):
  """The mask of a norm's module, or of a leaf that no norm's module holds."""
  if _is_norm(node):
    return jax.tree_util.tree_map_with_path(
        lambda inner, _: len(_keys(inner)) == 1 and _part(_keys(inner)[0]) != '', node)
  keys = path[:-1] if path and _text(path[-1]) == 'value' else path
  typed = any(isinstance(key, jax.tree_util.GetAttrKey) for key in keys)
  return not typed and by_name('/'.join(_keys(path))) != ''


def _keys(path):
  """A path's keys as text, without the `value` that holds an nnx variable's array."""
  keys = [_text(key) for key in path]
  return keys[:-1] if keys[-1:] == ['value'] else keys


def _text(key):
  return str(next(getattr(key, part) for part in ('key', 'name', 'idx') if hasattr(key, part)))
