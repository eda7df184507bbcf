"""A trained network as one program for CPUs, NVIDIA GPUs and TPUs, its weights inside.

The file is in the safetensors format: `program` is what `jax.export` has serialised, bytes, and the
metadata has the names of the classes and the preprocessing as JSON.
"""

import json
import os
import pathlib
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy

from bnonly_jax import experiment
from bnonly_jax import models
from bnonly_jax.config import UserError
from bnonly_jax.export import compact
from bnonly_jax.export import loading
from bnonly_jax.export import network
from bnonly_jax.export.network import Trained
from bnonly_jax.run import metrics

PLATFORMS = ('cpu', 'cuda', 'tpu')


def serialise(trained: Trained) -> bytes:
  """Returns the program from uint8 images [N, H, W, C], any N, to float32 logits [N, classes]."""
  shape, = jax.export.symbolic_shape('n')[:1]
  images = jax.ShapeDtypeStruct((shape, *trained.info.image_shape), np.uint8)
  classify = network.classifier(trained)
  program = jax.jit(lambda images: classify(trained.variables, images))
  return jax.export.export(program, platforms=PLATFORMS)(images).serialize()


def read(path: str | os.PathLike) -> tuple[jax.export.Exported, dict[str, Any]]:
  """Reads what `export` wrote: the program, and what is said of it. Only of files that you trust.

    program, about = stablehlo.read('net.stablehlo')
    names = [about['class_names'][i] for i in program.call(images).argmax(-1)]  # images uint8

  Raises:
    UserError: it is no such file.
  """
  try:
    with safetensors.safe_open(path, 'numpy') as file:
      about = json.loads((file.metadata() or {})['network'])
      return jax.export.deserialize(bytearray(file.get_tensor('program'))), about
  except Exception as error:  # jax.export's reader has errors of its own
    raise UserError(f'{path} is no such program ({type(error).__name__}: {error}). Write it by'
                    ' python -m bnonly_jax.export stablehlo.') from error


def export(source: str, output: str, step: int | None = None, data_dir: str = '',
           replicate: int = 0, threshold: float | None = None) -> None:
  """Writes a network as a program, and compares its logits with the network's.

  Raises:
    UserError: as `loading.open_network` and `compact.compact`, or the file cannot be written.
  """
  here = loading.open_network(source, step, data_dir, replicate)
  if threshold is None:  # built without the forms that only a CPU wants
    trained = here._replace(network=experiment.create_network(
        here.config, here.info.classes, models.Statistics(), 'gpu'))
  else:
    here = compact.compact(here, threshold, jax.default_backend())
    trained = here._replace(network=here.network._replace(backend='gpu'))
  about = {'class_names': list(trained.info.class_names), 'platforms': PLATFORMS,
           'preprocessing': network.preprocessing(trained)}
  with network.written(output) as path:
    safetensors.numpy.save_file({'program': np.frombuffer(serialise(trained), np.uint8)}, path,
                                {'network': json.dumps(about)})
  program, _ = read(pathlib.Path(output).expanduser())
  images = np.random.default_rng(0).integers(0, 256, (8, *trained.info.image_shape), np.uint8)
  logits = jax.jit(network.classifier(here))(here.variables, images)
  error = float(np.abs(program.call(images) - logits).max())
  size = pathlib.Path(output).expanduser().stat().st_size
  metrics.console.print(f'{output}: {size:,} bytes, for {", ".join(PLATFORMS)}; logits of 8 random'
                        f' images differ by at most {error:.2g} here')
