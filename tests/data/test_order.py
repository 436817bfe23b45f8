"""The data order: permutations, and a pure function of (seed, step)."""

import numpy as np
import pytest

from sct_jax.data import batch_indices
from sct_jax.data.order import _permutation


def sequence(seed, batch_size, num_examples, num_steps):
    return np.concatenate([batch_indices(seed, step, batch_size, num_examples) for step in range(num_steps)])


@pytest.mark.parametrize("batch_size", [1, 4, 10, 23, 60])
def test_every_epoch_is_a_permutation_whatever_the_batch_size(batch_size):
    order = sequence(3, batch_size, 10, 60 // batch_size + 1)[:60].reshape(6, 10)
    np.testing.assert_array_equal(np.sort(order, axis=1), np.tile(np.arange(10), (6, 1)))


def test_the_sequence_does_not_depend_on_the_batch_size():
    np.testing.assert_array_equal(sequence(3, 7, 10, 10), sequence(3, 35, 10, 2))


def test_epochs_and_seeds_differ():
    orders = [batch_indices(seed, step, 100, 100) for seed in (0, 1, -1) for step in (0, 1)]
    for first in range(len(orders)):
        for second in range(first):
            assert (orders[first] == orders[second]).sum() < 12  # one fixed point is expected between random orders


def test_a_step_is_a_pure_function_of_its_arguments():
    forwards = [batch_indices(5, step, 8, 20) for step in range(30)]
    for step in reversed(range(30)):
        _permutation.cache_clear()
        np.testing.assert_array_equal(batch_indices(5, step, 8, 20), forwards[step])


def test_what_is_returned_is_the_callers_own():
    first = batch_indices(0, 0, 10, 10)
    expected = first.copy()
    first[:] = -1
    np.testing.assert_array_equal(batch_indices(0, 0, 10, 10), expected)


def test_the_order_is_pinned():
    """Runs that resume under a newer numpy must see the same order: these numbers may never change."""
    assert batch_indices(0, 0, 8, 8).tolist() == [0, 2, 1, 5, 4, 3, 6, 7]
    assert batch_indices(7, 1, 8, 8).tolist() == [3, 1, 6, 2, 5, 4, 0, 7]
    assert batch_indices(0, 0, 8, 8).dtype == np.int64


def test_positions_far_into_training_are_uniform():
    order = batch_indices(1, 10**9, 1000, 10)
    np.testing.assert_array_equal(np.bincount(order), 100)


@pytest.mark.parametrize(("step", "batch_size", "num_examples"), [(-1, 4, 4), (0, 0, 4), (0, 4, 0)])
def test_nonsense_is_refused(step, batch_size, num_examples):
    with pytest.raises(ValueError, match="need step >= 0"):
        batch_indices(0, step, batch_size, num_examples)
