"""LPIPS as a distance: its symmetries, where it is 0, and that its gradient is finite everywhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sct_jax.features import lpips


def drawn(name, seed=0):
    """Random parameters; heads are not negative, as the trained ones are."""
    keys = iter(jax.random.split(jax.random.key(seed), 200))
    params = {}
    for layer, parts in lpips.shapes(name).items():
        params[layer] = {part: jax.random.normal(next(keys), shape) for part, shape in parts.items()}
        if "kernel" in parts:
            params[layer]["kernel"] *= np.sqrt(2 / np.prod(parts["kernel"][:3]))
            params[layer]["bias"] *= 0.1
        else:
            params[layer]["weight"] = jnp.abs(params[layer]["weight"])
    return params


@pytest.fixture(scope="module")
def params():
    return drawn("squeeze")


@pytest.fixture(scope="module")
def pair():
    return jax.random.uniform(jax.random.key(1), (2, 3, 16, 16, 3), minval=-1.0)


distance = jax.jit(lpips.distance)


def test_it_is_symmetric_and_nothing_between_equal_images(params, pair):
    a, b = pair
    apart = distance(params, a, b)
    assert (apart.shape, apart.dtype) == ((3,), jnp.float32)
    assert (apart > 0.01).all()
    np.testing.assert_allclose(distance(params, b, a), apart, rtol=1e-5)
    np.testing.assert_array_equal(distance(params, a, a), 0)


def test_it_grows_along_the_way_to_another_image(params, pair):
    a, b = pair
    steps = np.stack([distance(params, a, a + share * (b - a)) for share in (0.01, 0.1, 1.0)])
    assert (np.diff(steps, axis=0) > 0).all()


def test_images_are_compared_one_by_one(params, pair):
    a, b = pair
    turned = distance(params, a[::-1], b[::-1])
    np.testing.assert_allclose(turned[::-1], distance(params, a, b), rtol=1e-4)


def test_heads_weigh_the_layers(params, pair):
    """It is linear in the heads: one alone gives its layer's part."""
    a, b = pair
    heads = [name for name in params if name.startswith("head_")]
    nothing = {name: {"weight": 0 * params[name]["weight"]} for name in heads}
    parts = [distance(params | nothing | {name: params[name]}, a, b) for name in heads]
    np.testing.assert_allclose(sum(parts), distance(params, a, b), rtol=1e-5)


def test_grey_is_three_equal_channels(params, pair):
    a, b = pair[..., :1]
    grey = distance(params, a, b)
    np.testing.assert_allclose(grey, distance(params, jnp.repeat(a, 3, -1), jnp.repeat(b, 3, -1)), rtol=1e-6)


def test_images_of_256_pixels_are_not_resized(pair):
    a, _ = pair
    assert lpips.prepare(a).shape == (3, 224, 224, 3)
    large = jnp.repeat(jnp.repeat(a, 16, 1), 16, 2)
    undone = lpips.prepare(large) * np.array(lpips.SCALE) + np.array(lpips.SHIFT)
    np.testing.assert_allclose(undone, large, atol=1e-6)


def test_the_gradient_is_finite_where_all_channels_are_nothing_and_where_images_meet(params, pair):
    a, b = pair
    dead = params | {"0": {"kernel": params["0"]["kernel"], "bias": jnp.full(64, -1e3)}}
    gradient = jax.jit(jax.grad(lambda a, params, b: lpips.distance(params, a, b).sum()))
    for weights, other in ((dead, b), (params, a)):
        np.testing.assert_array_equal(gradient(a, weights, other), 0)
    found = gradient(a, params, b)
    assert np.isfinite(found).all()
    assert np.abs(found).max() > 0


@pytest.mark.parametrize("name", lpips.NETWORKS)
def test_the_weights_tell_the_network(name):
    shapes = lpips.shapes(name)
    assert lpips.kind(shapes) == name
    widths = {
        "vgg": [64, 128, 256, 512, 512],
        "alex": [64, 192, 384, 256, 256],
        "squeeze": [64, 128, 256, 384, 384, 512, 512],
    }
    heads = [parts["weight"] for layer, parts in shapes.items() if layer.startswith("head_")]
    assert heads == [(width,) for width in widths[name]]
