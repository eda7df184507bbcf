import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bnonly_jax.models import conv


@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('size', [1, 3, 5, 7])
@pytest.mark.parametrize('shape', [(6, 5), (7, 8), (1, 3)])
def test_the_form_for_cpu_has_the_gradients_of_the_plain_one(shape, size, stride):
  rng = np.random.default_rng(0)
  with jax.enable_x64(True):
    x = rng.standard_normal((2, *shape, 3))
    kernel = rng.standard_normal((size, size, 3, 4))
    weight = rng.standard_normal(conv.conv(x, kernel, stride).shape)
    results = [jax.value_and_grad(
        lambda x, k, form=form: jnp.sum(weight * jnp.sin(conv.conv(x, k, stride, *form))),
        (0, 1))(x, kernel) for form in (('tpu',), ('cpu', False), ('cpu', stride == 1))]
    plain, *ours = map(jax.tree.leaves, results)
    for form in ours:
      for a, b in zip(form, plain, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize('size', [1, 3, 5])
@pytest.mark.parametrize('shape', [(1, 1), (2, 2), (1, 3), (4, 1)])
def test_the_product_of_patches_is_the_convolution(shape, size):
  rng = np.random.default_rng(0)
  x = rng.standard_normal((2, *shape, 3)).astype(np.float32)
  kernel = rng.standard_normal((size, size, 3, 4)).astype(np.float32)
  padding = [((size - 1) // 2,) * 2] * 2
  expected = jax.lax.conv_general_dilated(x, kernel, (1, 1), padding,
                                          dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
  assert ' dot_general' in str(jax.make_jaxpr(conv.conv)(x, kernel))
  np.testing.assert_allclose(conv.conv(x, kernel), expected, rtol=1e-5, atol=1e-5)


def test_stride_two_pads_as_pytorch_does():
  # A 3x3 kernel that picks the top left pixel of its window: with one pixel of padding before, it
  # picks the pixels at odd places, one before each even centre.
  x = jnp.arange(36.0).reshape(1, 6, 6, 1)
  kernel = jnp.zeros((3, 3, 1, 1)).at[0, 0].set(1)
  expected = np.array([[0, 0, 0], [0, 7, 9], [0, 19, 21]])
  np.testing.assert_array_equal(conv.conv(x, kernel, 2)[0, :, :, 0], expected)


@pytest.mark.parametrize('trained', [False, True])
def test_only_a_trained_kernel_costs_a_saved_input_and_a_gradient(trained):
  x, kernels = jnp.ones((2, 4, 4, 3)), jnp.ones((5, 3, 3, 3, 3))

  def loss(shift, kernels):
    # x is shifted so that the convolution's input has a gradient, as inside a network.
    body = lambda x, kernel: (jnp.sin(conv.conv(x, kernel, in_loop=True)), None)
    return jnp.sum(jax.lax.scan(body, x + shift, kernels)[0])

  jaxpr = jax.make_jaxpr(jax.grad(loss, (0, 1) if trained else 0))(0.0, kernels)
  scans = [eqn for eqn in jaxpr.eqns if eqn.primitive.name == 'scan']
  saved = [v.aval.shape for v in scans[0].outvars if v.aval.shape == (5, 2, 4, 4, 3)]
  # Saved besides the input: what the sine's gradient needs.
  assert len(saved) == 1 + trained
  assert ('dot_general' in str(scans[-1].params['jaxpr'])) == trained


@pytest.mark.parametrize('own', [False, True])
@pytest.mark.parametrize('padding', ['SAME', 'VALID'])
@pytest.mark.parametrize('size, stride', [
    ((3, 3), 1), ((1, 5), 1), ((5, 1), 2), ((2, 2), 2), ((4, 4), 4), ((2, 3), 1), ((3, 3), 2),
    ((4, 2), 3)])
def test_kernels_of_any_shape_have_the_gradients_of_the_plain_convolution(size, stride, padding,
                                                                          own):
  rng = np.random.default_rng(0)
  with jax.enable_x64(True):
    x = rng.standard_normal((2, 9, 8, 3))
    kernel = rng.standard_normal((*size, 1, 3) if own else (*size, 3, 4))
    pads = [((n - 1) // 2,) * 2 if padding == 'SAME' else (0, 0) for n in size]
    forms = [lambda x, k: jax.lax.conv_general_dilated(
        x, k, (stride, stride), pads, dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        feature_group_count=3 if own else 1)]
    forms += [lambda x, k, form=form: conv.convolve(x, k, stride, *form, padding=padding)
              for form in (('cpu',), ('gpu',), ('cpu', stride == 1))]
    weight = rng.standard_normal(forms[0](x, kernel).shape)
    plain, *ours = (jax.tree.leaves(jax.value_and_grad(
        lambda x, k, form=form: jnp.sum(weight * jnp.sin(form(x, k))), (0, 1))(x, kernel))
                    for form in forms)
  for found in ours:
    for a, b in zip(found, plain, strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)


def test_a_depthwise_convolution_on_the_cpu_calls_no_grouped_one():
  x, kernel = jnp.ones((1, 4, 4, 3)), jnp.ones((1, 3, 1, 3))
  step = jax.make_jaxpr(jax.grad(lambda x, k: jnp.sum(jnp.sin(conv.convolve(x, k))), (0, 1)))
  assert 'conv_general_dilated' not in str(step(x, kernel))
