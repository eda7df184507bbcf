"""What the layers of a trained network put out, for images of the user's or of the run's data."""

from collections.abc import Callable
from collections.abc import Collection
from collections.abc import Iterator
from collections.abc import Sequence
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bnonly_jax import experiment
from bnonly_jax import masks
from bnonly_jax.analysis.loading import Loaded
from bnonly_jax.config import UserError
from bnonly_jax.data import device
from bnonly_jax.data import prepare
from bnonly_jax.models import layers as layers_lib

Forward = Callable[[np.ndarray], dict[str, np.ndarray]]  # from images to features by layer
OUTPUT = 'output'  # the name of what goes into the output layer


def features(loaded: Loaded, images: np.ndarray, layers: Collection[str] | None = None,
             pool: bool = False) -> dict[str, np.ndarray]:
  """Computes what layers put out, in evaluation (BatchNorm's running statistics).

    features(run, images, ['stage3/block2/norm1'])['stage3/block2/norm1'].mean((1, 2))

  Args:
    loaded: the run.
    images: uint8 [N, H, W, C], of the size that the network sees; they are normalised as in
      training. `image_batches` gives the run's own.
    layers: names as plots show them: a norm's is what its ReLU puts out, if one follows it (at a
      block's end after the addition), and 'output' is what goes into the output layer. Convolutions
      may be named, too. None: all of `layer_names`.
    pool: whether to take the mean over positions.

  Returns:
    float32 by layer, in the network's order: [N, H, W, C], pooled and of 'output' [N, C].

  Raises:
    UserError: there is no such layer, or the images are others.
  """
  info = loaded.experiment.info
  if images.dtype != np.uint8 or images.shape[1:] != info.image_shape:
    raise UserError(f'images are {images.dtype} {list(images.shape)}; allowed is uint8'
                    f' [N, {", ".join(map(str, info.image_shape))}], as analysis.image_batches(run)'
                    ' gives them.')
  return _pass(loaded, choose(loaded, layers), pool)(images)


def layer_names(loaded: Loaded) -> list[str]:
  """Returns the layers that end in ReLUs, in the network's order, and 'output'."""
  fired, _ = _seen(loaded)
  return [*fired, OUTPUT]


def choose(loaded: Loaded, layers: Collection[str] | None) -> tuple[str, ...]:
  """Returns layers in the network's order; raises UserError where there is none of a name."""
  fired, every = _seen(loaded)
  if layers is None:
    return (*fired, OUTPUT)
  unknown = [layer for layer in layers if layer not in every]
  if unknown:
    raise UserError(f'{loaded.workdir}: its network has no layer {", ".join(unknown)}. It has'
                    f' {", ".join(every)}.')
  return tuple(layer for layer in every if layer in layers)


def _seen(loaded):
  """Layers that end in ReLUs, and all that can be asked for, in the network's order."""
  run, names = loaded.experiment, []

  def trace(variables, image):  # what it returned would be sorted by name
    names.extend(map(list, _told(run.network, variables, image, _output_path(run))))

  jax.eval_shape(trace, loaded.variables,
                 jax.ShapeDtypeStruct((1, *run.info.image_shape), np.float32))
  return names


def _output_path(run):
  """The path of the output layer's module; None if there is none."""
  names = [name for name, known in run.parameters.items() if known.group == 'output']
  if any(name.startswith(f'{OUTPUT}/') for name in names):
    return OUTPUT
  return names[0].rpartition('/')[0] if names else None


