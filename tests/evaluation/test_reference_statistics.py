"""Reference statistics: ours there and back, everybody's read, and what does not fit refused in one line."""

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest

from sct_jax.errors import UserError
from sct_jax.evaluation.accumulate import Accumulator
from sct_jax.evaluation.frechet import frechet_distance
from sct_jax.evaluation.reference import Reference, load_reference, save_reference
from sct_jax.features import FeatureSpace

DIMS = 6
INCEPTION = FeatureSpace("inception", "inception-v3", {}, "", "", 299, DIMS, lambda params, images: {})
DINOV2 = replace(INCEPTION, name="dinov2", version="dinov2-vits14")


def rows(num=20, dims=DIMS):
    return np.random.default_rng(num).standard_normal((num, dims)).astype(np.float32)


def reference(**fields):
    seen = Accumulator(DIMS).add(rows())
    plain = Reference("inception", "inception-v3", 32, 3, seen.num, seen.mean, seen.cov, card={"data": "digits"})
    return replace(plain, **fields)


def statistics(**changed):
    return {"mu": reference().mean, "sigma": reference().cov} | changed


@pytest.fixture
def npz(tmp_path):
    def write(**arrays):
        np.savez(tmp_path / "given.npz", **arrays)
        return tmp_path / "given.npz"

    return write


@pytest.fixture
def pkl(tmp_path):
    def write(content):
        (tmp_path / "given.pkl").write_bytes(pickle.dumps(content))
        return tmp_path / "given.pkl"

    return write


def refused(path, *match, space=INCEPTION, **asked):
    """The complaint: one line that names the file and holds each of ``match``."""
    with pytest.raises(UserError) as caught:
        load_reference(path, space, **asked)
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith(str(path))
    for part in match:
        assert part in line


def test_ours_there_and_back(tmp_path):
    saved = reference(features=rows(), spatial=Accumulator(4).add(rows(30, 4)))
    loaded = load_reference(save_reference(tmp_path / "a" / "x.npz", saved), INCEPTION, resolution=32, channels=3)
    for name in ("space", "version", "resolution", "channels", "num", "card"):
        assert getattr(loaded, name) == getattr(saved, name)
    for name in ("mean", "cov", "features"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(saved, name))
    np.testing.assert_array_equal(loaded.spatial.mean, saved.spatial.mean)
    np.testing.assert_array_equal(loaded.spatial.cov, saved.spatial.cov)
    assert loaded.features.dtype == np.float32
    assert frechet_distance(loaded.mean, loaded.cov, saved.mean, saved.cov) < 1e-12
    bare = load_reference(save_reference(tmp_path / "bare.npz", reference()), INCEPTION)
    assert bare.features is bare.spatial is None


def test_the_hash_is_of_what_is_written(tmp_path):
    one, other, changed = (
        load_reference(save_reference(tmp_path / f"{name}.npz", saved), INCEPTION)
        for name, saved in {"a": reference(), "b": reference(), "c": reference(resolution=64)}.items()
    )
    assert len(one.sha256) == 64
    assert one.sha256 == other.sha256 != changed.sha256


def test_features_as_float16(tmp_path):
    path = save_reference(tmp_path / "half.npz", reference(features=rows()), half=True)
    loaded = load_reference(path, INCEPTION).features
    assert loaded.dtype == np.float16
    np.testing.assert_array_equal(loaded, rows().astype(np.float16))
    with pytest.raises(UserError, match="1 of 20 images have non-finite"):
        save_reference(path, reference(features=np.where(np.arange(120).reshape(20, 6) == 8, 1e5, rows())), half=True)
    assert load_reference(path, INCEPTION).num == 20


def test_the_originals_can_read_ours(tmp_path):
    """EDM's fid.py and pytorch-fid take ``mu`` and ``sigma`` of an ``.npz``."""
    with np.load(save_reference(tmp_path / "x.npz", reference())) as archive:
        np.testing.assert_array_equal(archive["mu"], reference().mean)
        np.testing.assert_array_equal(archive["sigma"], reference().cov)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_npz_of_edm_pytorch_fid_and_clean_fid(npz, dtype):
    path = npz(**{name: value.astype(dtype) for name, value in statistics().items()})
    loaded = load_reference(path, INCEPTION, resolution=64)
    assert loaded.mean.dtype == loaded.cov.dtype == np.float64
    np.testing.assert_array_equal(loaded.cov, reference().cov.astype(dtype))
    assert (loaded.version, loaded.resolution, loaded.channels, loaded.num) == ("", 0, 0, None)
    assert loaded.card == {"file": "given.npz"}


def test_npz_of_adm_brings_spatial_moments(npz):
    spatial = Accumulator(4).add(rows(30, 4))
    loaded = load_reference(npz(**statistics(mu_s=spatial.mean, sigma_s=spatial.cov)), INCEPTION)
    np.testing.assert_array_equal(loaded.spatial.cov, spatial.cov)


