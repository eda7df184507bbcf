"""An attack on runs: computed, written into the first one's folder, drawn and printed."""

from collections.abc import Sequence
import fractions
from typing import Any

from bnonly_jax.analysis import writing
from bnonly_jax.attack import gradient
from bnonly_jax.config import UserError
from bnonly_jax.run import metrics
from bnonly_jax.run import plots
from bnonly_jax.run import trained
from bnonly_jax.run import workdir as workdir_lib


def parse_eps(text: str) -> dict[str, float]:
  """Reads numbers with commas between, which may be fractions: '0,2/255,0.1'.

  Returns:
    Each as it is written, in ascending order, with its value.

  Raises:
    UserError: one is no number from 0 to 1, or there is none.
  """
  found = {}
  for part in filter(None, (part.strip() for part in text.split(','))):
    try:
      found[part] = float(fractions.Fraction(part))
    except (ValueError, ZeroDivisionError):
      found[part] = -1.0
    if not 0 <= found[part] <= 1:
      raise UserError(f'--eps={text} has {part!r}; allowed are numbers from 0 to 1, of pixels in'
                      ' [0, 1]. Write fractions as --eps=0,2/255,8/255.')
  if not found:
    raise UserError(f'--eps={text!r} names no number. Write one or more: --eps=0,2/255,8/255.')
  return dict(sorted(found.items(), key=lambda pair: pair[1]))


def attack(workdir: str, eps: str = '0,2/255,8/255', steps: int = 0, against: Sequence[str] = (),
           data_dir: str = '', replicate: int = 0) -> dict[str, Any]:
  """Attacks the networks of runs, writes, draws and prints their accuracy.

    attack('runs/digits', '0,8/255', 10, against=['runs/all'])['runs'][0]['accuracies']

  Args:
    workdir: WORKDIR[@STEP] of a run; attack.json and attack.png go there.
    eps: as `parse_eps`.
    steps: of PGD; 0: FGSM.
    against: WORKDIR[@STEP] of other runs, for the same table and plot. Each is attacked on the test
      set of its own, by its own gradient.
    data_dir: as for `analysis.load`, of all.
    replicate: as for `analysis.load`, of those that have several.

  Returns:
    What attack.json holds: `steps`, `step_size` (of PGD, in pixels for eps 1), `random_start`; and
    `runs`, each with `name`, whose it is, `test_images`, and `accuracies`, a list of `eps` and
    `test_accuracy`.

  Raises:
    UserError: as `parse_eps` and `analysis.load`, or the folder cannot be written.
  """
  wanted = parse_eps(eps)
  if steps < 0:
    raise UserError(f'--steps={steps}; allowed is 0, which is FGSM, or more, as --steps=10.')
  folder, step = trained.split_step(workdir)
  loaded = [writing.load_to_write(folder, step, data_dir, replicate)]
  loaded += [writing.load_beside('against', other, data_dir, replicate) for other in against]
  found = {'steps': steps, 'step_size': gradient.STEP / steps if steps else None,
           'random_start': bool(steps), 'runs': []}
  for name, run in zip(_names([workdir, *against]), loaded, strict=True):
    accuracies = gradient.accuracies(run, tuple(wanted.values()), steps)
    found['runs'].append({
        'name': name, **writing.whose(run), 'test_images': run.experiment.info.test_images,
        'accuracies': [{'eps': value, 'test_accuracy': accuracy} for value, accuracy in zip(
            wanted.values(), accuracies, strict=True)]})
  _print(found, wanted)
  stem = f'attack{writing.which(loaded[0].config, replicate)}'

  def write():
    workdir_lib.write_json(folder / f'{stem}.json', found)
    plots.attacked(found, folder / f'{stem}.png')
    return [str(folder / f'{stem}.{kind}') for kind in ('json', 'png')]

  writing.write_into(folder, write)
  return found


def _names(workdirs):
  """What table and plot call the runs: the ends of their names, or where these agree, the whole."""
  ends = ['/'.join(name.rstrip('/').split('/')[-2:]) for name in workdirs]
  return ends if len(set(ends)) == len(ends) else list(workdirs)


def _print(found, wanted):
  said = ('FGSM' if not found['steps'] else
          f'PGD, {found["steps"]} steps of {found["step_size"]:g} eps, from a random start')
  metrics.console.print(f'test accuracy under {said}; eps is of pixels in [0, 1]')
  metrics.print_columns(['eps', *(run['name'] for run in found['runs'])], [
      [text, *(f'{run["accuracies"][i]["test_accuracy"]:.4f}' for run in found['runs'])]
      for i, text in enumerate(wanted)])
