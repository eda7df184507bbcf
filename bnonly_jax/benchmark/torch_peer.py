"""PyTorch's training step, in a process that makes as many as it is told to.

  python -m bnonly_jax.benchmark.torch_peer SPECIFICATION

`against_torch` starts it. The specification is JSON: the network's class in torch_nets with its
arguments, image_shape, batch_size, mean, std, train (batchnorm or all), device (cpu or cuda),
precision (float32, tf32 or bfloat16), optimizer (SGD's arguments) and compile (a mode of
torch.compile, or '' for eager). It answers on standard output with one JSON line after its first
steps, and with one for each number of steps that comes on standard input.
"""

from collections.abc import Callable
import json
import os
import sys
from typing import Any

from bnonly_jax import command_line


def training_step(specification: dict[str, Any]) -> Callable[[], None]:
  """Builds the step on random images; it returns when the device has done it."""
  import torch
  from torch.nn import functional as F

  from bnonly_jax.benchmark import torch_nets
  device, precision = specification['device'], specification['precision']
  if device == 'cuda' and not torch.cuda.is_available():
    sys.exit(f'PyTorch {torch.__version__} sees no CUDA device: install a build for CUDA')
  torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == 'tf32'
  torch.backends.cudnn.benchmark = True  # XLA tries its convolutions out too
  torch.manual_seed(0)
  network = getattr(torch_nets, specification['network'])(*specification['arguments'])
  network.to(device, memory_format=torch.channels_last).train()
  network.requires_grad_(specification['train'] == 'all')
  for module in network.modules():
    if isinstance(module, torch.nn.BatchNorm2d):
      module.requires_grad_(True)
  sgd = torch.optim.SGD([p for p in network.parameters() if p.requires_grad],
                        **specification['optimizer'])
  height, width, channels = specification['image_shape']
  images = torch.randint(0, 256, (specification['batch_size'], channels, height, width),
                         dtype=torch.uint8).to(device, memory_format=torch.channels_last)
  labels = torch.zeros(len(images), dtype=torch.int64, device=device)
  mean, std = (torch.tensor(specification[name], device=device)[:, None, None]
               for name in ('mean', 'std'))
  scale, shift = 1 / (255 * std), -mean / std

  def loss_of(images):
    with torch.autocast(device, torch.bfloat16, enabled=precision == 'bfloat16'):
      return F.cross_entropy(network(images.float() * scale + shift), labels)

  if specification['compile']:
    loss_of = torch.compile(loss_of, mode=specification['compile'])

  def step():
    sgd.zero_grad()
    loss_of(images).backward()
    sgd.step()
    if device == 'cuda':
      torch.cuda.synchronize()

  return step


def main(specification: dict[str, Any]) -> None:
  """Says that it is ready, then makes steps until standard input ends."""
  answers = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)  # what libraries print is no answer
  command_line.keep_freed_memory()  # as our process does, before PyTorch has threads
  import torch
  step = training_step(specification)

  def answer():
    peak = torch.cuda.max_memory_allocated() if specification['device'] == 'cuda' else None
    print(json.dumps({'version': torch.__version__, 'threads': torch.get_num_threads(),
                      'omp_wait_policy': os.environ.get('OMP_WAIT_POLICY'), 'peak': peak}),
          file=answers, flush=True)

  for _ in range(3 if specification['compile'] else 1):  # a CUDA graph is recorded in the second
    step()
  answer()
  for line in sys.stdin:
    for _ in range(int(line)):
      step()
    answer()


if __name__ == '__main__':
  main(json.loads(sys.argv[1]))
