"""What a compiled program does, read from its text: which operations run, how often, for what.

The text is what `jax.stages.Compiled.as_text` gives. A computation is a list of lines `%name =
shape opcode(%operand, ...), attributes`; fusions, loops, calls and conditionals name others.
"""

from collections.abc import Iterator
from collections.abc import Sequence
import math
import re
from typing import NamedTuple

STAGES = ('images', 'forward', 'backward', 'all-reduce', 'optimizer', 'rest')

_BYTES = {'pred': 1, 's8': 1, 'u8': 1, 's16': 2, 'u16': 2, 'bf16': 2, 'f16': 2, 's32': 4, 'u32': 4,
          'f32': 4, 's64': 8, 'u64': 8, 'f64': 8}
# What only names, groups or awaits values.
FREE = ('parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'after-all',
         'partition-id', 'replica-id', 'opt-barrier')
_SLICES = ('slice', 'dynamic-slice', 'gather')


class Operation(NamedTuple):
  """A line of a computation.

  Attributes:
    name: of its result.
    shape: of its result, as text: 'bf16[128,32]{1,0}', or several in brackets.
    opcode: such as fusion.
    operands: names.
    attributes: all that follows on the line.
  """
  name: str
  shape: str
  opcode: str
  operands: tuple[str, ...]
  attributes: str

  @property
  def scope(self) -> str:
    """Where in the Python program it comes from; '' if the compiler does not say."""
    found = re.search(r'op_name="([^"]*)"', self.attributes)
    return found[1] if found else ''

  @property
  def cycles(self) -> int | None:
    """A TPU's, by the compiler's estimate for one run of it; None: it has none."""
    found = re.search(r'"estimated_cycles":"(\d+)"', self.attributes)
    return int(found[1]) if found else None

  def called(self, *roles: str) -> list[str]:
    """Returns the computations that it names in any of these roles, such as body."""
    found = re.findall(rf'\b(?:{"|".join(roles)})=(\{{[^}}]*\}}|%?[\w.\-]+)', self.attributes)
    return [name for text in found for name in re.findall(r'[\w.\-]+', text)]


class Program(NamedTuple):
  """A program's computations by name, each a tuple of operations, and the name of the first."""
  computations: dict[str, tuple[Operation, ...]]
  entry: str


class Run(NamedTuple):
  """An operation, how often it runs, and the computation that it stands in."""
  operation: Operation
  times: int
  place: str


def parse(text: str) -> Program:
  """Reads a program's text."""
  computations, lines, entry = {}, None, ''
  for line in text.splitlines():
    head = re.match(r'(ENTRY )?%?([\w.\-]+) \(.*\{$', line)
    if head:
      lines = computations[head[2]] = []
      entry = head[2] if head[1] else entry
    elif line.startswith('}'):
      lines = None
    elif lines is not None:
      found = re.match(r'\s*(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$', line)
      if found:
        name, shape, opcode, rest = found.groups()
        operands, _, attributes = rest.partition(')' if rest.startswith(')') else '), ')
        if opcode in ('parameter', 'constant'):
          attributes = rest
        lines.append(Operation(name, shape, opcode, tuple(re.findall(r'%([\w.\-]+)', operands)),
                               attributes))
  return Program({name: tuple(found) for name, found in computations.items()}, entry)


def runs(program: Program, place: str = '', times: int = 1) -> Iterator[Run]:
  """Yields what runs from a computation on: loops as often as they turn, calls, conditionals.

  Of a conditional it is the branch with the most cycles, or the most operations.

  Args:
    program: the whole.
    place: the computation; '' is the first.
    times: how often it runs.
  """
  place = place or program.entry
  for operation in program.computations[place]:
    opcode = operation.opcode
    if opcode == 'while':
      yield from runs(program, operation.called('body')[0], times * _turns(program, operation))
    elif opcode == 'conditional':
      branches = [list(runs(program, name, times)) for name in operation.called(
          'branch_computations', 'true_computation', 'false_computation')]
      yield from max(branches, key=lambda found: (
          sum((run.operation.cycles or 0) * run.times for run in found), len(found)), default=[])
    elif opcode in ('call', 'async-start'):
      for name in operation.called('to_apply', 'calls', 'called_computations'):
        yield from runs(program, name, times)
    elif opcode not in FREE and not opcode.endswith(('-done', '-update')):
      yield Run(operation, times, place)


