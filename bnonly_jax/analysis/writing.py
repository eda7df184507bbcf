"""The analysis of a run: computed, written into its folder, drawn and printed."""

import os
import pathlib
from typing import Any

import ml_collections

from bnonly_jax.analysis import evaluation
from bnonly_jax.analysis import loading
from bnonly_jax.analysis import tables
from bnonly_jax.config import UserError
from bnonly_jax.run import full_disk
from bnonly_jax.run import metrics
from bnonly_jax.run import plots
from bnonly_jax.run import processes
from bnonly_jax.run import workdir as workdir_lib


def file_name(config: ml_collections.ConfigDict, replicate: int) -> str:
  """Returns what the analysis of a run, or of one of its replicates, is called."""
  which = f'_seed{config.seed + replicate}' if config.replicates > 1 else ''
  return f'analysis{which}.json'


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
    What analysis.json holds; see the README.

  Raises:
    UserError: as `load` and `evaluate`, or the folder cannot be written.
  """
  loaded = loading.load(workdir, step, data_dir, replicate)
  workdir, config, params = loaded.workdir, loaded.config, loaded.variables['params']
  if not workdir_lib.is_remote(workdir) and not os.access(workdir, os.W_OK):
    raise UserError(f'--workdir={workdir} cannot be written; allowed is a folder of yours. Copy it,'
                    ' and give the copy as --workdir.')
  steps_per_epoch = loaded.experiment.info.train_images // config.batch_size
  metrics.console.print(f'{workdir}: {config.network}, training {config.train}, step {loaded.step}'
                        f' of {config.epochs * steps_per_epoch}; split'
                        f' {loaded.experiment.info.test_split} of {config.data.name},'
                        f' {loaded.experiment.info.test_images:,} images')
  analysis = {
      'network': config.network, 'norm': config.norm, 'train': config.train,
      'data': config.data.name, 'seed': config.seed + replicate,
      'step': loaded.step, 'epoch': loaded.step / steps_per_epoch,
      'gamma': tables.gamma_table(params),
      'beta': tables.beta_table(params),
      'thresholds': evaluation.thresholded(loaded),
      'relus': tables.relu_table(params, evaluation.silent_relus(loaded)),
  }
  _print(analysis)
  title = f'{config.network}, {config.data.name}, training {config.train}, step {loaded.step}'

  def write():
    written = [workdir / file_name(config, replicate)]
    workdir_lib.write_json(written[0], analysis)
    for draw in (plots.gamma_beta_by_layer, plots.small_gammas, plots.relus):
      if analysis['gamma'] or draw is plots.relus:
        written.append(workdir / f'{written[0].stem}_{draw.__name__}.png')
        draw(analysis, written[-1], title)
    return [str(path) for path in written]

  with full_disk.told(workdir, remedy='Make room, or copy it and give the copy as --workdir.'):
    written = processes.on_main(write)
  metrics.console.print('  '.join(written))
  return analysis


def _print(analysis):
  say = metrics.console.print
  trained, *zeroed = analysis['thresholds']
  say(f'test accuracy {trained["test_accuracy"]:.4f} as trained')
  if not analysis['gamma']:
    say('norm none: this network has no gamma and no beta')
  for row in zeroed:
    share = row['gammas_zeroed'] / analysis['gamma']['all']['count']
    say(f'              {row["test_accuracy"]:.4f} with the {share:.1%} of gammas at zero whose'
        f' absolute value is below {row["threshold"]:g}')
  relus = analysis['relus']['all']
  say(f'{relus["silent"]:,} of {relus["relus"]:,} ReLUs ({relus["silent_share"]:.1%}) never fire;'
      f' {relus["effective"]:,} features are effective')
