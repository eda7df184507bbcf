"""What is known of each parameter of a network: seen from the modules that own them, as they run.

No name tells that `x/scale` is a norm's. The module that owns it does: `nn.intercept_methods` shows
every module of a network while its shapes are worked out, also within nn.scan and nn.remat.
"""

from typing import Any
from typing import NamedTuple

import flax.linen as nn
import flax.traverse_util
import jax
import numpy as np

from bnonly_jax.models import attention
from bnonly_jax.models import layers

# The kinds of norms, as `norm:KIND` chooses them. A class of one's own says `is_norm = True`, or
# one of these kinds.
NORM_KINDS = {'batch': nn.BatchNorm, 'layer': nn.LayerNorm, 'group': nn.GroupNorm,
              'rms': nn.RMSNorm, 'instance': nn.InstanceNorm}
_CONVS = (nn.Conv, nn.ConvTranspose, nn.ConvLocal, layers.Conv)
_DENSE = (nn.Dense, nn.DenseGeneral, nn.Einsum, layers.Output)
# What a norm may call its gamma and its beta.
SCALES, BIASES = ('scale', 'gamma', 'weight'), ('bias', 'beta')


class Parameter(NamedTuple):
  """What is known of a parameter, which may be a stack of those of equal blocks.

  Attributes:
    group: gamma, beta, shortcut, conv, dense, attention, embedding, output or other.
    norm: of a norm's, which kind: a key of NORM_KINDS, or 'own'; else ''.
    shape: of one of the stack; of what is no stack, the parameter's.
    stack: the axes of blocks before it; () of what is no stack.
    names: that of each of the stack, in its order, as plots and selections say it.
    order: for each of these, what sorts it as the network applies its modules.
    fan_in: how many inputs each output of a convolution or dense layer sums up, of its kernel and
      of its bias; 0 of all else, and where that is not known.
    lifts: the modules over whose equals the stack runs, one for each of its axes.
  """
  group: str
  norm: str
  shape: tuple[int, ...]
  stack: tuple[int, ...]
  names: tuple[str, ...]
  order: tuple[tuple[int, ...], ...]
  fan_in: int
  lifts: tuple[str, ...]

  @property
  def whole_shape(self) -> tuple[int, ...]:
    """That of the whole stack."""
    return (*self.stack, *self.shape)


class _Seen(NamedTuple):
  """What the calls of a network's modules have shown."""
  starts: dict[tuple[str, ...], int]  # when a module was first called, by its path
  owners: dict[str, nn.Module]  # by the parameter's name
  shapes: dict[str, dict[tuple[str, ...], tuple[int, ...]]]  # by name, as each module sees it
  attention: set[tuple[str, ...]]


def look(network: nn.Module, *inputs: Any, **named: Any
         ) -> tuple[dict[str, Any], dict[str, Parameter]]:
  """Works out a network's variables and what is known of its parameters; nothing is computed.

  Args:
    network: any Linen module.
    *inputs: what it is called with, arrays or their shapes.
    **named: likewise, by name, as they are: train=False.

  Returns:
    The variables, jax.ShapeDtypeStruct as leaves, and a `Parameter` for each parameter by name, its
    path joined by slashes.
  """
  seen = _Seen({}, {}, {}, set())

  def watch(call, arguments, keywords, context):
    module = context.module
    path = module.path if module.scope is not None else ()
    seen.starts.setdefault(path, len(seen.starts))
    result = call(*arguments, **keywords)
    if module.scope is not None:
      _note(seen, module, path)
    return result

  def init(key, *inputs):
    return nn.meta.unbox(network.init(key, *inputs, **named))

  with nn.intercept_methods(watch):
    variables = jax.eval_shape(init, jax.eval_shape(lambda: jax.random.key(0)), *inputs)
  return variables, _known(seen, flatten(variables.get('params', {})))


def flatten(tree: Any) -> dict[str, Any]:
  """Returns the leaves of nested dicts by name, the path joined by slashes."""
  return flax.traverse_util.flatten_dict(tree, sep='/')


