"""Precision, recall, density and coverage against the definitions in float64, also where float32 cannot tell."""

import tracemalloc

import numpy as np
import pytest

from sct_jax.errors import UserError
from sct_jax.evaluation import manifold
from sct_jax.evaluation.manifold import density_coverage, precision_recall


def rows(num, dims=5, shift=0.0, seed=0):
    return np.random.default_rng(seed).standard_normal((num, dims)) + shift


def distances(a, b):
    return np.array([np.sum((b - row) ** 2, axis=1) for row in a])


def by_definition(real, fake, k):
    """All four, from all pairs."""
    real, fake = real.astype(np.float64), fake.astype(np.float64)
    radius = lambda points: np.sort(distances(points, points), axis=1)[:, k]  # noqa: E731
    between, real_radius, fake_radius = distances(real, fake), radius(real)[:, None], radius(fake)[None]
    return {
        "precision": (between <= real_radius).any(axis=0).mean(),
        "recall": (between <= fake_radius).any(axis=1).mean(),
        "density": (between < real_radius).sum(axis=0).mean() / k,
        "coverage": (between < real_radius).any(axis=1).mean(),
    }


def all_four(real, fake, k):
    return precision_recall(real, fake, k) | density_coverage(real, fake, k)


@pytest.mark.parametrize("pairs", [1, 700, 1 << 26], ids=["row by row", "ragged blocks", "one block"])
@pytest.mark.parametrize("k", [1, 5])
def test_blocks_change_nothing(pairs, k, monkeypatch):
    monkeypatch.setattr(manifold, "BLOCK_PAIRS", pairs)
    real, fake = rows(30 if pairs == 1 else 103), rows(40 if pairs == 1 else 90, shift=0.6, seed=1)
    assert all_four(real, fake, k) == pytest.approx(by_definition(real, fake, k), abs=1e-12)


def test_order_changes_nothing():
    real, fake = rows(80), rows(90, shift=0.6, seed=1)
    shuffle = np.random.default_rng(2).permutation
    assert all_four(shuffle(real), shuffle(fake), 3) == pytest.approx(all_four(real, fake, 3), abs=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_ties_of_a_grid_are_decided_exactly(dtype):
    """Whole numbers: very many distances equal radii, and many rows are the same."""
    rng = np.random.default_rng(3)
    real, fake = rng.integers(0, 6, (150, 2)).astype(dtype), rng.integers(1, 7, (140, 2)).astype(dtype)
    for k in (2, 20):
        assert all_four(real, fake, k) == pytest.approx(by_definition(real, fake, k), abs=1e-12)


def test_neighbours_closer_than_float32_can_see():
    """Clusters of width 1e-6 around 1: in float32 every distance within one of them is noise."""
    centres = np.repeat(rows(6, seed=4), 30, axis=0)
    real, fake = centres + 1e-6 * rows(180, seed=5), centres + 1.3e-6 * rows(180, seed=6)
    expected = by_definition(real, fake, 3)
    assert 0.1 < expected["precision"] < 0.98
    assert all_four(real, fake, 3) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("scale", "offset"), [(1e-15, 0), (1e18, 0), (1, 1e6)])
def test_scale_and_offset_change_nothing(scale, offset):
    real, fake = rows(60), rows(70, shift=0.6, seed=1)
    moved = all_four(real * scale + offset, fake * scale + offset, 3)
    assert moved == pytest.approx(all_four(real, fake, 3), abs=1e-12)


def test_a_set_against_itself_is_perfect():
    """Each point is exactly on the border of the ball around its k-th neighbour's side."""
    assert all_four(rows(70), rows(70), 4) == dict.fromkeys(("precision", "recall", "density", "coverage"), 1.0)


def test_sets_apart_have_nothing_in_common():
    assert set(all_four(rows(50), rows(60, shift=100), 3).values()) == {0.0}


def test_collapse_is_precise_and_recalls_nothing():
    real = rows(60)
    collapsed = np.tile(real[7], (50, 1))
    result = all_four(real, collapsed, 3)
    assert result["precision"] == 1
    assert result["recall"] == pytest.approx(1 / 60)
    assert result["coverage"] < 0.2


def test_roles_swap_precision_and_recall():
    real, fake = rows(60), rows(70, shift=0.6, seed=1)
    there, back = precision_recall(real, fake), precision_recall(fake, real)
    assert (there["precision"], there["recall"]) == (back["recall"], back["precision"])


def test_fewest_points():
    real, fake = rows(4), rows(4, seed=1)
    assert all_four(real, fake, 3) == pytest.approx(by_definition(real, fake, 3), abs=1e-12)


def test_float32_errors_are_within_what_is_reckoned_with():
    features = rows(300, 512).astype(np.float32) + 3
    points = manifold._on_device(features, features, 1)[0]
    squared, error = map(np.asarray, manifold._squared_distances(points.device, points.device))
    truth = distances(features.astype(np.float64), features.astype(np.float64)) * points.scale**2
    assert np.all(np.abs(squared - truth) < error)
    assert np.abs(squared - truth).max() > 1e-4 * error.max()
    assert np.median(error / np.where(truth > 0, truth, np.inf)) < 1e-4


def test_bad_input():
    with pytest.raises(UserError, match="at least 4 samples, got 3"):
        precision_recall(rows(10), rows(3))
    with pytest.raises(UserError, match="at least 6 real images, got 5"):
        density_coverage(rows(5), rows(10))
    bad = rows(20)
    bad[4:7, 2] = np.nan
    with pytest.raises(UserError, match=r"^3 of 20 real images have non-finite"):
        precision_recall(bad, rows(10))
    with pytest.raises(UserError, match=r"^3 of 20 samples have non-finite"):
        density_coverage(rows(10), bad)
    with pytest.raises(ValueError, match="features"):
        precision_recall(rows(10, 3), rows(10, 4))


def test_large_sets_are_never_whole_in_float64():
    real = rows(20_000, 200).astype(np.float32)
    tracemalloc.start()
    manifold._on_device(real, real[:10_000], 3)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2.5 * real.nbytes  # one and a half are the float32 copies
