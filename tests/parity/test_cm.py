"""CT and CD against the numbers of their two original implementations (how they were made: make_golden_cm.py)."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sct_jax import config as config_lib
from sct_jax.diffusion import precondition, process, times
from sct_jax.objectives import Teacher, consistency
from sct_jax.objectives.table import ROWS

GOLDEN = Path(__file__).parent / "golden"
CM, JCM, SCHEDULES, ECT = (
    dict(np.load(GOLDEN / f"{name}.npz")) for name in ("cm_losses", "cm_jcm", "cm_schedules", "ect_schedule")
)
ONLINE, TARGET, TEACHER = 1.0, 0.8, 0.9
BOUNDS = (0.002, 80.0)
WEIGHTS = {"uniform": "uniform", "karras": "snr"}  # the originals' names for ours
DISTANCES = {"l1": "l1", "l2": "squared_l2"}


def preconditioned(boundary):
    """The denoiser over the raw network that the golden numbers were made with."""

    def denoise(params, x, t, condition=None, dropout_key=None):
        c_skip, c_out, c_in, c_noise = (
            process.per_image(c, x) for c in precondition.coefficients(t, 0.5, boundary, BOUNDS[0])
        )
        inner = c_in * x
        return c_skip * x + c_out * params * (jnp.tanh(inner) + 0.3 * jnp.sin(3 * inner + c_noise))

    return denoise


def our_loss(monkeypatch, golden, method, norm, weight, num_scales, noise="noise"):
    """Our loss with the original's indices (from t_max down) and noise in the place of ours, as a mean over pixels."""
    index = num_scales - 2 - jnp.asarray(golden[f"index_{num_scales}"])
    t, r = (times.karras_times(index + up, jnp.int32(num_scales), *BOUNDS) for up in (1, 0))
    monkeypatch.setattr(consistency.pairs, "build", lambda *arguments: lambda key, count, step: (t, r))
    monkeypatch.setattr(jax.random, "normal", lambda key, shape: jnp.asarray(golden[noise]))
    config = config_lib.default_config()
    row, _, solver = method.partition("_")
    config.objective.update(ROWS[row] | {"bootstrap": "ema", "distance": DISTANCES[norm], "weight": weight})
    teacher = None
    if row == "cd":
        config.objective.transition = f"teacher_{solver}"
        teacher = Teacher(preconditioned("zero"), TEACHER)
    objective = consistency.build(config, preconditioned("sigma_min"), teacher)
    draws = objective.draw(jnp.asarray(golden["images"]), jnp.zeros(len(t)), jax.random.key(0), jnp.int32(0))
    losses, _ = objective.loss(ONLINE, {"target": TARGET, "teacher": TEACHER}, draws, None)
    return losses / golden["images"][0].size


def assert_close(norm, ours, theirs):
    """To 1e-4, squares by their roots: float32 rounds the difference of two predictions, before it is squared."""
    power = {"l1": 1.0, "l2": 0.5}[norm]
    np.testing.assert_allclose(ours**power, theirs**power, rtol=1e-4)


@pytest.mark.parametrize("num_scales", [2, 18, 151])
@pytest.mark.parametrize("weight", ["uniform", "karras"])
@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("method", ["ct", "cd_heun"])
def test_losses_are_those_of_consistency_models(monkeypatch, method, norm, weight, num_scales):
    ours = our_loss(monkeypatch, CM, method, norm, WEIGHTS[weight], num_scales)
    assert_close(norm, ours, CM[f"{method}_{norm}_{weight}_{num_scales}"])


@pytest.mark.parametrize("num_scales", [18, 151])
@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("method", ["ct", "cd_euler", "cd_heun"])
def test_losses_are_those_of_jcm(monkeypatch, method, norm, num_scales):
    ours = our_loss(monkeypatch, JCM, method, norm, "uniform", num_scales, f"noise_{num_scales}")
    assert_close(norm, ours, JCM[f"{method}_{norm}_{num_scales}"])


@pytest.mark.parametrize("num_scales", [2, 18, 151])
def test_the_grid_is_theirs(num_scales):
    index = num_scales - 2 - CM[f"index_{num_scales}"]
    for name, up in (("t", 1), ("r", 0)):
        ours = times.karras_times(jnp.asarray(index + up), jnp.int32(num_scales), *BOUNDS)
        np.testing.assert_allclose(ours, CM[f"{name}_{num_scales}"], rtol=3e-6)


@pytest.mark.parametrize(
    ("golden", "s_1", "mu_0"),
    [(SCHEDULES, 150, 0.9), (SCHEDULES, 200, 0.95), (JCM, 150, 0.9)],
    ids=["cm", "cm64", "jcm"],
)
def test_the_grid_grows_as_theirs_at_each_of_800_000_steps(golden, s_1, mu_0):
    # Where √(...) nears a whole number float32 decides: we differ at no step from jcm (float32 too), at 7 (s_1 = 150)
    # and 1 (s_1 = 200) of 800,001 from CM (float64), there by one point and one step before or after it changes.
    steps, first = np.arange(800_001), golden[f"first_step_{s_1}"]
    theirs = 1 + np.searchsorted(first, steps, side="right")
    assert theirs[[0, -1]].tolist() == [2, s_1 + 1]
    ours = jax.jit(lambda step: times.num_scales(step, 800_000, 2, s_1, "progressive"))(jnp.asarray(steps))
    differing = np.flatnonzero(ours != theirs)
    assert len(differing) <= 10
    assert np.abs(ours - theirs).max() <= 1
    assert set(differing) <= set(first) | set(first - 1)
    decay = times.target_decay(jnp.asarray(theirs[first]), 2, mu_0)
    np.testing.assert_allclose(decay, golden[f"decay_{s_1}"], rtol=1e-6)


def test_the_target_network_moves_by_their_decay():
    config = config_lib.default_config()
    config.total_steps = 800_000
    config.objective.update(ROWS["ct"])
    objective = consistency.build(config, preconditioned("sigma_min"))
    first = JCM["first_step_150"]
    middles = (first[:-1] + first[1:]) // 2  # away from where rounding decides
    advance = jax.jit(jax.vmap(lambda step: objective.advance({"target": jnp.float32(1.0)}, jnp.float32(0.0), step)))
    np.testing.assert_allclose(advance(jnp.asarray(middles))["target"], JCM["decay_150"][:-1], rtol=1e-6)


@pytest.mark.parametrize("q", [2, 4])
def test_r_is_ects(q):
    for stage, theirs in enumerate(ECT[f"r_q{q}"]):
        ours = times.map_to_r(jnp.asarray(ECT["t"]), jnp.float32(stage), q=q, ratio_limit=1.0)
        np.testing.assert_array_less(np.abs(ours - theirs), 4e-7 * ECT["t"])
