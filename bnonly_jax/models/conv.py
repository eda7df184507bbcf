"""Convolution whose gradient stays fast inside a scan on the CPU backend."""

import jax
from jax import lax
import jax.numpy as jnp


def conv(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
  """Convolves with SAME padding as PyTorch pads it: (size - 1) // 2 on either side.

  Args:
    x: [N, H, W, C_in], any floating dtype.
    kernel: [size, size, C_in, C_out] with odd size, of x's dtype.
    stride: step in both directions.

  Returns:
    [N, ceil(H / stride), ceil(W / stride), C_out], of x's dtype.
  """
  if stride == 1 and jax.default_backend() == 'cpu':
    return _conv_for_cpu_scan(x, kernel)
  return _conv(x, kernel, stride)


def _conv(x, kernel, stride=1):
  if stride == 1 and x.shape[1] * x.shape[2] <= 4 and jax.default_backend() == 'cpu':
    # On images this small XLA's CPU convolution is 8 to 70 times slower than the same product of
    # patches.
    return (jnp.concatenate(_shifted(x, kernel.shape[0]), -1)
            @ kernel.reshape(-1, kernel.shape[-1]))
  padding = [((size - 1) // 2,) * 2 for size in kernel.shape[:2]]
  return lax.conv_general_dilated(
      x, kernel, (stride, stride), padding, dimension_numbers=('NHWC', 'HWIO', 'NHWC'))


def _shifted(x, size):
  """The padded images as each tap of a kernel sees them, tap by tap."""
  height, width, pad = *x.shape[1:3], (size - 1) // 2
  x = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
  return [x[:, i:i + height, j:j + width] for i in range(size) for j in range(size)]


# In the body of a scan XLA's CPU backend runs the transposed convolutions that autodiff asks for 7
# to 30 times slower than plain ones. Both gradients below are made of operations that stay fast.
@jax.custom_vjp
def _conv_for_cpu_scan(x, kernel):
  return _conv(x, kernel)


def _forward(x, kernel):
  # A frozen kernel needs no gradient, hence no saved input: `perturbed` says which it is. Nor do
  # the images need one.
  saved_x = x.value if kernel.perturbed else None
  return _conv(x.value, kernel.value), (saved_x, kernel.value, () if x.perturbed else None)


def _backward(saved, dy):
  x, kernel, wanted = saved
  dx = None if wanted is None else _conv(dy, jnp.flip(kernel, (0, 1)).swapaxes(2, 3))
  return dx, None if x is None else _kernel_gradient(x, dy, kernel.shape)


def _kernel_gradient(x, dy, shape):
  """The sum over images and positions of shifted x times dy, as one matrix product a kernel tap."""
  taps = [jnp.einsum('nhwi,nhwo->io', tap, dy) for tap in _shifted(x, shape[0])]
  return jnp.stack(taps).reshape(shape)


_conv_for_cpu_scan.defvjp(_forward, _backward, symbolic_zeros=True)
