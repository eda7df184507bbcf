"""What there is to say of a trained network's gammas, betas and ReLUs, in numbers."""

from typing import Any

import flax.traverse_util
import numpy as np

from bnonly_jax import masks
from bnonly_jax import models
from bnonly_jax.models import layers

THRESHOLDS = (0.01, 0.05, 0.1)  # the paper's
SMALL = THRESHOLDS[0]  # below it, a gamma leaves its feature without the image
QUANTILES = (0, 5, 25, 50, 75, 95, 100)  # %
BINS = 40


Known = dict[str, models.Parameter] | None


def gamma_table(params: dict[str, Any], parameters: Known = None) -> dict[str, Any] | None:
  """Describes the distribution of gamma, in all and by layer.

    gamma_table(run.variables['params'])['all']['below_0.01']  # share of abs(gamma) < 0.01

  Args:
    params: a network's, of any floating dtype.
    parameters: what is known of them, `run.experiment.parameters`; None: norms are told by their
      names, as of this package's networks they can be.

  Returns:
    `all` and `layers`, a row for each norm in the network's order: `layer`, `count`, `mean`, `std`,
    `q0`, `q5`, ... `q100` (quantiles in %), `below_0.01`, `below_0.05`, `below_0.1` (share whose
    absolute value is smaller), `histogram` (counts). And `bins`, the edges of all histograms.
    None: the network has no gamma.
  """
  return _table(params, 'gamma', parameters)


def beta_table(params: dict[str, Any], parameters: Known = None) -> dict[str, Any] | None:
  """Describes the distribution of beta as `gamma_table` does that of gamma, without `below_...`.

    beta_table(run.variables['params'])['layers'][0]['mean']
  """
  return _table(params, 'beta', parameters)


def _group(name, parameters):
  return masks.by_name(name) if parameters is None else parameters[name].group


def stacks(parameters: Known) -> set[str]:
  """Returns the modules that are stacks of equal blocks."""
  return {lift for known in (parameters or {}).values() for lift in known.lifts}


def _named(params, group, parameters):
  """The tensors of a group of norm parameters by layer."""
  return layers.unstack({name.rpartition('/')[0]: np.asarray(value)
                         for name, value in masks.flatten(params).items()
                         if _group(name, parameters) == group}, stacks(parameters))


def _table(params, group, parameters):
  named = _named(params, group, parameters)
  if not named:
    return None
  every = np.concatenate([values.ravel() for values in named.values()])
  bins = np.histogram_bin_edges(every.astype(np.float64), BINS)

  def row(layer, values):
    values = values.astype(np.float64)
    quantiles = zip(QUANTILES, np.percentile(values, QUANTILES), strict=True)
    return {'layer': layer, 'count': values.size,
            'mean': float(values.mean()), 'std': float(values.std()),
            **{f'q{q}': float(value) for q, value in quantiles},
            **({f'below_{t}': float(np.mean(np.abs(values) < t)) for t in THRESHOLDS}
               if group == 'gamma' else {}),
            'histogram': np.histogram(values, bins)[0].tolist()}

  return {'all': row('all', every), 'layers': [row(*item) for item in named.items()],
          'bins': bins.tolist()}


def zero_small(params: dict[str, Any], threshold: float, parameters: Known = None
               ) -> dict[str, Any]:
  """Returns parameters with gamma 0 where abs(gamma) < threshold. Betas and all else stay.

    zero_small({'stem_norm': {'scale': np.array([-0.02, 0.5]), ...}}, 0.05)  # scale [0, 0.5]

  Args:
    params: a network's.
    threshold: 0 or more.
    parameters: as for `gamma_table`.
  """
  return flax.traverse_util.unflatten_dict({
      name: np.where(np.abs(value) < threshold, np.zeros_like(value), value)
      if _group(name, parameters) == 'gamma' else value
      for name, value in masks.flatten(params).items()}, sep='/')


def relu_table(params: dict[str, Any], silent: dict[str, np.ndarray], parameters: Known = None
               ) -> dict[str, Any]:
  """Counts the ReLUs that never fire and the effective features, in all and by layer.

  A feature, one ReLU's output, is effective if the ReLU ever fires and, where it follows a norm
  directly, abs(gamma) >= 0.01: with a smaller one the output is about relu(beta), whatever the
  image. At a block's end, where the residual is added in between, gamma does not count; nor does it
  in a network without norms.

    relu_table(run.variables['params'], silent_relus(run))['all']['silent_share']

  Args:
    params: the network's.
    silent: from `silent_relus`.
    parameters: as for `gamma_table`.

  Returns:
    `all` and `layers`, a row for each ReLU layer in the network's order: `layer`, `relus` (their
    number), `silent`, `silent_share`, `effective`, `effective_share`.
  """
  gammas = _named(params, 'gamma', parameters)
  effective = {}
  for layer, never in silent.items():
    judged = layer in gammas and not layers.adds_residual(layer, silent)
    effective[layer] = ~never & (np.abs(gammas[layer]) >= SMALL if judged else True)

  def row(layer, never, useful):
    return {'layer': layer, 'relus': never.size,
            'silent': int(never.sum()), 'silent_share': float(never.mean()),
            'effective': int(useful.sum()), 'effective_share': float(useful.mean())}

  return {'all': row('all', *(np.concatenate(list(by_layer.values()))
                              for by_layer in (silent, effective))),
          'layers': [row(layer, never, effective[layer]) for layer, never in silent.items()]}
