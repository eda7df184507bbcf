"""Networks from files of one's own: config.network = 'my_package.my_file:make'."""

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import importlib
import os
import re
import sys
import traceback
from typing import Any

import flax.errors
import flax.linen as nn
import jax
import ml_collections
import numpy as np

from bnonly_jax.config import UserError
from bnonly_jax.models.initialise import variable_shapes

_CONTRACT = 'docs/networks.md says what a network must do'


def is_own(name: str) -> bool:
  """Whether config.network names a function that makes a network."""
  return ':' in name


def instead(config: ml_collections.ConfigDict, make: Callable[..., nn.Module] | None
            ) -> ml_collections.ConfigDict:
  """Returns the config with a function in place of config.network; as it is, if there is none.

  Raises:
    UserError: as `name_of`.
  """
  if make is None:
    return config
  config = config.copy_and_resolve_references()
  config.network = name_of(make)
  return config


def name_of(make: Callable[..., nn.Module]) -> str:
  """Returns what config.network calls a function of a module, of __main__ and notebooks too.

  Raises:
    UserError: it is no function that can be found by its name.
  """
  name = f'{getattr(make, "__module__", "")}:{getattr(make, "__qualname__", "")}'
  module = sys.modules.get(name.partition(':')[0])
  if getattr(module, name.partition(':')[2], None) is not make:
    raise UserError(f'network is {make!r}; allowed is a function that stands by its name in a'
                    ' module, make(classes=...), which a run can find again. Define one outside of'
                    ' other functions.')
  return name


def create(name: str, classes: int) -> nn.Module:
  """Imports what makes a network, and calls it.

  Args:
    name: module:function, the module as Python imports it.
    classes: number of logits.

  Raises:
    UserError: there is no such module or function, it fails, or what it returns is no Linen module.
  """
  if not re.fullmatch(r'\w+(\.\w+)*:\w+', name):
    raise UserError(f'config.network is {name!r}; allowed is module:function, as in'
                    ' configs.own_network:make. Set --config.network=...')
  module_name, _, function = name.partition(':')
  try:
    with _told(name, 'importing it'):
      module = importlib.import_module(module_name)
  except ModuleNotFoundError as error:
    raise UserError(f'config.network is {name!r}: there is no module {error.name!r} (here is'
                    f' {os.getcwd()}). Start in the folder that holds it, or name that folder in'
                    ' PYTHONPATH.') from error
  make = getattr(module, function, None)
  if not callable(make):
    there = ', '.join(n for n, v in vars(module).items() if callable(v) and n[0] != '_')
    raise UserError(f'config.network is {name!r}: {module.__file__} has no function {function!r};'
                    f' there are {there or "none"}. Set --config.network=...')
  with _told(name, f'{function}(classes={classes})'):
    network = make(classes=classes)
  if not isinstance(network, nn.Module):
    raise UserError(f'config.network is {name!r}, which returns a {type(network).__name__}; needed'
                    f' is a flax.linen.Module. {_CONTRACT}.')
  return network


def check(network: nn.Module, name: str, image_shape: tuple[int, ...], classes: int, dtype: str,
          axis_name: str) -> None:
  """Checks that a network does what training asks of it; nothing is computed.

  Args:
    network: to be checked.
    name: config.network, for messages.
    image_shape: height, width, channels.
    classes: number of logits.
    dtype: of the images.
    axis_name: of the axis of devices, which norms may use.

  Raises:
    UserError: it does not; the message says in what, and where.
  """
  def wrong(problem, remedy):
    return UserError(f'config.network is {name!r}: {problem}. {remedy}; {_CONTRACT}.')

  with _told(name, 'init(key, images, train=False)'):
    variables = variable_shapes(network, image_shape)
  others = sorted(variables.keys() - {'params', 'batch_stats'})
  if others or not variables.get('params'):
    raise wrong(f'it has the collections {", ".join(sorted(variables))}', 'Allowed are params,'
                ' which it must have, and batch_stats')
  for train in (False, True):
    with _told(name, f'apply(variables, images, train={train})'):
      logits, updated = _applied(network, variables, image_shape, dtype, axis_name, train)
    if logits.shape != (2, classes) or logits.dtype != np.float32:
      raise wrong(f'of 2 images it returns {logits.dtype} {list(logits.shape)}',
                  f'Needed are logits, float32 [2, {classes}]')
    stats = updated.get('batch_stats', {})
    if train and _described(stats) != _described(variables['batch_stats']):
      raise wrong('training gives batch_stats other shapes or dtypes', 'They must stay')


def _applied(network, variables, image_shape, dtype, axis_name, train):
  """The shapes of the logits of two images, and of the collections that applying updates."""
  def apply(variables, images):
    out = network.apply(variables, images, train=train, mutable=['batch_stats'] if train else False)
    return out if train else (out, {})

  # The devices, here one, are an axis that pmap names; so does vmap.
  images = jax.ShapeDtypeStruct((1, 2, *image_shape), dtype)
  over_devices = jax.vmap(apply, in_axes=(None, 0), axis_name=axis_name)
  return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype),
                      jax.eval_shape(over_devices, variables, images))


def _described(tree):
  return jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), tree)


@contextlib.contextmanager
def _told(name: str, doing: str) -> Iterator[None]:
  """Turns what a user's file raises into one line with the place; but that it is not there."""
  try:
    yield
  except UserError:
    raise
  except Exception as error:  # whatever a user's file raises
    module = name.partition(':')[0]
    if isinstance(error, ModuleNotFoundError) and f'{module}.'.startswith(f'{error.name}.'):
      raise
    text = ' '.join(str(error).split())[:300]
    if isinstance(error, flax.errors.InvalidRngError):
      text += (' (training gives a network no random numbers, as those of nn.Dropout: they would'
               ' depend on the number of devices. Set its rate to 0)')
    raise UserError(f'config.network is {name!r}: {doing} fails{_place(error)}:'
                    f' {type(error).__name__}: {text}. Correct it; {_CONTRACT}.') from error


def _place(error: Exception) -> str:
  """Where a user's file fails: the last place that is in no installed package."""
  if isinstance(error, SyntaxError) and error.filename:
    return f' at {error.filename}:{error.lineno}'
  here = os.path.dirname(os.path.dirname(__file__))
  frames: list[Any] = [frame for frame in traceback.extract_tb(error.__traceback__)
                       if not any(part in frame.filename for part in ('site-packages', here, '<'))]
  return f' at {frames[-1].filename}:{frames[-1].lineno}' if frames else ''
