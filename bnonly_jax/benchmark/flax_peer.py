"""Our ResNets as one would write them in Flax, to compare with: nn.Conv, nn.BatchNorm, no stacks.

The batch is streamed and comes as the network is to see it; the step normalises it. The gradients
that are not wanted are left to optax.multi_transform with set_to_zero, and to the compiler.
"""

from collections.abc import Callable
import functools
import re
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from bnonly_jax import experiment
from bnonly_jax import masks
from bnonly_jax.benchmark import common
from bnonly_jax.config import flat
from bnonly_jax.config import require
from bnonly_jax.config import UserError
from bnonly_jax.data import device
from bnonly_jax.experiment import Experiment
from bnonly_jax.models.cifar_resnet import CifarResNet
from bnonly_jax.models.imagenet_resnet import ImageNetResNet
from bnonly_jax.models.imagenet_resnet import STAGES
from bnonly_jax.models.layers import unstack


class Block(nn.Module):
  """A basic block, or a bottleneck."""
  features: int
  stride: int
  bottleneck: bool
  conv: Any
  norm: Any

  @nn.compact
  def __call__(self, x):
    sizes = (1, 3, 1) if self.bottleneck else (3, 3)
    y = x
    for i, size in enumerate(sizes, 1):
      last = i == len(sizes)
      features = self.features * (4 if last and self.bottleneck else 1)
      stride = self.stride if i == 1 + self.bottleneck else 1
      y = self.norm(name=f'norm{i}')(self.conv(features, size, stride, name=f'conv{i}')(y))
      y = y if last else nn.relu(y)
    if x.shape != y.shape:
      x = self.conv(y.shape[-1], 1, self.stride, name='shortcut_conv')(x)
      x = self.norm(name='shortcut_norm')(x)
    return nn.relu(x + y)


class ResNet(nn.Module):
  """A CIFAR or an ImageNet ResNet.

  Attributes:
    stages: blocks in each.
    width: channels of the first stage.
    classes: number of logits.
    bottleneck: which block.
    imagenet: whether the stem is 7x7 with a max pool.
    dtype: of images, activations and products.
    statistics: nn.BatchNorm's axis_name and axis_index_groups.
  """
  stages: tuple[int, ...]
  width: int
  classes: int
  bottleneck: bool
  imagenet: bool
  dtype: str
  statistics: tuple[Any, Any] = (None, None)

  @nn.compact
  def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
    """Maps normalised images [N, H, W, C] to logits [N, classes]."""
    axis_name, groups = self.statistics
    norm = functools.partial(nn.BatchNorm, use_running_average=not train, momentum=0.9,
                             epsilon=1e-5, dtype=self.dtype, axis_name=axis_name,
                             axis_index_groups=groups)

    def conv(features, size, stride, name):
      return nn.Conv(features, (size, size), stride, padding=size // 2, use_bias=False,
                     dtype=self.dtype, name=name)

    x = conv(self.width, *((7, 2) if self.imagenet else (3, 1)), name='stem_conv')(images)
    x = nn.relu(norm(name='stem_norm')(x))
    if self.imagenet:
      x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
    for i, blocks in enumerate(self.stages):
      for j in range(blocks):
        x = Block(self.width * 2 ** i, 2 if i and not j else 1, self.bottleneck, conv, norm,
                  name=f'stage{i + 1}_block{j + 1}')(x)
    return nn.Dense(self.classes, name='output')(jnp.mean(x, (1, 2), dtype=jnp.float32))


def network(run: Experiment) -> ResNet:
  """Returns the network of an experiment.

  Raises:
    UserError: it is not written here, or the experiment has what the peer has not.
  """
  config, ours = run.config, run.network
  require(config, 'network', 'a CIFAR or ImageNet ResNet with --against=flax',
          isinstance(ours, CifarResNet | ImageNetResNet))
  for field, allowed in (('norm', 'batch'), ('attention', 'none'), ('remat', 'none'),
                         ('replicates', 1), ('optimizer.name', 'sgd')):
    require(config, field, f'{allowed} with --against=flax', flat(config)[field] == allowed)
  if not all(isinstance(keep, bool | np.bool_) for keep in masks.flatten(run.mask).values()):
    raise UserError(f'config.train is {config.train!r}, which chooses single weights; allowed are'
                    ' selections of whole tensors with --against=flax. Set --config.train=...')
  statistics = ours.style.statistics
  groups = statistics.device_groups and [list(group) for group in statistics.device_groups]
  imagenet = isinstance(ours, ImageNetResNet)
  return ResNet(tuple(STAGES[ours.depth]) if imagenet else ours.stages, ours.width,
                ours.classes, imagenet and ours.depth >= 50, imagenet, config.compute_dtype,
                (statistics.axis_name, groups))


