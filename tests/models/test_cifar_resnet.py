import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bnonly_jax import masks
from bnonly_jax import models
from bnonly_jax.config import UserError

# BatchNorm, output, shortcut, total; computed from the architecture and equal to open_lth's tests.
COUNTS = {
    'cifar_resnet14': (1120, 650, 2560, 175258),
    'cifar_resnet32': (2464, 650, 2560, 466906),
    'cifar_resnet56': (4256, 650, 2560, 855770),
    'cifar_resnet110': (8288, 650, 2560, 1730714),
    'cifar_resnet218': (16352, 650, 2560, 3480602),
    'cifar_resnet434': (32480, 650, 2560, 6980378),
    'cifar_resnet866': (64736, 650, 2560, 13979930),
    'cifar_resnet14x2': (2240, 1290, 10240, 696618),
    'cifar_resnet14x4': (4480, 2570, 40960, 2777674),
    'cifar_resnet14x8': (8960, 5130, 163840, 11093130),
    'cifar_resnet14x16': (17920, 10250, 655360, 44337418),
    'cifar_resnet14x32': (35840, 20490, 2621440, 177279498),
}


@pytest.mark.parametrize('name', COUNTS)
def test_the_parameter_counts_are_the_papers(name):
  shapes = models.variable_shapes(models.create(name, 10), (32, 32, 3))
  size = {row.group: row.parameters for row in masks.table(shapes['params'])}
  batchnorm = size['gamma'] + size['beta']
  assert (batchnorm, size['output'], size['shortcut'], sum(size.values())) == COUNTS[name]
  assert size['gamma'] == size['beta']


@pytest.mark.parametrize('name', [
    'resnet14', 'cifar_resnet', 'cifar_resnet15', 'cifar_resnet2', 'cifar_resnet14x0', 'vgg', '',
    'cifar_resnet14x2x2', 'cifar_resnet-14'])
def test_an_unknown_network_is_an_error_that_says_the_rule(name):
  with pytest.raises(UserError, match=f'config.network is {name!r}.*N = 6 D'):
    models.create(name, 10)


def plain_forward(variables, images):
  """The network written out: no scan, no fused backward pass, blocks taken from their stacks."""
  params = variables['params']

  def conv(p, x, stride=1):
    pad = (p['kernel'].shape[0] - 1) // 2
    return jax.lax.conv_general_dilated(x, p['kernel'], (stride, stride), [(pad, pad)] * 2,
                                        dimension_numbers=('NHWC', 'HWIO', 'NHWC'))

  def norm(p, x):
    module = nn.BatchNorm(use_running_average=False, epsilon=1e-5, dtype=x.dtype,
                          use_fast_variance=False)
    stats = {'mean': jnp.zeros(x.shape[-1]), 'var': jnp.ones(x.shape[-1])}
    return module.apply({'params': p, 'batch_stats': stats}, x, mutable=['batch_stats'])[0]

  def block(p, x, stride):
    y = nn.relu(norm(p['norm1'], conv(p['conv1'], x, stride)))
    y = norm(p['norm2'], conv(p['conv2'], y))
    if 'shortcut_conv' in p:
      x = norm(p['shortcut_norm'], conv(p['shortcut_conv'], x, stride))
    return nn.relu(y + x)

  x = nn.relu(norm(params['stem_norm'], conv(params['stem_conv'], images)))
  for stage in (1, 2, 3):
    if stage > 1:
      x = block(params[f'stage{stage}_first'], x, 2)
    stack = params.get(f'stage{stage}_stack', {})
    for i in range(len(stack['conv1']['kernel']) if stack else 0):
      x = block(jax.tree.map(lambda a, i=i: a[i], stack), x, 1)
  return x.mean((1, 2)) @ params['output']['kernel'] + params['output']['bias']


def test_logits_and_every_gradient_equal_the_network_written_out():
  network = models.create('cifar_resnet14', 10)
  variables = jax.tree.map(np.float64, models.initialise(network, (8, 8, 3), 0))
  with jax.enable_x64(True):
    images = np.random.default_rng(0).standard_normal((6, 8, 8, 3))

    def ours(params):
      logits, _ = network.apply({**variables, 'params': params}, images, train=True,
                                mutable=['batch_stats'])
      return jnp.sum(jnp.sin(logits)), logits

    def plain(params):
      logits = plain_forward({'params': params}, images)
      return jnp.sum(jnp.sin(logits)), logits

    (_, logits), gradients = jax.jit(jax.value_and_grad(ours, has_aux=True))(variables['params'])
    (_, expected), plain_gradients = jax.jit(jax.value_and_grad(plain, has_aux=True))(
        variables['params'])
  np.testing.assert_allclose(logits, expected, rtol=1e-9)
  for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(gradients),
                          jax.tree.leaves(plain_gradients), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9, err_msg=jax.tree_util.keystr(path))


def test_evaluation_changes_nothing():
  network = models.create('cifar_resnet8', 10)
  variables = models.initialise(network, (8, 8, 3), 0)
  logits = network.apply(variables, jnp.ones((2, 8, 8, 3)))
  assert logits.shape == (2, 10) and logits.dtype == jnp.float32
