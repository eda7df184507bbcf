"""Reading a network that `seed.write` wrote: a file that may come from anyone.

Nothing in it is executed: no pickle, no import, no expression. All sizes are checked before
anything of that size is allocated. A file that passes gives the very network that was written.
"""

import contextlib
import hashlib
import json
import math
import os
import pathlib
import re

import flax.traverse_util
import jax
import numpy as np
import safetensors

from bnonly_jax import analysis
from bnonly_jax import data
from bnonly_jax import experiment
from bnonly_jax import masks
from bnonly_jax.config import default_config
from bnonly_jax.config import UserError
from bnonly_jax.export import network
from bnonly_jax.export import seed as seed_lib
from bnonly_jax.export.network import Trained

MAX_PARAMETERS = 100_000_000  # 400 MB; ImageNet's ResNet-200 has 65 million
_MAX_HEADER = 2**22  # bytes: 20,000 names of classes and 10,000 of tensors fit into it
_MAX_SIDE = 4096  # pixels
_DTYPES = {'float32': 'F32', 'bfloat16': 'BF16'}


class _Wrong(ValueError):
  """What is wrong with a file, in a few words."""


def load(path: str | os.PathLike, trust_code: bool = False,
         max_parameters: int = MAX_PARAMETERS) -> Trained:
  """Reads a network from a file of `python -m bnonly_jax.export seed`.

    trained = bnonly_jax.load('net.bnonly')
    logits = trained.network.apply(trained.variables, images)  # normalised, [N, H, W, C]

  Args:
    path: the file, which may come from anyone.
    trust_code: whether a network that is given as package.module:function may be imported.
    max_parameters: of a larger network nothing is allocated.

  Returns:
    The network and its variables. On the backend of the run its logits are the run's, bit for bit.

  Raises:
    UserError: it is no such file, is damaged, or holds what is refused; or a frozen tensor is drawn
      otherwise here, and the message says which.
  """
  path = pathlib.Path(path).expanduser()
  try:
    if not path.is_file():
      raise _Wrong('there is no such file')
    with _opened(path) as file:
      recipe = _recipe(file.metadata())
      run = _build(recipe, trust_code)
      mask = _check_sizes(file, recipe, run, max_parameters)
      variables, trains = _variables(file, recipe, run, mask)
  except (_Wrong, OSError, safetensors.SafetensorError) as error:
    reason = ' '.join(str(error).split())[:300]
    raise UserError(f'{path}: {reason}. Allowed is a file that python -m bnonly_jax.export seed has'
                    ' written; get or write it again.') from error
  return Trained(run.network, variables, run.config, run.info, run.preparation, recipe['step'],
                 trains)


def is_file(source: str | os.PathLike) -> bool:
  """Whether a name means a file of `export seed` rather than the folder of a run."""
  path = pathlib.Path(source).expanduser()
  return path.is_file() or path.suffix == '.bnonly' and not path.is_dir()


def open_network(source: str, step: int | None = None, data_dir: str = '', replicate: int = 0,
                 trust_code: bool = False) -> Trained:
  """Reads a network from a file of `export seed` or from the folder of a run.

  Args:
    source: the file or the folder.
    step, data_dir, replicate: of a folder, as for `analysis.load`.
    trust_code: of a file, as for `load`.

  Raises:
    UserError: as `load` or `analysis.load`.
  """
  if is_file(source):
    return load(source, trust_code)
  return network.of_run(analysis.load(source, step, data_dir, replicate), replicate)


@contextlib.contextmanager
def _opened(path):
  """Opens a safetensors file whose header is of a size that one may read."""
  with path.open('rb') as file:
    length = int.from_bytes(file.read(8), 'little')
  if not 2 <= length <= min(_MAX_HEADER, path.stat().st_size - 8):
    raise _Wrong('it does not begin as a safetensors file with a small header does')
  with safetensors.safe_open(path, 'numpy') as file:
    yield file


def _finite(text):
  value = float(text)
  if not math.isfinite(value):
    raise ValueError(f'{text} is no number')
  return value


def _recipe(metadata):
  """Returns the recipe, each of whose values is of the type that it should be."""
  text = (metadata or {}).get('recipe', '')
  if not text or hashlib.sha256(text.encode()).hexdigest() != metadata.get('sha256'):
    raise _Wrong('its recipe is missing or damaged')
  try:
    recipe = json.loads(text, parse_float=_finite, parse_constant=_finite)
  except (ValueError, RecursionError) as error:
    raise _Wrong(f'its recipe is no JSON ({error})') from error
  if not isinstance(recipe, dict) or recipe.get('format') != seed_lib.FORMAT:
    raise _Wrong(f'its recipe is not of format {seed_lib.FORMAT}, which this version reads')

  def whole(value, least, most):
    return type(value) is int and least <= value <= most

  shape, names = recipe.get('image_shape'), recipe.get('class_names')
  holds = {
      'config': isinstance(recipe.get('config'), dict),
      'step': whole(recipe.get('step'), 0, 2**53),
      'dtype': recipe.get('dtype') in (*_DTYPES,),
      'data_version': isinstance(recipe.get('data_version'), str),
      'image_shape': isinstance(shape, list) and len(shape) == 3
                     and all(whole(n, 1, _MAX_SIDE) for n in shape) and shape[2] in (1, 3),
      'class_names': isinstance(names, list) and len(names) > 1 and all(
          isinstance(name, str) and name.isprintable() and len(name) <= 200 for name in names),
      'sha256': isinstance(recipe.get('sha256'), dict)}
  wrong = [name for name, right in holds.items() if not right]
  if wrong:
    raise _Wrong(f'its recipe has no {wrong[0]} that is allowed')
  return recipe


