"""The conclusion of a run: what an evaluation comes to, result.json, and what is said of it."""

from collections.abc import Sequence
import importlib.metadata
import platform
import time
from typing import Any

from etils import epath
import jax
import numpy as np

from bnonly_jax import masks
from bnonly_jax.experiment import Experiment
from bnonly_jax.run import metrics
from bnonly_jax.run import plots
from bnonly_jax.run import reading
from bnonly_jax.run import workdir as workdir_lib

# What an evaluation sums up, and what metrics and result call the mean over images: that of all
# replicates, and the list of each one's.
_EVALUATED = (('loss', 'test_loss', 'test_losses'),
              ('correct', 'test_accuracy', 'test_accuracies'),
              ('correct_top5', 'test_top5_accuracy', 'test_top5_accuracies'))


def evaluation(sums: Sequence[dict[str, np.ndarray]], images: int) -> dict[str, Any]:
  """Returns the metrics of an evaluation; none if no image counted.

  Args:
    sums: of the evaluation step, one of each batch.
    images: in the split.
  """
  total = {k: np.ravel(sum(np.asarray(s[k], np.float64) for s in sums)) for k in sums[0]}
  count, found = total.pop('count').item(), {}
  if not count:
    return found
  for name, mean, each in _EVALUATED:
    if name in total:
      values = (total[name] / count).tolist()
      found[mean] = np.mean(values).item()
      if len(values) > 1:
        found[each] = values
  if count < images:
    found['test_images_left_out'] = images - count
  return found


def title(experiment: Experiment) -> str:
  """Returns the title of a run's plots."""
  config = experiment.config
  return f'{config.network}, {config.data.name}, training {config.train}'


def conclude(experiment: Experiment, workdir: epath.Path, diverged_step: int | None,
             start_gammas: np.ndarray, end_gammas: np.ndarray) -> dict[str, Any]:
  """Draws a run's plots and writes result.json: last, so that its presence says all else is there.

  Args:
    experiment: the run's.
    workdir: its folder.
    diverged_step: the step whose loss or state is not finite, or None.
    start_gammas: every gamma at the start.
    end_gammas: every gamma at the end.

  Returns:
    What result.json holds.
  """
  plots.accuracy_over_epochs(workdir, title(experiment))
  if start_gammas.size:
    plots.gamma_histogram(workdir, start_gammas, end_gammas, title(experiment))
  lines = reading.lines(workdir)
  start = next((x for x in lines if x['step'] == 0), {})  # lost, if someone edits the file
  final = {} if diverged_step else next(x for x in lines if x['step'] == experiment.total_steps
                                        and 'test_accuracy' in x)
  config, info = experiment.config, experiment.info
  table = masks.table(experiment.parameters, experiment.mask)
  result = {
      **{mean: final.get(mean) for _, mean, _ in _EVALUATED},
      'untrained_test_accuracy': start.get('test_accuracy'),
      'replicates': _by_seed(experiment.seeds, start, final),
      'diverged': diverged_step is not None,
      'diverged_step': diverged_step,
      'network': config.network,
      'train': config.train,
      'norm': config.norm,
      'parameters': masks.total(table),
      'trained_parameters': sum(row.trained for row in table),
      'data': config.data.name,
      'train_images': info.train_images,
      'test_images': info.test_images - round(final.get('test_images_left_out', 0)),
      'epochs': config.epochs,
      'steps': experiment.total_steps,
      'seed': config.seed,
      'seconds': sum(line.get('time_seconds', 0) for line in lines),
      'compute_dtype': config.compute_dtype,
      'matmul_precision': config.matmul_precision,
      'device_kind': experiment.target.devices[0].device_kind,
      'devices': len(experiment.target.devices),
      'processes': jax.process_count(),
      'versions': {'python': platform.python_version(), **{
          name: importlib.metadata.version(name) for name in ('jax', 'flax', 'optax')}},
      'finished': time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime()),
  }
  workdir_lib.write_json(workdir / 'result.json', result)
  return result


def _by_seed(seeds, start, final):
  """What result.json has of each replicate."""
  def each(line, mean, lists):  # a single replicate's lines have no lists
    return line.get(lists, [line.get(mean)] * len(seeds))

  columns = {'seed': seeds, **{mean: each(final, mean, lists) for _, mean, lists in _EVALUATED},
             'untrained_test_accuracy': each(start, 'test_accuracy', 'test_accuracies')}
  return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def report(result: dict[str, Any], workdir: epath.Path) -> None:
  """Prints a run's result and where its plots are."""
  drawn = [str(workdir / name) for name in ('accuracy.png', 'gamma.png')
           if (workdir / name).exists()]
  if result['diverged']:
    text = (f'diverged: step {result["diverged_step"]} of {result["steps"]} has a loss, or left a'
            ' state, that is not finite; the last checkpoint before it stays. A smaller'
            ' config.optimizer.learning_rate may help.\nThat was after')
  else:
    accuracies = [one['test_accuracy'] for one in result.get('replicates', [])]
    text = (f'test accuracy {result["test_accuracy"]:.4f}{metrics.spread(accuracies)} after'
            f' {result["epochs"]} epochs of')
    if result['test_loss'] is None:
      text = 'the test loss is not finite\n' + text
  untrained = result['untrained_test_accuracy']
  metrics.console.print(
      f'{text} training {result["trained_parameters"]:,} of {result["parameters"]:,} parameters'
      f' (untrained: {"not known" if untrained is None else f"{untrained:.4f}"})\n'
      f'plots: {"  ".join(drawn)}')
