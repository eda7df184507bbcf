"""A trained network as one small file: what trained, and the seed for all that did not.

The file is in the safetensors format. Its tensors are called params/NAME (whole), chosen/NAME (the
weights that random:K chose, as a vector) and batch_stats/NAME; parameters that are not in it are
drawn from the seed. Its metadata has `recipe`, a JSON text, and `sha256`, the digest of that text;
the recipe has the digest of every tensor of the network, whether it is in the file or drawn.
`loading.load` reads it.
"""

import hashlib
import importlib.metadata
import json
import pathlib
import platform
from typing import Any

import flax.traverse_util
import jax
import ml_dtypes
import numpy as np
import safetensors.numpy

import bnonly_jax
from bnonly_jax import analysis
from bnonly_jax import experiment
from bnonly_jax import masks
from bnonly_jax.config import flat
from bnonly_jax.config import FREE
from bnonly_jax.config import UserError
from bnonly_jax.export import network
from bnonly_jax.export.network import Trained
from bnonly_jax.run import metrics

FORMAT = 1
# What only training reads is no part of a trained network, nor is where it started from: a file of
# such a start is not to be had from the seed.
OF_TRAINING = ('epochs', 'batch_size', 'batchnorm_images', 'remat', 'replicates', 'init_from',
               'data.subsample', 'data.random_labels', 'data.bad_images', 'data.test_split',
               'data.pad', 'data.flip', 'data.augment', 'data.crop_area',
               'data.crop_ratio', 'data.resident_limit', 'label_smoothing', 'teacher', 'distill',
               'temperature', 'log_dead')
DTYPES = {'float32': np.float32, 'bfloat16': ml_dtypes.bfloat16}


def digests(variables: dict[str, Any]) -> dict[str, str]:
  """Returns the SHA-256 of every tensor by its name: of shape and little-endian float32 numbers."""
  named = masks.flatten({name: variables[name] for name in ('params', 'batch_stats')})
  return {name: _digest(np.ascontiguousarray(value, '<f4')) for name, value in named.items()}


def _digest(array):
  found = hashlib.sha256(str(array.shape).encode())
  found.update(memoryview(array.reshape(-1)).cast('B'))
  return found.hexdigest()


def recipe_fields(config: Any) -> dict[str, Any]:
  """Returns a config's fields that say how the trained network is made, by dotted name."""
  fields = {name: value for name, value in flat(config).items()
            if name not in (*FREE, *OF_TRAINING) and not name.startswith('optimizer.')}
  if fields['data.name'].startswith('folder:'):  # where it lies is no one else's business
    fields['data.name'] = 'folder:' + pathlib.PurePath(fields['data.name'][7:]).name
  return fields


def halve(variables: dict[str, Any], dtype: str) -> dict[str, Any]:
  """Returns variables rounded to a dtype, and float32 again."""
  return jax.tree.map(lambda x: np.asarray(x).astype(DTYPES[dtype]).astype(np.float32), variables)


def write(loaded: analysis.Loaded, output: str | pathlib.Path, replicate: int = 0,
          dtype: str = 'float32', include_frozen: bool = False) -> Trained:
  """Writes a run's network from its seed.

  Args:
    loaded: the run, from `analysis.load` with the same replicate.
    output: the file.
    replicate: which one, from 0, of a run of several.
    dtype: of the numbers in the file, float32 or bfloat16.
    include_frozen: whether the frozen half is in the file, too.

  Returns:
    The network as who reads the file will have it.

  Raises:
    UserError: what is frozen cannot be drawn from the seed, or the file cannot be written.
  """
  trained = network.of_run(loaded, replicate)
  params = trained.variables['params']
  mask = masks.of_config(trained.config, loaded.experiment.parameters, trained.config.seed)
  tensors, params = _halves(params, mask, loaded, trained.config.seed, dtype, include_frozen)
  stats = halve(trained.variables['batch_stats'], dtype)
  tensors |= {f'batch_stats/{name}': value for name, value in masks.flatten(stats).items()}
  trained = trained._replace(variables={'params': params, 'batch_stats': stats})
  recipe = {
      'format': FORMAT, 'config': recipe_fields(trained.config), 'step': trained.step,
      'image_shape': list(trained.info.image_shape), 'class_names': list(trained.info.class_names),
      'data_version': trained.info.version, 'dtype': dtype, 'sha256': digests(trained.variables),
      'versions': {'python': platform.python_version(), 'bnonly_jax': bnonly_jax.__version__,
                   **{name: importlib.metadata.version(name) for name in ('jax', 'numpy')}}}
  text = json.dumps(recipe)
  with network.written(output) as path:
    safetensors.numpy.save_file(
        {name: np.ascontiguousarray(value.astype(DTYPES[dtype]))
         for name, value in tensors.items()}, path,
        {'recipe': text, 'sha256': hashlib.sha256(text.encode()).hexdigest()})
  return trained


