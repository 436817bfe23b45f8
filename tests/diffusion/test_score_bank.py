"""The posterior mean over a bank of rows for each query: a dense float64 oracle, blocks, memory, and variance."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import score_oracle as oracle

from sct_jax.diffusion import score
from sct_jax.diffusion.process import to_unit_range

BATCH, SIZE = 36, 35  # blocks of 16 leave a short one
posterior_mean = jax.jit(score.bank_posterior_mean, static_argnames=("block",))


def bank(images, size=SIZE, seed=7):
    """Queries at every time, and for each ``size`` rows drawn from the images."""
    x_0, noise, t = oracle.queries(images)
    return x_0, noise, t, images[np.random.default_rng(seed).integers(0, len(images), (len(t), size))]


def dense(x_0, noise, t, rows):
    """The oracle over the rows as float32 has them, and the own sample."""
    return oracle.dense(x_0, noise, t, np.concatenate([to_unit_range(rows), x_0[:, None]], axis=1))


def assert_agrees(result, expected):
    estimate, size, entropy, distance = expected
    assert oracle.relative(result.estimate, estimate) < 1e-5
    np.testing.assert_allclose(result.effective_sample_size, size, rtol=1e-4)
    np.testing.assert_allclose(result.entropy, entropy, atol=1e-4)
    np.testing.assert_allclose(np.sqrt(result.own_distance), np.sqrt(distance), atol=5e-7)


@pytest.mark.parametrize("kind", ["random", "digits", "near duplicates"])
def test_agrees_with_float64_from_the_smallest_to_the_largest_time(kind):
    images = oracle.random_images(40, channels=1) if kind == "random" else oracle.digits(40)
    if kind == "near duplicates":
        images = oracle.with_near_duplicates(images[:4], 8)
    case = bank(images)
    expected = dense(*case)
    if kind == "near duplicates":
        assert expected[1][case[2] < 0.006].max() > 1.5
    assert_agrees(posterior_mean(*case), expected)


def test_rows_that_come_by_a_call_are_the_rows_of_an_array():
    x_0, noise, t, rows = bank(oracle.digits(40))

    @jax.jit
    def by_call(rows):
        part = lambda start, count: jax.lax.dynamic_slice_in_dim(rows, start, count, axis=1)  # noqa: E731
        give = lambda start, count: to_unit_range(part(start, count))  # noqa: E731
        return score.bank_posterior_mean(x_0, noise, t, give, num_rows=SIZE, block=6)

    assert_agrees(by_call(rows), dense(x_0, noise, t, rows))


@pytest.mark.parametrize("block", [1, 64])
def test_the_blocks_do_not_matter(block):
    case = bank(oracle.digits(40))
    assert_agrees(posterior_mean(*case, block=block), dense(*case))


def test_the_order_of_rows_does_not_matter():
    x_0, noise, t, rows = bank(oracle.digits(40))
    order = np.random.default_rng(0).permutation(SIZE)
    a, b = posterior_mean(x_0, noise, t, rows), posterior_mean(x_0, noise, t, rows[:, order])
    for one, other in zip(a, b, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=1e-6)


def test_with_the_same_rows_for_all_it_is_the_posterior_mean_of_the_batch():
    """Row i of query i's bank left out, since its own sample is added: the batch as seen by every query."""
    images = oracle.random_images(BATCH, channels=1)
    x_0 = np.asarray(to_unit_range(images))
    noise, t = np.random.default_rng(1).normal(size=x_0.shape).astype(np.float32), np.repeat(oracle.TIMES, 4)
    others = np.stack([np.delete(images, index, axis=0) for index in range(BATCH)])
    whole, blocks = jax.jit(score.posterior_mean)(x_0, noise, t, x_0), posterior_mean(x_0, noise, t, others)
    for a, b in zip(whole, blocks, strict=True):
        np.testing.assert_allclose(a, b, rtol=5e-5, atol=1e-5)


