"""The table of groups: how many parameters there are, and how many of them train."""

from typing import Any
from typing import NamedTuple

import numpy as np

from bnonly_jax.masks.selection import GROUPS
from bnonly_jax.masks.subspace import trained_numbers
from bnonly_jax.models.parameters import flatten
from bnonly_jax.models.parameters import Parameter

# A row also for those of these that a network lacks.
_ALWAYS = ('gamma', 'beta', 'shortcut', 'conv', 'output')


class GroupRow(NamedTuple):
  """A line of the parameter table: sizes of one group."""
  group: str
  tensors: int
  parameters: int
  trained: int

  @property
  def trains(self) -> str:
    """'trains', 'frozen' or, where single weights train, 'in part'."""
    return {0: 'frozen', self.parameters: 'trains'}.get(self.trained, 'in part')


def table(parameters: dict[str, Parameter], mask: dict[str, Any] | None = None) -> list[GroupRow]:
  """Counts tensors, parameters and trained parameters of each group, in the order of GROUPS.

  A stack of equal blocks counts as the tensors that it stacks.

  Args:
    parameters: what is known of them, from `models.look`.
    mask: of the same network; None: nothing trains.
  """
  mask = flatten(mask) if mask else dict.fromkeys(parameters, False)
  rows = []
  for group in GROUPS:
    named = {name: known for name, known in parameters.items() if known.group == group}
    if named or group in _ALWAYS:
      rows.append(GroupRow(
          group,
          sum(len(known.names) for known in named.values()),
          sum(int(np.prod(known.whole_shape)) for known in named.values()),
          sum(sum(trained_numbers(mask[name], known.whole_shape, len(known.names)))
              for name, known in named.items())))
  return rows


def total(rows: list[GroupRow]) -> int:
  """Returns the number of parameters in a table."""
  return sum(row.parameters for row in rows)


def as_json(rows: list[GroupRow]) -> list[dict[str, Any]]:
  """Returns a table as JSON holds it, with each group's share of all parameters."""
  return [{**row._asdict(), 'trains': row.trains, 'share': row.parameters / total(rows)}
          for row in rows]
