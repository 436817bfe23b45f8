"""The augmentation pipeline against EDM's own, given the same parameters (made by make_golden_augment.py)."""

from pathlib import Path

import jax
import numpy as np
import pytest

from sct_jax.data import augment

GOLDEN = np.load(Path(__file__).parent / "golden" / "edm_augment.npz")


@pytest.mark.parametrize("shape", ["square", "wide"])
def test_images_and_labels_are_the_originals(shape):
    given = {name: GOLDEN[f"{shape}/{name}"] for name in augment.Parameters._fields}
    given |= {name: given[name] == 1 for name in ("x_flip", "y_flip")}
    parameters = augment.Parameters(**given)
    ours = jax.jit(augment.apply)(GOLDEN[f"{shape}/images"], parameters)
    np.testing.assert_allclose(ours, GOLDEN[f"{shape}/output"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(augment.labels(parameters), GOLDEN[f"{shape}/labels"], rtol=0, atol=1e-6)
