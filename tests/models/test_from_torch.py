"""Our networks against PyTorch's with the same weights. What needs torch skips without it."""

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
from orbax.checkpoint import v1 as ocp
import pytest
import safetensors.numpy

from bnonly_jax import masks
from bnonly_jax import models
from bnonly_jax import optimizer
from bnonly_jax import train
from bnonly_jax.config import default_config
from bnonly_jax.config import UserError
from bnonly_jax.models import from_torch

# With the side of the images.
NETWORKS = {'cifar_resnet14': 16, 'cifar_resnet8x2': 16, 'imagenet_resnet18': 64,
            'imagenet_resnet50': 64, 'cifar_vgg11': 32, 'cifar_vgg16': 32}


def build(name):
  """Returns the pair of networks in double precision, our variables, images and labels."""
  torch = pytest.importorskip('torch')
  from bnonly_jax.benchmark import against_torch
  from bnonly_jax.benchmark import torch_nets
  size, classes = NETWORKS[name], 1000 if name.startswith('imagenet') else 10
  ours = models.create(name, classes)
  torch.manual_seed(0)
  class_name, arguments = against_torch.sizes(ours)
  theirs = getattr(torch_nets, class_name)(*arguments, 3, classes)
  for module in theirs.modules():
    if isinstance(module, torch.nn.BatchNorm2d):
      torch.nn.init.uniform_(module.weight)
      torch.nn.init.normal_(module.bias)
      torch.nn.init.normal_(module.running_mean)
      torch.nn.init.uniform_(module.running_var, 0.5, 2)
  theirs = theirs.double()
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
  shapes, parameters = models.look(ours, (size, size, 3))
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

    mask = masks.make_mask('batchnorm', parameters)
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


def names_and_arrays(network, shapes):
  """A state dict of random arrays with PyTorch's names and shapes, from ours: no torch needed."""
  rng, state_dict = np.random.default_rng(0), {}
  for name, leaf in flax.traverse_util.flatten_dict(shapes, sep='/').items():
    shape = leaf.shape[1:] if '_stack/' in name else leaf.shape
    order = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[len(shape)]
    for source in from_torch.torch_names(name, leaf.shape, network):
      state_dict[source] = rng.random([shape[i] for i in order], np.float32)
  return state_dict


@pytest.fixture(scope='module')
def small():
  network = models.create('cifar_resnet14', 10)
  shapes = models.variable_shapes(network, (8, 8, 1))
  return network, shapes, names_and_arrays(network, shapes)


def test_a_state_dict_is_taken_over_name_by_name(small):
  network, shapes, state_dict = small
  variables = from_torch.convert(state_dict, network, shapes)
  params, stats = variables['params'], variables['batch_stats']
  for ours, theirs in (
      (params['stem_conv']['kernel'], state_dict['conv.weight'].transpose(2, 3, 1, 0)),
      (params['stage1_stack']['conv2']['kernel'][1],
       state_dict['blocks.1.conv2.weight'].transpose(2, 3, 1, 0)),
      (params['stage2_first']['shortcut_norm']['scale'], state_dict['blocks.2.shortcut.1.weight']),
      (params['stage3_stack']['norm1']['bias'][0], state_dict['blocks.5.bn1.bias']),
      (stats['stage3_first']['norm2']['var'], state_dict['blocks.4.bn2.running_var']),
      (params['output']['kernel'], state_dict['fc.weight'].T)):
    np.testing.assert_array_equal(ours, theirs)
  prefixed = {f'model.{name}': value for name, value in state_dict.items()}
  prefixed['model.bn.num_batches_tracked'] = np.int64(3)
  for a, b in zip(jax.tree.leaves(from_torch.convert(prefixed, network, shapes)),
                  jax.tree.leaves(variables), strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize('change, message', [
    (lambda d: d.pop('blocks.1.bn1.weight'), '1 missing: blocks.1.bn1.weight'),
    (lambda d: d.update({'aux.weight': np.zeros(3)}), '1 surplus: aux.weight'),
    (lambda d: d.update({'fc.weight': np.zeros((5, 64))}),
     r'1 of another shape.*fc.weight is \(64, 5\) and must be \(64, 10\)'),
    (lambda d: d.update({'blocks.1.conv1.weight': np.zeros((16, 16, 1, 1))}),
     r'blocks.1.conv1.weight is \(1, 1, 16, 16\) and must be \(3, 3, 16, 16\)')])
def test_what_does_not_fit_is_named(small, change, message):
  network, shapes, state_dict = small
  state_dict = dict(state_dict)
  change(state_dict)
  with pytest.raises(UserError, match=message):
    from_torch.convert(state_dict, network, shapes)


@pytest.mark.parametrize('suffix', ['npz', 'safetensors', 'pt'])
def test_files_of_every_format_are_read(small, tmp_path, suffix):
  _, _, state_dict = small
  path = tmp_path / f'weights.{suffix}'
  if suffix == 'npz':
    np.savez(path, **state_dict)
  elif suffix == 'safetensors':
    safetensors.numpy.save_file(state_dict, path)
  else:
    torch = pytest.importorskip('torch')
    torch.save({name: torch.tensor(value) for name, value in state_dict.items()}, path)
  read = from_torch.read(path)
  assert read.keys() == state_dict.keys()
  for name, value in state_dict.items():
    np.testing.assert_array_equal(read[name], value)


def test_a_file_that_cannot_be_read_is_an_error(tmp_path, monkeypatch):
  for name, message in (('no.npz', 'there is no such file'), ('weights.bin', 'allowed is a .npz'),
                        ('bad.npz', 'cannot be read'), ('bad.safetensors', 'cannot be read')):
    if not name.startswith('no'):
      (tmp_path / name).write_bytes(b'nonsense')
    with pytest.raises(UserError, match=message):
      from_torch.read(tmp_path / name)
  monkeypatch.setattr(from_torch.importlib.util, 'find_spec', lambda name: None)
  (tmp_path / 'weights.pt').write_bytes(b'')
  with pytest.raises(UserError, match='which only torch reads'):
    from_torch.read(tmp_path / 'weights.pt')


@pytest.mark.slow
def test_a_run_starts_from_a_file_and_trains_its_batchnorm_alone(small, tmp_path, data_dir):
  network, shapes, state_dict = small
  np.savez(tmp_path / 'weights.npz', **state_dict)
  config = default_config()
  config.update(network='cifar_resnet14', init_from=str(tmp_path / 'weights.npz'), epochs=1,
                batch_size=1436)
  config.data.update(name='digits', dir=str(data_dir), pad=0, flip=False, mean=(0.3,), std=(0.4,))
  train.train_and_evaluate(config, tmp_path / 'run')
  kept = ocp.load(tmp_path / 'run' / 'frozen')
  np.testing.assert_array_equal(kept['stem_conv']['kernel'],
                                state_dict['conv.weight'].transpose(2, 3, 1, 0))
  newest = max((tmp_path / 'run/checkpoints').iterdir(), key=lambda path: int(path.name))
  state = ocp.load(newest)
  moved = np.abs(state['trainable']['stem_norm']['scale'] - state_dict['bn.weight'])
  assert 0 < moved.max() < 0.5
