"""Convolution whose gradients stay fast on the CPU backend."""

import functools

import jax
from jax import lax
import jax.numpy as jnp

from bnonly_jax.config import UserError
from bnonly_jax.models.depthwise import depthwise


def convolve(x: jax.Array, kernel: jax.Array, stride: int = 1, backend: str = 'cpu',
             in_loop: bool = False, padding: str = 'SAME') -> jax.Array:
  """Convolves with a kernel of any shape, of all channels or of each by itself.

  Args:
    x: [N, H, W, C_in], any floating dtype.
    kernel: [height, width, C_in, C_out], or [height, width, 1, C_in]: each channel has its own.
    stride: step in both directions.
    backend: for which it is to be fast: cpu, or any other. Results are equal up to rounding.
    in_loop: whether it is in the body of a scan.
    padding: SAME, as PyTorch's (size - 1) // 2 on either side, or VALID, none.

  Returns:
    [N, H', W', C_out], of x's dtype.
  """
  height, width = kernel.shape[:2]
  pads = tuple(((size - 1) // 2,) * 2 if padding == 'SAME' else (0, 0) for size in (height, width))
  if kernel.shape[2] == 1 and kernel.shape[3] == x.shape[-1]:
    return depthwise(x, kernel, pads, stride, backend)
  if height == width and height % 2 and stride <= 2 and padding == 'SAME':
    return conv(x, kernel, stride, backend, in_loop)
  if height == width == stride and padding == 'VALID':
    return _patches(x, kernel, stride)
  if backend == 'cpu' and stride == 1:
    return _odd_shapes(x, kernel, pads)
  return _any(x, kernel, stride, pads)


def _any(x, kernel, stride, pads):
  return lax.conv_general_dilated(
      x, kernel, (stride, stride), pads, dimension_numbers=('NHWC', 'HWIO', 'NHWC'))


def _patches(x, kernel, size):
  """A convolution of patches that do not overlap: one matrix product."""
  n, rows, columns, channels = x.shape[0], x.shape[1] // size, x.shape[2] // size, x.shape[3]
  if not rows or not columns:
    raise UserError(f'the images are too small for this config.network: of {x.shape[1]}x'
                    f'{x.shape[2]} pixels it takes patches of {size}x{size}. Set a larger'
                    ' --config.data.image_size, or choose another network.')
  x = x[:, :rows * size, :columns * size].reshape(n, rows, size, columns, size, channels)
  return x.swapaxes(2, 3).reshape(n, rows, columns, -1) @ kernel.reshape(-1, kernel.shape[-1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _odd_shapes(x, kernel, pads):
  return _any(x, kernel, 1, pads)


def _odd_forward(x, kernel, pads):
  return _any(x.value, kernel.value, 1, pads), (
      x.value if kernel.perturbed else None, kernel.value, () if x.perturbed else None)


def _odd_backward(pads, saved, dy):
  x, kernel, wanted = saved
  size, dx = kernel.shape[:2], None
  if wanted is not None:
    back = [(n - 1 - before, n - 1 - after) for n, (before, after) in zip(size, pads, strict=True)]
    dx = _any(dy, jnp.flip(kernel, (0, 1)).swapaxes(2, 3), 1, back)
  if x is None:
    return dx, None
  x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
  rows, columns = dy.shape[1:3]
  taps = [jnp.einsum('nhwi,nhwo->io', x[:, i:i + rows, j:j + columns], dy)
          for i in range(size[0]) for j in range(size[1])]
  return dx, jnp.stack(taps).reshape(kernel.shape)


_odd_shapes.defvjp(_odd_forward, _odd_backward, symbolic_zeros=True)


def conv(x: jax.Array, kernel: jax.Array, stride: int = 1, backend: str = 'cpu',
         in_loop: bool = False) -> jax.Array:
  """Convolves with SAME padding as PyTorch pads it: (size - 1) // 2 on either side.

  Args:
    x: [N, H, W, C_in], any floating dtype.
    kernel: [size, size, C_in, C_out] with odd size, of x's dtype.
    stride: step in both directions, 1 or 2.
    backend: for which it is to be fast: cpu, or any other. Results are equal up to rounding.
    in_loop: whether it is in the body of a scan.

  Returns:
    [N, ceil(H / stride), ceil(W / stride), C_out], of x's dtype.
  """
  if backend != 'cpu':
    return _plain(x, kernel, stride)
  if kernel.shape[0] == 1:
    x, stride = x[:, ::stride, ::stride], 1
  return _conv_for_cpu(x, kernel, stride, x.shape[1:3], in_loop)


def _conv(x, kernel, stride=1):
  if stride == 1 and x.shape[1] * x.shape[2] <= 4:
    # On images this small XLA's CPU convolution is 8 to 70 times slower than the same product of
    # patches.
    return (jnp.concatenate(_shifted(x, kernel.shape[0]), -1)
            @ kernel.reshape(-1, kernel.shape[-1]))
  return _plain(x, kernel, stride)


def _plain(x, kernel, stride):
  padding = [((size - 1) // 2,) * 2 for size in kernel.shape[:2]]
  return lax.conv_general_dilated(
      x, kernel, (stride, stride), padding, dimension_numbers=('NHWC', 'HWIO', 'NHWC'))


def _shifted(x, size):
  """The padded images as each tap of a kernel sees them, tap by tap."""
  height, width, pad = *x.shape[1:3], (size - 1) // 2
  x = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
  return [x[:, i:i + height, j:j + width] for i in range(size) for j in range(size)]


# In the body of a scan XLA's CPU backend runs the transposed convolutions that autodiff asks for 7
# to 30 times slower than plain ones, and with a stride it multiplies all the zeros in between. The
# gradients below are made of operations that stay fast.
@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _conv_for_cpu(x, kernel, stride, image_shape, in_loop):
  return _conv(x, kernel, stride)


def _forward(x, kernel, stride, image_shape, in_loop):
  # A frozen kernel needs no gradient, hence no saved input: `perturbed` says which it is. Nor do
  # the images need one.
  saved_x = x.value if kernel.perturbed else None
  return _conv(x.value, kernel.value, stride), (saved_x, kernel.value, () if x.perturbed else None)


def _backward(stride, image_shape, in_loop, saved, dy):
  x, kernel, wanted = saved
  dx = None if wanted is None else _input_gradient(dy, kernel, stride, image_shape)
  return dx, None if x is None else _kernel_gradient(x, dy, kernel, stride, in_loop)


def _input_gradient(dy, kernel, stride, image_shape):
  if stride == 2:
    return strided_input_gradient(dy, kernel, image_shape)
  return _conv(dy, jnp.flip(kernel, (0, 1)).swapaxes(2, 3))


@functools.partial(jax.jit, static_argnums=2)
def strided_input_gradient(dy: jax.Array, kernel: jax.Array,
                           image_shape: tuple[int, int]) -> jax.Array:
  """The gradient of the input of a convolution of stride 2, without the zeros of a transposed one.

  One convolution makes the four pixels of each pair of rows and columns, each with every other tap
  of the kernel, as 4 C_in channels. A function of its own so that `describe.cost` knows it: the
  taps that fill the kernel up to an even size are zeros.

  Args:
    dy: [N, ceil(H / 2), ceil(W / 2), C_out].
    kernel: [size, size, C_in, C_out], of dy's dtype.
    image_shape: H, W.

  Returns:
    [N, H, W, C_in], of dy's dtype.
  """
  size, _, channels, _ = kernel.shape
  half = size // 2
  before, after = half // 2, (half + 1) // 2  # neighbours in dy that count
  taps = before + 1 + after
  kernel = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
  kernel = jnp.pad(kernel, [(1 - half % 2, 2 * taps - size - 1 + half % 2)] * 2 + [(0, 0)] * 2)
  kernel = kernel.reshape(taps, 2, taps, 2, -1, channels)[:, ::-1, :, ::-1]
  kernel = kernel.transpose(0, 2, 4, 1, 3, 5).reshape(taps, taps, -1, 4 * channels)
  pixels = lax.conv_general_dilated(dy, kernel, (1, 1), [(before, after)] * 2,
                                    dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
  n, h, w, _ = pixels.shape
  pixels = pixels.reshape(n, h, w, 2, 2, channels).swapaxes(2, 3)
  return pixels.reshape(n, 2 * h, 2 * w, channels)[:, :image_shape[0], :image_shape[1]]


def _kernel_gradient(x, dy, kernel, stride, in_loop):
  """The sum over images and positions of shifted x times dy: in a loop as one product a tap."""
  if not in_loop:
    return jax.linear_transpose(lambda kernel: _conv(x, kernel, stride), kernel)(dy)[0]
  taps = [jnp.einsum('nhwi,nhwo->io', tap, dy) for tap in _shifted(x, kernel.shape[0])]
  return jnp.stack(taps).reshape(kernel.shape)


_conv_for_cpu.defvjp(_forward, _backward, symbolic_zeros=True)
