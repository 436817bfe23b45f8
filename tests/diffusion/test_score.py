"""The posterior mean: its limits, invariances, variance, and a float64 oracle from t = 0.002 to 80."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sct_jax.diffusion import score

SHAPE = (4, 4, 3)
posterior_mean = jax.jit(score.posterior_mean)


def queries(count, seed=0):
    keys = jax.random.split(jax.random.key(seed), 2)
    return jax.random.uniform(keys[0], (count, *SHAPE), minval=-1.0), jax.random.normal(keys[1], (count, *SHAPE))


def dense_float64(x_0, noise, t, references, mask=None):
    """The definition, in float64: softmax(−‖x_t − x⁽ⁱ⁾‖²/2t²) over all references."""
    x_0, noise, t, references = (np.asarray(a, np.float64) for a in (x_0, noise, t, references))
    x_t = (x_0 + t[:, None, None, None] * noise).reshape(len(x_0), -1)
    rows = references.reshape(len(references), -1)
    log_w = -((x_t[:, None] - rows[None]) ** 2).sum(-1) / (2 * t[:, None] ** 2)
    if mask is not None:
        log_w = np.where(mask, log_w, -np.inf)
    w = np.exp(log_w - log_w.max(1, keepdims=True))
    w /= w.sum(1, keepdims=True)
    return (w @ rows).reshape(x_0.shape), w


@pytest.mark.parametrize("t", [0.002, 0.01, 0.1, 0.5, 2.0, 10.0, 80.0])
def test_agrees_with_float64_even_for_near_duplicates(t):
    x_0, noise = queries(12)
    # References at distances comparable to t, where float32 cancellation would show.
    near = x_0 + 0.5 * t * jax.random.normal(jax.random.key(5), x_0.shape) / np.sqrt(np.prod(SHAPE))
    references = jnp.concatenate([x_0, near, near[::-1]])
    times = jnp.full(12, t, jnp.float32)
    result = posterior_mean(x_0, noise, times, references)
    expected, weights = dense_float64(x_0, noise, times, references)
    scale = np.abs(expected).max()
    assert np.abs(np.asarray(result.estimate) - expected).max() < 1e-5 * scale
    np.testing.assert_allclose(result.effective_sample_size, 1 / (weights**2).sum(1), rtol=1e-3)


def test_one_reference_is_exactly_the_sample():
    x_0, noise = queries(1)
    result = posterior_mean(x_0, noise, jnp.array([3.0]), x_0)
    assert jnp.array_equal(result.estimate, x_0)
    assert float(result.effective_sample_size[0]) == 1.0
    assert float(result.entropy[0]) == 0.0


def test_small_t_gives_the_own_sample_to_the_last_bit_and_large_t_the_mean():
    x_0, noise = queries(16)
    small = posterior_mean(x_0, noise, jnp.full(16, 0.002), x_0)
    assert jnp.array_equal(small.estimate, x_0)
    large = posterior_mean(x_0, noise, jnp.full(16, 1e5), x_0)
    np.testing.assert_allclose(large.estimate, jnp.broadcast_to(x_0.mean(0), x_0.shape), atol=1e-3)
    np.testing.assert_allclose(large.effective_sample_size, 16.0, rtol=1e-3)
    np.testing.assert_allclose(large.entropy, np.log(16), rtol=1e-3)


def test_the_order_of_references_does_not_matter():
    x_0, noise = queries(10)
    t = jnp.linspace(0.5, 5.0, 10)
    order = jax.random.permutation(jax.random.key(9), 10)
    a = posterior_mean(x_0, noise, t, x_0).estimate
    b = posterior_mean(x_0, noise, t, x_0[order]).estimate
    np.testing.assert_allclose(a, b, atol=1e-6)


def test_a_mask_by_class_is_the_same_as_leaving_the_others_out():
    x_0, noise = queries(9)
    t, labels = jnp.full(9, 2.0), jnp.arange(9) % 3
    mask = score.same_class(labels, labels)
    masked = posterior_mean(x_0, noise, t, x_0, mask).estimate
    for label in range(3):
        own = labels == label
        alone = posterior_mean(x_0[own], noise[own], t[own], x_0[own]).estimate
        np.testing.assert_allclose(masked[own], alone, atol=1e-6)


def test_a_query_without_references_is_an_error_and_under_jit_a_nan():
    x_0, noise = queries(3)
    t = jnp.ones(3)
    mask = jnp.array([[True, False, False], [False, False, False], [True, True, True]])
    with pytest.raises(ValueError, match=r"queries \[1\] see no reference"):
        score.posterior_mean(x_0, noise, t, x_0, mask)
    estimate = posterior_mean(x_0, noise, t, x_0, mask).estimate
    assert jnp.isnan(estimate[1]).all()
    assert jnp.isfinite(estimate[jnp.array([0, 2])]).all()


@pytest.mark.parametrize("change", ["noise", "t", "references", "mask"])
def test_shapes_that_do_not_fit_are_refused(change):
    x_0, noise = queries(3)
    given = {"x_0": x_0, "noise": noise, "t": jnp.ones(3), "references": x_0, "mask": jnp.ones((3, 3), bool)}
    given[change] = given[change][:2, ..., :2] if change == "references" else given[change][:2]
    with pytest.raises(ValueError, match="must be"):
        score.posterior_mean(**given)


def test_the_estimate_is_unbiased_and_its_variance_falls_with_the_number_of_references():
    """A two-point data set in one dimension: E[x_0 | x_t] and Var[x_0 | x_t] are known exactly."""
    t, x_t, trials = 1.0, 0.3, 40_000
    rng = np.random.default_rng(0)
    logit = 2 * x_t / t**2  # data ±1 with equal odds
    p = 1 / (1 + np.exp(-logit))
    exact_mean, exact_variance = 2 * p - 1, 1 - (2 * p - 1) ** 2
    variances = []
    for n in (1, 2, 8):
        own = np.where(rng.random(trials) < p, 1.0, -1.0)  # x_0 ~ p(x_0 | x_t)
        others = np.where(rng.random((trials, n - 1)) < 0.5, 1.0, -1.0)
        rows = np.concatenate([own[:, None], others], axis=1)

        def one(own_sample, references):
            x_0 = own_sample.reshape(1, 1, 1, 1)
            noise = (x_t - x_0) / t
            return score.posterior_mean(x_0, noise, jnp.ones(1) * t, references.reshape(-1, 1, 1, 1)).estimate.sum()

        estimates = np.asarray(jax.jit(jax.vmap(one))(jnp.float32(own), jnp.float32(rows)))
        assert estimates.mean() == pytest.approx(exact_mean, abs=5 * estimates.std() / np.sqrt(trials))
        variances.append(estimates.var())
    assert variances[0] == pytest.approx(exact_variance, rel=0.03)  # n = 1 is CT: the variance of the data
    assert variances[1] < 0.75 * variances[0]
    assert variances[2] < 0.5 * variances[1]


def test_no_array_of_queries_times_references_times_pixels_is_made():
    batch, count, pixels = 64, 64, 32 * 32 * 3
    x_0, t = jax.ShapeDtypeStruct((batch, 32, 32, 3), jnp.float32), jax.ShapeDtypeStruct((batch,), jnp.float32)
    references = jax.ShapeDtypeStruct((count, 32, 32, 3), jnp.float32)
    compiled = posterior_mean.lower(x_0, x_0, t, references).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 0.1 * 4 * batch * count * pixels


def test_no_gradient_flows_through_the_estimate():
    x_0, noise = queries(4)
    gradient = jax.grad(lambda x: posterior_mean(x, noise, jnp.ones(4), x).estimate.sum())(x_0)
    assert not gradient.any()
