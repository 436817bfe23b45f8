"""Stored PNG: what Pillow reads is what was written, what is damaged is not read."""

import io

import numpy as np
import pytest
from data_makers import encode as by_pillow
from data_makers import random_images
from PIL import Image

from sct_jax.data import png


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("shape", [(8, 8, 3), (8, 8, 1), (5, 7, 3), (1, 1, 1), (200, 200, 3)])
def test_pillow_reads_what_is_written(shape, compress):
    """The last shape does not fit into one stored block of 65,535 bytes."""
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    data = png.encode(image, compress)
    read = np.asarray(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(read.reshape(shape), image)
    ours = png.decode_stored(data)
    assert (ours is None) == compress
    if not compress:
        np.testing.assert_array_equal(ours, image)
        assert ours.dtype == np.uint8


def test_every_damaged_byte_is_noticed():
    image = random_images(1, 6)[0]
    data = png.encode(image)
    for place in range(len(data) - 16):  # behind it are the last checksum and the end mark, which carry no pixels
        damaged = bytearray(data)
        damaged[place] ^= 0x55
        found = png.decode_stored(bytes(damaged))
        assert found is None, f"byte {place}"
    for end in range(len(data)):
        assert png.decode_stored(data[:end]) is None


def test_other_images_are_left_to_pillow():
    image = random_images(1, 6)[0]
    assert png.decode_stored(by_pillow(image)) is None
    assert png.decode_stored(by_pillow(image, "BMP")) is None
    filtered = io.BytesIO()
    Image.fromarray(np.cumsum(image, 0, dtype=np.uint8)).save(filtered, "PNG", compress_level=0)
    found = png.decode_stored(filtered.getvalue())
    assert found is None or (found == np.cumsum(image, 0, dtype=np.uint8)).all()
