"""Distances and weights: limits and published forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sct_jax.config import default_config
from sct_jax.objectives import distances
from sct_jax.objectives.distances import DISTANCES, LPIPS, WEIGHTS
from sct_jax.objectives.table import ROWS
from sct_jax.schema import SCHEMA

X = jax.random.normal(jax.random.key(0), (5, 4, 4, 3))
ORIGIN = jnp.zeros_like(X)


def norm(x):
    return jnp.sqrt(jnp.sum(x**2, axis=(1, 2, 3)))


def test_pseudo_huber_is_the_norm_for_tiny_c_and_half_the_square_over_c_for_large_c():
    np.testing.assert_allclose(DISTANCES["pseudo_huber"](X, ORIGIN, 1e-8), norm(X), rtol=1e-5)
    np.testing.assert_allclose(DISTANCES["pseudo_huber"](X, ORIGIN, 1e4), norm(X) ** 2 / 2e4, rtol=1e-4)


def test_pseudo_huber_keeps_its_digits_at_small_differences():
    small = 1e-4 * X[:1]
    exact = np.sqrt(np.sum(np.asarray(small, np.float64) ** 2) + 0.06**2) - 0.06
    np.testing.assert_allclose(DISTANCES["pseudo_huber"](small, jnp.zeros_like(small), 0.06), exact, rtol=1e-5)


@pytest.mark.parametrize(("name", "power"), [("squared_l2", 2), ("l1", 1)])
def test_homogeneous_distances_scale(name, power):
    np.testing.assert_allclose(
        DISTANCES[name](3 * X, ORIGIN, 1.0), 3**power * DISTANCES[name](X, ORIGIN, 1.0), rtol=1e-5
    )


@pytest.mark.parametrize("name", DISTANCES)
def test_distances_are_of_the_difference_and_symmetric(name):
    shift = jnp.round(8 * X[::-1]) / 8  # exact in what follows
    prediction = jnp.round(64 * X) / 64
    apart = DISTANCES[name](prediction + shift, shift, 0.1)
    np.testing.assert_array_equal(apart, DISTANCES[name](prediction, ORIGIN, 0.1))
    np.testing.assert_array_equal(apart, DISTANCES[name](shift, prediction + shift, 0.1))


def test_lpips_is_asked_with_its_weights_of_the_context_and_both_sides():
    objective = default_config().objective
    objective.distance = LPIPS
    asked = distances.build(objective, lambda weights, a, b: weights * jnp.sum(a - 2 * b, axis=(1, 2, 3)))
    found = asked({LPIPS: 3.0}, X, X + 1)
    np.testing.assert_allclose(found, 3 * jnp.sum(-X - 2, axis=(1, 2, 3)), rtol=1e-4)
    with pytest.raises(ValueError, match="needs its network"):
        distances.build(objective)


def test_weights_are_the_published_ones():
    t, r = jnp.array([2.0, 0.5]), jnp.array([1.0, 0.25])
    expected = {"inverse_gap": [1, 4], "uniform": [1, 1], "snr": [4.25, 8], "inverse_sqrt_gap": [1, 2]}
    for name, values in expected.items():
        np.testing.assert_allclose(WEIGHTS[name](t, r, 0.5), values, rtol=1e-6)


def test_the_schema_offers_exactly_what_exists():
    assert set(SCHEMA["objective.distance"].choices) == {*DISTANCES, LPIPS}
    assert set(SCHEMA["objective.weight"].choices) == set(WEIGHTS)
    assert set(SCHEMA["objective.method"].choices) == set(ROWS)


def test_ect_and_sct_differ_in_schedule_transition_and_cap_alone():
    different = {key for key in ROWS["ect"] if ROWS["ect"][key] != ROWS["sct"][key]}
    assert different == {"method", "schedule", "transition", "ratio_limit"}
