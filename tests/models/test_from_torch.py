"""Our networks against PyTorch's with the same weights. What needs torch skips without it."""

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bnonly_jax import masks
from bnonly_jax import models
from bnonly_jax import optimizer
from bnonly_jax.config import default_config
from bnonly_jax.models import from_torch

NETWORKS = {
    'cifar_resnet14': ('CifarResNet', (14,), 16),
    'cifar_resnet8x2': ('CifarResNet', (8, 32), 16),
    'imagenet_resnet18': ('ImageNetResNet', ((2, 2, 2, 2), 'ImageNetBasic'), 64),
    'imagenet_resnet50': ('ImageNetResNet', ((3, 4, 6, 3), 'Bottleneck'), 64),
    'cifar_vgg11': ('CifarVGG', ((1, 1, 2, 2, 2),), 32),
    'cifar_vgg16': ('CifarVGG', ((2, 2, 3, 3, 3),), 32),
}


def build(name):
  """Returns the pair of networks in double precision, our variables, images and labels."""
  torch = pytest.importorskip('torch')
  import torch_nets
  class_name, arguments, size = NETWORKS[name]
  torch.manual_seed(0)
  arguments = [getattr(torch_nets, a) if isinstance(a, str) else a for a in arguments]
  theirs = getattr(torch_nets, class_name)(*arguments)
  for module in theirs.modules():
    if isinstance(module, torch.nn.BatchNorm2d):
      torch.nn.init.uniform_(module.weight)
      torch.nn.init.normal_(module.bias)
      torch.nn.init.normal_(module.running_mean)
      torch.nn.init.uniform_(module.running_var, 0.5, 2)
  theirs, classes = theirs.double(), theirs.fc.out_features
  ours = models.create(name, classes)
  variables = from_torch.convert({k: v.numpy() for k, v in theirs.state_dict().items()}, ours,
                                 models.variable_shapes(ours, (size, size, 3)))
  variables = jax.tree.map(np.float64, variables)
  rng = np.random.default_rng(0)
  return (theirs, ours, variables, rng.standard_normal((4, size, size, 3)),
          rng.integers(0, classes, 4))


def close(a, b, what):
  """To 1e-6 of the largest value: the weights come as float32, all else is double precision."""
  a, b = np.asarray(a), np.asarray(b)
  np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6 * np.abs(b).max(), err_msg=what)


@pytest.mark.parametrize('name', NETWORKS)
def test_logits_statistics_gradients_and_steps_equal_pytorchs(name):
  theirs, ours, variables, images, labels = build(name)
  import torch
  from torch.nn import functional as F
  size = images.shape[1]
  shapes = models.variable_shapes(ours, (size, size, 3))
  inputs = torch.tensor(images.transpose(0, 3, 1, 2))
  targets = torch.tensor(labels)

  def converted(named):
    """PyTorch's tensors, the rest zero, as a flat tree of ours."""
    full = {k: np.zeros(v.shape) for k, v in theirs.state_dict().items()}
    full.update({k: v.detach().numpy() for k, v in named.items()})
    return flax.traverse_util.flatten_dict(from_torch.convert(full, ours, shapes), sep='/')

  with jax.enable_x64(True):
    theirs.eval()
    close(jax.jit(ours.apply)(variables, images), theirs(inputs).detach(), 'logits, eval')

    mask = masks.make_mask('batchnorm', variables['params'])
    trainable, frozen = masks.partition(variables['params'], mask)
    tx = optimizer.create(default_config().optimizer, lambda _: 0.1, mask)
    opt_state = tx.init(trainable)

    @jax.jit
    def step(trainable, batch_stats, opt_state):
      def loss_of(trainable):
        logits, updated = ours.apply(
            {'params': masks.merge(trainable, frozen), 'batch_stats': batch_stats}, images,
            train=True, mutable=['batch_stats'])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return jnp.mean(losses), (logits, updated['batch_stats'])
      gradients, (logits, batch_stats) = jax.grad(loss_of, has_aux=True)(trainable)
      updates, opt_state = tx.update(gradients, opt_state, trainable)
      return optax.apply_updates(trainable, updates), batch_stats, opt_state, logits, gradients

    theirs.train()
    theirs.requires_grad_(False)
    norms = {}
    for module_name, module in theirs.named_modules():
      if isinstance(module, torch.nn.BatchNorm2d):
        module.requires_grad_(True)
        norms.update({f'{module_name}.{k}': p for k, p in module.named_parameters()})
    sgd = torch.optim.SGD(norms.values(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    batch_stats = variables['batch_stats']
    for i in range(3):
      trainable, batch_stats, opt_state, logits, gradients = step(trainable, batch_stats, opt_state)
      sgd.zero_grad()
      their_logits = theirs(inputs)
      F.cross_entropy(their_logits, targets).backward()
      their_gradients = converted({k: p.grad for k, p in norms.items()})
      sgd.step()
      close(logits, their_logits.detach(), f'logits, step {i}')
      for path, gradient in masks.flatten(gradients).items():
        if gradient is not None:
          close(gradient, their_gradients[f'params/{path}'], f'gradient of {path}, step {i}')
    after = converted(theirs.state_dict())
    for path, value in masks.flatten(trainable).items():
      if value is not None:
        close(value, after[f'params/{path}'], path)
    for path, value in masks.flatten(batch_stats).items():
      close(value, after[f'batch_stats/{path}'], path)
