"""Depthwise convolution, fast on the CPU backend too."""

import functools

import jax
from jax import lax
import jax.numpy as jnp


def depthwise(x: jax.Array, kernel: jax.Array, padding: tuple[tuple[int, int], tuple[int, int]],
              stride: int = 1, backend: str = 'cpu') -> jax.Array:
  """Convolves each channel with a kernel of its own.

  XLA's grouped convolution on a CPU is many times slower than the sum of shifted products below;
  elsewhere it is what is called. Results are equal up to rounding.

  Args:
    x: [N, H, W, C], any floating dtype.
    kernel: [height, width, 1, C], of any size, of x's dtype.
    padding: pixels before and after, of rows and of columns.
    stride: step in both directions.
    backend: for which it is to be fast: cpu, or any other.

  Returns:
    [N, H', W', C], of x's dtype.
  """
  if backend == 'cpu':
    return _for_cpu(x, kernel, padding, stride)
  return lax.conv_general_dilated(x, kernel, (stride, stride), padding,
                                  dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
                                  feature_group_count=x.shape[-1])


def _taps(x, size, padding, stride):
  """The padded images as each tap of a kernel sees them, tap by tap."""
  x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
  rows, columns = ((whole - tap) // stride * stride + 1
                   for whole, tap in zip(x.shape[1:3], size, strict=True))
  return [x[:, i:i + rows:stride, j:j + columns:stride]
          for i in range(size[0]) for j in range(size[1])]


@functools.partial(jax.jit, static_argnums=(2, 3))
def shifted_products(x: jax.Array, kernel: jax.Array, padding: tuple[tuple[int, int], ...],
                     stride: int) -> jax.Array:
  """`depthwise`, as a sum over the taps; a function of its own so that `describe.cost` knows it."""
  taps = _taps(x, kernel.shape[:2], padding, stride)
  weights = kernel.reshape(-1, 1, 1, 1, kernel.shape[-1])
  return sum(tap * weight for tap, weight in zip(taps, weights, strict=True))


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def shifted_sums(x: jax.Array, dy: jax.Array, size: tuple[int, int],
                 padding: tuple[tuple[int, int], ...], stride: int) -> jax.Array:
  """The gradient of the kernel [*size, 1, C]: over images and positions, tap by tap."""
  taps = [jnp.sum(tap * dy, (0, 1, 2)) for tap in _taps(x, size, padding, stride)]
  return jnp.stack(taps).reshape(*size, 1, -1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _for_cpu(x, kernel, padding, stride):
  return shifted_products(x, kernel, padding, stride)


def _forward(x, kernel, padding, stride):
  # As in conv.py: what is frozen needs no saved input, and images no gradient.
  y = shifted_products(x.value, kernel.value, padding, stride)
  shape = x.value.shape[1:3] if x.perturbed else None
  return y, (x.value if kernel.perturbed else None, kernel.value, shape)


def _backward(padding, stride, saved, dy):
  x, kernel, shape = saved
  size, dx = kernel.shape[:2], None
  if shape is not None:
    # dy with stride - 1 zeros between its pixels, padded to the size of the input.
    before = [tap - 1 - start for tap, (start, _) in zip(size, padding, strict=True)]
    spread = lax.pad(dy, jnp.zeros((), dy.dtype), (
        (0, 0, 0), *((start, n + tap - 1 - start - ((out - 1) * stride + 1), stride - 1)
                     for n, tap, start, out in zip(shape, size, before, dy.shape[1:3],
                                                   strict=True)), (0, 0, 0)))
    dx = shifted_products(spread, jnp.flip(kernel, (0, 1)), ((0, 0), (0, 0)), 1)
  return dx, None if x is None else shifted_sums(x, dy, size, padding, stride)


_for_cpu.defvjp(_forward, _backward, symbolic_zeros=True)
