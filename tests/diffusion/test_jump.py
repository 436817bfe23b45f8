"""One map for every kind of model: its identities, and that the exact prediction makes it the exact flow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sct_jax.data.mixtures import known_data
from sct_jax.diffusion import process, times
from sct_jax.diffusion.jump import jump
from sct_jax.evaluation.oracle import exact_jump

RING = known_data("2d").mixture
EDGES = times.phase_edges(4, 0.002, 80.0)
T = np.float32([0.05, 0.9, 7.0, 30.0, 80.0])
X = np.float32(RING.sample(np.random.default_rng(0), 5)[0] + T[:, None] * np.random.default_rng(1).normal(size=(5, 2)))
STD = 0.5


def bend(x, t, s=0.0):
    """A prediction that depends on all it is told."""
    t, s = process.per_image(t, x), process.per_image(s, x)
    return jnp.tanh(x / (1 + t)) + 0.1 * jnp.cos(s / (1 + t))


def flow(x, t, s):
    """Exact for data N(0, STD²)."""
    return x * process.per_image(jnp.sqrt((STD**2 + s**2) / (STD**2 + t**2)), x)


def exact_two_time(x, t, s):
    """The prediction whose jump is the exact flow: the limit at ``s = t`` is not needed, for it weighs nothing."""
    ratio = process.per_image(s / t, x)
    return jnp.where(ratio < 1, (flow(x, t, s) - ratio * x) / jnp.where(ratio < 1, 1 - ratio, 1), 0.0)


@pytest.mark.parametrize("edges", [None, EDGES], ids=["whole", "phased"])
def test_to_its_own_time_it_is_the_state(edges):
    assert np.array_equal(jump(bend, X, T, T, edges), X)
    assert np.array_equal(jump(bend, X, 0 * T, 0 * T, edges), X)  # not 0/0


def test_to_the_end_it_is_the_prediction():
    assert np.array_equal(jump(bend, X, T, 0.0), bend(X, T))


def test_it_is_eulers_step_of_the_prediction_for_that_time():
    s = 0.3 * T
    np.testing.assert_array_equal(jump(bend, X, T, s), process.euler_step(X, bend(X, T, s), T, s))
    one = [jump(bend, X[i : i + 1], float(T[i]), float(s[i])) for i in range(len(T))]  # times may be scalars
    np.testing.assert_allclose(np.concatenate(one), jump(bend, X, T, s), rtol=1e-6)


def test_the_exact_two_time_prediction_makes_the_exact_flow_in_any_number_of_jumps():
    middle, end = jnp.asarray(0.4 * T), jnp.asarray(0.02 * T)
    t = jnp.asarray(T)
    np.testing.assert_allclose(jump(exact_two_time, X, t, end), flow(X, t, end), rtol=1e-4)
    parts = jump(exact_two_time, jump(exact_two_time, X, t, middle), middle, end)
    np.testing.assert_allclose(parts, flow(X, t, end), rtol=1e-4)


def test_jumps_of_a_mixtures_exact_flow_join():
    middle, end = 0.4 * T, 0.02 * T

    def exact(x, t, s):
        x, t, s = np.float64(x), np.float64(t), np.float64(s)
        ratio = (s / t)[:, None]
        return jnp.float32((exact_jump(RING, x, t, s) - ratio * x) / (1 - ratio))

    there = jump(exact, jump(exact, X, T, middle), middle, end)
    np.testing.assert_allclose(there, jump(exact, X, T, end), atol=2e-4)
    np.testing.assert_allclose(there, exact_jump(RING, X, T, end), atol=2e-4)


# Phased models.


def exact_phased(x, t, s=None):
    """The prediction that takes ``(x, t)`` to its trajectory at the edge below ``t``."""
    edge = times.phase_start(t, EDGES)
    ratio = process.per_image(edge / t, x)
    return (flow(x, t, edge) - ratio * x) / (1 - ratio)


def test_a_phased_model_goes_through_its_edges():
    """At an edge, and at the end of the path, it is exact; the number of edges on the way differs within the batch."""
    t = jnp.asarray(T)
    np.testing.assert_allclose(jump(exact_phased, X, t, 0.0, EDGES), flow(X, t, 0.0), rtol=1e-4)
    edge = jnp.minimum(float(EDGES[2]), t)
    np.testing.assert_allclose(jump(exact_phased, X, t, edge, EDGES), flow(X, t, edge), rtol=1e-4)


def test_within_a_segment_a_phased_model_has_its_own_map():
    s, t = jnp.float32([EDGES[1] + 0.1, EDGES[3] + 1.0]), jnp.float32([EDGES[2] - 0.1, 80.0])
    x = jnp.asarray(X[:2])
    np.testing.assert_allclose(jump(exact_phased, x, t, s, EDGES), jump(exact_phased, x, t, s), rtol=1e-6)
    below = jnp.float32([EDGES[1] / 2, EDGES[2] + 0.1])  # beyond the edge it is asked again there
    edge = times.phase_start(t, EDGES)
    twice = jump(exact_phased, jump(exact_phased, x, t, edge), edge, below)
    np.testing.assert_allclose(jump(exact_phased, x, t, below, EDGES), twice, rtol=1e-5)
    assert np.abs(jump(exact_phased, x, t, below) - twice).max() > 1e-2


def test_a_plain_model_is_the_phased_one_of_one_segment():
    whole = jump(bend, X, T, 0.3 * T, times.phase_edges(1, 0.002, 80.0))
    np.testing.assert_array_equal(whole, jump(bend, X, T, 0.3 * T))


# Transformations.


def test_mapped_over_models_and_derived_by_the_time_to_jump_to():
    s = jnp.asarray(0.3 * T)
    scales = jnp.float32([0.5, 2.0])
    both = jax.vmap(lambda scale: jump(lambda *given: scale * bend(*given), X, T, s))(scales)
    for scale, mapped in zip(scales, both, strict=True):
        np.testing.assert_allclose(mapped, jump(lambda *given, k=scale: k * bend(*given), X, T, s), rtol=1e-6)
    for at in (s, jnp.asarray(T)):  # at s = t too, where losses of mean velocities are
        _, slope = jax.jvp(lambda s: jump(bend, X, T, s), (at,), (jnp.ones_like(at),))
        step = 1e-2 * at
        numeric = (jump(bend, X, T, at + step) - jump(bend, X, T, at - step)) / (2 * step[:, None])
        np.testing.assert_allclose(slope, numeric, rtol=2e-2, atol=2e-3)
