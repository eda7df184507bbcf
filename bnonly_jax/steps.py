"""The state, the training step and the evaluation step, each one pmap over the devices.

State and frozen parameters have no axis of devices; the batch has. The host says which images a
step takes, or brings them; the step augments and normalises them itself.
"""

from collections.abc import Callable
from collections.abc import Sequence
import os
from typing import Any
from typing import NamedTuple
import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from bnonly_jax import masks
from bnonly_jax import optimizer
from bnonly_jax.data import augment
from bnonly_jax.data import device
from bnonly_jax.data.device import AXIS
from bnonly_jax.models import firing
from bnonly_jax.objective import distillation
from bnonly_jax.objective import labels as labels_lib

# XLA's CPU backend then sends convolutions of few channels to oneDNN, where Eigen would have them:
# steps of CIFAR ResNets are 1.2 to 1.4 times as fast. Known since jax 0.10, with effect since 0.12.
CPU_OPTIONS = {'xla_cpu_experimental_onednn_custom_call': True}


class State(NamedTuple):
  """All that a training step changes."""
  step: jax.Array  # int32 scalar: training steps done
  trainable: Any
  batch_stats: Any
  opt_state: Any


def create_state(variables: dict[str, Any], mask: dict[str, Any],
                 tx: optax.GradientTransformation) -> tuple[State, Any]:
  """Returns the state before the first step, and the frozen half of the parameters."""
  trainable, frozen = masks.partition(variables['params'], mask)
  return State(jnp.zeros((), jnp.int32), trainable, variables['batch_stats'],
               tx.init(trainable)), frozen


def stack(starts: Sequence[tuple[State, Any]]) -> tuple[State, Any]:
  """Joins the states and frozen halves of replicates; those of one stay as they are.

  Returns:
    State and frozen half with a first axis of replicates everywhere but in state.step.
  """
  if len(starts) == 1:
    return starts[0]
  state, frozen = jax.tree.map(lambda *leaves: np.stack(leaves), *starts)
  return state._replace(step=starts[0][0].step), frozen


def lay_out(frozen: Any, dtype: str | np.dtype, backend: str) -> Any:
  """Returns the frozen half as the steps take it: with the kernels of convolutions as in use.

  They are of the dtype that they are used in and, on a GPU, [..., C_out, height, width, C_in], as
  cuDNN reads them; else every step would copy every kernel into that order.
  """
  def as_used(kernel):
    kernel = kernel.astype(dtype)
    return kernel if backend != 'gpu' else jnp.moveaxis(kernel, -1, -4)

  return _over_kernels(as_used, frozen)


def _merged(trainable, frozen, backend, dtype):
  """The parameters as the network takes them, kernels that are codes decoded in a dtype."""
  if backend == 'gpu':
    frozen = _over_kernels(lambda kernel: jnp.moveaxis(kernel, -4, -1), frozen)
  return masks.merge(trainable, frozen, dtype)


def _over_kernels(function, frozen):
  return jax.tree.map(
      lambda leaf: function(leaf) if not isinstance(leaf, masks.PARTS) and leaf.ndim > 3 else leaf,
      frozen, is_leaf=lambda leaf: isinstance(leaf, masks.PARTS))


class Target(NamedTuple):
  """Where a step runs.

  Attributes:
    devices: of all processes, in the order of their slices of a batch.
    backend: cpu, gpu or tpu: for which the forms of computation are chosen.
    precision: how exactly float32 numbers are multiplied, as config.matmul_precision.
  """
  devices: tuple[jax.Device, ...]
  backend: str
  precision: str = 'default'

  @property
  def local(self) -> tuple[jax.Device, ...]:
    """The devices of this process."""
    return tuple(d for d in self.devices if d.process_index == jax.process_index())

  @property
  def loops_pay(self) -> bool:
    """Whether a step is as fast within a loop on the device as it is alone.

    XLA's backend for CPUs takes twice the time, and rounds otherwise.
    """
    return self.backend != 'cpu'


def _pmap(step: Callable[..., Any], target: Target, in_axes: tuple[int | None, ...],
          donate: tuple[int, ...] = ()) -> Callable[..., Any]:
  """Spreads a step over the devices: the one place that does."""
  def precise(*arguments):
    with jax.default_matmul_precision(target.precision):
      return step(*arguments)

  mapped = jax.pmap(precise, axis_name=AXIS, in_axes=in_axes, out_axes=None,
                    devices=target.devices, donate_argnums=donate)
  return _with_options(mapped, target) if _takes_options(target) else mapped


def _takes_options(target):
  """With several processes a program that was compiled apart from its call lacks their shares."""
  return target.backend == 'cpu' and jax.process_count() == 1


