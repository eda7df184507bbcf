"""Any runs side by side: their accuracy over epochs in one figure, and what they are in a table."""

from collections.abc import Sequence
import os
from typing import Any
from typing import NamedTuple

from etils import epath

from bnonly_jax.config import flat
from bnonly_jax.config import FREE
from bnonly_jax.config import UserError
from bnonly_jax.run import full_disk
from bnonly_jax.run import metrics
from bnonly_jax.run import plots
from bnonly_jax.run import reading
from bnonly_jax.run import workdir as workdir_lib
from bnonly_jax.sweep import drawing
from bnonly_jax.sweep import tables

# What the table has of every run, by field; other fields have a column where the runs differ.
_COLUMNS = {'network': 'network', 'train': 'trains', 'data.name': 'data', 'epochs': 'epochs'}
_LINES = ('-', '--', ':', '-.')


class Shown(NamedTuple):
  """What is shown of a run."""
  folder: epath.Path
  facts: dict[str, Any]  # fields of its config by dotted name
  curve: list[tuple[float, float]]  # epoch and test accuracy in %, of several seeds the mean
  trained: int  # parameters
  accuracy: float | None  # at its end, in %
  told: str  # what is to be known of it, or ''
  name: str = ''  # as figure and table call it


def compare(paths: Sequence[str | os.PathLike], output: str | os.PathLike
            ) -> tuple[epath.Path, list[Shown], list[str]]:
  """Draws runs of any configs, finished or not, into one figure, and writes their table.

    compare(['runs/all', 'runs/batchnorm'], 'runs/figure')

  Args:
    paths: the folders of the runs.
    output: the folder that runs.png, runs.svg, runs.csv and runs.md go to; it may be new.

  Returns:
    The path of runs.png; what is shown; why other folders are left out, a line each.

  Raises:
    UserError: nothing can be shown, or the folder cannot be written. Nothing has been written then,
      or what is there is whole.
  """
  folders = list(dict.fromkeys(map(workdir_lib.path, paths)))
  shown, left_out = [], []
  for folder in folders:
    try:
      shown.append(_look(folder))
    except UserError as error:
      left_out.append(f'left out: {error}')
  if not shown:
    raise UserError(f'--runs: nothing can be drawn. {"; ".join(left_out)}')
  names = _names([run.folder for run in shown])
  shown = [run._replace(name=name) for run, name in zip(shown, names, strict=True)]
  folder = workdir_lib.path(output)
  with full_disk.told(folder, f'--output={output}', drawing.REMEDY):
    folder.mkdir(parents=True, exist_ok=True)
    drawing.write_figure(_figure(shown), folder / 'runs')
    workdir_lib.write_text(folder / 'runs.csv', tables.comma_separated(*table(shown, '')))
    workdir_lib.write_text(folder / 'runs.md', tables.piped(*table(shown)))
  return folder / 'runs.png', shown, left_out


def _names(folders):
  """The folders' names, with so many of those above them as differ."""
  if len(folders) == 1 or any(map(workdir_lib.is_remote, folders)):
    return [folder.name if len(folders) == 1 else os.fspath(folder) for folder in folders]
  above = os.path.commonpath([folder.parent for folder in folders])
  return [os.path.relpath(folder, above) for folder in folders]


def _look(folder):
  """Reads what is shown of a run.

  Raises:
    UserError: the folder holds no run, none that can be drawn, or a damaged one.
  """
  config, _ = workdir_lib.read_config(folder, f'--runs {folder}')
  result, lines = reading.result(folder), reading.lines(folder)
  curve = [(line['epoch'], 100 * line['test_accuracy']) for line in lines
           if line.get('test_accuracy') is not None and 'epoch' in line]
  if not curve:
    raise UserError(f'--runs {folder}: it holds no evaluation yet. Let the run go on to its first.')
  told = ''
  if result and result['diverged']:
    told = f'{folder}: diverged; drawn up to epoch {curve[-1][0]:g} of {config.epochs}'
  elif not result:
    told = f'{folder}: unfinished; drawn up to epoch {curve[-1][0]:g} of {config.epochs}'
  accuracy = result['test_accuracy'] if result else None
  return Shown(folder, flat(config), curve, reading.trained_parameters(folder),
               None if accuracy is None else 100 * accuracy, told)


def table(shown: Sequence[Shown], form: str = '.2f') -> tuple[list[str], list[list[str]]]:
  """Returns the head and the lines of the runs' table as text.

  Args:
    shown: the runs.
    form: of the accuracies; '' is in full.
  """
  differ = [field for field in shown[0].facts if field not in (*FREE, *_COLUMNS)
            and any(run.facts[field] != shown[0].facts[field] for run in shown)]
  head = ['run', *_COLUMNS.values(), *differ, 'trained parameters', 'test accuracy, %']
  return head, [[run.name, *(str(run.facts[field]) for field in (*_COLUMNS, *differ)),
                 str(run.trained), '' if run.accuracy is None else format(run.accuracy, form)]
                for run in shown]


def _figure(shown):
  figure, axes = plots.pyplot().subplots(figsize=(7.5, 4.8), layout='constrained')
  for number, run in enumerate(shown):
    turn, colour = divmod(number, len(plots.COLOURS))
    axes.plot(*zip(*run.curve, strict=True), _LINES[turn % len(_LINES)], marker='.',
              color=plots.COLOURS[colour], label=f'{run.name}: {run.facts["network"]} on'
              f' {run.facts["data.name"]}, training {run.facts["train"]}'
              + (' (unfinished)' if run.accuracy is None else ''))
  axes.set(xlabel='epoch', ylabel='test accuracy (%)')
  axes.set_ylim(bottom=0)
  axes.grid(alpha=0.3)
  figure.legend(loc='outside lower center', ncols=1, fontsize='small')
  return figure


def print_compared(path: epath.Path, shown: Sequence[Shown], left_out: Sequence[str]) -> None:
  """Prints what `compare` returns."""
  metrics.print_columns(*table(shown))
  for text in (*(run.told for run in shown), *left_out):
    if text:
      metrics.console.print(text)
  metrics.console.print(f'written: {path}, and beside it runs.svg, runs.csv and runs.md')