def _turns(program, loop):
  """How often a loop turns: as the compiler says, or else the bound that its condition has."""
  known = re.search(r'known_trip_count":\{"n":"(\d+)"', loop.attributes)
  if known:
    return int(known[1])
  bounds = [int(number[1]) for name in loop.called('condition')
            for operation in program.computations[name] if operation.opcode == 'constant'
            and (number := re.match(r'(\d+)\)', operation.attributes))]
  return max(bounds, default=1)


def stage(operation: Operation, trains: bool = True) -> str:
  """Returns which of STAGES an operation belongs to; a fusion goes where its result goes.

  Args:
    operation: of a step.
    trains: whether JAX's autodiff has made a part of it, which calls the forward pass jvp and the
      backward pass transpose(jvp).
  """
  scope = operation.scope
  if operation.opcode.startswith('all-reduce'):
    return 'all-reduce'
  named = re.search(r'(?:^|[/(])(images|optimizer)[/)]', scope)
  if named:
    return named[1]
  if 'transpose(' in scope:
    return 'backward'
  return 'forward' if 'jvp(' in scope or scope and not trains else 'rest'


def size(shape: str) -> int:
  """Returns the bytes of a shape, given as text; of several together."""
  return sum(_BYTES.get(kind, 0) * math.prod(int(n) for n in dims.split(',') if n)
             for kind, dims in re.findall(r'(\w+)\[([\d,]*)\]', shape))


def largest(shape: str) -> str:
  """Returns the largest of the arrays of a shape, as text without its layout."""
  return max(re.findall(r'\w+\[[\d,]*\]', shape), key=size, default=shape)


def reduced(found: Sequence[Run], program: Program) -> tuple[int, int]:
  """Returns how many all-reduces run, and how many bytes each device puts into them."""
  calls = [run for run in found if run.operation.opcode.startswith('all-reduce')]
  shapes = {run.place: _shapes(program, run.place) for run in calls}
  return (sum(run.times for run in calls),
          sum(run.times * size(shapes[run.place].get(name, '')) for run in calls
              for name in run.operation.operands))


def convolutions(found: Sequence[Run], program: Program) -> int:
  """Returns how many convolutions run: alone, in fusions, or by oneDNN or cuDNN."""
  def number(operation):
    if operation.opcode == 'custom-call':
      return int('$conv' in operation.attributes.split('custom_call_target="')[-1].split('"')[0])
    inner = (line for name in operation.called('calls') for line in program.computations[name])
    return int(operation.opcode == 'convolution') + sum(map(number, inner))

  return sum(run.times * number(run.operation) for run in found)


def kernel(operation: Operation) -> str:
  """Returns what kind of kernel an operation is on a GPU: a library's, or as XLA names fusions."""
  target = re.search(r'custom_call_target="([^"]*)"', operation.attributes)
  return target[1] if target else re.sub(r'[.\d]+$', '', operation.name)


def moved(run: Run, program: Program) -> int:
  """Returns the bytes that one run of an operation reads and writes, each array once.

  What it only takes a slice of, or writes a slice into, counts as the slice.
  """
  operation, shapes = run.operation, _shapes(program, run.place)
  total = size(operation.shape)
  inner = operation.called('calls') if operation.opcode == 'fusion' else []
  if not inner:
    return total + sum(size(shapes.get(name, '')) for name in operation.operands)
  body = program.computations[inner[0]]
  inside = _shapes(program, inner[0])
  numbers = {int(found[1]): line.name for line in body if line.opcode == 'parameter'
             and (found := re.match(r'(\d+)\)', line.attributes))}
  for number, name in enumerate(operation.operands):
    whole = size(shapes.get(name, ''))
    users = [line for line in body if numbers.get(number) in line.operands]
    sliced = [line for line in users if line.operands[0] == numbers[number]
              and numbers[number] not in line.operands[1:]]
    if users and len(sliced) == len(users) and all(
        line.opcode in (*_SLICES, 'dynamic-update-slice') for line in users):
      parts = [size(inside[line.operands[1]] if line.opcode == 'dynamic-update-slice'
                    else line.shape) for line in users]
      if any(line.opcode == 'dynamic-update-slice' for line in users):
        total -= whole  # the result is the same array, of which only the slice is written
        total += sum(parts)
        continue
      whole = min(whole, sum(parts))
    total += whole
  return total


def _shapes(program, place):
  return {operation.name: operation.shape for operation in program.computations[place]}
