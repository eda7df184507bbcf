"""What is found in a run: computed, written into its folder, drawn and printed."""

from collections.abc import Callable
import os
import pathlib
from typing import Any

from etils import epath
import ml_collections

from bnonly_jax.analysis import evaluation
from bnonly_jax.analysis import hessian
from bnonly_jax.analysis import loading
from bnonly_jax.analysis import probe
from bnonly_jax.analysis import similarity
from bnonly_jax.analysis import tables
from bnonly_jax.config import UserError
from bnonly_jax.run import full_disk
from bnonly_jax.run import metrics
from bnonly_jax.run import plots
from bnonly_jax.run import processes
from bnonly_jax.run import trained
from bnonly_jax.run import workdir as workdir_lib


def file_name(config: ml_collections.ConfigDict, replicate: int) -> str:
  """Returns what the analysis of a run, or of one of its replicates, is called."""
  return f'analysis{which(config, replicate)}.json'


def which(config: ml_collections.ConfigDict, replicate: int) -> str:
  """Returns the end of the names of files on one of several replicates; '' of a single one."""
  return f'_seed{config.seed + replicate}' if config.replicates > 1 else ''


def analyse(workdir: str | pathlib.Path, step: int | None = None, data_dir: str = '',
            replicate: int = 0) -> dict[str, Any]:
  """Computes all of this for a run, writes it and its plots into the run's folder, and prints it.

    analyse('runs/digits')['gamma']['all']['below_0.01']

  Args:
    workdir: as for `load`.
    step: as for `load`.
    data_dir: as for `load`.
    replicate: as for `load`.

  Returns:
    What analysis.json holds; see docs/analysis.md.

  Raises:
    UserError: as `load` and `evaluate`, or the folder cannot be written.
  """
  loaded = load_to_write(workdir, step, data_dir, replicate)
  workdir, config, params = loaded.workdir, loaded.config, loaded.variables['params']
  parameters, watched = loaded.experiment.parameters, evaluation.watched(loaded)
  steps_per_epoch = loaded.experiment.info.train_images // config.batch_size
  metrics.console.print(f'{workdir}: {config.network}, training {config.train}, step {loaded.step}'
                        f' of {config.epochs * steps_per_epoch}; split'
                        f' {loaded.experiment.info.test_split} of {config.data.name},'
                        f' {loaded.experiment.info.test_images:,} images')
  analysis = {
      'network': config.network, 'norm': config.norm, 'train': config.train,
      'data': config.data.name, 'seed': config.seed + replicate,
      'step': loaded.step, 'epoch': loaded.step / steps_per_epoch,
      'gamma': tables.gamma_table(params, parameters),
      'beta': tables.beta_table(params, parameters),
      'thresholds': evaluation.thresholded(loaded),
      'relus': tables.relu_table(params, evaluation.silent_relus(loaded), parameters)
               if watched else None,
  }
  _print(analysis)
  title = f'{config.network}, {config.data.name}, training {config.train}, step {loaded.step}'

  def write():
    written = [workdir / file_name(config, replicate)]
    workdir_lib.write_json(written[0], analysis)
    for draw in (plots.gamma_beta_by_layer, plots.small_gammas, plots.relus):
      if analysis['relus' if draw is plots.relus else 'gamma']:
        written.append(workdir / f'{written[0].stem}_{draw.__name__}.png')
        draw(analysis, written[-1], title)
    return [str(path) for path in written]

  write_into(workdir, write)
  return analysis


def load_to_write(workdir: str | pathlib.Path, step: int | None, data_dir: str, replicate: int
                  ) -> loading.Loaded:
  """Loads a run as `load` does; raises UserError also if its folder cannot be written."""
  loaded = loading.load(workdir, step, data_dir, replicate)
  if not workdir_lib.is_remote(loaded.workdir) and not os.access(loaded.workdir, os.W_OK):
    raise UserError(f'--workdir={workdir} cannot be written; allowed is a folder of yours. Copy it,'
                    ' and give the copy as --workdir.')
  return loaded


def load_beside(flag: str, name: str, data_dir: str, replicate: int) -> loading.Loaded:
  """Loads the run that a flag names, WORKDIR[@STEP], as the same replicate if it has several."""
  folder, step = trained.split_step(name)
  several = workdir_lib.read_config(folder, f'--{flag}={name}')[0].replicates > 1
  return loading.load(folder, step, data_dir, replicate if several else 0)


def write_into(workdir: epath.Path, write: Callable[[], list[str]]) -> None:
  """Calls what writes into a run's folder in the main process, and prints what it has written."""
  with full_disk.told(workdir, remedy='Make room, or copy it and give the copy as --workdir.'):
    written = processes.on_main(write)
  metrics.console.print('  '.join(written))


