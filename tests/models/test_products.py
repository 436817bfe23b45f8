"""Products with weights: the gradients of float32 weights are those of a float32 product of the rounded inputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sct_jax.models import products

BF16, F32 = jnp.bfloat16, jnp.float32


def draw(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), F32)


def gradients(function, x, weight, cotangent):
    result, pull = jax.vjp(function, x, weight)
    assert result.dtype == x.dtype
    return pull(cotangent.astype(result.dtype))


CASES = {
    "matmul": (products.matmul, (3, 5, 6, 8), (8, 7), (3, 5, 6, 7)),
    "bias": (products.add_bias, (3, 5, 6, 8), (8,), (3, 5, 6, 8)),
    "convolve": (products.convolve, (3, 6, 5, 8), (3, 3, 8, 7), (3, 6, 5, 7)),
    "pointwise": (products.convolve, (3, 6, 5, 8), (1, 1, 8, 7), (3, 6, 5, 7)),
    "stride": (lambda x, k: products.convolve(x, k, 2, 0), (3, 8, 9, 8), (3, 3, 8, 7), (3, 3, 4, 7)),
    "odd rest": (lambda x, k: products.convolve(x, k, 2, 1), (3, 8, 8, 8), (3, 3, 8, 7), (3, 4, 4, 7)),
}


@pytest.mark.parametrize("name", CASES)
def test_gradients_of_float32_weights_are_not_rounded(name):
    function, of_x, of_weight, of_result = CASES[name]
    x, weight, cotangent = draw(0, *of_x).astype(BF16), draw(1, *of_weight), draw(2, *of_result).astype(BF16)
    found_x, found = gradients(function, x, weight, cotangent)
    assert (found_x.dtype, found.dtype) == (BF16, F32)
    rounded = [array.astype(BF16).astype(F32) for array in (x, weight, cotangent)]
    with jax.default_matmul_precision("highest"):
        expected_x, expected = gradients(function, *rounded)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found_x.astype(F32), expected_x, rtol=2e-2, atol=0.1)
    assert not np.array_equal(found, found.astype(BF16).astype(F32))  # bits that bfloat16 has not


@pytest.mark.parametrize("name", CASES)
def test_in_one_dtype_they_are_the_plain_operations(name):
    function, of_x, of_weight, _ = CASES[name]
    x, weight = draw(0, *of_x), draw(1, *of_weight)
    assert "custom_vjp" not in str(jax.make_jaxpr(function)(x, weight))
    assert "custom_vjp" in str(jax.make_jaxpr(function)(x.astype(BF16), weight))


def test_products_of_rounded_inputs():
    x, weight = draw(0, 4, 8).astype(BF16), draw(1, 8, 8)
    np.testing.assert_array_equal(products.matmul(x, weight), x @ weight.astype(BF16))
    np.testing.assert_array_equal(products.add_bias(x, weight[0]), x + weight[0].astype(BF16))