def _build(recipe, trust_code):
  """Builds the experiment that a recipe describes, for the devices here. Allocates nothing."""
  config, fields = default_config(), recipe['config']
  allowed = seed_lib.recipe_fields(config)
  unknown = sorted(fields.keys() - allowed.keys())
  if unknown:
    raise _Wrong(f'its recipe has the fields {", ".join(map(ascii, unknown[:5]))}, which this'
                 ' version does not know: a newer one may have written it')
  name = fields.get('network')
  if isinstance(name, str) and ':' in name and not trust_code:
    raise _Wrong(f'its network {name[:80]!r} is code that would have to be imported; if you trust'
                 ' it and have it installed, load it with trust_code=True (predict: --trust_code)')
  # No network of sensible size has more digits, and numbers beyond 64 bits are no sizes.
  if not isinstance(name, str) or re.search(r'\d{7}', name):
    raise _Wrong(f'its network {str(name)[:80]!r} is none')
  try:
    config.update_from_flattened_dict(fields)
    if not 0 <= config.data.eval_resize <= _MAX_SIDE or config.unroll > 10_000:
      raise _Wrong(f'its recipe has a size above what is allowed ({_MAX_SIDE} pixels)')
    # What trained is known by the tensors in the file, and what was averaged over is of no account.
    config.update(train='nothing', batch_size=len(jax.devices()))
    shape = tuple(recipe['image_shape'])
    info = data.Info(None, recipe['data_version'], (None, None, 3), shape,
                     tuple(recipe['class_names']), config.batch_size, 1, 'test')
    run = experiment.build(config, info)
  except (UserError, ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
    raise _Wrong(f'its recipe describes no network ({error})') from error
  config.train = str(fields.get('train', default_config().train))
  return run._replace(config=config, preparation=run.preparation._replace(pad=0, flip=False))


def _check_sizes(file, recipe, run, max_parameters):
  """Checks names, shapes and dtypes of all tensors, in the file or to be drawn, by the network's.

  Returns:
    The mask of the tensors of which the file has single weights, False for all others.
  """
  shapes = run.shapes
  named = masks.flatten({name: shapes[name] for name in ('params', 'batch_stats')})
  numbers = sum(math.prod(leaf.shape) for leaf in named.values())
  if numbers > max_parameters:
    raise _Wrong(f'its network {recipe["config"].get("network")} has {numbers:,} numbers; allowed'
                 f' are {max_parameters:,} unless load(..., max_parameters=...) says more')
  if recipe['sha256'].keys() != named.keys():
    raise _Wrong('its recipe has not the digests of its network\'s tensors')
  there = set(file.keys())
  chosen = {name.removeprefix('chosen/') for name in there if name.startswith('chosen/')}
  params = masks.flatten(shapes['params'])
  unknown = chosen - params.keys()
  mask = dict.fromkeys(params, False)
  if chosen and not unknown:
    mask = masks.flatten(_random_mask(recipe, run))
  wanted = {name: leaf.shape for name, leaf in named.items()
            if name.startswith('batch_stats/') or name in there}
  wanted |= {f'chosen/{name}': (int(np.sum(mask[name])),) for name in chosen & params.keys()}
  if there != wanted.keys():
    raise _Wrong(f'it has no tensor, or one too many, called {min(there ^ wanted.keys())[:100]!r}')
  for name, shape in wanted.items():
    found = file.get_slice(name)
    if tuple(found.get_shape()) != shape or found.get_dtype() != _DTYPES[recipe['dtype']]:
      raise _Wrong(f'its tensor {name} is not of {shape} {recipe["dtype"]}')
  return flax.traverse_util.unflatten_dict(mask, sep='/')


def _random_mask(recipe, run):
  """Returns which weights random:K or a place chose. Rules from a file are not evaluated."""
  train = recipe['config'].get('train')
  if not isinstance(train, str) or not re.fullmatch(r'[\w:+\-@/ ]{1,200}', train):
    raise _Wrong('its recipe does not say which weights trained')
  try:
    return masks.of_config(run.config, run.parameters, run.config.seed)
  except UserError as error:
    raise _Wrong(f'its recipe does not say which weights trained ({error})') from error


def _variables(file, recipe, run, mask):
  """Reads what is in the file, draws the rest, and checks the digest of every tensor.

  Returns:
    The variables, and how many parameters trained; None: the file holds them all.
  """
  found = {name: np.asarray(file.get_tensor(name), np.float32) for name in file.keys()}  # noqa: SIM118
  stats = {name.partition('/')[2]: value for name, value in found.items()
           if name.startswith('batch_stats/')}
  whole = {name.partition('/')[2]: value for name, value in found.items()
           if name.startswith('params/')}
  trains = sum(value.size for name, value in found.items() if not name.startswith('batch_stats/'))
  if whole.keys() == masks.flatten(run.shapes['params']).keys():
    trains = None
    params = flax.traverse_util.unflatten_dict(whole, sep='/')
  else:
    drawn = experiment.draw_variables(run, run.config.seed)['params']
    params = seed_lib.join(drawn, found, mask)
  variables = {'params': params,
               'batch_stats': flax.traverse_util.unflatten_dict(stats, sep='/')}
  here = seed_lib.digests(variables)
  other = [name for name, digest in here.items() if recipe['sha256'][name] != digest]
  inside = [name for name in other if name in found]
  if inside:
    raise _Wrong(f'its tensor {inside[0]} is damaged')
  if other:
    by = recipe.get('versions')
    raise _Wrong(f'{len(other)} tensor(s) that it leaves to the seed are drawn otherwise here, the'
                 f' first being {other[0]} (written with {str(by)[:150]}). Write it with'
                 ' --include_frozen, which puts them into the file')
  return variables, trains

