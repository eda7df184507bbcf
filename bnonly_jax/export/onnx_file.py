"""A trained network as an ONNX file: from uint8 images to logits, the names of the classes inside.

Its input `images` is uint8 [N, H, W, C], its output `logits` float32 [N, classes]. BatchNorm is
folded into the convolutions, as in `plain`.
"""

import importlib.util
import json
import pathlib
from typing import Any

import jax
import numpy as np

from bnonly_jax.config import UserError
from bnonly_jax.export import compact
from bnonly_jax.export import loading
from bnonly_jax.export import network
from bnonly_jax.export import plain
from bnonly_jax.export.network import Trained
from bnonly_jax.run import metrics

OPSET, IR_VERSION = 17, 8  # of 2022, which current runtimes read, those in browsers too


def model(whole: Trained) -> Any:
  """Returns the ONNX model of a plain network, checked by onnx.

  Args:
    whole: its network is `plain.Plain`.
  """
  import onnx
  from onnx import helper
  from onnx import numpy_helper
  params = whole.variables['params']
  initial, nodes = {}, []

  def constant(name, value):
    initial[name] = np.ascontiguousarray(value)
    return name

  def add(op, inputs, output, **attributes):
    nodes.append(helper.make_node(op, inputs, [output], **attributes))

  _normalise(whole.preparation, add, constant)
  for node in whole.network.nodes:
    {'conv': _conv, 'max_pool': _max_pool, 'dense': _dense}[node['op']](node, params, add, constant)
  shape = ['n', *whole.info.image_shape]
  graph = helper.make_graph(
      nodes, whole.config.network,
      [helper.make_tensor_value_info('images', onnx.TensorProto.UINT8, shape)],
      [helper.make_tensor_value_info('logits', onnx.TensorProto.FLOAT,
                                     ['n', len(whole.info.class_names)])],
      [numpy_helper.from_array(value, name) for name, value in initial.items()])
  made = helper.make_model(graph, producer_name='bnonly_jax', ir_version=IR_VERSION,
                           opset_imports=[helper.make_opsetid('', OPSET)])
  helper.set_model_props(made, {
      'class_names': json.dumps(whole.info.class_names),
      'preprocessing': json.dumps(network.preprocessing(whole))})
  onnx.checker.check_model(made, full_check=True)
  return made


def _value(name):
  """What a node's output is called here: PyTorch's order of axes, normalised."""
  return f'{name}/values'


def _normalise(preparation, add, constant):
  mean, std = (np.asarray(x, np.float64).reshape(1, -1, 1, 1)
               for x in (preparation.mean, preparation.std))
  add('Cast', ['images'], 'images/float', to=1)  # TensorProto.FLOAT
  add('Transpose', ['images/float'], 'images/planes', perm=[0, 3, 1, 2])
  add('Mul', ['images/planes', constant('images/scale', np.float32(1 / (255 * std)))],
      'images/scaled')
  add('Add', ['images/scaled', constant('images/shift', np.float32(-mean / std))],
      _value('images'))


def _conv(node, params, add, constant):
  name = node['name']
  kernel, bias = params[f'{name}/kernel'], params[f'{name}/bias']
  pad, last = (len(kernel) - 1) // 2, f'{name}/convolved'
  inputs = [_value(node['input']), constant(f'{name}/kernel', kernel.transpose(3, 2, 0, 1))]
  if 'rows' not in node:
    inputs.append(constant(f'{name}/bias', bias))
  add('Conv', inputs, last, kernel_shape=kernel.shape[:2], pads=[pad] * 4,
      strides=[node['stride']] * 2)
  if 'rows' in node:  # the map is laid out when the file is loaded
    spread = constant(f'{name}/bias', bias.transpose(2, 0, 1)[None])
    for axis, kinds in ((2, 'rows'), (3, 'columns')):
      index = constant(f'{name}/{kinds}', np.asarray(node[kinds], np.int64))
      add('Gather', [spread, index], f'{name}/bias_{kinds}', axis=axis)
      spread = f'{name}/bias_{kinds}'
    add('Add', [last, spread], f'{name}/biased')
    last = f'{name}/biased'
  if node['residual'] is not None:
    add('Add', [last, _value(node['residual'])], f'{name}/added')
    last = f'{name}/added'
  add('Relu' if node['relu'] else 'Identity', [last], _value(name))


def _max_pool(node, params, add, constant):
  add('MaxPool', [_value(node['input'])], _value(node['name']), kernel_shape=[node['size']] * 2,
      strides=[node['stride']] * 2, pads=[node['padding']] * 4)


def _dense(node, params, add, constant):
  name = node['name']
  add('GlobalAveragePool', [_value(node['input'])], f'{name}/mean')
  add('Flatten', [f'{name}/mean'], f'{name}/flat')
  add('Gemm', [f'{name}/flat', *(constant(f'{name}/{leaf}', params[f'{name}/{leaf}'])
                                 for leaf in ('kernel', 'bias'))], 'logits')


def largest_error(path: str | pathlib.Path, trained: Trained) -> tuple[float, float]:
  """Compares ONNX Runtime's logits of 8 random images with the network's.

  Returns:
    The largest difference, and the largest logit.
  """
  import onnxruntime
  images = np.random.default_rng(0).integers(0, 256, (8, *trained.info.image_shape), np.uint8)
  session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
  theirs, = session.run(['logits'], {'images': images})
  ours = np.asarray(jax.jit(network.classifier(trained))(trained.variables, images))
  return float(np.abs(theirs - ours).max()), float(np.abs(ours).max())


def export(source: str, output: str, step: int | None = None, data_dir: str = '',
           replicate: int = 0, threshold: float | None = None) -> None:
  """Writes a network as ONNX and compares it with ONNX Runtime's logits.

  Args:
    source, step, data_dir, replicate: as for `loading.open_network`.
    output: the file.
    threshold: of `compact.compact`; None: the whole network.

  Raises:
    UserError: as `loading.open_network` and `compact.compact`; onnx or onnxruntime is missing;
      the file cannot be written.
  """
  missing = [name for name in ('onnx', 'onnxruntime') if importlib.util.find_spec(name) is None]
  if missing:
    raise UserError(f"onnx needs {' and '.join(missing)}: pip install -e '.[onnx]'.")
  import onnx
  trained, backend = loading.open_network(source, step, data_dir, replicate), jax.default_backend()
  if threshold is None:
    nodes, tensors = plain.fold(trained)
    tensors = {name: np.float32(value) for name, value in tensors.items()}
    small = trained._replace(network=plain.Plain(nodes, backend), variables={'params': tensors})
  else:
    small = compact.compact(trained, threshold, backend)
  with network.written(output) as path:
    onnx.save(model(small), path)
    # Of the network itself where nothing is taken out.
    error, largest = largest_error(path, trained if threshold is None else small)
    size = path.stat().st_size
  metrics.console.print(f'{output}: {size:,} bytes, opset {OPSET}; logits of 8 random images (up to'
                        f' {largest:.3g}) differ by at most {error:.2g} in ONNX Runtime')
