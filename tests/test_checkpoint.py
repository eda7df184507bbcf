import conftest
import jax
import numpy as np
import pytest

from bnonly_jax import checkpoint
from bnonly_jax import masks
from bnonly_jax.config import UserError


def saved(workdir, setup, number_of_steps=1):
  state, _, _ = setup.run(1, devices=1)
  with_checkpoints = checkpoint.open_checkpointer(workdir, 2)
  for step in range(1, number_of_steps + 1):
    checkpoint.save(with_checkpoints, step, state)
  checkpoint.keep_frozen(workdir, setup.frozen)
  with_checkpoints.close()
  return state


@pytest.mark.parametrize('selection, chosen', [
    ('batchnorm', 0), ('all', 0), ('nothing', 0), ('output', 7)])
def test_what_is_saved_comes_back_bit_for_bit(tmp_path, selection, chosen):
  setup = conftest.make_setup(selection, chosen=chosen)
  state = saved(tmp_path, setup)
  checkpointer = checkpoint.open_checkpointer(tmp_path, 2)
  assert checkpoint.latest_step(checkpointer) == 1
  restored = checkpoint.restore(checkpointer, setup.state)
  zeros = jax.tree.map(np.zeros_like, setup.frozen)
  frozen = checkpoint.keep_frozen(tmp_path, zeros)
  for have, want in ((restored, state), (frozen, setup.frozen)):
    assert jax.tree.structure(have) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(have), jax.tree.leaves(want), strict=True):
      assert a.dtype == b.dtype
      np.testing.assert_array_equal(a, b)


def test_only_the_newest_are_kept_and_each_holds_the_state_only(tmp_path):
  setup = conftest.make_setup('batchnorm')
  saved(tmp_path, setup, 4)
  assert sorted(p.name for p in (tmp_path / 'checkpoints').iterdir()) == ['3', '4']
  checkpointer = checkpoint.open_checkpointer(tmp_path, 2)
  names = checkpoint._shapes(checkpointer.metadata().metadata)
  assert names == checkpoint._shapes(setup.state)
  assert not any('conv' in name or 'output' in name for name in names)
  size = sum(p.stat().st_size for p in (tmp_path / 'checkpoints' / '4').rglob('*') if p.is_file())
  params = sum(np.size(leaf) for leaf in jax.tree.leaves(setup.variables['params']))
  assert size < 4 * params / 2


@pytest.mark.parametrize('there, here', [('batchnorm', 'output'), ('output', 'all')])
def test_another_selection_is_refused_with_names_and_counts_of_both(tmp_path, there, here):
  first, second = conftest.make_setup(there), conftest.make_setup(here)
  saved(tmp_path, first)
  count = lambda tree: (len(jax.tree.leaves(tree)),
                        sum(np.size(leaf) for leaf in jax.tree.leaves(tree)))
  with pytest.raises(UserError) as error:
    checkpoint.restore(checkpoint.open_checkpointer(tmp_path, 2), second.state)
  for setup, where in ((first, 'there'), (second, 'here')):
    tensors, numbers = count(setup.state)
    assert f'{tensors} tensors with {numbers:,} numbers {where}' in str(error.value)
  # By name, the first of those that differ: alphabetically the optimizer's.
  assert 'inner_state/1/0/trace/' in str(error.value)
  with pytest.raises(UserError, match='frozen holds another selection or network'):
    checkpoint.keep_frozen(tmp_path, masks.partition(second.variables['params'],
                                                     masks.make_mask('gamma', PARAMS))[0])


PARAMS = conftest.make_setup('batchnorm').variables['params']
