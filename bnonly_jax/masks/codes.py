"""Frozen kernels as codes of few bits, with one scale for each output channel.

On a device, in a run's folder and in the host's memory there are codes alone; the step that uses a
kernel decodes it.
"""

from collections.abc import Mapping
from typing import Any
from typing import NamedTuple

import flax.traverse_util
import jax
import jax.numpy as jnp
import ml_collections
import ml_dtypes
import numpy as np

from bnonly_jax.config import UserError
from bnonly_jax.models import frozen_half
from bnonly_jax.models.parameters import flatten
from bnonly_jax.models.parameters import Parameter

# Distance of the levels of 2^b - 1 that approximate a normal weight best, in standard deviations:
# where the expectation of the squared error is least (found by minimising it numerically).
STEPS = {'2': 1.2240, '4': 0.35341, '8': 0.030869}
FLOATS = {'e4m3': ml_dtypes.float8_e4m3fn, 'e5m2': ml_dtypes.float8_e5m2}


class Codes(NamedTuple):
  """A kernel, or a stack of them, as codes; what they stand for times the scale is the kernel.

  Of up to 4 bits, each run of 8 output channels is packed into as many bytes as a code has bits:
  byte p holds bit p of the 8 codes. Of 1 bit, 0 stands for -1 and 1 for 1; of b bits, c stands for
  c - 2^(b - 1).
  """
  codes: jax.Array  # uint8 [..., C_out / 8 rounded up, bits], or int8 or float8 [..., C_out]
  scale: jax.Array  # float32 [*stack, C_out]


def code_kernels(params: dict[str, Any], parameters: Mapping[str, Parameter],
                 config: ml_collections.ConfigDict, mask: Any = None) -> dict[str, Any]:
  """Returns parameters whose convolutions have codes of config.weight_bits.

  Args:
    params: of the network, floats on the host or jax.ShapeDtypeStruct.
    parameters: what is known of them.
    config: the experiment's.
    mask: what trains.

  Returns:
    Kernels of which nothing trains as `Codes`, and the others, or without a mask all of them, as
    the floats that the codes stand for. All else is as it was.

  Raises:
    UserError: one bit cannot say that weights are zero.
  """
  bits = config.weight_bits
  if bits == '0':
    return params
  named, trains = flatten(params), mask and flatten(mask)
  for name, known in frozen_half.kernels(parameters).items():
    kernel, stack, sparse = named[name], len(known.stack), config.weight_sparsity > 0
    frozen = bool(trains) and isinstance(trains[name], bool) and not trains[name]
    if isinstance(kernel, jax.ShapeDtypeStruct):
      named[name] = shapes(kernel, stack, bits, sparse) if frozen else kernel
      continue
    if bits == '1' and not sparse and np.mean(kernel == 0) > 0.01:  # draws have one in a million
      raise UserError(f"config.weight_bits is '1', which has no code for zero, as many weights of"
                      f' {name} in config.init_from={config.init_from} are. Allowed then are 2, 4,'
                      ' 8, e4m3 and e5m2. Set --config.weight_bits=2')
    coded = quantise(kernel, stack, bits, sparse)
    named[name] = coded if frozen else decode(coded)
  return flax.traverse_util.unflatten_dict(named, sep='/')


def quantise(kernel: np.ndarray, stack: int, bits: str, sparse: bool = False) -> Codes:
  """Approximates a kernel by levels whose scale keeps the length of each output channel.

  Args:
    kernel: [..., C_out], on the host.
    stack: how many of its first axes count kernels.
    bits: 1 (the sign), 2, 4, 8 (2^bits - 1 levels, equally far apart), e4m3 or e5m2 (numbers of
      these formats, each channel's largest weight being their largest).
    sparse: whether weights that are zero stay so; 1 bit, which cannot say it, then becomes two.
  """
  axes = tuple(range(stack, kernel.ndim - 1))

  def length(x):  # in float64, so that all machines round it to the same float32
    return np.sqrt(np.sum(np.square(x, dtype=np.float64), axes, keepdims=True))

  if bits in FLOATS:
    largest = np.max(np.abs(kernel), axes, keepdims=True)
    codes = (_ratio(kernel, largest) * float(ml_dtypes.finfo(FLOATS[bits]).max)).astype(
        np.float32).astype(FLOATS[bits])
    levels = codes.astype(np.float32)
  else:
    if bits == '1':
      levels = np.sign(kernel) if sparse else np.where(kernel < 0, -1, 1)
    else:
      deviation = length(kernel) / np.sqrt(np.maximum(
          np.count_nonzero(kernel, axes, keepdims=True), 1))
      most = 2 ** (int(bits) - 1) - 1
      levels = np.clip(np.rint(_ratio(kernel, STEPS[bits] * deviation)), -most, most)
    codes = levels.astype(np.int8) if bits == '8' else _pack(levels, _width(bits, sparse))
  scale = _ratio(length(kernel), length(levels)).astype(np.float32)
  return Codes(codes, scale.reshape(*kernel.shape[:stack], kernel.shape[-1]))


def decode(coded: Codes) -> Any:
  """Returns the float32 kernel that codes stand for; of NumPy arrays as one."""
  codes, scale = coded
  of = np if isinstance(codes, np.ndarray) else jnp
  if codes.dtype == np.uint8:
    width, shifts = codes.shape[-1], np.arange(8, dtype=np.uint8)
    shifts = shifts.reshape(*(1,) * (codes.ndim - 1), 8)
    one = np.uint8(1)
    planes = [(codes[..., p, None] >> shifts & one) << np.uint8(p) for p in range(width)]
    unsigned = sum(planes[1:], planes[0])  # [..., C_out / 8, 8]
    unsigned = unsigned.reshape(*codes.shape[:-2], -1)[..., :scale.shape[-1]]
    levels = unsigned.astype(np.float32)
    levels = 2 * levels - 1 if width == 1 else levels - 2 ** (width - 1)
  else:
    levels = codes.astype(np.float32)
  between = (1,) * (levels.ndim - scale.ndim)
  return levels * of.reshape(scale, (*scale.shape[:-1], *between, scale.shape[-1]))


def shapes(kernel: jax.ShapeDtypeStruct, stack: int, bits: str, sparse: bool) -> Codes:
  """Returns the shapes and dtypes of what `quantise` returns of such a kernel."""
  *inputs, features = kernel.shape
  if bits in FLOATS or bits == '8':
    codes = jax.ShapeDtypeStruct(kernel.shape, FLOATS.get(bits, np.int8))
  else:
    codes = jax.ShapeDtypeStruct((*inputs, -(-features // 8), _width(bits, sparse)), np.uint8)
  return Codes(codes, jax.ShapeDtypeStruct((*kernel.shape[:stack], features), np.float32))


def _width(bits, sparse):
  return 2 if bits == '1' and sparse else int(bits)


def _ratio(x, y):
  """x / y, and 0 where y is: in channels that are zero."""
  return np.divide(x, y, out=np.zeros(np.broadcast_shapes(x.shape, y.shape)), where=y != 0)


def _pack(levels, width):
  unsigned = np.uint8(levels > 0 if width == 1 else levels + 2 ** (width - 1))
  features = levels.shape[-1]
  unsigned = np.pad(unsigned, [(0, 0)] * (levels.ndim - 1) + [(0, -features % 8)])
  groups = unsigned.reshape(*levels.shape[:-1], -1, 1, 8)
  planes = groups >> np.arange(width, dtype=np.uint8)[:, None] & 1
  return np.packbits(planes, -1, 'little')[..., 0]