def test_where_no_row_is_near_the_own_sample_comes_back_to_the_last_bit():
    images = oracle.random_images(40, channels=1)
    x_0, noise, t = oracle.queries(images[:4])
    far, (*_, rows) = t < 0.2, bank(images[4:])
    result = posterior_mean(x_0, noise, t, rows)
    np.testing.assert_array_equal(result.estimate[far], x_0[far])
    np.testing.assert_array_equal(result.effective_sample_size[far], 1.0)


def test_the_estimate_is_unbiased_and_its_variance_falls_with_the_number_of_rows():
    """Data ±1 with equal odds in one dimension: E[x_0 | x_t] and Var[x_0 | x_t] are known."""
    t, x_t, trials = 1.0, 0.3, 40_000
    rng = np.random.default_rng(0)
    p = 1 / (1 + np.exp(-2 * x_t / t**2))
    mean, variance = 2 * p - 1, 1 - (2 * p - 1) ** 2
    own = np.where(rng.random(trials) < p, 1.0, -1.0).astype(np.float32).reshape(-1, 1, 1, 1)  # x_0 ~ p(x_0 | x_t)
    found = []
    for n in (1, 7):
        rows = np.where(rng.random((trials, n, 1, 1, 1)) < 0.5, 1.0, -1.0).astype(np.float32)
        estimate = np.asarray(posterior_mean(own, (x_t - own) / t, np.full(trials, t, np.float32), rows).estimate)
        assert estimate.mean() == pytest.approx(mean, abs=5 * estimate.std() / np.sqrt(trials))
        found.append(estimate.var())
    assert found[0] < 0.75 * variance
    assert found[1] < 0.5 * found[0]


def test_memory_does_not_grow_with_the_rows():
    batch, shape = 16, (16, 16, 3)
    row_bytes = 4 * batch * 16 * 16 * 3

    def temporaries(size, block):
        x_0, t = jax.ShapeDtypeStruct((batch, *shape), jnp.float32), jax.ShapeDtypeStruct((batch,), jnp.float32)
        store = jax.ShapeDtypeStruct((1000, *shape), jnp.uint8)
        index = jax.ShapeDtypeStruct((batch, size), jnp.int32)

        def estimate(x_0, noise, t, store, index):
            rows = lambda start, count: store[jax.lax.dynamic_slice_in_dim(index, start, count, axis=1)]  # noqa: E731
            return score.bank_posterior_mean(x_0, noise, t, rows, num_rows=size, block=block)

        return jax.jit(estimate).lower(x_0, x_0, t, store, index).compile().memory_analysis().temp_size_in_bytes

    small, large = temporaries(64, 8), temporaries(256, 8)
    assert large < 1.02 * small
    assert large < 4 * 8 * row_bytes  # a few blocks of eight rows, where all would be 256


@pytest.mark.parametrize("change", ["noise", "t", "rows", "num_rows", "none", "count"])
def test_what_does_not_fit_is_refused(change):
    x_0, noise, t, rows = (x[:4] for x in bank(oracle.digits(8)))
    given = {"x_0": x_0, "noise": noise, "t": t, "rows": rows}
    if change in given:
        given[change] = given[change][:3]
    elif change == "num_rows":
        given["rows"] = lambda start, count: rows[:, :count]
    elif change == "none":
        given["rows"] = rows[:, :0]
    else:
        given |= {"rows": lambda start, count: rows[:, : count - 1], "num_rows": SIZE}
    with pytest.raises(ValueError, match=r"must be|needs num_rows >= 1"):
        score.bank_posterior_mean(**given)


def test_no_gradient_flows_through_the_estimate():
    x_0, noise, t, rows = bank(oracle.digits(8))
    both = functools.partial(score.bank_posterior_mean, block=SIZE)
    estimate = lambda x, rows: both(x, noise, t, rows).estimate.sum()  # noqa: E731
    for gradient in jax.jit(jax.grad(estimate, argnums=(0, 1)))(x_0, to_unit_range(rows)):
        assert not gradient.any()