def _told(network, variables, images, output):
  """Which ReLUs fire, and what layers put out, both by unstacked name."""
  into_output = []

  def watch(call, arguments, keywords, context):
    if context.method_name == '__call__' and '/'.join(context.module.path) == output:
      into_output.extend(arguments[:1])
    return call(*arguments, **keywords)

  with nn.intercept_methods(watch):
    _, told = network.apply(variables, images, train=False, capture_intermediates=True,
                            mutable=['intermediates', 'features'])
  seen = {name: value for name, (value, *_) in masks.flatten(told['intermediates']).items()
          if not isinstance(value, tuple)}  # as blocks put it out
  fired, outputs = (layers_lib.unstack({
      name.removesuffix(end): value for name, value in seen.items() if name.endswith(end)})
                    for end in ('/fired', '/__call__'))
  outputs.pop(output, None)  # the logits
  inputs = jax.tree.leaves(told.get('features', into_output))  # ours tells what it has pooled
  if len(inputs) != 1:
    raise UserError(f'the network has {len(inputs)} inputs of an output layer; needed is one: its'
                    ' last dense layer, called once. docs/networks.md says which one that is.')
  (outputs[OUTPUT],) = inputs
  return fired, outputs


@functools.lru_cache(maxsize=16)
def _program(network: nn.Module, preparation: device.Preparation, precision: str,
             layers: tuple[str, ...], pool: bool, output: str):
  def call(variables, images):
    with jax.default_matmul_precision(precision):
      _, outputs = _told(network, variables, device.normalise(images, preparation), output)
    wide = {layer: outputs[layer].astype(jnp.float32) for layer in layers}
    return {layer: jnp.mean(x, range(1, x.ndim - 1)) if pool else x for layer, x in wide.items()}

  return jax.jit(call)


def _pass(loaded: Loaded, layers: Sequence[str], pool: bool) -> Forward:
  """Returns a function from images to features that computes batches of one size."""
  run = loaded.experiment
  program = _program(run.network, run.preparation, run.config.matmul_precision, tuple(layers), pool,
                     _output_path(run))
  variables, size = jax.device_put(loaded.variables), run.eval_batch_size

  def call(images):
    parts = []
    for start in range(0, len(images), size):
      batch = images[start:start + size]
      padded = np.concatenate([batch, np.zeros((size - len(batch), *batch.shape[1:]), np.uint8)])
      found = jax.device_get(program(variables, padded))
      parts.append({layer: found[layer][:len(batch)] for layer in layers})
    return {layer: np.concatenate([part[layer] for part in parts]) for layer in layers}

  return call


def pooled(loaded: Loaded, layers: Sequence[str]) -> Forward:
  """Returns a function from images uint8 [n, H, W, C] to layers' means over positions [n, C]."""
  return _pass(loaded, layers, True)


def image_batches(loaded: Loaded, train: bool = False) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Yields a run's test images, or those it trains on, as its evaluation sees them, and labels.

    images, labels = next(image_batches(run))

  Args:
    loaded: the run.
    train: whether to yield the training images: those in use, with the labels in use, not
      augmented.

  Yields:
    uint8 [n, H, W, C] and int32 [n].

  Raises:
    UserError: a bad image, if config.data.bad_images is stop; or training images of a part of a
      streamed data set.
  """
  run = loaded.experiment
  if run.config.data.name == 'digits':
    prepare.prepare('digits', run.config.data.dir)
  if not train:
    run = run._replace(info=run.info._replace(train_images=1))  # a source has at least one
  source = experiment.open_source(run)
  if train and source.train_set is not None:
    whole = source.train_set
    for start in range(0, len(whole.labels), run.eval_batch_size):
      part = np.arange(start, min(start + run.eval_batch_size, len(whole.labels)))
      yield device.look_up(whole, part, run.info.image_shape)
    return
  if train:
    for field, whole in (('subsample', 1), ('random_labels', 0)):
      if run.config.data[field] != whole:
        raise UserError(f'--probe, --sharpness: config.data.{field} is {run.config.data[field]} in'
                        f' a run that is streamed; allowed is {whole}. Choose a run on all images.')
    source = experiment.open_source(run._replace(info=run.info._replace(
        test_split='train', test_images=run.info.train_images)))
  for batch, weight in source.eval_batches(run.eval_batch_size):
    images, labels = device.look_up(source.test_set, batch, run.info.image_shape)
    yield images[weight != 0], labels[weight != 0]
