"""What a run starts from: its own draw, a file of PyTorch weights, or what another run has trained.

What comes from elsewhere is kept in the run's folder, whole in start/ and in words in start.json:
from then on the run asks its source no more.
"""

from collections.abc import Sequence
import pathlib
from typing import Any
from typing import NamedTuple

from etils import epath
import flax.traverse_util
import jax
import numpy as np

from bnonly_jax import config as config_lib
from bnonly_jax import experiment
from bnonly_jax import masks
from bnonly_jax import models
from bnonly_jax.config import UserError
from bnonly_jax.experiment import Experiment
from bnonly_jax.models import from_torch
from bnonly_jax.run import checkpoint
from bnonly_jax.run import processes
from bnonly_jax.run import trained
from bnonly_jax.run import workdir as workdir_lib


class Origin(NamedTuple):
  """What the replicates of a run start from."""
  variables: Sequence[dict[str, Any]] | None  # of each; None: they are drawn
  record: dict[str, Any] | None = None  # what start.json holds, if they are not


def find(run: Experiment, workdir: epath.Path, facts: dict[str, Any]) -> Origin:
  """Returns what a run starts from, on the host. Writes nothing.

  Args:
    run: the run.
    workdir: its folder, which may be new.
    facts: as `workdir.check` has them. A start that another experiment left there is not taken.

  Raises:
    UserError: config.init_from cannot be read or does not fit the network.
  """
  if not run.config.init_from:
    return Origin(None)
  if processes.on_main(lambda: _is_kept(workdir, facts)):
    origin = Origin(_apart(checkpoint.read_kept(workdir / 'start'), len(run.seeds)),
                    workdir_lib.read_json(workdir / 'start.json'))
    _require_fit(run, origin.variables[0])
  else:
    origin = _from_elsewhere(run)
  processes.require_equal('start', origin.record)
  return origin


def _is_kept(workdir, facts):
  return checkpoint.finished(workdir / 'start') and workdir_lib.holds(workdir, facts)


def keep(workdir: epath.Path, origin: Origin) -> None:
  """Writes into a run's folder, once, what it starts from, unless that is drawn."""
  if origin.record:
    together = origin.variables[0] if len(origin.variables) == 1 else jax.tree.map(
        lambda *leaves: np.stack(leaves), *origin.variables)
    checkpoint.keep(workdir / 'start', together)


def _apart(together, replicates):
  """The inverse of what `keep` does with several."""
  each = [together] if replicates == 1 else [
      jax.tree.map(lambda leaf, i=i: leaf[i], together) for i in range(replicates)]
  return [{'batch_stats': {}, **one} for one in each]


def told(record: dict[str, Any]) -> str:
  """Says in one line what a run starts from."""
  if 'step' not in record:
    return f'starts from {record["init_from"]}'
  new = record['new_output']
  return (f'starts from step {record["step"]} of {record["init_from"]} ({record["network"]} on'
          f' {record["data"]}, training {record["train"]})'
          + (f'; its output layer is new, drawn from the seed: {new}' if new else ''))


def _from_elsewhere(run):
  init_from = run.config.init_from
  file = pathlib.Path(init_from).expanduser()
  folder, step = trained.split_step(init_from)
  if not folder.is_dir() and (file.is_file() or file.suffix in from_torch.SUFFIXES):
    config_lib.require(run.config, 'init_from', "no file of PyTorch's with a network of one's own",
                       not models.is_own(run.config.network))
    variables = from_torch.convert(from_torch.read(init_from), run.network, run.shapes)
    return Origin([variables] * len(run.seeds), {'init_from': str(file.absolute())})
  config, _ = workdir_lib.read_config(folder, f'config.init_from={init_from}')
  _require_equal_fields(run, config)
  there = range(config.seed, config.seed + config.replicates)
  if len(there) > 1 and not set(run.seeds) <= set(there):
    raise UserError(f'config.init_from is {init_from!r}, a run of the seeds {there[0]} to'
                    f' {there[-1]}, of which each goes on as itself; here are the seeds'
                    f' {run.seeds[0]} to {run.seeds[-1]}. Choose among those with --config.seed=...'
                    ' and --config.replicates=...')
  try:
    found = trained.read(folder, len(there), step)
  except UserError as error:
    raise UserError(f'config.init_from is {init_from!r}: {error}') from error
  record = {'init_from': str(folder), 'step': found.step, 'network': config.network,
            'norm': config.norm, 'train': config.train, 'data': config.data.name,
            'seeds': list(there)}
  variables, new_output = [], ''
  for seed in run.seeds:
    own, new_output = _with_new_output(
        run, found.replicates[seed - there[0] if len(there) > 1 else 0], seed)
    variables.append(own)
  _require_fit(run, variables[0])
  return Origin(variables, {**record, 'new_output': new_output})


def _require_equal_fields(run, there):
  """Network and norm, which shapes alone do not always tell apart."""
  for field in ('network', 'norm'):
    if there[field] != run.config[field]:
      raise UserError(f'config.init_from is {run.config.init_from!r}, a run with config.{field} ='
                      f' {there[field]!r}, and here it is {run.config[field]!r}; allowed are runs'
                      f' of the same network and norm. Set --config.{field}={there[field]}, or'
                      ' choose another run.')


def _with_new_output(run, variables, seed):
  """Replaces the output layer by a new one where the number of classes differs, and says so."""
  there, here = masks.flatten(variables['params']), masks.flatten(run.shapes['params'])
  output = [name for name, known in run.parameters.items()
            if known.group == 'output' and name in there]
  if all(there[name].shape == here[name].shape for name in output) or any(
      there[name].shape[:-1] != here[name].shape[:-1] for name in output):
    return variables, ''
  drawn = masks.flatten(experiment.draw_variables(run, seed)['params'])
  params = {**there, **{name: drawn[name] for name in output}}
  return ({**variables, 'params': flax.traverse_util.unflatten_dict(params, sep='/')},
          f'{there[output[0]].shape[-1]} classes there, {here[output[0]].shape[-1]} here')


def _require_fit(run, variables):
  differ = trained.misfits(variables, run.shapes)
  if differ:
    raise UserError(f'config.init_from is {run.config.init_from!r}, which does not fit the network:'
                    f' {len(differ)} tensors differ ({"; ".join(differ[:3])}'
                    f'{"; ..." if len(differ) > 3 else ""}). Choose a run of the same network on'
                    ' images with as many channels.')
