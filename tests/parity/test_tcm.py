"""TCM's two stages against the original's loss, given its random numbers (``make_golden_tcm.py``)."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from sct_jax import config as config_lib
from sct_jax.diffusion import process, times
from sct_jax.objectives import consistency
from sct_jax.objectives.table import ROWS

GOLDEN = dict(np.load(Path(__file__).parent / "golden" / "tcm_loss.npz"))
STAGES = (0, 3, 12)
BATCH = len(GOLDEN["images"])
KEY = jax.random.key(0)


def denoise(params, x, t, condition=None, dropout_key=None):
    t = process.per_image(t, x)
    return x / (1 + t**2) + params * jnp.sin(3 * x) * t / (1 + t)


def draws_and_loss(method, name, monkeypatch, order, stage1=None, **objective):
    """Our draws and losses with the original's times and noise in place of ours."""
    config = config_lib.default_config()
    config.objective.update(ROWS[method] | {"stage_steps": 100, "first_stage": 0} | objective)
    t, noise = (jnp.asarray(GOLDEN[f"{name}_{what}"][order], jnp.float32) for what in ("t", "noise"))
    for distribution in ("truncated_lognormal", "truncated_student"):
        monkeypatch.setattr(times, distribution, lambda *_: t)
    monkeypatch.setattr(jax.random, "normal", lambda key, shape: noise)
    made = consistency.build(config, denoise, stage1=stage1)
    images = jnp.asarray(GOLDEN["images"][order])
    draws = made.draw(images, jnp.zeros(BATCH, jnp.int32), KEY, jnp.int32(100 * int(name.rsplit("_", 1)[1])))
    losses, metrics = made.loss(jnp.float32(1), made.start(jnp.float32(1)), draws, KEY)
    return draws, losses, metrics


@pytest.mark.parametrize("stage", STAGES)
def test_stage_1(monkeypatch, stage):
    name = f"stage1_{stage}"
    draws, losses, _ = draws_and_loss("tcm1", name, monkeypatch, np.arange(BATCH))
    np.testing.assert_allclose(draws["r"], GOLDEN[f"{name}_r"], rtol=1e-5, atol=1.1e-6)  # the original's floor is 1e-6
    np.testing.assert_allclose(losses, GOLDEN[f"{name}_loss"], rtol=1e-3)


@pytest.mark.parametrize("weighting", ["default", "cout_sq"])
@pytest.mark.parametrize("stage", STAGES)
def test_stage_2(monkeypatch, stage, weighting):
    name = f"stage2_{weighting}_{stage}"
    boundary = GOLDEN[f"{name}_boundary"]
    order = np.argsort(~boundary, kind="stable")  # ours are the first of the batch, the original's anywhere in it
    changes = {"weight": "inverse_output_scale", "huber_c": 0.06} if weighting == "cout_sq" else {}
    draws, losses, metrics = draws_and_loss("tcm", name, monkeypatch, order, jnp.float32(0.8), **changes)
    np.testing.assert_allclose(draws["t"], GOLDEN[f"{name}_t"][order], rtol=1e-6)
    np.testing.assert_allclose(draws["r"], GOLDEN[f"{name}_r"][order], rtol=1e-5, atol=1.1e-6)
    number = int(boundary.sum())
    assert np.array_equal(draws["boundary"], np.arange(BATCH) < number)
    own, others = losses[:number] * number / BATCH / 0.1, losses[number:] * (BATCH - number) / BATCH
    np.testing.assert_allclose(own, GOLDEN[f"{name}_boundary_loss"], rtol=2e-3)
    np.testing.assert_allclose(others, GOLDEN[f"{name}_loss"], rtol=2e-3)
    np.testing.assert_allclose(losses.mean(), GOLDEN[f"{name}_total"], rtol=1e-3)
    np.testing.assert_allclose(metrics["boundary_loss"].mean(), 0.1 * GOLDEN[f"{name}_boundary_loss"].mean(), rtol=1e-3)


def test_the_golden_losses_do_tell_the_networks_apart(monkeypatch):
    name = "stage2_default_12"
    order = np.argsort(~GOLDEN[f"{name}_boundary"], kind="stable")
    _, losses, _ = draws_and_loss("tcm", name, monkeypatch, order, jnp.float32(1.0))
    assert abs(losses.mean() / GOLDEN[f"{name}_total"] - 1) > 0.01


def test_quantiles_of_stage_2s_times(monkeypatch):
    share = GOLDEN["times_share"]
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape: jnp.asarray(share, jnp.float32))
    t = times.truncated_student(KEY, share.shape, 0.0, 0.2, 1.0, 80.0, 0.01)
    np.testing.assert_allclose(np.log(t), GOLDEN["times_log_t"], rtol=2e-3, atol=1e-5)
    # and the original's are SciPy's distribution
    low, high = stats.t.cdf([0.0, np.log(80) / 0.2], 0.01)
    np.testing.assert_allclose(stats.t.cdf(GOLDEN["times_log_t"] / 0.2, 0.01), low + share * (high - low), rtol=1e-9)
