"""LPIPS against the PyPI package ``lpips``: its code and linear heads, over random backbones (make_golden_lpips.py)."""

import json
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn_feature_networks import draw_images, draw_network

from sct_jax.features import lpips
from sct_jax.interop import lpips_names

GOLDEN = Path(__file__).parent / "golden"


@cache
def golden(name):
    """What the file holds, and the weights as ours."""
    arrays = dict(np.load(GOLDEN / f"lpips_{name}.npz"))
    backbone = draw_network(json.loads(str(arrays["parameters"])))
    heads = {key: value for key, value in arrays.items() if key.startswith("lin")}
    both = backbone | heads
    return arrays, lpips_names.params(both, lpips_names.scheme_of(both))


def images():
    """Two sets of images in [-1, 1]."""
    return (jnp.asarray(draw_images((32, 32), 3, seed), jnp.float32) / 127.5 - 1 for seed in (1, 2))


@pytest.mark.parametrize("name", lpips.NETWORKS)
def test_distance_and_gradient_are_the_originals(name):
    arrays, params = golden(name)
    assert lpips.kind(params) == name
    a, b = images()
    with_gradient = jax.jit(lambda params, a, b: jax.vjp(lambda a: lpips.distance(params, a, b), a))
    distance, vjp = with_gradient(params, a, b)
    (gradient,) = vjp(jnp.ones(3))
    np.testing.assert_allclose(distance, arrays["distance"], rtol=1e-5)
    # A few maxima and ReLUs are decided by rounding: the original was asked in float64.
    error = np.linalg.norm(gradient - arrays["gradient"])
    assert error < 2e-3 * np.linalg.norm(arrays["gradient"])
