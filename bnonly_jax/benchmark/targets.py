"""Devices that are not there, as the compilers for them know them: TPU slices and an H100.

libtpu and JAX's CUDA plugin compile without a device: JAX calls such devices a topology.
"""

import contextlib
import importlib.metadata
import importlib.util
import os
import re
from typing import NamedTuple

import jax
from jax.experimental import topologies

from bnonly_jax.config import UserError


class Target(NamedTuple):
  """What is compiled for.

  Attributes:
    name: as the user gave it.
    devices: of all hosts.
    kind: of the devices.
    memory: bytes that each device has; None: not known here.
    memory_source: who says so.
    clock: cycles a second; None: not known here, or not needed.
    clock_source: who says so.
    versions: of what compiles, by package.
  """
  name: str
  devices: tuple[jax.Device, ...]
  kind: str
  memory: int | None
  memory_source: str
  clock: float | None
  clock_source: str
  versions: dict[str, str]


# Memory, bfloat16 FLOP a second and matrix units of a chip: the Cloud TPU documentation's page of
# each generation. The clock is that at which the units, two FLOP a cycle for each cell, do so many;
# for v5e "How to Scale Your Model" (jax-ml.github.io/scaling-book) says 1.5 GHz as well. How many
# cells a v6e has is not documented there.
_GIB = 2**30
_CHIPS = {  # kind of device: (bytes of a chip, FLOP/s of a chip, cells of its matrix units)
    'TPU v4': (32 * _GIB, 275e12, 8 * 128**2),
    'TPU v5 lite': (16 * _GIB, 197e12, 4 * 128**2),
    'TPU v5': (95 * _GIB, 459e12, 8 * 128**2),
    'TPU v6 lite': (32 * _GIB, 918e12, None)}
_TPU_SOURCE = 'the Cloud TPU documentation'
_CLOCK_SOURCE = ('documented bfloat16 FLOP/s of a chip over the FLOP that its matrix units do in a'
                 ' cycle')

# What XLA's compiler asks of a GPU, as CUDA tells it of an H100 SXM of 80 GB.
_H100_MEMORY = 84_942_979_072
_H100 = f"""
gpu_device_info {{
  cuda_compute_capability {{ major: 9 }}
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  l2_cache_size: 52428800
  memory_bandwidth: 3352320000000
  device_memory_size: {_H100_MEMORY}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 }}
device_description_str: "NVIDIA H100 80GB HBM3"
"""

ALLOWED = ('h100, or a TPU slice GENERATION:SHAPE in chips, such as v5e:1x1, v5e:2x2, v5e:4x4,'
           ' v5e:16x16, v6e:2x2, v4:2x2x1, v5p:2x2x1')


def find(name: str) -> Target:
  """Returns the target of a name: h100, or a TPU slice such as v5e:4x4.

  Raises:
    UserError: no compiler knows it, or the one that does is not installed.
  """
  if name == 'h100':
    return _h100()
  if ':' not in name:
    raise UserError(f'--on is {name!r}; allowed is {ALLOWED}. Set --on=...')
  _require(name, ('libtpu',), 'tpu')
  # Else libtpu asks the network what it runs on, warns that it is no TPU, and refuses a second
  # process, as it should where there is a TPU to share.
  for variable, value in (('TPU_SKIP_MDS_QUERY', '1'), ('TPU_WORKER_HOSTNAMES', 'localhost'),
                          ('TPU_ACCELERATOR_TYPE', 'v5litepod-4'),
                          ('TPU_STDERR_LOG_LEVEL', '4'), ('TPU_MIN_LOG_LEVEL', '4'),
                          ('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')):
    os.environ.setdefault(variable, value)
  try:
    devices = topologies.get_topology_desc(platform='tpu', topology_name=name).devices
  except Exception as error:  # libtpu's are of several kinds
    reason = str(error).strip().splitlines()[0].rstrip('.')
    raise UserError(f'--on is {name!r}, which libtpu does not know ({reason}); allowed is'
                    f' {ALLOWED}. Set --on=...') from error
  devices = tuple(devices)
  kind = devices[0].device_kind
  versions = _versions('jax', 'libtpu')
  if kind not in _CHIPS:
    return Target(name, devices, kind, None, 'not known here', None, 'not known here', versions)
  memory, flops, cells = _CHIPS[kind]
  cores = sum(d.coords == devices[0].coords for d in devices)  # of a chip, each a device
  clock = (round(flops / cells / 2, -7), _CLOCK_SOURCE) if cells else (None, 'not known here')
  return Target(name, devices, kind, memory // cores, _TPU_SOURCE, *clock, versions)


def _h100():
  plugins = ('jax-cuda12-plugin', 'jax-cuda13-plugin')
  _require('h100', [plugin.replace('-', '_') for plugin in plugins], 'cuda12')
  # Of a shape the compiler wants slices x hosts x devices.
  devices = topologies.get_topology_desc(platform='cuda', topology_name='', topology='1x1x1',
                                         target_config=_H100).devices
  return Target('h100', tuple(devices), devices[0].device_kind, _H100_MEMORY,
                "CUDA's total memory of an H100 SXM of 80 GB", None, '',
                _versions('jax', *plugins))


def _require(name, modules, extra):
  if not any(importlib.util.find_spec(module) for module in modules):
    raise UserError(f'--on={name} needs {" or ".join(modules)}, which compiles without the device'
                    f" and is not installed here. Install it with pip install -e '.[{extra}]'.")


def _versions(*packages):
  found = {}
  for package in packages:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      found[package] = importlib.metadata.version(package)
  return found


def out_of_memory(error: Exception) -> str:
  """Returns what a compiler says of a program that does not fit into the memory, else ''."""
  told = re.search(r'(?:Ran out of memory|RESOURCE_EXHAUSTED)[^\n]*', str(error))
  return told[0].strip() if told else ''
