"""Sums of blocks combine to those of the whole, whatever the order, the scale, and where nothing is visible."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sct_jax.diffusion import online_softmax

RNG = np.random.default_rng(0)
summarise, finish = jax.jit(online_softmax.summarise), jax.jit(online_softmax.finish)
absorb = jax.jit(lambda seen, *block: online_softmax.merge(seen, online_softmax.summarise(*block)))
ROWS = RNG.normal(size=(24, 5)).astype(np.float32)


def dense(log_weights, rows):
    """Mean, 1/Σ w² and entropy in float64."""
    log_weights = np.asarray(log_weights, np.float64)
    w = np.exp(log_weights - log_weights.max(1, keepdims=True))
    w /= w.sum(1, keepdims=True)
    return w @ rows.astype(np.float64), 1 / (w**2).sum(1), -(w * np.log(np.where(w > 0, w, 1))).sum(1)


def finish_blocks(log_weights, edges):
    partial = online_softmax.empty(len(log_weights), ROWS.shape[1])
    for low, high in edges:
        partial = absorb(partial, log_weights[:, low:high], ROWS[low:high])
    return finish(partial)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0, 1e4])
@pytest.mark.parametrize("edges", [[(0, 24)], [(0, 8), (8, 16), (16, 24)], [(8, 24), (0, 8)]])
def test_blocks_in_any_order_are_the_whole(scale, edges):
    log_weights = np.float32(scale * RNG.normal(size=(6, 24)) - 50 * scale)
    for got, expected in zip(finish_blocks(log_weights, edges), dense(log_weights, ROWS), strict=True):
        np.testing.assert_allclose(got, expected, rtol=2e-5, atol=2e-6)


def test_a_block_in_which_nothing_is_visible_changes_nothing_to_the_last_bit():
    log_weights = np.float32(RNG.normal(size=(6, 24)))
    hidden = log_weights.copy()
    hidden[:3, :8], hidden[3:, 16:] = -np.inf, -np.inf  # the first block for some queries, the last for others
    got = finish_blocks(hidden, [(0, 8), (8, 16), (16, 24)])
    for rows, edges in ((slice(0, 3), [(8, 16), (16, 24)]), (slice(3, 6), [(0, 8), (8, 16)])):
        for one, other in zip(got, finish_blocks(hidden, edges), strict=True):
            np.testing.assert_array_equal(one[rows], other[rows])


def test_a_query_that_saw_nothing_is_nan_and_its_neighbours_are_not():
    log_weights = np.zeros((6, 24), np.float32)
    log_weights[1] = -np.inf
    for got in finish_blocks(log_weights, [(0, 8), (8, 16)]):
        assert np.isnan(got[1]).all()
        assert np.isfinite(np.delete(got, 1, axis=0)).all()


def test_a_nan_is_not_lost():
    log_weights = np.zeros((6, 24), np.float32)
    log_weights[:, 3] = np.nan
    for got in finish_blocks(log_weights, [(0, 8), (8, 16)]):
        assert np.isnan(got).all()


def test_rows_of_each_query_are_weighed_by_its_own_weights():
    rows, log_weights = RNG.normal(size=(3, 7, 5)).astype(np.float32), RNG.normal(size=(3, 7)).astype(np.float32)
    mean, *_ = finish(summarise(log_weights, rows))
    for query in range(3):
        expected, *_ = dense(log_weights[query : query + 1], rows[query])
        np.testing.assert_allclose(mean[query], expected[0], atol=1e-6)


@pytest.mark.parametrize(("total", "count"), [(1, 1), (10, 3), (12, 4), (9, 8)])
def test_every_row_is_fresh_exactly_once(total, count):
    """With log-weight 0 everywhere the mass is the number of rows and the total their sum."""
    rows = np.arange(total, dtype=np.float32)[:, None] ** 2

    def add(start, fresh, seen):
        block = jax.lax.dynamic_slice_in_dim(rows, start, count)
        return absorb(seen, jnp.where(fresh, 0.0, -jnp.inf)[None], block)

    found = jax.jit(lambda: online_softmax.over_blocks(add, total, count, online_softmax.empty(1, 1)))()
    assert float(found.mass[0]) == total
    assert float(found.total[0, 0]) == rows.sum()
