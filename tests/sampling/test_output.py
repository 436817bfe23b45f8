"""Where samples go by the name they are given."""

import numpy as np
import pytest
from PIL import Image

from sct_jax.errors import UserError
from sct_jax.sampling import output

IMAGES = np.arange(2 * 8 * 8 * 3, dtype=np.uint8).reshape(2, 8, 8, 3)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(("a.npz", ".npz"), ("a.NPZ", ".npz"), ("a.png", ".png"), ("a.PNG", ".png")),
        *(("a", ""), ("a/", ""), ("run.v2", ""), ("run.v2/", ""), ("a.png/", ""), ("lr_1e-4.5", "")),
    ],
)
def test_what_a_name_asks_for(tmp_path, name, kind):
    assert output.ending(f"{tmp_path}/{name}") == kind


@pytest.mark.parametrize("name", ["a.jpg", "a.JPEG", "a.npy", "a.pt", "a.json"])
def test_endings_of_other_files_are_refused(tmp_path, name):
    with pytest.raises(UserError, match="end it in"):
        output.check_target(tmp_path / name)


def test_a_folder_with_a_dot_and_capitals(tmp_path):
    output.check_target(f"{tmp_path}/run.v2/")
    output.write_images(f"{tmp_path}/run.v2/", IMAGES, None)
    found = sorted(path.name for path in (tmp_path / "run.v2").iterdir())
    assert found == ["000000.png", "000001.png"]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "run.v2" / "000001.png")), IMAGES[1])
    output.write_images(tmp_path / "A.NPZ", IMAGES, [3])
    assert np.array_equal(np.load(tmp_path / "A.NPZ")["images"], IMAGES)
    output.write_images(tmp_path / "B.PNG", IMAGES, None)
    assert Image.open(tmp_path / "B.PNG").format == "PNG"
