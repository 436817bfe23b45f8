"""A feature space that is quick to see with: fixed projections of the pixels, of any size of images."""

import jax
import jax.numpy as jnp
import numpy as np

from sct_jax.features import FeatureSpace

DIMS, SPATIAL, CLASSES = 6, 4, 12


def pooled(images):
    """Grey images of 4x4 pixels in [-1, 1], ``[B, 16]``: the mean of each tile."""
    values = images.astype(jnp.float32).mean(axis=-1) / 127.5 - 1
    batch, height, width = values.shape
    return values.reshape(batch, 4, height // 4, 4, width // 4).mean(axis=(2, 4)).reshape(batch, 16)


def network(params, images):
    pixels = pooled(images)
    return {
        "features": pixels @ params["features"],
        "spatial": pixels @ params["spatial"],
        "probabilities": jax.nn.softmax(5 * pixels @ params["classes"]),
    }


def make_space(name="inception", seed=0, see=network, **changes):
    rng = np.random.default_rng(seed)
    sizes = {"features": DIMS, "spatial": SPATIAL, "classes": CLASSES}
    params = {key: rng.normal(size=(16, size)).astype(np.float32) for key, size in sizes.items()}
    fields = {
        "name": name,
        "version": f"{name}-of-tests",
        "params": params,
        "weights_sha256": "0" * 64,
        "source_sha256": "1" * 64,
        "resolution": 4,
        "dims": DIMS,
        "network": see,
    }
    return FeatureSpace(**(fields | changes))


def expected_features(space, images, output="features"):
    """The same on the host, float64 ``[N, F]``."""
    found = network({key: np.asarray(value) for key, value in space.params.items()}, jnp.asarray(images))
    return np.asarray(found[output], np.float64)