def test_pkl_of_edm2_holds_several_spaces(pkl):
    path = pkl({"fid": statistics(), "fd_dinov2": statistics(mu=np.arange(6.0))})
    np.testing.assert_array_equal(load_reference(path, INCEPTION).mean, reference().mean)
    np.testing.assert_array_equal(load_reference(path, DINOV2).mean, np.arange(6))
    refused(pkl({"fid": statistics()}), "no statistics of dinov2 features (fd_dinov2), only of fid", space=DINOV2)


class Evil:
    def __reduce__(self):
        return pytest.fail, ("the pickle ran code",)


def test_pickles_run_nothing(pkl):
    refused(pkl({"fid": statistics(), "extra": Evil()}), "_pytest.outcomes", "nothing of it was run")


def test_another_space_version_resolution_or_channels(tmp_path, npz, pkl):
    path = save_reference(tmp_path / "x.npz", reference())
    refused(path, "statistics of inception features, not of dinov2", space=DINOV2)
    other = replace(INCEPTION, version="inception-v3-other")
    refused(path, "statistics of inception-v3, but samples are seen by inception-v3-other", space=other)
    refused(path, "images of 32 pixels, but the samples have 64", "sct-jax evaluate reference", resolution=64)
    refused(path, "images of 3 channels, but the samples have 1", channels=1)
    wider = replace(INCEPTION, dims=8)
    for given in (npz(**statistics()), pkl({"fid": statistics()})):
        refused(given, "statistics of 6 features, where inception has 8", space=wider)


@pytest.mark.parametrize("kept", [0.05, 0.5, 0.95])
@pytest.mark.parametrize("kind", ["npz", "pkl"])
def test_truncated_files(tmp_path, pkl, kind, kept):
    path = save_reference(tmp_path / "x.npz", reference()) if kind == "npz" else pkl({"fid": statistics()})
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    refused(path, "damaged or cut short")


def test_damaged_bytes(tmp_path):
    path = save_reference(tmp_path / "x.npz", reference())
    data = bytearray(path.read_bytes())
    at = data.index(reference().cov.tobytes())
    data[at + 9] ^= 255
    path.write_bytes(data)
    refused(path, "damaged or cut short")


def test_what_is_no_statistics(tmp_path, npz, pkl):
    path = tmp_path / "given"
    for content, complaint in (
        (b"", "empty"),
        (b"<html>", "a web page"),
        (b"\r\n\r\n<!DOCTYPE html>", "a web page"),
        (b"hello", "no reference statistics, which are .npz or .pkl"),
    ):
        path.write_bytes(content)
        refused(path, complaint)
    refused(tmp_path, "it is a folder")
    refused(tmp_path / "none.npz", "No such file")
    refused(npz(arr_0=np.zeros(3)), "mu [F] and sigma [F, F] are not in it")
    refused(npz(**statistics(sigma=np.zeros((6, 5)))), "mu [F] and sigma [F, F]")
    refused(npz(**statistics(mu=np.array(["a"] * 6))), "mu [F] and sigma [F, F]")
    refused(pkl([1, 2]), "no reference statistics")
    refused(pkl({"fid": {"mu": 3, "sigma": None}}), "mu [F] and sigma [F, F]")
    refused(pkl({"mu": np.zeros(6), "sigma": np.eye(6)}), "a dict of {'mu', 'sigma'} by metric")


def test_numbers_that_cannot_be(npz):
    mean, cov = reference().mean.copy(), reference().cov.copy()
    mean[1] = cov[3, 3] = np.nan
    refused(npz(mu=mean, sigma=cov), "2 of 6 features are not finite")
    refused(npz(**statistics(sigma=-reference().cov)), "no covariance")
    refused(npz(**statistics(sigma=np.triu(reference().cov))), "no covariance")


def test_cards_that_do_not_fit(tmp_path, npz):
    with np.load(save_reference(tmp_path / "x.npz", reference(features=rows()))) as archive:
        arrays = dict(archive)
    card = json.loads(str(arrays["card"]))
    for changed, complaint in (
        ({"num": 19}, "features of 20 images, but its card speaks of 19"),
        ({"format": "sct-jax reference 2"}, "made by another version"),
        ({"resolution": "32"}, "card cannot be read"),
    ):
        refused(npz(**arrays | {"card": np.array(json.dumps(card | changed))}), complaint)
    refused(npz(**arrays | {"card": np.array("{")}), "card cannot be read")
    refused(npz(**arrays | {"features": rows(20, 5)}), "(20, 5), not [images, 6]")


def test_nothing_wrong_is_written(tmp_path):
    with pytest.raises(UserError, match=r"written as \.npz"):
        save_reference(tmp_path / "x.pkl", reference())
    with pytest.raises(UserError, match="1 of 6 features are not finite"):
        save_reference(tmp_path / "x.npz", reference(mean=np.array([np.nan, 0, 0, 0, 0, 0])))
    assert list(tmp_path.iterdir()) == []