def _note(seen, module, path):
  """Notes the parameters below a module after a call of it; the deepest one owns them."""
  if getattr(module, 'is_attention', isinstance(module, nn.MultiHeadDotProductAttention)):
    seen.attention.add(path)
  for name, leaf in flatten(nn.meta.unbox(module.variables.get('params', {}))).items():
    name = '/'.join((*path, name))
    seen.owners.setdefault(name, module)
    seen.shapes.setdefault(name, {}).setdefault(path, np.shape(leaf))


def _known(seen, leaves):
  parameters = {}
  for name, leaf in leaves.items():
    owner = seen.owners[name]
    lifts, shape = _lifts(seen.shapes[name], leaf.shape)
    stack = leaf.shape[:len(lifts)]
    paths = tuple('/'.join(path) for path in lifts)
    start = seen.starts[owner.path]
    order = tuple(
        (*(n for lift, i in zip(lifts, index, strict=True) for n in (seen.starts[lift], i)), start)
        for index in np.ndindex(*stack))
    norm = norm_kind(owner)
    group = _group(owner, norm, name)
    if group in ('conv', 'dense', 'other') and any(
        owner.path[:len(path)] == path for path in seen.attention):
      group = 'attention'
    parameters[name] = Parameter(
        group, norm if group in ('gamma', 'beta') else '', shape, stack,
        tuple(layers.unstacked_names(name, paths, stack, leaves)), order,
        _fan_in(owner, name, seen.shapes), paths)
  return _with_output(parameters, seen)


def _lifts(seen, shape):
  """The modules over which a parameter is stacked, outermost first, and the shape of one of it.

  Within a scan its modules see one block's parameter; outside, one more axis is there.
  """
  lifts = []
  for path in sorted(seen, key=len):
    if len(seen[path]) < len(shape) - len(lifts) and shape[len(lifts) + 1:] == seen[path]:
      lifts.append(path)
  return lifts, shape[len(lifts):]


def norm_kind(module: Any) -> str:
  """Returns which kind of norm a module is, 'own' for another class that says so; '' for none."""
  said = getattr(module, 'is_norm', False)
  if said:
    return said if said in NORM_KINDS else 'own'
  return next((kind for kind, cls in NORM_KINDS.items() if isinstance(module, cls)), '')


def _group(owner, norm, name):
  leaf = name.rpartition('/')[2]
  if norm:
    return 'gamma' if leaf in SCALES else 'beta' if leaf in BIASES else 'other'
  if isinstance(owner, _CONVS):
    return 'shortcut' if (owner.name or '').startswith('shortcut') else 'conv'
  if isinstance(owner, _DENSE):
    return 'dense'
  return 'embedding' if isinstance(owner, nn.Embed) else 'other'


def _fan_in(owner, name, shapes):
  """The inputs of each output of a kernel, or of the kernel beside a bias; 0: not known."""
  module, _, leaf = name.rpartition('/')
  kernel = shapes.get(f'{module}/kernel' if module else 'kernel', {}).get(owner.path)
  if leaf not in ('kernel', 'bias') or kernel is None:
    return 0
  if isinstance(owner, nn.DenseGeneral):
    inputs = 0 if owner.batch_dims else np.size(owner.axis)
  elif isinstance(owner, (nn.Conv, nn.Dense, layers.Conv, layers.Output, attention.ECA,
                          attention.PixelDense)) or (
      isinstance(owner, nn.ConvTranspose) and not owner.transpose_kernel):
    inputs = len(kernel) - 1
  else:
    inputs = 0
  return int(np.prod(kernel[:inputs])) if inputs else 0


def _with_output(parameters, seen):
  """Makes a module `output`, or else the last dense layer, a group of its own."""
  if any(name.startswith('output/') for name in parameters):
    last = {name for name in parameters if name.startswith('output/')}
  else:
    dense = {name: seen.starts[seen.owners[name].path] for name, known in parameters.items()
             if known.group == 'dense' and not known.stack}
    last = {name for name, start in dense.items() if start == max(dense.values())}
  return {name: known._replace(group='output') if name in last and not known.norm else known
          for name, known in parameters.items()}
