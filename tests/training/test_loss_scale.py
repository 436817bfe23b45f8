"""Scaled gradients are the gradients; a step that overflows is left out and halves the scale, and is counted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sct_jax import config as config_lib
from sct_jax import models, objectives
from sct_jax.data import DataSpec
from sct_jax.objectives.table import ROWS
from sct_jax.training import loss_scale, mesh, step

SPEC = DataSpec(8, 1, 10, 64)


def make_config(dtype="float16", scale=1024.0):
    config = config_lib.default_config()
    config.batch_size = 16
    config.objective.update(ROWS["edm"])
    config.model.name, config.model.channels, config.model.num_blocks = "film_mlp", 16, 1
    config.model.compute_dtype, config.optimizer.loss_scale = dtype, scale
    return config_lib.validate(config)


def batch():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (16, 8, 8, 1))
    return {"image": jnp.asarray(images, jnp.uint8), "label": jnp.zeros(16, jnp.int32)}


def one_step(config, state=None, loss=None):
    network = models.build(config.model, SPEC)
    objective = objectives.build(config, network.denoise)
    if loss:
        objective = objective._replace(loss=loss(objective.loss))
    state = state or step.initial_state(config, network.init(jax.random.key(0)))
    return state, *jax.jit(step.make_train_step(config, objective, mesh.make_mesh(1)))(state, batch())


def test_the_gradient_does_not_depend_on_the_scale():
    norms = [float(one_step(make_config(scale=scale))[2]["grad_norm"]) for scale in (1.0, 64.0, 4096.0)]
    float32 = float(one_step(make_config("float32"))[2]["grad_norm"])
    np.testing.assert_allclose(norms, float32, rtol=5e-3)
    assert "loss_scale" not in one_step(make_config("float32"))[2]


def test_small_gradients_are_not_lost():
    """Of a loss so small that float16 rounds its gradients to zero, unless it is scaled."""
    small = lambda loss: lambda *args: (1e-7 * loss(*args)[0], loss(*args)[1])  # noqa: E731
    norms = [float(one_step(make_config(scale=scale), loss=small)[2]["grad_norm"]) for scale in (1.0, 2.0**20)]
    float32 = float(one_step(make_config("float32"), loss=small)[2]["grad_norm"])
    np.testing.assert_allclose(norms[1], float32, rtol=0.02)
    assert norms[0] < 0.9 * float32


def overflowing(loss):
    """A loss with an infinite gradient, and a finite value."""

    def spoilt(params, *args):
        value, metrics = loss(params, *args)
        leaf = jax.tree.leaves(params)[0].ravel()[0]
        return value + jnp.sqrt(jnp.abs(leaf - jax.lax.stop_gradient(leaf))), metrics

    return spoilt


def test_an_overflow_leaves_everything_but_step_and_scale():
    before, after, metrics = one_step(make_config(), loss=overflowing)
    assert int(after.step) == 1
    assert metrics["overflow"] == 1
    assert metrics["grad_norm"] == 0
    assert metrics["loss_scale"] == 1024
    assert after.context[loss_scale.NAME]["scale"] == 512
    for part in ("params", "opt_state", "ema"):
        for a, b in zip(jax.tree.leaves(getattr(before, part)), jax.tree.leaves(getattr(after, part)), strict=True):
            assert np.array_equal(np.asarray(a), np.asarray(b))


def test_what_no_scale_mends_is_seen():
    _, _, metrics = one_step(make_config(scale=1.0), loss=overflowing)
    assert not np.isfinite(metrics["grad_norm"])  # the loop stops at it


@pytest.mark.parametrize(
    ("good", "taken", "scale", "counted"),
    [(5, True, 8.0, 6), (5, False, 4.0, 0), (loss_scale.PATIENCE - 1, True, 16.0, 0)],
)
def test_how_the_scale_moves(good, taken, scale, counted):
    moved = loss_scale.moved({"scale": jnp.float32(8), "good": jnp.int32(good)}, jnp.asarray(taken))
    assert (float(moved["scale"]), int(moved["good"])) == (scale, counted)


def test_the_scale_stays_between_its_ends():
    low = loss_scale.moved({"scale": jnp.float32(1), "good": jnp.int32(0)}, jnp.asarray(False))
    high = {"scale": jnp.float32(loss_scale.LARGEST), "good": jnp.int32(loss_scale.PATIENCE)}
    assert low["scale"] == 1
    assert loss_scale.moved(high, jnp.asarray(True))["scale"] == loss_scale.LARGEST
