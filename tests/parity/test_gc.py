"""GC against the original's training step, its average of the weights and its optimizer (``make_golden_gc.py``)."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sct_jax import config as config_lib
from sct_jax.diffusion import process, times
from sct_jax.objectives import consistency, generated
from sct_jax.objectives.distances import WEIGHTS
from sct_jax.objectives.table import ROWS
from sct_jax.training import optimizer

GOLDEN = dict(np.load(Path(__file__).parent / "golden" / "gc_loss.npz"))
TOTAL, STEPS = 8000, (0, 3500, 7999)
BATCH = len(GOLDEN["images"])


def denoise(params, x, t, condition=None, dropout_key=None):
    t = process.per_image(t, x)
    return x / (1 + t**2) + params * jnp.sin(3 * x) * t / (1 + t)


def make_config(method, **objective):
    config = config_lib.default_config()
    config.total_steps = TOTAL
    pixels = GOLDEN["images"][0].size
    config.objective.update(ROWS[method] | {"huber_c": 0.00054 * pixels**0.5} | objective)
    return config


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("method", ["gc", "ict"])
def test_losses(method, step):
    name = f"{method}_{step}"
    of = lambda what: jnp.asarray(GOLDEN[f"{name}_{what}"])  # noqa: E731
    images, t, r = jnp.asarray(GOLDEN["images"]), of("t"), of("r")
    draws = {
        "labels": jnp.zeros(BATCH, jnp.int32),
        "t": t,
        "r": r,
        "s": jnp.zeros(BATCH),
        "weight": WEIGHTS["inverse_gap"](t, r, 0.5),
        "x_t": process.add_noise(images, of("noise"), t),
        "x_r": process.add_noise(images, of("noise"), r),
        "estimate": images,
    }
    context = {}
    if method == "gc":
        draws[generated.CHOSEN] = of("generated")
        assert 0 < draws[generated.CHOSEN].sum() < BATCH
        context = {generated.GENERATOR: jnp.float32(0.9)}
    losses, _ = consistency.build(make_config(method), denoise).loss(jnp.float32(1), context, draws, jax.random.key(0))
    np.testing.assert_allclose(losses, of("loss"), rtol=2e-3, atol=1e-4)
    np.testing.assert_allclose(losses.mean(), of("mean"), rtol=1e-3)


@pytest.mark.parametrize("step", STEPS)
def test_the_pairs_are_neighbours_of_our_grid(step):
    points = times.num_scales(jnp.int32(step), TOTAL, 10, 1280, "doubling")
    assert points == GOLDEN[f"gc_{step}_points"]
    grid = np.asarray(times.karras_times(jnp.arange(int(points)), points, 0.002, 80.0))
    place = np.searchsorted(grid, GOLDEN[f"gc_{step}_r"] * (1 - 1e-4))
    np.testing.assert_allclose(grid[place], GOLDEN[f"gc_{step}_r"], rtol=1e-4)
    np.testing.assert_allclose(grid[place + 1], GOLDEN[f"gc_{step}_t"], rtol=1e-4)


def test_the_generator_follows_as_the_originals_average():
    objective = consistency.build(make_config("gc", generator_decay=0.9), denoise)
    weights = GOLDEN["average_weights"]
    context = objective.start({"w": jnp.full(2, 7.0)})
    assert (1 - (1 + len(weights)) ** (-2 / 3)) > 0.9  # the warm-up is over before the end
    for step, (weight, expected) in enumerate(zip(weights, GOLDEN["average_path"], strict=True)):
        context = objective.advance(context, {"w": jnp.asarray(weight)}, jnp.int32(step))
        np.testing.assert_allclose(context[generated.GENERATOR]["w"], expected, rtol=1e-5, atol=1e-6)


def test_lion_follows_the_library():
    config = config_lib.default_config()
    config.optimizer.update({"name": "lion", "lr": 1e-2, "b2": 0.99})
    rule = optimizer.build(config.optimizer, 1000)
    value = jnp.asarray(GOLDEN["lion_start"])
    state = rule.init(value)
    for grad, expected in zip(GOLDEN["lion_grads"], GOLDEN["lion_path"], strict=True):
        updates, state = rule.update(jnp.asarray(grad), state, value)
        value = optax.apply_updates(value, updates)
        np.testing.assert_allclose(value, expected, atol=1e-6)
