"""For `benchmark step --against=torch`: what PyTorch is to measure, and its processes."""

import contextlib
import importlib.util
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from typing import Any

import flax.linen as nn
import jax
import ml_collections

from bnonly_jax.benchmark import common
from bnonly_jax.config import flat
from bnonly_jax.config import require
from bnonly_jax.config import UserError
from bnonly_jax.models.cifar_resnet import CifarResNet
from bnonly_jax.models.cifar_vgg import CifarVGG
from bnonly_jax.models.cifar_vgg import GROUPS
from bnonly_jax.models.imagenet_resnet import ImageNetResNet
from bnonly_jax.models.imagenet_resnet import STAGES

# By how they are called in the figures: modes of torch.compile, which only a GPU is measured with.
MODES = {'eager': '', 'compiled': 'default', 'compiled, CUDA graphs': 'reduce-overhead'}


def sizes(network: nn.Module) -> tuple[str, list[Any]] | None:
  """Returns the class in torch_nets that a network of ours is, and its first arguments.

  Those that follow are the images' channels and the classes. None: it is not written there.
  """
  if isinstance(network, CifarResNet) and isinstance(network.blocks, int):
    return 'CifarResNet', [6 * network.blocks + 2, network.width]
  if isinstance(network, CifarVGG):
    return 'CifarVGG', [GROUPS[network.depth]]
  if isinstance(network, ImageNetResNet):
    block = 'basic' if network.depth < 50 else 'bottleneck'
    return 'ImageNetResNet', [STAGES[network.depth], block, network.width]
  return None


def precision(config: ml_collections.ConfigDict) -> str:
  """Returns how both sides multiply: bfloat16, tf32 or float32.

  XLA rounds float32 factors to TF32 on NVIDIA GPUs that can, unless config.matmul_precision says
  highest.
  """
  if config.compute_dtype == 'bfloat16':
    return 'bfloat16'
  device = jax.devices()[0]
  exact = config.matmul_precision == 'highest'
  generation = getattr(device, 'compute_capability', '').partition('.')[0]  # AMD's: gfx942
  tf32 = generation.isdigit() and int(generation) >= 8 and not exact
  return 'tf32' if tf32 else 'float32'


def specification(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """Returns what `torch_peer` is to measure, but for `compile`.

  Raises:
    UserError: the config has what PyTorch's side has not, the devices are others or several, or
      PyTorch is not installed.
  """
  for field, allowed in (('train', ('batchnorm', 'all')), ('norm', ('batch',)),
                         ('attention', ('none',)), ('remat', ('none',)), ('replicates', (1,)),
                         ('optimizer.name', ('sgd',))):
    require(config, field, f'{" or ".join(map(str, allowed))} with --against=torch',
            flat(config)[field] in allowed)
  if importlib.util.find_spec('torch') is None:
    raise UserError('--against=torch needs PyTorch, which is not installed. Install it with'
                    " pip install -e '.[torch]', or compare with --against=all.")
  platform, devices = jax.devices()[0].platform, jax.device_count()
  if devices > 1 or platform not in ('cpu', 'gpu'):
    raise UserError(f'JAX has {devices} {platform} device(s); --against=torch compares one CPU or'
                    ' one GPU. Set CUDA_VISIBLE_DEVICES=0 (and leave XLA_FLAGS without simulated'
                    ' devices), or JAX_PLATFORMS=cpu.')
  run = common.built(config)
  written = sizes(run.network)
  require(config, 'network', 'a ResNet with equally many blocks a stage, or a VGG, with'
          ' --against=torch', written is not None)
  name, arguments = written
  channels = run.info.image_shape[-1]
  return {'network': name, 'arguments': [*arguments, channels, run.info.classes],
          'image_shape': run.info.image_shape, 'batch_size': config.batch_size,
          'mean': config.data.mean, 'std': config.data.std, 'train': config.train,
          'device': 'cuda' if platform == 'gpu' else 'cpu', 'precision': precision(config),
          'optimizer': {'lr': config.optimizer.learning_rate,
                        'momentum': config.optimizer.momentum,
                        'weight_decay': config.optimizer.weight_decay}}


class Failed(Exception):
  """PyTorch's process ended, or took too long; the text says what it said last."""


class Peer:
  """A process that makes PyTorch's training steps, until `opened` is closed."""

  def __init__(self, specification: dict[str, Any], mode: str, opened: contextlib.ExitStack):
    self.answer = {}  # the last: `version`, `threads`, and `peak` bytes on a GPU
    self._said = opened.enter_context(tempfile.TemporaryFile('w+'))  # noqa: SIM115
    # Threads that spin while they wait make the step up to ten times slower as soon as anything
    # else runs on the machine, which XLA's threads do not suffer from.
    environment = {'OMP_WAIT_POLICY': 'passive', **os.environ}
    self._process = opened.enter_context(subprocess.Popen(
        [sys.executable, '-m', 'bnonly_jax.benchmark.torch_peer',
         json.dumps({**specification, 'compile': mode})], env=environment,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said, text=True))
    opened.callback(self._process.kill)

  def wait(self, seconds: float | None = None) -> None:
    """Waits for an answer.

    Raises:
      Failed: none came.
    """
    if not select.select([self._process.stdout], [], [], seconds)[0]:
      self._process.kill()
      raise Failed('torch.compile took longer than --compile_limit')
    line = self._process.stdout.readline()
    if not line:
      self._process.wait()
      self._said.seek(0)
      lines = [line.strip() for line in self._said if line.strip()]
      raise Failed(lines[-1] if lines else f'exit code {self._process.returncode}')
    self.answer = json.loads(line)

  def __call__(self, number: int) -> None:
    """Makes a number of steps."""
    self._process.stdin.write(f'{number}\n')
    self._process.stdin.flush()
    self.wait()


def start(config: ml_collections.ConfigDict, compile_limit: float,
          opened: contextlib.ExitStack) -> dict[str, Peer]:
  """Starts PyTorch's processes: eager, and on a GPU those with torch.compile too.

  Args:
    config: of the run.
    compile_limit: 0 starts none with torch.compile.
    opened: what ends the processes.

  Raises:
    UserError: as `specification`.
  """
  wanted = specification(config)
  modes = MODES if wanted['device'] == 'cuda' and compile_limit else ['eager']
  return {mode: Peer(wanted, MODES[mode], opened) for mode in modes}


def wait_for_all(peers: dict[str, Peer], compile_limit: float) -> dict[str, str]:
  """Waits until all are ready, takes out those with torch.compile that fail, and says why.

  Raises:
    UserError: eager PyTorch fails.
  """
  errors, deadline = {}, time.monotonic() + compile_limit
  for mode, peer in list(peers.items()):
    try:
      peer.wait(max(0, deadline - time.monotonic()) if MODES[mode] else None)
    except Failed as error:
      if not MODES[mode]:
        raise UserError(f'--against=torch: PyTorch failed: {error}. Correct that, or compare with'
                        ' --against=all.') from error
      del peers[mode]
      errors[mode] = str(error)
  return errors
