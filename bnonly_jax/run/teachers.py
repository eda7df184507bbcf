"""Who teaches a run: networks that other runs have trained, and their copy in the run's folder.

They are kept whole in teachers/ and in words in teachers.json: from then on the run asks the
folders that config.teacher names no more.
"""

from typing import Any
from typing import NamedTuple

from etils import epath
import ml_collections

from bnonly_jax import data
from bnonly_jax import experiment
from bnonly_jax import masks
from bnonly_jax import models
from bnonly_jax.config import default_config
from bnonly_jax.config import flat
from bnonly_jax.config import UserError
from bnonly_jax.data import augment
from bnonly_jax.experiment import Experiment
from bnonly_jax.objective.distillation import Teacher
from bnonly_jax.run import checkpoint
from bnonly_jax.run import processes
from bnonly_jax.run import trained
from bnonly_jax.run import workdir as workdir_lib

FOLDER, RECORD = 'teachers', 'teachers.json'
# What of a teacher's config says how it computes in evaluation.
_FIELDS = ('network', 'norm', 'attention', 'compute_dtype', 'data.mean', 'data.std')


class Taught(NamedTuple):
  """A run with its teachers.

  Attributes:
    run: its training step learns from them.
    variables: of each, on the host.
    record: what teachers.json holds, a dictionary for each; empty without teachers.
  """
  run: Experiment
  variables: tuple[dict[str, Any], ...] = ()
  record: tuple[dict[str, Any], ...] = ()


def join(run: Experiment, workdir: epath.Path | None = None, facts: dict[str, Any] | None = None
         ) -> Taught:
  """Returns a run with the teachers that config.teacher names; writes nothing.

  Args:
    run: as `experiment.build` returns it.
    workdir: its folder, which may be new; None: the teachers are taken from where they are named.
    facts: with workdir, as `workdir.check` has them. The teachers that another experiment left
      there are not taken.

  Raises:
    UserError: a teacher cannot be read, or is of other classes or images.
  """
  if not run.config.teacher:
    return Taught(run)
  if workdir is not None and processes.on_main(lambda: _is_kept(workdir, facts)):
    record = workdir_lib.read_json(workdir / RECORD)
    kept = checkpoint.read_kept(workdir / FOLDER)
    variables = [{'batch_stats': {}, **kept[str(i)]} for i in range(len(record))]
  else:
    record, variables = _from_elsewhere(run)
  processes.require_equal('teachers', record)
  teachers = [_network(run, said, own) for said, own in zip(record, variables, strict=True)]
  return Taught(experiment.taught(run, teachers, variables), tuple(variables), tuple(record))


def _is_kept(workdir, facts):
  return checkpoint.finished(workdir / FOLDER) and workdir_lib.holds(workdir, facts)


def keep(workdir: epath.Path, taught: Taught) -> None:
  """Writes a run's teachers into its folder, once."""
  if taught.record:
    checkpoint.keep(workdir / FOLDER, {str(i): own for i, own in enumerate(taught.variables)})


def told(record: dict[str, Any]) -> str:
  """Says in one line who one teacher is."""
  return (f'is taught by step {record["step"]}, seed {record["seed"]}, of {record["workdir"]}'
          f' ({record["fields"]["network"]} on {record["data"]}, training {record["train"]})')


def _from_elsewhere(run):
  """The record and the variables of each teacher, from the folders that config.teacher names."""
  record, variables = [], []
  for name in filter(None, (name.strip() for name in run.config.teacher.split(','))):
    folder, step = trained.split_step(name)
    config, facts = workdir_lib.read_config(folder, f'config.teacher={name}')
    _require_same_images(run, name, config, facts)
    try:
      found = trained.read(folder, config.replicates, step)
    except UserError as error:
      raise UserError(f'config.teacher names {name!r}: {error}') from error
    fields = flat(config)
    for i, own in enumerate(found.replicates):  # a run of several seeds is as many teachers
      record.append({'named': name, 'workdir': str(folder), 'step': found.step,
                     'seed': config.seed + i, 'data': config.data.name, 'train': config.train,
                     'fields': {field: fields[field] for field in _FIELDS}})
      variables.append(own)
  if not record:
    raise UserError(f'config.teacher is {run.config.teacher!r}; allowed is WORKDIR[@STEP], or'
                    ' several with commas between. Set --config.teacher=...')
  return record, variables


def _require_same_images(run, name, config, facts):
  """Compares what a teacher was trained on with the run's images, as far as its data set is here.

  Where it is not, the variables still tell the channels and the classes.
  """
  if config.data.name == run.config.data.name and facts['data.version'] == run.info.version and all(
      config.data[field] == run.config.data[field] for field in ('image_size', 'channels')):
    return
  try:
    shape = data.find(config).image_shape
  except UserError:
    return
  if shape != run.info.image_shape:
    raise UserError(f'config.teacher names {name!r}, trained on images of'
                    f' {"x".join(map(str, shape))} ({config.data.name}); here they are'
                    f' {"x".join(map(str, run.info.image_shape))}. Choose a run on images of the'
                    ' same shape.')


def _network(run, said, variables):
  """The network of a teacher, which its variables must fit."""
  config: ml_collections.ConfigDict = default_config()
  config.update_from_flattened_dict(said['fields'])
  classes, shape = run.info.classes, run.info.image_shape
  network = experiment.create_network(config, classes, models.Statistics(), run.target.backend)
  shapes, parameters = models.look(network, shape)
  there, here = (masks.flatten(tree['params']) for tree in (variables, shapes))
  for name, known in parameters.items():
    if known.group == 'output' and name in there and there[name].shape[-1] != here[name].shape[-1]:
      raise UserError(f'config.teacher names {said["named"]!r}, a network of'
                      f' {there[name].shape[-1]} classes; here there are {classes}. Choose a run on'
                      ' as many classes.')
  differ = trained.misfits(variables, shapes)
  if differ:
    raise UserError(f'config.teacher names {said["named"]!r}, which does not fit images of'
                    f' {"x".join(map(str, shape))}: {len(differ)} tensors differ ({differ[0]}).'
                    ' Choose a run on images of the same shape.')
  return Teacher(network, augment.preparation(config, shape)._replace(
      pad=0, flip=False, operations=0, cutout=0, mixup=0.0))
