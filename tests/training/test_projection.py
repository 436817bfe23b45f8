"""What a network does to its parameters after each update: after the averages, before the next gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sct_jax import config as config_lib
from sct_jax import models, objectives
from sct_jax.data import DataSpec
from sct_jax.objectives.table import ROWS
from sct_jax.training import ema, mesh, optimizer, step

SPEC = DataSpec(8, 1, 10, 64)
BATCH = {
    "image": np.random.default_rng(0).integers(0, 256, (8, 8, 8, 1)).astype(np.uint8),
    "label": np.arange(8, dtype=np.int32),
}


def make_config(method, **model):
    config = config_lib.default_config()
    config.objective.update(ROWS[method])
    config.model.update(num_blocks=1, conditional=True, **model)
    config.update(batch_size=8)
    config.optimizer.update(name="adam", lr=1e-2)
    config.ema.profiles = ("power:0.1", "constant:0.5")
    return config_lib.validate(config)


def halves(params):
    return jax.tree.map(lambda leaf: leaf / 2, params)


def test_the_next_state_is_projected_and_the_averages_are_not():
    # Without decay the average is the parameters as the optimizer left them: 0.01 away from where they were.
    config = make_config("edm", name="film_mlp", channels=16)
    config.ema.profiles = ("constant:0",)
    objective = objectives.Objective(
        draw=lambda images, *_: {"image": images},
        loss=lambda params, _, draws, key: (params["kernel"] * jnp.mean(draws["image"] ** 2, axis=(1, 2, 3)), {}),
    )
    advance = jax.jit(step.make_train_step(config, objective, mesh.make_mesh(1), halves))
    state, _ = advance(step.initial_state(config, {"kernel": jnp.ones(())}), BATCH)
    assert state.ema["constant:0"]["kernel"] == pytest.approx(0.99, rel=1e-5)
    assert state.params["kernel"] == pytest.approx(0.495, rel=1e-5)


def test_training_starts_from_projected_parameters():
    config = make_config("edm", name="film_mlp", channels=16)
    params = {"kernel": jnp.ones((2, 2))}
    state = step.initial_state(config, params, halves)
    np.testing.assert_array_equal(state.params["kernel"], 0.5)
    np.testing.assert_array_equal(state.ema["power:0.1"]["kernel"], 1)


@pytest.mark.parametrize("rule", ["adam", "radam"])
def test_what_has_no_gradient_does_not_move(rule):
    config = make_config("edm", name="film_mlp", channels=16)
    config.optimizer.name = rule
    params = {"frequencies": jnp.array([3.3, -0.7])}
    update = optimizer.build(config.optimizer, 100)
    state = update.init(params)
    for _ in range(7):
        updates, state = update.update(jax.tree.map(jnp.zeros_like, params), state, params)
        np.testing.assert_array_equal(updates["frequencies"], 0)
    kept = ema.update(params, params, jnp.float32(0.3))
    np.testing.assert_array_equal(kept["frequencies"], params["frequencies"])


@pytest.mark.slow
def test_edm2_takes_a_step_of_its_own_pre_training():
    small = dict(channels=8, channel_mult=(1,), attention_resolutions=(), attention_head_channels=8)
    config = make_config("edm", name="edm2", **small)
    config.objective.uncertainty = True
    network = models.build(config.model, SPEC)
    objective = objectives.build(config, network.denoise, uncertainty=network.uncertainty)
    initial = jax.jit(network.init)(jax.random.key(0))
    state = step.initial_state(config, initial, network.project)
    advance = jax.jit(step.make_train_step(config, objective, mesh.make_mesh(1), network.project))
    for _ in range(2):
        state, metrics = advance(state, BATCH)
    assert np.isfinite(metrics["loss"])
    for average in (state.params, *state.ema.values()):
        for before, after in ((initial, average), (initial["uncertainty"], average["uncertainty"])):
            jax.tree.map(np.testing.assert_array_equal, before["fourier"], after["fourier"])
    assert state.params["out_gain"] != 0
    assert np.any(state.params["uncertainty"]["linear"]["kernel"] != initial["uncertainty"]["linear"]["kernel"])
    kernel = np.asarray(state.params["out_conv"]["kernel"]).reshape(-1, 1)
    np.testing.assert_allclose(np.sqrt(np.mean(kernel**2, axis=0)), 1, rtol=1e-3)
