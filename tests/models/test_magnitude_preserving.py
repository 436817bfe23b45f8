"""Magnitudes are kept in expectation; a kernel's own length means nothing, and projecting it away changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sct_jax.models import magnitude_preserving as mp

RNG = np.random.default_rng(0)
PARAMS = {
    "block": {"kernel": np.float32(RNG.normal(size=(3, 3, 4, 6)) * np.exp(RNG.normal(size=6))), "gain": 0.7},
    "fourier": {"frequencies": RNG.normal(size=5).astype(np.float32)},
    "linear": {"kernel": RNG.normal(size=(8, 3)).astype(np.float32)},
}


def root_mean_square(x, axis=None):
    return np.sqrt(np.mean(np.square(x), axis=axis))


def test_silu_of_a_unit_normal_has_unit_magnitude():
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    second_moment = np.sum(weights * np.asarray(mp.mp_silu(nodes)) ** 2) / np.sum(weights)
    assert second_moment == pytest.approx(1, rel=2e-3)


@pytest.mark.parametrize("balance", [0.0, 0.3, 0.5, 1.0])
def test_the_sum_of_independent_terms_keeps_their_magnitude(balance):
    one, zero = jnp.ones(()), jnp.zeros(())
    first, second = mp.mp_sum(one, zero, balance), mp.mp_sum(zero, one, balance)
    assert first**2 + second**2 == pytest.approx(1, rel=1e-6)
    assert first * balance == pytest.approx(float(second * (1 - balance)), abs=1e-6)


@pytest.mark.parametrize("balance", [0.3, 0.5])
def test_the_parts_of_a_concatenation_contribute_as_the_balance_says(balance):
    joined = np.asarray(mp.mp_cat(jnp.ones((2, 6)), -jnp.ones((2, 3)), balance))
    np.testing.assert_allclose(root_mean_square(joined, axis=-1), 1, rtol=1e-6)
    first, second = np.linalg.norm(joined[:, :6]), np.linalg.norm(joined[:, 6:])
    assert second / first == pytest.approx(balance / (1 - balance), rel=1e-5)


def test_fourier_features_and_linear_maps_give_unit_magnitude():
    features = mp.MPFourier(4000, rngs=nnx.Rngs(0))(jnp.array([-1.0, 0.4, 1.0]))
    np.testing.assert_allclose(root_mean_square(features, axis=-1), 1, rtol=0.03)
    layer = mp.MPLinear(64, 50, rngs=nnx.Rngs(1))
    result = layer(jnp.asarray(RNG.normal(size=(2000, 64)), jnp.float32), gain=3.0)
    np.testing.assert_allclose(root_mean_square(result, axis=0), 3, rtol=0.08)


def test_fourier_features_have_no_gradient():
    graph, state = nnx.split(mp.MPFourier(6, rngs=nnx.Rngs(0)))
    gradient = jax.jit(jax.grad(lambda state: jnp.sum(nnx.merge(graph, state)(jnp.ones(2)) ** 3)))(state)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(gradient))


def test_the_weights_of_an_output_have_the_length_of_the_gain():
    kernel = mp.effective_kernel(PARAMS["block"]["kernel"], 2.0)
    np.testing.assert_allclose(np.linalg.norm(kernel.reshape(-1, 6), axis=0), 2, rtol=1e-3)
    directions = PARAMS["block"]["kernel"].reshape(-1, 6)
    cosines = np.sum(kernel.reshape(-1, 6) * directions, 0) / (2 * np.linalg.norm(directions, axis=0))
    np.testing.assert_allclose(cosines, 1, rtol=1e-3)


def test_the_projection_makes_kernels_unit_and_touches_nothing_else():
    projected = mp.project(PARAMS)
    for name in ("block", "linear"):
        width = PARAMS[name]["kernel"].shape[-1]
        magnitudes = root_mean_square(np.asarray(projected[name]["kernel"]).reshape(-1, width), axis=0)
        np.testing.assert_allclose(magnitudes, 1, rtol=1e-3)
    assert projected["block"]["gain"] == 0.7
    assert projected["fourier"]["frequencies"] is PARAMS["fourier"]["frequencies"]


def test_the_projection_is_idempotent_and_changes_no_output():
    once = mp.project(PARAMS)
    twice = mp.project(once)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3), once, twice)
    thrice = mp.project(twice)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), twice, thrice)
    raw, projected = (mp.effective_kernel(p["block"]["kernel"], 1.0) for p in (PARAMS, once))
    np.testing.assert_allclose(raw, projected, rtol=1e-3)


def test_gradients_are_orthogonal_to_the_weights():
    kernel = jnp.asarray(PARAMS["block"]["kernel"])
    cotangent = jnp.asarray(RNG.normal(size=kernel.shape), jnp.float32)
    gradient = jax.jit(jax.grad(lambda w: jnp.sum(mp.effective_kernel(w, 1.0) * cotangent)))(kernel)
    products = np.sum(np.asarray(gradient * kernel).reshape(-1, 6), axis=0)
    lengths = [np.linalg.norm(np.asarray(a).reshape(-1, 6), axis=0) for a in (gradient, kernel)]
    assert np.all(np.abs(products) < 1e-3 * lengths[0] * lengths[1])


def test_a_vector_of_zeros_stays_and_has_a_finite_gradient():
    x = jnp.zeros((2, 3))
    np.testing.assert_array_equal(mp.normalize(x), 0)
    np.testing.assert_allclose(jax.jit(jax.grad(lambda x: mp.normalize(x).sum()))(x), 1 / mp.EPS, rtol=1e-4)


def test_attention_needs_whole_heads():
    with pytest.raises(ValueError, match=r"24 channels .* heads of 16.*attention_head_channels"):
        mp.MPAttention(24, 16, rngs=nnx.Rngs(0))
