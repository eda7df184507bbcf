import conftest
from etils import epath
import jax
import numpy as np
from orbax.checkpoint import v1 as ocp
from orbax.checkpoint._src.path import atomicity
from orbax.checkpoint._src.path import atomicity_defaults
import pytest

from bnonly_jax import masks
from bnonly_jax.config import UserError
from bnonly_jax.run import checkpoint

PENDING = [{'loss': float(np.float32(0.1)), 'accuracy': 0.5}]


def saved(workdir, setup, number_of_steps=1):
  state, _, _ = setup.run(1)
  with checkpoint.open_checkpointer(workdir, 2) as checkpointer:
    for step in range(1, number_of_steps + 1):
      assert checkpoint.save(checkpointer, step, state, PENDING)
  checkpoint.keep(workdir / 'frozen', setup.frozen)
  return state


@pytest.mark.parametrize('selection, chosen', [
    ('batchnorm', 0), ('all', 0), ('nothing', 0), ('output', 7)])
def test_what_is_saved_comes_back_bit_for_bit(tmp_path, selection, chosen):
  setup = conftest.make_setup(selection, chosen=chosen)
  state = saved(tmp_path, setup)
  restored, pending, damage = checkpoint.restore(tmp_path, setup.state)
  assert pending == PENDING and damage == []
  zeros = jax.tree.map(np.zeros_like, setup.frozen)
  frozen = checkpoint.keep(tmp_path / 'frozen', zeros)
  for have, want in ((restored, state), (frozen, setup.frozen)):
    assert jax.tree.structure(have) == jax.tree.structure(want)
    for a, b in zip(jax.tree.leaves(have), jax.tree.leaves(want), strict=True):
      assert a.dtype == b.dtype
      np.testing.assert_array_equal(a, b)


def test_only_the_newest_are_kept_and_each_holds_the_state_only(tmp_path):
  setup = conftest.make_setup('batchnorm')
  saved(tmp_path, setup, 4)
  assert sorted(p.name for p in (tmp_path / 'checkpoints').iterdir()) == ['3', '4']
  names = checkpoint._shapes(ocp.metadata(tmp_path / 'checkpoints/4').metadata)
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
    checkpoint.restore(tmp_path, second.state)
  for setup, where in ((first, 'there'), (second, 'here')):
    tensors, numbers = count(setup.state)
    assert f'{tensors} tensors with {numbers:,} numbers {where}' in str(error.value)
  # By name, the first of those that differ: alphabetically the optimizer's.
  assert 'inner_state/1/0/trace/' in str(error.value)
  with pytest.raises(UserError, match='frozen holds another selection or network'):
    checkpoint.keep(tmp_path / 'frozen', masks.partition(
        second.variables['params'], masks.make_mask('gamma', PARAMETERS))[0])


PARAMETERS = conftest.make_setup('batchnorm').experiment.parameters


def test_checkpoints_of_a_regular_kind_stay(tmp_path):
  setup = conftest.make_setup('batchnorm')
  with checkpoint.open_checkpointer(tmp_path, 1, keep_every=3) as checkpointer:
    for step in range(1, 9):
      checkpoint.save(checkpointer, step, setup.state)
  assert sorted(p.name for p in (tmp_path / 'checkpoints').iterdir()) == ['3', '6', '8']


def test_a_state_that_is_not_finite_is_not_saved(tmp_path):
  setup = conftest.make_setup('batchnorm')
  leaves, tree = jax.tree.flatten(setup.state)
  leaves[3] = leaves[3] + np.float32(np.nan)
  with checkpoint.open_checkpointer(tmp_path, 2) as checkpointer:
    assert not checkpoint.save(checkpointer, 1, jax.tree.unflatten(tree, leaves))
  assert checkpoint.restore(tmp_path, setup.state) == (None, [], [])


def data_files(folder):
  """The files with the numbers: Orbax has the same twice."""
  return [p for p in folder.rglob('d/*') if p.is_file()]


def flip(folder):
  for path in data_files(folder):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


def flip_pending(folder):
  path = folder / '_CHECKPOINT_METADATA'
  path.write_text(path.read_text().replace('"accuracy": 0.5', '"accuracy": 0.6'))


DAMAGE = {
    'flipped': flip,
    'cut short': lambda p: [q.write_bytes(q.read_bytes()[:-20]) for q in data_files(p)],
    'empty files': lambda p: [q.write_bytes(b'') for q in data_files(p)],
    'files gone': lambda p: [q.unlink() for q in data_files(p)],
    'empty folder': lambda p: [q.unlink() for q in p.rglob('*') if q.is_file()],
    'other metrics': flip_pending,
    'no metadata': lambda p: (p / '_CHECKPOINT_METADATA').write_bytes(b''),
}


