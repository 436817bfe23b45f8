"""The posterior mean against Stable Target Field's own code, in float32 and float64; by make_golden_stf.py."""

from pathlib import Path

import jax
import numpy as np
import pytest

from sct_jax.diffusion import score

GOLDEN = Path(__file__).parent / "golden"


def batch(x_0, noise, t, references):
    return score.posterior_mean(x_0, noise, t, references)


def bank(x_0, noise, t, references):
    """Each query's bank: the references without its own image, which is added."""
    others = [np.delete(references, index % 16, axis=0) for index in range(len(t))]
    return score.bank_posterior_mean(x_0, noise, t, np.stack(others))


def dataset(x_0, noise, t, references):
    return score.dataset_posterior_mean(x_0, noise, t, references, block=24)


def dataset_of_levels(x_0, noise, t, references):
    levels = np.round((references.astype(np.float64) + 1) * 127.5).astype(np.uint8)
    return score.dataset_posterior_mean(x_0, noise, t, levels, block=24)


@pytest.mark.parametrize(
    ("data", "estimator"),
    [(data, estimator) for data in ("random", "digits") for estimator in (batch, bank, dataset)]
    + [("digits", dataset_of_levels)],
)
def test_agrees_with_the_original(data, estimator):
    golden = np.load(GOLDEN / f"stf_{data}.npz")
    references, noise, times = golden["references"], golden["noise"], golden["t"]
    x_0, t = np.tile(references[:16], (len(times), 1, 1, 1)), np.repeat(times, 16)
    found = jax.jit(lambda *queries: estimator(*queries, references))(x_0, noise.reshape(x_0.shape), t)
    estimate = np.asarray(found.estimate, np.float64).reshape(noise.shape)
    original, original_float32 = golden["float64"], golden["float32"].astype(np.float64)
    assert (times[0], times[-1]) == (np.float32(0.002), np.float32(80.0))
    for index, time in enumerate(times):
        largest = np.abs(original[index]).max()
        # Something to find at every time: near copies share the weight with the own image.
        assert np.abs(original[index] - references[:16]).max() > 5e-5
        assert np.abs(estimate[index] - original[index]).max() < 2e-6 * largest, time
        assert np.abs(estimate[index] - original_float32[index]).max() < 1e-5 * largest, time
