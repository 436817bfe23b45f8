"""The crops against those of EDM and ADM, pixel by pixel (made by make_golden_crop.py)."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sct_jax.data.crops import CROPS

GOLDEN = np.load(Path(__file__).parent / "golden" / "crops.npz")
ORIGINALS = {"centre": "center-crop", "adm": "center-crop-dhariwal"}


@pytest.mark.parametrize("size", [8, 16])
@pytest.mark.parametrize("crop", ORIGINALS)
def test_pixels_are_the_originals(crop, size):
    for number in range(5):
        ours = np.asarray(CROPS[crop](Image.fromarray(GOLDEN[f"image-{number}"]), size))
        np.testing.assert_array_equal(ours, GOLDEN[f"output-{number}-{size}-{ORIGINALS[crop]}"])


def test_the_two_differ():
    assert (GOLDEN["output-3-8-center-crop"] != GOLDEN["output-3-8-center-crop-dhariwal"]).any()
