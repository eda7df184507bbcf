import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bnonly_jax import models


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
  return x.mean((1, 2)) @ params['output']['kernel'] + params['output']['bias'][None]


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
