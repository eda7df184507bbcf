"""A trained network from the folder of its run."""

import pathlib
from typing import Any
from typing import NamedTuple

from etils import epath
import jax
import ml_collections

from bnonly_jax import experiment
from bnonly_jax import masks
from bnonly_jax.config import UserError
from bnonly_jax.experiment import Experiment
from bnonly_jax.run import checkpoint
from bnonly_jax.run import metrics
from bnonly_jax.run import workdir as workdir_lib


class Loaded(NamedTuple):
  """A run's network as a checkpoint has it, on the host."""
  workdir: epath.Path
  config: ml_collections.ConfigDict
  experiment: Experiment  # of one replicate, on the devices here
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
  config.data.dir = data_dir or config.data.dir
  fitting = config.copy_and_resolve_references()
  # Of training, whose devices need not be those here; an evaluation depends on neither.
  fitting.update(batch_size=len(jax.devices()), batchnorm_images=0)
  trained = experiment.build(fitting)
  if facts.get('data.version') != trained.info.version:
    raise UserError(f'--workdir={workdir} was trained on {config.data.name} of version'
                    f' {facts.get("data.version")}, and here is {trained.info.version}. Give the'
                    ' folder that holds the former: --data_dir=...')
  if not 0 <= replicate < config.replicates:
    raise UserError(f'--replicate={replicate}: --workdir={workdir} holds {config.replicates};'
                    f' allowed are 0 to {config.replicates - 1}. Choose one of them.')
  state = _read_state(workdir, step, trained.state)
  frozen = trained.frozen
  if jax.tree.leaves(frozen):
    frozen = checkpoint.read_frozen(workdir, frozen)
  halves = (state.trainable, frozen, state.batch_stats)
  if config.replicates > 1:
    halves = jax.tree.map(lambda leaf: leaf[replicate], halves)
    fitting.replicates = 1
  trainable, frozen, batch_stats = halves
  params = jax.device_get(masks.merge(trainable, frozen))
  return Loaded(workdir, config, experiment.build(fitting), int(state.step),
                {'params': params, 'batch_stats': batch_stats})


def _read_state(workdir, step, like):
  kept = checkpoint.kept(workdir)
  if not kept:
    raise UserError(f'--workdir={workdir} holds no checkpoint yet; needed is one. Let the run go on'
                    ' to its first one (see its config.checkpoint_every).')
  if step is not None and step not in kept:
    raise UserError(f'--step={step}: --workdir={workdir} holds no checkpoint of that step; allowed'
                    f' are {", ".join(map(str, kept))}. Without --step it is the newest.')
  state, _, damaged = checkpoint.read(workdir, like, kept if step is None else [step])
  if state is None and step is None and checkpoint.kept(workdir) != kept:
    return _read_state(workdir, step, like)  # the run that goes on has put a new one in their place
  for number, reason in damaged:
    metrics.console.print(f'the checkpoint of step {number} is damaged ({reason})')
  if state is None:
    raise UserError(f'--workdir={workdir} holds no whole checkpoint of step'
                    f' {", ".join(map(str, kept))}. Start the run again: it puts them aside.'
                    if step is None else
                    f'--step={step}: that checkpoint is damaged; --workdir={workdir} holds'
                    f' {", ".join(map(str, kept))}. Choose another, or leave --step out.')
  return state
