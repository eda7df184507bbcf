"""A trained network on its test set: accuracy with other parameters, ReLUs that never fire."""

import math
from typing import Any

import jax
import numpy as np
import rich.progress

from bnonly_jax import experiment
from bnonly_jax import masks
from bnonly_jax import steps
from bnonly_jax.analysis import tables
from bnonly_jax.analysis.loading import Loaded
from bnonly_jax.config import UserError
from bnonly_jax.data import device
from bnonly_jax.data import prepare
from bnonly_jax.models import firing
from bnonly_jax.models import layers
from bnonly_jax.run import metrics
from bnonly_jax.run import plots
from bnonly_jax.run import result


def evaluate(loaded: Loaded, *variants: dict[str, Any]) -> list[dict[str, Any]]:
  """Evaluates a run's network on its test set, with each of several sets of parameters.

    evaluate(run, run.variables['params'])[0]['test_accuracy']

  Args:
    loaded: the run; its BatchNorm statistics count.
    *variants: parameters in the place of its own. The test set is read once for all of them.

  Returns:
    For each `test_accuracy` in [0, 1], `test_loss` (None if it is not finite), `test_images`.

  Raises:
    UserError: a bad image, if config.data.bad_images is stop.
  """
  run = loaded.experiment
  # Tensors that variants have in common are on the devices once.
  placed = device.place({id(leaf): leaf for leaf in jax.tree.leaves(variants)}, run.target.local)
  states = [_state(loaded, jax.tree.map(lambda leaf: placed[id(leaf)], params))
            for params in variants]
  test_set, batches = _test_batches(loaded, 'test accuracy')
  sums = [[run.eval_step(*state, test_set, batch) for state in states] for batch in batches]
  results = []
  for per_batch in zip(*jax.device_get(sums), strict=True):
    found = result.evaluation(per_batch, 0)
    loss = found['test_loss']
    results.append({'test_accuracy': found['test_accuracy'],
                    'test_loss': loss if math.isfinite(loss) else None,
                    'test_images': round(sum(float(s['count']) for s in per_batch))})
  return results


def thresholded(loaded: Loaded, thresholds: tuple[float, ...] = tables.THRESHOLDS
                ) -> list[dict[str, Any]]:
  """Evaluates a network as trained, and with the gammas below each threshold set to zero.

    [row['test_accuracy'] for row in thresholded(run)]

  Returns:
    A row for threshold 0 (as trained) and each of `thresholds`: `threshold`, `gammas_zeroed` (how
    many) and what `evaluate` gives. Without gammas in the network, the first alone.

  Raises:
    UserError: as `evaluate`.
  """
  params, parameters = loaded.variables['params'], loaded.experiment.parameters
  gammas = plots.gammas(parameters, params, jax.tree.map(lambda _: None, params))
  thresholds = (0.0, *(thresholds if gammas.size else ()))
  results = evaluate(loaded, params, *(tables.zero_small(params, t, parameters)
                                       for t in thresholds[1:]))
  return [{'threshold': t, 'gammas_zeroed': int(np.sum(np.abs(gammas) < t)), **result}
          for t, result in zip(thresholds, results, strict=True)]


def silent_relus(loaded: Loaded) -> dict[str, np.ndarray]:
  """Finds the ReLUs that never fire on the test set.

  A ReLU is one output channel of one ReLU of the network. It never fires if its output is 0 at
  every position of every test image, in evaluation (BatchNorm's running statistics).

    sum(silent.sum() for silent in silent_relus(run).values())

  Returns:
    bool [channels] by the layer whose norm comes before, in the network's order; True: never fires.

  Raises:
    UserError: as `evaluate`, or the network has no ReLU that tells.
  """
  run = loaded.experiment
  if not watched(loaded):
    raise UserError(f'config.network is {loaded.config.network!r}, whose ReLUs do not tell whether'
                    ' they fire; those at the end of norms of bnonly_jax.models.norm do.')
  state = _state(loaded, device.place(loaded.variables['params'], run.target.local))
  test_set, batches = _test_batches(loaded, 'ReLUs')
  told = jax.device_get([run.firing_step(*state, test_set, batch) for batch in batches])
  fired = masks.flatten(jax.tree.map(lambda *some: np.any(some, 0), *told))
  return layers.unstack({name.removesuffix('/fired'): ~np.any(values, 0)  # of each call of it
                         for name, values in fired.items()}, tables.stacks(run.parameters))


def watched(loaded: Loaded) -> bool:
  """Whether a network has ReLUs that tell which of them fire (see models/norm.py)."""
  run = loaded.experiment
  return firing.tells(run.network, run.shapes, run.info.image_shape)


def _state(loaded, params):
  """The state and the frozen half as evaluation takes them, nothing being frozen."""
  stats = device.place(loaded.variables['batch_stats'], loaded.experiment.target.local)
  return steps.State(None, params, stats, ()), jax.tree.map(lambda _: None, params)


def _test_batches(loaded, doing):
  """Returns the test set, if resident, and its batches, on the devices; shows how far they are."""
  run = loaded.experiment
  if run.config.data.name == 'digits':
    prepare.prepare('digits', run.config.data.dir)
  # A source has at least one training image; more need not be read.
  source = experiment.open_source(run._replace(info=run.info._replace(train_images=1)))
  size = run.eval_batch_size
  batches = rich.progress.track(
      device.send_ahead(source.eval_batches(size), run.target.local), doing,
      -(-run.info.test_images // size), console=metrics.console, transient=True,
      disable=not metrics.console.is_terminal)
  return device.place(source.test_set, run.target.local), batches
