"""The learning rate and SGD, routed to what trains."""

from typing import Any

import jax.numpy as jnp
import ml_collections
import optax

from bnonly_jax import masks


def schedule(config: ml_collections.ConfigDict, batch_size: int, steps: int,
             steps_per_epoch: int) -> optax.Schedule:
  """Linear warm-up from 0, then constant, times drop_factor at each drop.

  Args:
    config: config.optimizer.
    batch_size: global.
    steps: of the whole run.
    steps_per_epoch: training steps in an epoch.

  Returns:
    A function from a step's number, counted from 0, to its learning rate.
  """
  drops = {}
  for fraction in config.drops:
    step = max(1, round(fraction * steps))
    drops[step] = drops.get(step, 1.0) * config.drop_factor
  peak = config.learning_rate
  if config.reference_batch_size:
    peak *= batch_size / config.reference_batch_size
  rate = optax.piecewise_constant_schedule(peak, drops)
  warmup_steps = round(config.warmup_epochs * steps_per_epoch)
  if not warmup_steps:
    return rate
  return lambda count: rate(count) * jnp.minimum(1.0, count / warmup_steps)


def create(config: ml_collections.ConfigDict, learning_rate: optax.Schedule,
           mask: dict[str, Any]) -> optax.GradientTransformation:
  """SGD as PyTorch does it: v = momentum * v + (g + decay * p); p = p - rate * v.

  `optax.masked` alone hands the masked-out part of its input on as updates. Here nothing is there
  to hand on: gradients and parameters of frozen tensors are None before they arrive.

  Args:
    config: config.optimizer.
    learning_rate: from `schedule`.
    mask: from `masks.make_mask`.

  Returns:
    A transformation of gradients shaped like the trainable half of the parameters.
  """
  sgd = optax.chain(optax.add_decayed_weights(config.weight_decay),
                    optax.sgd(learning_rate, momentum=config.momentum))
  return optax.masked(sgd, masks.tensors_trained(mask))
