"""What a config describes, without training it: parameters, FLOPs and bytes."""

import functools
from typing import Any

import jax
from jax.extend import core
import ml_collections
import numpy as np

from bnonly_jax import data
from bnonly_jax import experiment
from bnonly_jax import masks
from bnonly_jax.models import conv
from bnonly_jax.models import depthwise
from bnonly_jax.models import frozen_half
from bnonly_jax.run import metrics
from bnonly_jax.run import teachers

_DEPTHWISE = (depthwise.shifted_products.__name__, depthwise.shifted_sums.__name__)


def describe(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """Computes a run's sizes from shapes alone: nothing is drawn, compiled or written.

  A data set that is not prepared counts as 32x32 colour images of 10 classes, and for an ImageNet
  network as 224x224 and 1,000 classes. Of several replicates all is one's.

  Returns:
    `table` (list of masks.GroupRow); `flops_forward` and `flops_step` an image; `moved_step`, the
    bytes of the global batch's step by `cost`; bytes of `state`, of `optimizer` (a part of the
    state), `frozen`, `checkpoint` (the state's arrays, to which the files of a checkpoint add
    some kilobytes) and `teachers`, of all of them, and a line on each in `taught_by`; `kernels`,
    what there is to say of convolutions' weights; and `image_shape`, `classes`, `prepared`. The
    FLOPs and bytes of a step count the teachers'.

  Raises:
    UserError: as `experiment.build` and `teachers.join`.
  """
  info, prepared = data.find_or_assume(config)
  config = config.copy_and_resolve_references()
  config.replicates = 1
  taught = teachers.join(experiment.build(config, info))
  run = taught.run
  image = jax.ShapeDtypeStruct((1, *info.image_shape), np.float32)
  arguments = experiment.train_arguments(run)
  flops_step, moved_step = cost(jax.make_jaxpr(run.train_step)(*arguments).jaxpr)
  devices = len(run.target.devices)
  forward = functools.partial(run.network.apply, train=False)
  return {
      'table': masks.table(run.parameters, run.mask),
      'flops_forward': cost(jax.make_jaxpr(forward)(run.shapes, image).jaxpr)[0],
      'flops_step': flops_step * devices // config.batch_size,
      'moved_step': moved_step * devices,
      'state': _bytes(arguments[0]),
      'optimizer': _bytes(arguments[0].opt_state),
      'frozen': _bytes(arguments[1]),
      'checkpoint': _bytes(arguments[0]),
      'teachers': _bytes(run.teachers),
      'taught_by': [teachers.told(record) for record in taught.record],
      'kernels': _kernels(run),
      'image_shape': info.image_shape,
      'classes': info.classes,
      'prepared': prepared,
  }


def names(config: ml_collections.ConfigDict) -> list[tuple[str, str, str, str]]:
  """Returns every parameter by name, as rules and places say it, in the order it is applied.

  Returns:
    For each its name, its shape as text, its group, and 'trains', 'frozen' or, where single weights
    train, how many of them.

  Raises:
    UserError: as `experiment.build`.
  """
  run = experiment.build(config, data.find_or_assume(config)[0])
  mask, rows = masks.flatten(run.mask), []
  for whole, known in run.parameters.items():
    size = int(np.prod(known.shape))
    numbers = masks.trained_numbers(mask[whole], known.whole_shape, len(known.names))
    for order, name, trained in zip(known.order, known.names, numbers, strict=True):
      trains = {0: 'frozen', size: 'trains'}.get(trained, f'{trained:,} train')
      rows.append((order, name, 'x'.join(map(str, known.shape)) or '1', known.group, trains))
  return [row for _, *row in sorted(rows)]


def print_names(config: ml_collections.ConfigDict) -> None:
  """Prints what `names` returns."""
  metrics.print_columns(('name', 'shape', 'group', 'trains'), names(config))


def print_description(config: ml_collections.ConfigDict) -> None:
  """Prints what `describe` returns."""
  values = describe(config)
  shape = 'x'.join(map(str, values['image_shape']))
  assumed = '' if values['prepared'] else ' (not prepared: assumed)'
  each = f'; each of {config.replicates} replicates' if config.replicates > 1 else ''
  metrics.console.print(f'{config.network}, training {config.train}; {config.data.name}: images of'
                        f' {shape}, {values["classes"]} classes{assumed}{each}')
  metrics.print_table(values['table'])
  forward, step = values['flops_forward'], values['flops_step']
  metrics.console.print(
      f'FLOPs an image: {forward:,} forward, {step:,} in a training step'
      f' ({step / forward:.2f} times)'
      f'\nbytes: state {values["state"]:,} (the optimizer {values["optimizer"]:,} of it), frozen'
      f' {values["frozen"]:,}, a checkpoint {values["checkpoint"]:,}')
  if values['taught_by']:
    metrics.console.print(f'bytes of the teachers: {values["teachers"]:,}')
  for line in values['taught_by']:
    metrics.console.print(line)
  if values['kernels']:
    metrics.console.print(values['kernels'])


def _kernels(run: experiment.Experiment) -> str:
  """Says how many weights of convolutions are not zero, and what codes take in their place."""
  config, known, told = run.config, frozen_half.kernels(run.parameters), []
  if config.weight_sparsity:
    numbers = frozen_half.kept_numbers(known, config.weight_sparsity, config.weight_sparsity_layers)
    weights = sum(int(np.prod(one.whole_shape)) for one in known.values())
    kept = sum(number * len(known[name].names) for name, number in numbers.items())
    told.append(f'{kept:,} of {weights:,} weights are not zero')
  if config.weight_bits != '0':
    coded = {name: leaf for name, leaf in masks.flatten(run.frozen).items()
             if isinstance(leaf, masks.Codes)}
    weights = sum(int(np.prod(known[name].whole_shape)) for name in coded)
    told.append(f'{weights:,} frozen weights are codes ({config.weight_bits}) of'
                f' {_bytes([leaf.codes for leaf in coded.values()]):,} bytes, with scales of'
                f' {_bytes([leaf.scale for leaf in coded.values()]):,}; as float32 they would be of'
                f' {4 * weights:,}')
  spans = [keep for keep in masks.flatten(run.mask).values() if isinstance(keep, masks.Span)]
  if spans:
    channels = sum(len(one.names) * one.shape[-1] for one in known.values())
    directions = [leaf.directions for leaf in masks.flatten(run.frozen).values()
                  if isinstance(leaf, masks.Spanned)]
    number = spans[0].number
    told.append(f'{number * channels:,} coefficients train, {number} for each of {channels:,}'
                f' output channels, of directions of {_bytes(directions):,} bytes')
  return f'convolutions: {"; ".join(told)}' if told else ''


def cost(jaxpr: core.Jaxpr) -> tuple[int, int]:
  """Counts what a jaxpr's convolutions and matrix products do.

  A scan counts as often as it runs; XLA's own analysis of the compiled step counts a loop once, and
  leaves out products with the padding, which count here as in the figures papers give. All that
  is no convolution or product (norms, ReLUs, the optimizer) is left out.

  Returns:
    Multiplications and additions; bytes that they read and write, each array once.
  """
  flops, moved = 0, 0
  for eqn in jaxpr.eqns:
    shapes = [var.aval.shape for var in (*eqn.invars, *eqn.outvars)]
    work = None
    if eqn.params.get('name') in _DEPTHWISE and len(shapes) == 3:
      # Each tap of the kernel, times whichever of the images has a pixel for each product.
      taps, pixels = (shapes[1], shapes[2]) if eqn.params['name'] == _DEPTHWISE[0] else (
          shapes[2], shapes[1])
      work = np.prod(pixels) * np.prod(taps[:2])
    elif eqn.params.get('name') == conv.strided_input_gradient.__name__:
      size, _, _, features = shapes[1]
      work = np.prod(shapes[2]) * size ** 2 * features // 4
    elif eqn.primitive.name == 'conv_general_dilated':
      features = eqn.params['dimension_numbers'].rhs_spec[0]
      # A strided convolution's transpose is one over an image filled up with zeros: not counted.
      zeros = np.prod(eqn.params['lhs_dilation'])
      work = np.prod(shapes[2]) * np.prod(shapes[1]) // shapes[1][features] // zeros
    elif eqn.primitive.name == 'dot_general':
      (contracted, _), _ = eqn.params['dimension_numbers']
      work = np.prod(shapes[2]) * np.prod([shapes[0][i] for i in contracted])
    if work is not None:
      flops += 2 * int(work)
      moved += sum(_bytes(var.aval) for var in (*eqn.invars, *eqn.outvars))
      continue
    repeats = eqn.params['length'] if eqn.primitive.name == 'scan' else 1
    for inner in core.jaxprs_in_params(eqn.params):
      inner_flops, inner_moved = cost(inner)
      flops, moved = flops + repeats * inner_flops, moved + repeats * inner_moved
  return flops, moved


def _bytes(tree: Any) -> int:
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