def write_cka(workdir: str | pathlib.Path, other: str, step: int | None = None, data_dir: str = '',
              replicate: int = 0) -> dict[str, Any]:
  """Compares a run with another by linear CKA, writes, draws and prints it.

    write_cka('runs/digits', 'runs/all@50')['layers'][-1]['cka']

  Args:
    workdir: as for `load`; the files go there.
    other: WORKDIR[@STEP] of the other run.
    step: as for `load`, of the first.
    data_dir: as for `load`, of both.
    replicate: as for `load`, of the first, and of the other if it has several.

  Returns:
    What cka_OTHER.json holds: `run` and `other`, each with `workdir`, `step`, `network`, `train`
    and `seed`; `test_images`; and `layers`, a list of `layer` and `cka`, as `similarity.by_layer`.

  Raises:
    UserError: as `load` and `by_layer`, or the folder cannot be written.
  """
  loaded = load_to_write(workdir, step, data_dir, replicate)
  against = load_beside('cka', other, data_dir, replicate)
  found = {'run': whose(loaded), 'other': whose(against),
           'test_images': loaded.experiment.info.test_images,
           'layers': [{'layer': layer, 'cka': value}
                      for layer, value in similarity.by_layer(loaded, against).items()]}
  metrics.print_columns(['layer', 'linear CKA'], [
      [row['layer'], 'constant' if row['cka'] is None else f'{row["cka"]:.4f}']
      for row in found['layers']])
  folder, other_step = trained.split_step(other)
  name = f'cka_{folder.parent.name}_{folder.name}' + (
      '' if other_step is None else f'_step{other_step}') + which(loaded.config, replicate)

  def write():
    workdir_lib.write_json(loaded.workdir / f'{name}.json', found)
    plots.cka_by_layer(found, loaded.workdir / f'{name}.png')
    return [str(loaded.workdir / f'{name}.{kind}') for kind in ('json', 'png')]

  write_into(loaded.workdir, write)
  return found


def whose(loaded: loading.Loaded) -> dict[str, Any]:
  """Returns what a file says of the run that it is on."""
  config = loaded.experiment.config
  return {'workdir': str(loaded.workdir), 'step': loaded.step, 'network': config.network,
          'train': config.train, 'seed': config.seed}


def write_probe(workdir: str | pathlib.Path, step: int | None = None, data_dir: str = '',
                replicate: int = 0) -> dict[str, Any]:
  """Fits a linear probe on a run's features, writes and prints what it reads from them.

  Args are those of `load`.

  Returns:
    What probe.json holds: what `probe.linear_probe` gives, and whose it is.

  Raises:
    UserError: as `load` and `linear_probe`, or the folder cannot be written.
  """
  loaded = load_to_write(workdir, step, data_dir, replicate)
  found = {**whose(loaded), **probe.linear_probe(loaded)}
  metrics.console.print(
      f'linear probe on the {found["features"]} features before the output layer, fitted on'
      f' {found["train_images"]:,} training images: test accuracy {found["test_accuracy"]:.4f}; the'
      f' run\'s own {found["own_test_accuracy"]:.4f}')
  path = loaded.workdir / f'probe{which(loaded.config, replicate)}.json'

  def write():
    workdir_lib.write_json(path, found)
    return [str(path)]

  write_into(loaded.workdir, write)
  return found


def write_sharpness(workdir: str | pathlib.Path, step: int | None = None, data_dir: str = '',
                    replicate: int = 0, images: int = hessian.IMAGES) -> dict[str, Any]:
  """Finds how sharp a run's training loss is, writes and prints it.

  Args are those of `load`, and of `hessian.sharpness`.

  Returns:
    What sharpness.json holds: what `hessian.sharpness` gives, and whose it is.

  Raises:
    UserError: as `load` and `hessian.sharpness`, or the folder cannot be written.
  """
  if images < 1:
    raise UserError(f'--sharpness_images={images}; allowed is 1 or more. Leave it out for'
                    f' {hessian.IMAGES}.')
  loaded = load_to_write(workdir, step, data_dir, replicate)
  found = {**whose(loaded), **hessian.sharpness(loaded, images)}
  metrics.console.print(
      f'largest eigenvalue {found["largest_eigenvalue"]:.6g} of the Hessian of the training loss in'
      f' the {found["parameters"]:,} parameters that train, on {found["train_images"]:,} training'
      f' images; residual {found["residual"]:.2g} after {found["iterations"]} products'
      + ('' if found['converged'] else ': not converged, take it as an estimate from below'))
  path = loaded.workdir / f'sharpness{which(loaded.config, replicate)}.json'

  def write():
    workdir_lib.write_json(path, found)
    return [str(path)]

  write_into(loaded.workdir, write)
  return found


def _print(analysis):
  say = metrics.console.print
  trained, *zeroed = analysis['thresholds']
  say(f'test accuracy {trained["test_accuracy"]:.4f} as trained')
  if not analysis['gamma']:
    say('this network has no gamma and no beta')
  for row in zeroed:
    share = row['gammas_zeroed'] / analysis['gamma']['all']['count']
    say(f'              {row["test_accuracy"]:.4f} with the {share:.1%} of gammas at zero whose'
        f' absolute value is below {row["threshold"]:g}')
  if not analysis['relus']:
    say('ReLUs of a network without norms of bnonly_jax.models.norm do not tell whether they fire')
    return
  relus = analysis['relus']['all']
  say(f'{relus["silent"]:,} of {relus["relus"]:,} ReLUs ({relus["silent_share"]:.1%}) never fire;'
      f' {relus["effective"]:,} features are effective')
