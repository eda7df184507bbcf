"""From a selection ('batchnorm+output') to a mask, from a mask to what trains and what is frozen.

A mask is a pytree like the parameters with a bool for each tensor, or a bool array for a tensor of
which only single weights train, or only some of the blocks that it stacks, or a `Span` for a kernel
that trains within a random subspace.
"""

from bnonly_jax.masks.codes import code_kernels
from bnonly_jax.masks.codes import Codes
from bnonly_jax.masks.halves import Chosen
from bnonly_jax.masks.halves import merge
from bnonly_jax.masks.halves import partition
from bnonly_jax.masks.halves import PARTS
from bnonly_jax.masks.halves import tensors_trained
from bnonly_jax.masks.norms import by_name
from bnonly_jax.masks.norms import norms_only
from bnonly_jax.masks.of_config import of_config
from bnonly_jax.masks.selection import make_mask
from bnonly_jax.masks.subspace import Span
from bnonly_jax.masks.subspace import Spanned
from bnonly_jax.masks.subspace import trained_numbers
from bnonly_jax.masks.table import as_json
from bnonly_jax.masks.table import GroupRow
from bnonly_jax.masks.table import table
from bnonly_jax.masks.table import total
from bnonly_jax.models.parameters import flatten

__all__ = ['as_json', 'by_name', 'Chosen', 'code_kernels', 'Codes', 'flatten', 'GroupRow',
           'make_mask', 'merge', 'norms_only', 'of_config', 'partition', 'PARTS', 'Span',
           'Spanned', 'table', 'tensors_trained', 'total', 'trained_numbers']
