"""Features drawn by a seed, the same for the originals and for us; by numpy's legacy generator, which is frozen."""

from typing import NamedTuple

import numpy as np

SUBSETS = {"kid_subsets": 20, "kid_subset_size": 50}


class Case(NamedTuple):
    """Numbers of real and fake rows, features, and the mean that both share."""

    real: int
    fake: int
    dims: int
    offset: float


CASES = {
    "plain": Case(400, 300, 12, 0.0),
    "far_from_zero": Case(300, 350, 8, 30.0),
    "wide": Case(230, 240, 200, 0.5),
}


def drawn_features(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Float64 ``real [N, F]`` and ``fake [M, F]``: two mixtures that overlap in part."""
    case = CASES[name]
    rng = np.random.RandomState(list(CASES).index(name))
    mixing = rng.standard_normal((case.dims, case.dims)) / case.dims**0.5
    centres = 1.5 * rng.standard_normal((4, case.dims)) / case.dims**0.25

    def rows(count: int, first: int, last: int) -> np.ndarray:
        return rng.standard_normal((count, case.dims)) @ mixing + centres[rng.randint(first, last, count)]

    return rows(case.real, 0, 3) + case.offset, 0.9 * rows(case.fake, 1, 4) + case.offset


def drawn_logits() -> np.ndarray:
    """Float64 ``[1003, 100]``, peaked at few classes."""
    return 4 * np.random.RandomState(9).standard_normal((1003, 100))