def _halves(params, mask, loaded, seed, dtype, include_frozen):
  """Returns what the file has of the parameters, by name, and the parameters as read from it."""
  if include_frozen:
    params = halve(params, dtype)
    return {f'params/{name}': value for name, value in masks.flatten(params).items()}, params
  # Of a subspace a run's checkpoint has the coefficients; of the network, the kernels.
  mask = jax.tree.map(lambda keep: True if isinstance(keep, masks.Span) else keep, mask)
  drawn = experiment.draw_variables(loaded.experiment, seed)['params']
  trainable, frozen = masks.partition(params, mask)
  _, start = masks.partition(drawn, mask)
  chosen = [name for name, keep in masks.flatten(mask).items() if not isinstance(keep, bool)]
  if chosen and loaded.config.train.strip().startswith('['):
    raise UserError(f'config.train of --workdir={loaded.workdir} is a list of rules, which readers'
                    f' of a file do not follow, and some weights of {chosen[0]} trained. Add'
                    ' --include_frozen: the file then holds them all.')
  trainable = halve(trainable, dtype)
  params = jax.tree.map(np.asarray, masks.merge(trainable, start))
  # Where weights of a tensor train, what the others are shows when these are put among the drawn.
  run = masks.flatten(jax.tree.map(np.asarray, masks.merge(trainable, frozen)))
  other = [name for name, value in masks.flatten(params).items()
           if not np.array_equal(value, run[name])]
  if other:
    why = (f'the run started from {loaded.config.init_from}' if loaded.config.init_from else
           'the run was on another machine or with another version of NumPy')
    raise UserError(f'{len(other)} frozen tensor(s) of --workdir={loaded.workdir} are not what seed'
                    f' {seed} draws here, the first being {other[0]} ({why}). Add'
                    ' --include_frozen: the file then holds them.')
  return {f'{"chosen" if name in chosen else "params"}/{name}': value
          for name, value in masks.flatten(trainable).items() if value is not None}, params


def export(workdir: str, output: str, step: int | None = None, data_dir: str = '',
           replicate: int = 0, dtype: str = 'float32', include_frozen: bool = False) -> None:
  """Writes a run's network from its seed, and prints the size; in bfloat16 the accuracy after it.

  Raises:
    UserError: as `analysis.load`, `analysis.evaluate` and `write`.
  """
  loaded = analysis.load(workdir, step, data_dir, replicate)
  trained = write(loaded, output, replicate, dtype, include_frozen)
  size = pathlib.Path(output).expanduser().stat().st_size
  parameters = sum(leaf.size for leaf in jax.tree.leaves(trained.variables['params']))
  metrics.console.print(f'{output}: {size:,} bytes, a network of {parameters:,} parameters,'
                        f' {trained.config.network} of step {trained.step}')
  if dtype != 'float32':
    before, = analysis.evaluate(loaded, loaded.variables['params'])
    after, = analysis.evaluate(loaded._replace(variables=trained.variables),
                               trained.variables['params'])
    metrics.console.print(f'test accuracy {before["test_accuracy"]:.4f} in float32,'
                          f' {after["test_accuracy"]:.4f} in {dtype}')


def join(params: dict[str, Any], found: dict[str, np.ndarray],
         mask: dict[str, Any]) -> dict[str, Any]:
  """Puts what a file has of the parameters into those that are drawn.

  Args:
    params: drawn.
    found: the file's, by their names there.
    mask: of the run; only that of tensors of which single weights trained counts.
  """
  named, mask = masks.flatten(params), masks.flatten(mask)
  for name, value in found.items():
    kind, _, name = name.partition('/')
    if kind == 'chosen':
      whole = named[name].copy()
      whole.reshape(-1)[np.flatnonzero(mask[name])] = value
      named[name] = whole
    elif kind == 'params':
      named[name] = value
  return flax.traverse_util.unflatten_dict(named, sep='/')
