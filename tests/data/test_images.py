"""Images of every mode that data sets of photographs hold, read as what they show."""

import io

import numpy as np
import pytest
from PIL import Image

from sct_jax.data import open_source
from sct_jax.data.images import decode_image
from sct_jax.errors import UserError

COLOURS = np.array([[250, 10, 20], [10, 240, 30], [20, 30, 230], [255, 255, 255]], np.uint8)


def picture() -> Image.Image:
    """Four squares of 16x16 pixels, one of each colour."""
    return Image.fromarray(COLOURS.reshape(2, 2, 3).repeat(16, 0).repeat(16, 1))


def saved(image: Image.Image, kind: str, **options) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, kind, **options)
    file.seek(0)
    return file


FILES = {
    "palette": lambda: saved(picture().convert("P", palette=Image.Palette.ADAPTIVE), "PNG"),
    "transparent palette": lambda: saved(
        picture().convert("P", palette=Image.Palette.ADAPTIVE), "PNG", transparency=b"\xff\x00\x80\xff"
    ),
    "GIF": lambda: saved(picture(), "GIF"),
    "RGBA": lambda: saved(picture().convert("RGBA"), "PNG"),
    "JPEG": lambda: saved(picture(), "JPEG", quality=95, subsampling=0),
    "CMYK JPEG": lambda: saved(picture().convert("CMYK"), "JPEG", quality=95),
    "CMYK TIFF": lambda: saved(picture().convert("CMYK"), "TIFF"),
    "WebP": lambda: saved(picture(), "WEBP", lossless=True),
    "YCbCr JPEG with EXIF": lambda: saved(picture(), "JPEG", quality=95, subsampling=0, exif=_turned()),
}


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter when shown
    return exif


@pytest.mark.parametrize("kind", FILES)
def test_colours_and_orientation_are_the_stored_ones(kind):
    image = decode_image(FILES[kind](), kind, 3)
    assert (image.shape, image.dtype) == ((32, 32, 3), np.uint8)
    middles = image[8::16, 8::16].reshape(4, 3).astype(int)
    assert np.abs(middles - COLOURS).max() <= 6, middles


def test_grey_among_colour_and_colour_as_grey():
    grey = saved(Image.fromarray(np.full((4, 4), 77, np.uint8)), "PNG")
    assert (decode_image(grey, "grey", 3) == 77).all()
    assert decode_image(FILES["JPEG"](), "colour", 1).shape == (32, 32, 1)


def test_deep_images_are_refused_rather_than_clipped():
    deep = saved(Image.fromarray(np.full((4, 4), 40_000, np.uint16)), "PNG")
    with pytest.raises(UserError, match=r"image deep has more than 8 bits a channel \(I;16\): convert it"):
        decode_image(deep, "deep", 3)


def test_a_folder_of_all_of_them_has_three_channels(tmp_path):
    """The first file in order is grey: colour is looked for until it is found."""
    (tmp_path / "0.png").write_bytes(saved(Image.fromarray(np.full((40, 32), 77, np.uint8)), "PNG").read())
    for number, make in enumerate(FILES.values(), start=1):
        (tmp_path / f"{number}.png").write_bytes(make().read())
    source = open_source("folder", tmp_path, image_size=16, crop="adm")
    images, _ = source.read_all()
    assert images.shape == (len(FILES) + 1, 16, 16, 3)
    assert (images[0] == 77).all()


def test_an_unknown_crop_and_one_without_a_size_are_refused(tmp_path):
    (tmp_path / "0.png").write_bytes(FILES["RGBA"]().read())
    with pytest.raises(UserError, match="unknown crop 'center': choose one of centre, adm"):
        open_source("folder", tmp_path, image_size=16, crop="center")
    with pytest.raises(UserError, match="needs these and an image_size"):
        open_source("folder", tmp_path, crop="adm")
    with pytest.raises(UserError, match="needs these and an image_size"):
        open_source("digits", image_size=16, crop="adm")
