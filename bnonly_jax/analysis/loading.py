"""A trained network from the folder of its run."""

import pathlib
from typing import Any
from typing import NamedTuple

from etils import epath
import jax
import ml_collections

from bnonly_jax import experiment
from bnonly_jax.config import UserError
from bnonly_jax.experiment import Experiment
from bnonly_jax.run import trained
from bnonly_jax.run import workdir as workdir_lib


class Loaded(NamedTuple):
  """A run's network as a checkpoint has it, on the host."""
  workdir: epath.Path
  config: ml_collections.ConfigDict
  experiment: Experiment  # of one replicate and its seed, on the devices here
  step: int  # training steps done
  variables: dict[str, Any]  # 'params' (trained and frozen) and 'batch_stats', NumPy float32


def load(workdir: str | pathlib.Path, step: int | None = None, data_dir: str = '',
         replicate: int = 0) -> Loaded:
  """Rebuilds the network that a run has trained. Writes nothing into its folder.

    run = analysis.load('runs/digits')
    logits = run.experiment.network.apply(run.variables, images)

  Args:
    workdir: of a run that is finished, interrupted or going on, on whatever devices.
    step: whose checkpoint; None is the newest whole one.
    data_dir: folder of the prepared data sets; '' is where they were in training.
    replicate: which one, from 0, of a run of several.

  Raises:
    UserError: the folder holds no run or not that checkpoint, what it holds is damaged, or the data
      set is not prepared here or is another.
  """
  workdir = workdir_lib.path(workdir)
  config, facts = workdir_lib.read_config(workdir)
  if not 0 <= replicate < config.replicates:
    raise UserError(f'--replicate={replicate}: --workdir={workdir} holds {config.replicates};'
                    f' allowed are 0 to {config.replicates - 1}. Choose one of them.')
  config.data.dir = data_dir or config.data.dir
  fitting = config.copy_and_resolve_references()
  # Of training, whose devices need not be those here; an evaluation depends on none of it.
  fitting.update(batch_size=len(jax.devices()), batchnorm_images=0, replicates=1, teacher='',
                 seed=config.seed + replicate)
  built = experiment.build(fitting)
  if facts.get('data.version') != built.info.version:
    raise UserError(f'--workdir={workdir} was trained on {config.data.name} of version'
                    f' {facts.get("data.version")}, and here is {built.info.version}. Give the'
                    ' folder that holds the former: --data_dir=...')
  found = trained.read(workdir, config.replicates, step)
  differ = trained.misfits(found.replicates[replicate], built.shapes)
  if differ:
    raise UserError(f'--workdir={workdir} holds another network than its config.json says:'
                    f' {len(differ)} tensors differ ({"; ".join(differ[:3])}). Put a whole copy of'
                    ' the run there.')
  return Loaded(workdir, config, built, found.step, found.replicates[replicate])
