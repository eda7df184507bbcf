import numpy as np
import pytest

from bnonly_jax.data import batches


def test_an_epoch_takes_every_image_once_but_the_rest():
  epochs = [np.concatenate([batches.train_indices(0, 15 * epoch + i, 1000, 64)
                            for i in range(15)]) for epoch in (0, 1)]
  for indices in epochs:
    assert len(set(indices)) == 15 * 64 and indices.dtype == np.int32
    assert indices.min() >= 0 and indices.max() < 1000
  assert np.any(epochs[0] != epochs[1])


def test_a_batch_depends_on_seed_and_step_alone():
  batch = batches.train_indices(0, 20, 1000, 64)
  for step in (3, 40, 80, 20):
    again = batches.train_indices(0, step, 1000, 64)
  np.testing.assert_array_equal(batch, again)
  assert np.any(batch != batches.train_indices(1, 20, 1000, 64))


def test_the_order_of_an_epoch_is_a_full_shuffle():
  # Where the first batch of 100 comes from, over 50 seeds: every tenth of the set alike. Six
  # standard deviations of a binomial count.
  firsts = np.concatenate([batches.train_indices(seed, 0, 1000, 100) for seed in range(50)])
  counts = np.bincount(firsts // 100, minlength=10)
  assert np.all(abs(counts - 500) < 6 * np.sqrt(5000 * 0.09))


@pytest.mark.parametrize('images, batch_size', [(37, 8), (32, 8), (5, 8), (10_000, 500)])
def test_evaluation_weighs_every_image_once(images, batch_size):
  pairs = batches.eval_indices(images, batch_size)
  assert all(index.shape == weight.shape == (batch_size,) for index, weight in pairs)
  index, weight = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
  np.testing.assert_array_equal(index[weight == 1], np.arange(images))
  assert set(index[weight == 0]) <= {0} and weight.sum() == images


def test_a_subsample_is_chosen_by_the_seed_in_ascending_order():
  part, other = (batches.subsample(200, 50, seed) for seed in (0, 1))
  assert len(part) == 50 and np.all(np.diff(part) > 0) and part[0] >= 0 and part[-1] < 200
  assert np.any(part != other)
  np.testing.assert_array_equal(batches.subsample(200, 200, 0), np.arange(200))


def test_random_labels_replace_their_share_uniformly():
  half, all_of_them = (batches.random_labels(10_000, share, 10, 0) for share in (0.5, 1.0))
  assert np.sum(half >= 0) == 5000 and np.all(all_of_them >= 0)
  counts = np.bincount(all_of_them, minlength=10)
  assert len(counts) == 10 and np.all(abs(counts - 1000) < 6 * np.sqrt(1000 * 0.9))
  # What half replaces, all replaces by the same.
  np.testing.assert_array_equal(half[half >= 0], all_of_them[half >= 0])
  assert np.all(batches.random_labels(10_000, 0.0, 10, 0) == -1)
  assert np.any(all_of_them != batches.random_labels(10_000, 1.0, 10, 1))


def test_processes_share_a_batch_without_overlap():
  batch = batches.train_indices(0, 3, 1000, 64)
  parts = [batches.own_slice(batch, process, 4) for process in range(4)]
  np.testing.assert_array_equal(np.concatenate(parts), batch)
