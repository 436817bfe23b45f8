"""The train step: pure, the same on one device and eight, the same in parts; kept to the bit by what it depends on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sct_jax import config as config_lib
from sct_jax import models, objectives
from sct_jax.data import DataSpec
from sct_jax.objectives.table import ROWS
from sct_jax.training import mesh, step

SPEC = DataSpec(8, 1, 10, 64)


def make_config(method="sct", **fields):
    config = config_lib.default_config()
    config.batch_size = 16
    config.objective.update(ROWS[method])
    config.model.name, config.model.channels, config.model.num_blocks = "film_mlp", 16, 1
    config.model.conditional, config.optimizer.lr = True, 1e-2
    for key, value in fields.items():
        config_lib._set(config, key.replace("__", "."), value)
    return config_lib.validate(config)


def make_batch(seed=0, count=16, size=8):
    rng = np.random.default_rng(seed)
    return {
        "image": jnp.asarray(rng.integers(0, 256, (count, size, size, 1)), jnp.uint8),
        "label": jnp.asarray(rng.integers(0, 10, count), jnp.int32),
    }


def run(config, devices=1, steps=3, spec=SPEC):
    network = models.build(config.model, spec)
    device_mesh = mesh.make_mesh(devices)
    train_step = jax.jit(step.make_train_step(config, objectives.build(config, network.denoise), device_mesh))
    state = jax.device_put(step.initial_state(config, network.init(jax.random.key(0))), mesh.replicated(device_mesh))
    history = []
    for index in range(steps):
        batch = jax.device_put(make_batch(index, size=spec.image_size), mesh.split_batch(device_mesh))
        state, metrics = train_step(state, batch)
        history.append({name: float(value) for name, value in metrics.items()})
    return state, history


def assert_close(a, b, tolerance):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("method", ["edm", "ect", "sct"])
def test_eight_devices_are_one(method):
    config = make_config(method, model__dropout=0.2, data__flip=True)
    one, history_one = run(config, 1)
    eight, history_eight = run(config, 8)
    assert_close(history_one, history_eight, 2e-4)
    assert_close(one.params, eight.params, 2e-4)


@pytest.mark.slow
def test_eight_devices_are_one_for_the_unet():
    config = make_config(
        "sct", model__name="ddpmpp", model__channels=8, model__channel_mult=(1,), model__attention_resolutions=(8,)
    )
    one, history_one = run(config, 1, steps=1)
    eight, history_eight = run(config, 8, steps=1)
    assert_close(history_one, history_eight, 1e-3)
    assert_close(one.ema, eight.ema, 1e-3)


def test_micro_batches_add_up_to_the_batch():
    # The reference set stays the whole batch: SCT in parts is SCT.
    whole, history_whole = run(make_config("sct"))
    parts, history_parts = run(make_config("sct", optimizer__accumulate=4))
    assert_close(history_whole, history_parts, 2e-4)
    assert_close(whole.params, parts.params, 2e-4)


def test_a_step_is_a_function_of_state_and_batch():
    config = make_config(model__dropout=0.3)
    first, _ = run(config)
    second, _ = run(config)
    assert all(map(jnp.array_equal, jax.tree.leaves(first), jax.tree.leaves(second)))
    other, _ = run(make_config(model__dropout=0.3, seed=1))
    assert not all(map(jnp.array_equal, jax.tree.leaves(first.params), jax.tree.leaves(other.params)))


def test_several_steps_in_one_dispatch_are_those_steps():
    config = make_config()
    network = models.build(config.model, SPEC)
    train_step = step.make_train_step(config, objectives.build(config, network.denoise), mesh.make_mesh(1))
    dispatch = step.make_dispatch(train_step, lambda arrays, item: item)
    items = jax.tree.map(lambda *x: jnp.stack(x), *[make_batch(i) for i in range(3)])
    state, metrics = dispatch(step.initial_state(config, network.init(jax.random.key(0))), {}, items)
    one_by_one, history = run(config)
    np.testing.assert_allclose(metrics["loss"], [h["loss"] for h in history], rtol=1e-5)
    assert_close(state.params, one_by_one.params, 1e-5)
    assert int(state.step) == 3


def test_the_ema_follows_its_profile_through_real_steps():
    config = make_config(ema__profiles=("constant:0.5", "half_life:64"))
    network = models.build(config.model, SPEC)
    train_step = jax.jit(step.make_train_step(config, objectives.build(config, network.denoise), mesh.make_mesh(1)))
    state = step.initial_state(config, network.init(jax.random.key(0)))
    expected = {"constant:0.5": state.params, "half_life:64": state.params}
    for index in range(3):
        state, _ = train_step(state, make_batch(index))
        for name, decay in (("constant:0.5", 0.5), ("half_life:64", 0.5 ** (16 / 64))):
            expected[name] = jax.tree.map(lambda e, p, d=decay: d * e + (1 - d) * p, expected[name], state.params)
    assert_close(state.ema, expected, 1e-5)


def test_flipping_mirrors_about_half_of_the_images():
    images = jnp.arange(4096 * 4, dtype=jnp.float32).reshape(4096, 1, 4, 1)
    flipped = step.random_flip(images, jax.random.key(0))
    mirrored = jnp.all(flipped == images[:, :, ::-1], axis=(1, 2, 3))
    kept = jnp.all(flipped == images, axis=(1, 2, 3))
    assert jnp.all(mirrored ^ kept)
    assert 0.45 < mirrored.mean() < 0.55


def test_the_unit_range():
    np.testing.assert_allclose(step.to_unit_range(jnp.array([0, 255], jnp.uint8)), [-1, 1], atol=1e-7)
