"""A trained network with all that it takes to classify an image, wherever it comes from."""

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import os
import pathlib
from typing import Any
from typing import NamedTuple

import jax
import ml_collections
import safetensors

from bnonly_jax import analysis
from bnonly_jax import data
from bnonly_jax import masks
from bnonly_jax.config import UserError
from bnonly_jax.data import device


class Trained(NamedTuple):
  """A trained network.

  Attributes:
    network: `network.apply(variables, images, train=False)` maps normalised images [N, H, W, C] to
      float32 logits [N, classes].
    variables: NumPy arrays, as `apply` takes them.
    config: the run's, of one replicate; of a file without what only training reads.
    info: the images' shape and the names of the classes; of a file without a path.
    preparation: how images are normalised.
    step: training steps done.
    trained_parameters: how many parameters trained, all others being as they started; None: not
      known, of a file that holds them all.
  """
  network: Any
  variables: dict[str, Any]
  config: ml_collections.ConfigDict
  info: data.Info
  preparation: device.Preparation
  step: int
  trained_parameters: int | None = None


def of_run(loaded: analysis.Loaded, replicate: int = 0) -> Trained:
  """Returns the network of a run that `analysis.load` has read, as the same replicate."""
  config = loaded.config.copy_and_resolve_references()
  config.seed, config.replicates = config.seed + replicate, 1
  run = loaded.experiment
  preparation = run.preparation._replace(pad=0, flip=False)
  return Trained(run.network, loaded.variables, config, run.info, preparation, loaded.step,
                 sum(row.trained for row in masks.table(run.parameters, run.mask)))


def classifier(trained: Trained) -> Callable[[Any, jax.Array], jax.Array]:
  """Returns the function from (variables, images uint8 [N, H, W, C]) to logits, not compiled."""
  def logits(variables, images):
    with jax.default_matmul_precision(trained.config.matmul_precision):
      return trained.network.apply(variables, device.normalise(images, trained.preparation),
                                   train=False)

  return logits


def preprocessing(trained: Trained) -> dict[str, Any]:
  """Returns, as JSON holds it, what makes an image file into what the network sees."""
  height, width, channels = trained.info.image_shape
  return {'height': height, 'width': width, 'channels': channels,
          'shorter_side': trained.config.data.eval_resize if trained.config.data.image_size
          else max(height, width),
          'then': 'the centre', 'mean': list(trained.preparation.mean),
          'std': list(trained.preparation.std), 'of': 'pixels / 255'}


def check_output(output: str | pathlib.Path) -> pathlib.Path:
  """Returns the path of a file to write, so that one that cannot be is told before all work.

  Raises:
    UserError: it is a folder, or its folder is not there or cannot be written.
  """
  path = pathlib.Path(output).expanduser()
  if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
    raise UserError(f'--output={output} cannot be written; allowed is a file in a folder that there'
                    ' is, and that is yours. Make the folder, or choose another --output.')
  return path


@contextlib.contextmanager
def written(output: str | pathlib.Path) -> Iterator[pathlib.Path]:
  """Gives the path to write a file to, which gets its name when it is whole.

  Raises:
    UserError: it cannot be written.
  """
  path = check_output(output)
  draft = path.with_name(f'.{path.name}.part')
  try:
    yield draft
    draft.chmod(0o644)  # safetensors leaves files that only their owner reads
    draft.replace(path)
  except (OSError, safetensors.SafetensorError) as error:
    raise UserError(f'--output={path} cannot be written ({error}). Make room, or choose another'
                    ' --output.') from error
  finally:
    draft.unlink(missing_ok=True)
