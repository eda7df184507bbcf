"""The learning rate, the optimizer, routed to what trains, and noise on its gradients."""

from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax

from bnonly_jax import masks
from bnonly_jax import seeds
from bnonly_jax.config import UserError

_NORMS = ('gamma', 'beta')  # together `batchnorm`, as in masks.py


def schedule(config: ml_collections.ConfigDict, batch_size: int, steps: int,
             steps_per_epoch: int) -> optax.Schedule:
  """Linear warm-up from 0, then constant, times drop_factor at each drop, or a half cosine to 0.

  Args:
    config: config.optimizer.
    batch_size: global.
    steps: of the whole run.
    steps_per_epoch: training steps in an epoch.

  Returns:
    A function from a step's number, counted from 0, to its learning rate.
  """
  peak = config.learning_rate
  if config.reference_batch_size:
    peak *= batch_size / config.reference_batch_size
  warmup_steps = round(config.warmup_epochs * steps_per_epoch)
  if config.schedule == 'cosine':
    fall = optax.cosine_decay_schedule(peak, max(1, steps - warmup_steps))
    rate = lambda count: fall(jnp.maximum(count - warmup_steps, 0))
  elif config.schedule == 'constant':
    rate = optax.constant_schedule(peak)
  else:
    drops = {}
    for fraction in config.drops:
      step = max(1, round(fraction * steps))
      drops[step] = drops.get(step, 1.0) * config.drop_factor
    rate = optax.piecewise_constant_schedule(peak, drops)
  if not warmup_steps:
    return rate
  return lambda count: rate(count) * jnp.minimum(1.0, count / warmup_steps)


def create(config: ml_collections.ConfigDict, learning_rate: optax.Schedule, mask: dict[str, Any],
           groups: Mapping[str, str] | None = None,
           rates: Mapping[str, tuple[float]] | None = None) -> optax.GradientTransformation:
  """The optimizer of what trains; SGD as PyTorch does it.

  That is v = momentum * v + (g + decay * p); p = p - rate * v. The decay of AdamW and Lion is
  rate * decay * p, apart from the gradient.

  `optax.masked` alone hands the masked-out part of its input on as updates. Here nothing is there
  to hand on: gradients and parameters of frozen tensors are None before they arrive.

  Args:
    config: config.optimizer.
    learning_rate: from `schedule`.
    mask: from `masks.make_mask`.
    groups: of all parameters, by name. Not needed where all decay and have one rate.
    rates: config.optimizer.rates, by group.

  Returns:
    A transformation of gradients shaped like the trainable half of the parameters.

  Raises:
    UserError: a rate is of a group without a parameter that trains, or a group has two.
  """
  decays = None if config.decay_norms else _tensors(mask, lambda name: groups[name] not in _NORMS)
  if config.name == 'adamw':
    steps = [optax.adamw(learning_rate, b1=config.momentum, weight_decay=config.weight_decay,
                         mask=decays)]
  elif config.name == 'lion':
    steps = [optax.lion(learning_rate, b1=config.momentum, weight_decay=config.weight_decay,
                        mask=decays)]
  else:
    steps = [optax.add_decayed_weights(config.weight_decay, decays),
             optax.sgd(learning_rate, momentum=config.momentum)]
  trains = masks.tensors_trained(mask)
  if rates:
    factors = _factors(config, rates, {groups[name] for name, keep in masks.flatten(trains).items()
                                       if keep})
    for group, factor in factors.items():
      steps.append(optax.masked(optax.scale(factor),
                                _tensors(mask, lambda name, group=group: groups[name] == group)))
  return optax.masked(optax.chain(*steps), trains)


def _tensors(mask: dict[str, Any], chosen: Callable[[str], bool]) -> dict[str, Any]:
  """A mask of whole tensors, by name."""
  return jax.tree_util.tree_map_with_path(
      lambda path, _: chosen(jax.tree_util.keystr(path, simple=True, separator='/')), mask)


def _factors(config, rates, trained):
  """By how much each group's rate differs from the others'."""
  factors = {}
  for name, (rate,) in rates.items():
    named = [group for group in (_NORMS if name == 'batchnorm' else (name,)) if group in trained]
    wrong = ('which is of no group that trains' if not named else
             'and another one is of the same group' if factors.keys() & set(named) else '')
    if wrong:
      raise UserError(
          f'config.optimizer.rates is {config.rates!r}: it has a rate of {name!r}, {wrong}. Allowed'
          f' is one for each of {", ".join(sorted(trained)) or "none"}, and for batchnorm (gamma'
          f' and beta). Leave {name} out, or train it: --config.train=...')
    factors.update(dict.fromkeys(named, rate / config.learning_rate))
  return factors


def add_noise(gradients: Any, variance: float, decay: float, seed: jax.Array,
              step: jax.Array) -> Any:
  """Adds Gaussian noise of variance `variance` / (1 + step)^decay (arXiv 1511.06807).

  What a tensor gets depends on seed, step and its name alone, so that every device adds the same
  to the gradients that all of them have, and a run that goes on adds what it would have added.

  Args:
    gradients: of what trains, with None for what is frozen; the mean over the devices.
    variance: config.optimizer.gradient_noise.
    decay: config.optimizer.gradient_noise_decay.
    seed: int32 scalar, the replicate's.
    step: int32 scalar, training steps done.

  Returns:
    Gradients of the same shapes and dtypes.
  """
  deviation = jnp.sqrt(variance / (1.0 + step) ** decay)

  def noisy(path, gradient):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    key = seeds.step_key(seed, step, f'gradient_noise/{name}')
    noise = jax.random.normal(key, gradient.shape, gradient.dtype)
    return gradient + deviation.astype(gradient.dtype) * noise

  return jax.tree_util.tree_map_with_path(noisy, gradients)