def compiled(lowered: jax.stages.Lowered, target: Target) -> jax.stages.Compiled:
  """Compiles a lowered step as a call of it does.

  On a CPU that is with CPU_OPTIONS, but for those that XLA_FLAGS names or this version of JAX does
  not know.
  """
  if not _takes_options(target):
    return lowered.compile()
  said = os.environ.get('XLA_FLAGS', '')
  options = {name: value for name, value in CPU_OPTIONS.items() if name not in said}
  with warnings.catch_warnings():
    # What calls oneDNN cannot be kept in the cache of compiled programs; JAX warns and goes on.
    warnings.filterwarnings('ignore', 'Error writing persistent compilation cache entry')
    try:
      return lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
      if 'No such compile option' not in str(error):
        raise
      return lowered.compile()


def _with_options(step, target):
  """A step that `compiled` compiles, anew for arguments of other shapes."""
  programs = {}

  def call(*arguments):
    leaves, structure = jax.tree.flatten(arguments)
    if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
      return step(*arguments)  # to be seen by who traces it
    key = structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves)
    if key not in programs:
      programs[key] = compiled(step.lower(*arguments), target)
    return programs[key](*arguments)

  call.lower = step.lower
  return call


def _over_replicates(function: Callable[..., Any], backend: str) -> Callable[..., Any]:
  """Maps a function over the first axis of all that its arguments hold."""
  if backend != 'cpu':
    return jax.vmap(function)

  # Than one replicate after another, written out, XLA's backend for CPUs takes three times as long
  # with a kernel for each in one convolution (a grouped one), and 1.5 times as long in a loop.
  def in_turn(*arguments):
    replicates = len(jax.tree.leaves(arguments)[0])
    each = [function(*jax.tree.map(lambda leaf, i=i: leaf[i], arguments))
            for i in range(replicates)]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)

  return in_turn


def train_step(network: nn.Module, tx: optax.GradientTransformation,
               learning_rate: optax.Schedule, preparation: device.Preparation, target: Target,
               replicates: int = 1, label_smoothing: float = 0.0,
               noise: tuple[float, float] = (0.0, 0.0), log_dead: bool = False,
               teaching: distillation.Teaching | None = None) -> Callable[..., Any]:
  """Compiles the training step.

  Args:
    network: maps images to logits and updates batch_stats.
    tx: the optimizer, masked.
    learning_rate: the schedule in tx, for the metrics.
    preparation: of the images.
    target: where it runs.
    replicates: how many train together, their states and frozen halves as `stack` joins them.
    label_smoothing: share of each label that is spread over all classes.
    noise: variance and decay of the noise on the gradients, as `optimizer.add_noise` has them.
    log_dead: whether the metrics say how many ReLUs are silent.
    teaching: who teaches besides the labels.

  Returns:
    A function (state, frozen, data, batch, seed) -> (state, metrics): data is Images, laid out by
    `device.rows`, and batch int32 [devices, n] says which of them, or data is None and batch is
    Images [devices, n]. The seed, an int32 scalar, is that of the augmentation and the noise; that
    of the first replicate, from which the others count on. With `teaching` it takes the teachers'
    variables besides, which are the same for all replicates. Metrics are float32 scalars loss,
    accuracy (of the batch as trained on), gradient_norm (of what trains, before the noise) and
    learning_rate; with `teaching` distillation, which is `distillation.divergence`; with `log_dead`
    dead_relus, the share silent on the whole batch; of several replicates their means. The state
    passed in is donated. With R > 1 replicates batch is int32 [devices, n, R]. A further last axis
    of K makes it K steps, and each metric a vector [K].
  """
  step = _one_step(network, tx, learning_rate, preparation, target.backend, label_smoothing, noise,
                   log_dead, teaching)

  def together(state, frozen, data, batch, seed, *teachers):
    if replicates == 1:
      return step(state, frozen, data, batch, seed, *teachers)

    def one(rest, frozen, batch, seed):
      new, metrics = step(State(state.step, *rest), frozen, data, batch, seed, *teachers)
      return new[1:], metrics

    rest, metrics = _over_replicates(one, target.backend)(
        state[1:], frozen, jnp.moveaxis(batch, -1, 0), seed + jnp.arange(replicates))
    return State(state.step + 1, *rest), jax.tree.map(jnp.mean, metrics)

  def call(state, frozen, data, batch, seed, *teachers):
    if data is None or batch.ndim == (1 if replicates == 1 else 2):
      return together(state, frozen, data, batch, seed, *teachers)
    return jax.lax.scan(lambda state, batch: together(state, frozen, data, batch, seed, *teachers),
                        state, jnp.moveaxis(batch, -1, 0))

  return _pmap(call, target, (None, None, None, 0, None, *(None,) * bool(teaching)), donate=(0,))