@pytest.mark.parametrize('kind', DAMAGE)
def test_a_damaged_checkpoint_is_told_and_the_one_before_is_used(tmp_path, kind):
  setup = conftest.make_setup('batchnorm')
  state = saved(tmp_path, setup, 3)
  DAMAGE[kind](tmp_path / 'checkpoints/3')
  restored, pending, damage = checkpoint.restore(tmp_path, setup.state)
  assert len(damage) == 1 and damage[0].startswith('the checkpoint of step 3 is damaged (')
  assert pending == PENDING
  for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
    np.testing.assert_array_equal(a, b)
  assert (tmp_path / 'damaged/3').is_dir()
  # The step can be saved again.
  with checkpoint.open_checkpointer(tmp_path, 2) as checkpointer:
    checkpoint.save(checkpointer, 3, state)
  assert checkpoint.restore(tmp_path, setup.state)[2] == []


def test_all_checkpoints_damaged_means_from_the_start(tmp_path):
  setup = conftest.make_setup('batchnorm')
  saved(tmp_path, setup, 2)
  for step in ('1', '2'):
    flip(tmp_path / 'checkpoints' / step)
  restored, pending, damage = checkpoint.restore(tmp_path, setup.state)
  assert restored is None and pending == [] and len(damage) == 2


@pytest.mark.parametrize('damage', ['flipped', 'empty files', 'no metadata'])
def test_a_damaged_frozen_half_is_refused(tmp_path, damage):
  setup = conftest.make_setup('batchnorm')
  checkpoint.keep(tmp_path / 'frozen', setup.frozen)
  checkpoint.keep(tmp_path / 'frozen', setup.frozen)
  DAMAGE[damage](tmp_path / 'frozen')
  with pytest.raises(UserError, match=r'frozen is damaged.*Move .*/frozen away'):
    checkpoint.keep(tmp_path / 'frozen', setup.frozen)


def test_a_frozen_half_that_is_missing_is_told(tmp_path):
  with pytest.raises(UserError, match='frozen is missing, and the run cannot be read without it'):
    checkpoint.read_kept(tmp_path / 'frozen')


def test_a_changed_frozen_tensor_is_named(tmp_path):
  setup = conftest.make_setup('batchnorm')
  checkpoint.keep(tmp_path / 'frozen', setup.frozen)
  path = tmp_path / 'frozen/_CHECKPOINT_METADATA'
  digest = checkpoint._digests(setup.frozen)['stem_conv/kernel']
  text = path.read_text()
  assert digest in text
  path.write_text(text.replace(digest, '0' * 64))
  with pytest.raises(UserError, match='frozen is damaged: stem_conv/kernel changed'):
    checkpoint.keep(tmp_path / 'frozen', setup.frozen)


@pytest.fixture
def bucket(monkeypatch):
  """Makes Orbax write as it does to a bucket: in place, and at the end a file that says so."""
  in_place = atomicity.CommitFileTemporaryPath
  for name in ('get_default_temporary_path_class', 'get_item_default_temporary_path_class'):
    monkeypatch.setattr(atomicity_defaults, name, lambda *_, **__: in_place)
  return in_place


def test_in_a_bucket_what_was_cut_off_is_no_checkpoint(tmp_path, bucket, monkeypatch):
  setup = conftest.make_setup('batchnorm')
  state = saved(tmp_path, setup, 2)
  (tmp_path / 'checkpoints/2/commit_success.txt').unlink()
  assert checkpoint.kept(tmp_path) == [1]
  restored, _, damage = checkpoint.restore(tmp_path, setup.state)
  assert restored is not None and damage == [] and not (tmp_path / 'damaged').exists()
  with checkpoint.open_checkpointer(tmp_path, 2) as checkpointer:
    checkpoint.save(checkpointer, 2, state)
  assert checkpoint.kept(tmp_path) == [1, 2]


def test_in_a_bucket_a_frozen_half_that_was_cut_off_is_written_again(tmp_path, bucket, monkeypatch):
  setup = conftest.make_setup('batchnorm')

  async def killed(*_):
    raise conftest.Killed

  with monkeypatch.context() as patch, pytest.raises(conftest.Killed):
    patch.setattr(bucket, 'finalize', killed)
    checkpoint.keep(epath.Path(tmp_path) / 'frozen', setup.frozen)
  assert list((tmp_path / 'frozen').iterdir())
  checkpoint.keep(epath.Path(tmp_path) / 'frozen', setup.frozen)
  zeros = jax.tree.map(np.zeros_like, setup.frozen)
  kept = checkpoint.keep(epath.Path(tmp_path) / 'frozen', zeros)
  for a, b in zip(jax.tree.leaves(kept), jax.tree.leaves(setup.frozen), strict=True):
    np.testing.assert_array_equal(a, b)