def convert(tree: dict[str, Any]) -> dict[str, Any]:
  """Returns a tree with our network's names, on the host, as one with the names here."""
  named = unstack(masks.flatten(tree))
  return flax.traverse_util.unflatten_dict(
      {re.sub(r'^(stage\d+)/(block\d+)/', r'\1_\2/', name): value
       for name, value in named.items()}, sep='/')


def _mask(run):
  """For each tensor here, whether it trains."""
  stacked = {name: np.full(shape.shape[:1] if '_stack/' in name else (), keep)
             for (name, keep), shape in zip(masks.flatten(run.mask).items(),
                                            masks.flatten(run.shapes['params']).values(),
                                            strict=True)}
  return jax.tree.map(bool, convert(flax.traverse_util.unflatten_dict(stacked, sep='/')))


def train_step(run: Experiment) -> tuple[Callable[..., Any], optax.GradientTransformation]:
  """Returns a step (params, batch_stats, opt_state, images, labels) and its optimizer.

  images are uint8 [devices, n, H, W, C], labels int32 [devices, n]; the step returns the first
  three anew, and the loss.

  Raises:
    UserError: as `network`.
  """
  config, net = run.config, network(run)
  sgd = optax.chain(optax.add_decayed_weights(config.optimizer.weight_decay),
                    optax.sgd(run.learning_rate, momentum=config.optimizer.momentum))
  tx = optax.multi_transform({True: sgd, False: optax.set_to_zero()}, _mask(run))
  mean, std = (jnp.asarray(config.data[name], jnp.float32)[None, None, None]
               for name in ('mean', 'std'))

  def step(params, batch_stats, opt_state, images, labels):
    with jax.named_scope('images'):
      images = ((images.astype(jnp.float32) / 255 - mean) / std).astype(config.compute_dtype)

    def loss_of(params):
      logits, updated = net.apply({'params': params, 'batch_stats': batch_stats}, images,
                                  train=True, mutable=['batch_stats'])
      loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
      return loss, updated['batch_stats']

    (loss, batch_stats), gradients = jax.value_and_grad(loss_of, has_aux=True)(params)
    gradients, batch_stats, loss = jax.lax.pmean((gradients, batch_stats, loss), device.AXIS)
    with jax.named_scope('optimizer'):
      updates, opt_state = tx.update(gradients, opt_state, params)
      params = optax.apply_updates(params, updates)
    return params, batch_stats, opt_state, loss

  return jax.pmap(step, axis_name=device.AXIS, in_axes=(None, None, None, 0, 0), out_axes=None,
                  donate_argnums=(0, 1, 2), devices=run.target.devices), tx


def lower(run: Experiment) -> jax.stages.Lowered:
  """Lowers the training step for the devices of an experiment.

  Raises:
    UserError: as `network`.
  """
  step, tx = train_step(run)
  shape, devices = jax.ShapeDtypeStruct, len(run.target.devices)
  share = (devices, run.config.batch_size // devices)
  variables = jax.eval_shape(network(run).init, jax.random.key(0),
                             shape((1, *run.info.image_shape), np.float32))
  return step.lower(variables['params'], variables['batch_stats'],
                    jax.eval_shape(tx.init, variables['params']),
                    shape((*share, *run.info.image_shape), np.uint8), shape(share, np.int32))


def training_step(config: ml_collections.ConfigDict
                  ) -> tuple[Callable[[], jax.stages.Compiled], Callable[[], None]]:
  """Builds the training step for all devices, on random images, as `common.training_step` does.

  Returns:
    A function that compiles it, and one that makes a step.

  Raises:
    UserError: as `network`.
  """
  run = common.built(config)
  step, tx = train_step(run)
  variables = jax.tree.map(np.asarray, experiment.draw_variables(run, config.seed))
  params, batch_stats = (convert(variables[name]) for name in ('params', 'batch_stats'))
  local, random = run.target.local, np.random.default_rng(0)
  state = device.place((params, batch_stats, tx.init(params)), local)
  share = config.batch_size // len(run.target.devices) * len(local)
  batch = next(device.send_ahead([(
      random.integers(0, 256, (share, *run.info.image_shape), np.uint8),
      random.integers(0, 10, share, np.int32))], local))

  def call():
    nonlocal state
    *state, _ = jax.block_until_ready(step(*state, *batch))

  return lambda: lower(run).compile(), call