def _one_step(network, tx, learning_rate, preparation, backend, label_smoothing, noise, log_dead,
              teaching):
  """A training step of one replicate, on one device of many."""
  updated_by_it = ['batch_stats', *(['intermediates'] if log_dead else [])]

  def step(state, frozen, data, batch, seed, teachers=None):
    with jax.named_scope('images'):
      batch = device.look_up(data, batch, preparation.image_shape)
      labels = batch.labels
      positions = jax.lax.axis_index(AXIS) * labels.shape[0] + jnp.arange(labels.shape[0])
      augmented, mixed = augment.augment(batch, seed, state.step, positions, preparation, backend,
                                         jax.lax.axis_size(AXIS))
      images = device.normalise(augmented, preparation)
    if teaching:
      with jax.named_scope('teachers'):
        taught = distillation.targets(teaching, teachers, augmented)

    def loss_of(trainable):
      variables = {'params': _merged(trainable, frozen, backend, preparation.dtype),
                   'batch_stats': state.batch_stats}
      logits, updated = network.apply(variables, images, train=True, mutable=updated_by_it)
      loss, more = labels_lib.cross_entropy(logits, labels, mixed, label_smoothing), {}
      if teaching:
        more['distillation'] = distillation.divergence(taught, logits, teaching.temperature)
        loss = (1 - teaching.weight) * loss + teaching.weight * more['distillation']
      accuracy = jnp.mean(jnp.argmax(logits, -1) == labels)
      return loss, (accuracy, more, updated)

    (loss, (accuracy, more, updated)), gradients = jax.value_and_grad(loss_of, has_aux=True)(
        state.trainable)
    gradients, batch_stats, loss, accuracy, more = jax.lax.pmean(
        (gradients, updated.get('batch_stats', {}), loss, accuracy, more), AXIS)
    if log_dead:
      fired = firing.anywhere(updated['intermediates'], AXIS)
      more = {**more, 'dead_relus': firing.silent_share(fired)}
    with jax.named_scope('optimizer'):
      noisy = gradients if not noise[0] else optimizer.add_noise(gradients, *noise, seed,
                                                                 state.step)
      updates, opt_state = tx.update(noisy, state.opt_state, state.trainable)
      trainable = optax.apply_updates(state.trainable, updates)
    metrics = {'loss': loss, 'accuracy': accuracy,
               'gradient_norm': optax.tree.norm(gradients),
               'learning_rate': jnp.asarray(learning_rate(state.step), jnp.float32), **more}
    return State(state.step + 1, trainable, batch_stats, opt_state), metrics

  return step


def eval_step(network: nn.Module, preparation: device.Preparation, target: Target,
              replicates: int = 1) -> Callable[..., Any]:
  """Compiles the evaluation step.

  Returns:
    A function (state, frozen, data, (batch, weight float32 [devices, n])), data and batch as for
    the training step, -> float32 scalars loss, correct, count and, of more than five classes,
    correct_top5 (the label is among the five largest logits): sums over the batch of each image's
    times its weight. Several replicates see the same images, and have all but count in vectors.
  """
  def step(state, frozen, data, weighted):
    batch, weight = weighted
    with jax.named_scope('images'):
      images, labels = device.look_up(data, batch, preparation.image_shape)
      images = device.normalise(images, preparation)

    def one(trainable, batch_stats, frozen):
      variables = {'params': _merged(trainable, frozen, target.backend, preparation.dtype),
                   'batch_stats': batch_stats}
      logits = network.apply(variables, images, train=False)
      losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
      correct = jnp.argmax(logits, -1) == labels
      sums = {'loss': jnp.sum(losses * weight), 'correct': jnp.sum(correct * weight)}
      if logits.shape[-1] > 5:
        among_five = jnp.any(jax.lax.top_k(logits, 5)[1] == labels[:, None], -1)
        sums['correct_top5'] = jnp.sum(among_five * weight)
      return sums

    sums = (one if replicates == 1 else _over_replicates(one, target.backend))(
        state.trainable, state.batch_stats, frozen)
    return jax.lax.psum({**sums, 'count': jnp.sum(weight)}, AXIS)

  return _pmap(step, target, (None, None, None, 0))


def firing_step(network: nn.Module, preparation: device.Preparation,
                target: Target) -> Callable[..., Any]:
  """Compiles the step that says which ReLUs fire, with the network as in evaluation.

  Returns:
    A function that takes what the evaluation step takes -> what `firing.anywhere` gives of the
    images in the batch whose weight is not 0.
  """
  def step(state, frozen, data, weighted):
    batch, weight = weighted
    variables = {'params': _merged(state.trainable, frozen, target.backend, preparation.dtype),
                 'batch_stats': state.batch_stats}
    images, _ = device.look_up(data, batch, preparation.image_shape)
    _, told = network.apply(variables, device.normalise(images, preparation), train=False,
                            mutable=['intermediates'])
    return firing.anywhere(told['intermediates'], AXIS, weight != 0)

  return _pmap(step, target, (None, None, None, 0))
