"""A trained network as a page that runs it in a browser, with nothing else to load.

The page is page.html, with page.js, the weights and all else that it shows written into it.
"""

import base64
from collections.abc import Sequence
import json
import pathlib
from typing import Any

import jax

from bnonly_jax import analysis
from bnonly_jax.config import UserError
from bnonly_jax.data import decode
from bnonly_jax.export import compact
from bnonly_jax.export import loading
from bnonly_jax.export import network
from bnonly_jax.export.network import Trained
from bnonly_jax.run import metrics

_HERE = pathlib.Path(__file__).parent
_LETTERS = 2**29 - 1000  # of a text in a browser


def html(trained: Trained, threshold: float = 0.0, examples: Sequence[pathlib.Path] = ()) -> str:
  """Returns the page.

  Args:
    trained: a network of `models` with BatchNorm.
    threshold: of `compact.compact`.
    examples: JPEG and PNG files that are shown to be chosen from.

  Raises:
    UserError: as `compact.compact`, or an example is no image.
  """
  pictures = [_example(path) for path in examples]
  small = compact.compact(trained, threshold)
  params = small.variables['params']
  weights = base64.b64encode(b''.join(value.astype('<f4').tobytes() for value in params.values()))
  about = {
      **_texts(trained, threshold, sum(value.nbytes for value in params.values())),
      'class_names': list(trained.info.class_names), 'nodes': small.network.nodes,
      'tensors': [[name, value.shape] for name, value in params.items()],
      'preprocessing': network.preprocessing(small),
      'gammas': analysis.gamma_table(trained.variables['params']), 'examples': pictures}
  if len(weights) > _LETTERS:
    raise UserError(f'{trained.config.network} has {len(weights) // 4 * 3:,} bytes of weights, more'
                    f' than a page can hold; allowed are {_LETTERS // 4 * 3:,}. Export it by onnx.')
  # A name may come from a stranger; as JSON without this letter it ends no element of the page.
  parts = {'ABOUT': json.dumps(about).replace('<', r'\u003c'), 'WEIGHTS': weights.decode(),
           'PROGRAM': (_HERE / 'page.js').read_text()}
  page = (_HERE / 'page.html').read_text()
  for mark, text in parts.items():
    before, after = page.split(f'@{mark}@')
    page = before + text + after
  return page


def _texts(trained, threshold, size):
  """Returns what the page says of the network."""
  config, trains = trained.config, trained.trained_parameters
  parameters, statistics = (sum(leaf.size for leaf in jax.tree.leaves(trained.variables[half]))
                            for half in ('params', 'batch_stats'))
  what = f'{parameters:,} parameters; {trained.step:,} steps trained “{config.train}”.'
  trimmed = f', without the features whose gamma is below {threshold:g}' if threshold else ''
  held = f'The page holds {size:,} bytes of weights, BatchNorm folded into them{trimmed}.'
  if trains not in (None, parameters):
    what = (f'Of {parameters:,} parameters {trains:,} were trained (“{config.train}”), in'
            f' {trained.step:,} steps. All others are as'
            f' {config.init_from or f"seed {config.seed}"} gave them.')
    held += (f' All that was learned is {4 * trains:,} bytes, and {4 * statistics:,} bytes of'
             ' BatchNorm’s running statistics.')
  return {'title': f'{config.network}, seed {config.seed}', 'what': what, 'bytes': held}


def _example(path: pathlib.Path) -> dict[str, Any]:
  try:
    content = path.expanduser().read_bytes()
    decode.read_header(content)
  except (OSError, decode.BadImage) as error:
    raise UserError(f'{path} cannot be an example ({error}); allowed are JPEG and PNG files. Leave'
                    ' it out, or give another.') from error
  kind = 'image/png' if content[:4] == b'\x89PNG' else 'image/jpeg'
  return {'name': path.name, 'type': kind, 'base64': base64.b64encode(content).decode()}


def export(source: str, output: str, step: int | None = None, data_dir: str = '',
           replicate: int = 0, threshold: float = 0.0, examples: Sequence[str] = ()) -> None:
  """Writes a network as a page.

  Args:
    source, step, data_dir, replicate: as for `loading.open_network`.
    output: the file.
    threshold, examples: as for `html`.

  Raises:
    UserError: as `loading.open_network` and `html`, or the file cannot be written.
  """
  page = html(loading.open_network(source, step, data_dir, replicate), threshold,
              [pathlib.Path(path) for path in examples])
  with network.written(output) as path:
    path.write_text(page, encoding='utf-8')
  size = pathlib.Path(output).expanduser().stat().st_size
  metrics.console.print(f'{output}: {size:,} bytes; open it in a browser')
