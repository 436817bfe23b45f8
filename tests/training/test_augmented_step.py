"""Augmentation in the train step: what it hands on, that it is the same on eight devices, and what it goes with."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sct_jax import config as config_lib
from sct_jax import models, objectives
from sct_jax.data import DataSpec, augment
from sct_jax.diffusion.process import to_unit_range
from sct_jax.errors import UserError
from sct_jax.objectives import Objective, denoising
from sct_jax.objectives.table import ROWS
from sct_jax.training import mesh, step

SPEC = DataSpec(8, 1, 10, 64)


def make_config(method="edm", **fields):
    config = config_lib.default_config()
    config.batch_size, config.seed = 16, 5
    config.objective.update(ROWS[method])
    config.model.name, config.model.channels, config.model.num_blocks = "film_mlp", 8, 1
    config.model.augment_dim, config.data.augment = 9, 0.5
    for key, value in fields.items():
        config_lib._set(config, key.replace("__", "."), value)
    return config_lib.validate(config)


def make_batch():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (16, 8, 8, 1))
    return {"image": jnp.asarray(images, jnp.uint8), "label": jnp.asarray(rng.integers(0, 10, 16), jnp.int32)}


def train_step(config, devices=1):
    network, device_mesh = models.build(config.model, SPEC), mesh.make_mesh(devices)
    run = jax.jit(step.make_train_step(config, objectives.build(config, network.denoise), device_mesh))
    state = jax.device_put(step.initial_state(config, network.init(jax.random.key(0))), mesh.replicated(device_mesh))
    return run(state, jax.device_put(make_batch(), mesh.split_batch(device_mesh)))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"reference__warped_rows": 4}, "needs objective.method = 'stf'"),
        ({"method": "stf", "data__augment": 0.0, "reference__warped_rows": 4}, "data.augment > 0"),
        ({"method": "stf", "reference__warped_rows": 16}, "below config.batch_size = 16"),
    ],
)
def test_warped_rows_are_other_images_of_a_batch_that_is_augmented(fields, words):
    with pytest.raises(UserError, match=words):
        make_config(**fields)


@pytest.mark.slow
def test_warped_rows_on_eight_devices_are_those_on_one():
    config = make_config("stf", reference__warped_rows=5)
    _, metrics = train_step(config)
    _, metrics_eight = train_step(config, 8)
    np.testing.assert_allclose(metrics["loss"], metrics_eight["loss"], rtol=1e-4)
    assert float(metrics["reference_ess"]) > float(train_step(make_config("stf"))[1]["reference_ess"])


def test_images_and_labels_follow_from_seed_and_step():
    config, batch = make_config(), make_batch()

    def draw(images, labels, key, at, references, augment_labels):
        return {"images": images, "augment_labels": augment_labels}

    def loss(params, context, draws, key):
        return 0.0 * params["x"] + jnp.zeros(16), {f"{key}_{i}": draws[key][i] for key in draws for i in range(16)}

    run = step.make_train_step(config, Objective(draw, loss), mesh.make_mesh(1))
    state = step.initial_state(config, {"x": jnp.ones(())})
    _, metrics = jax.jit(run)(state, batch)
    key = jax.random.fold_in(jax.random.fold_in(step.room_key(5, step.TRAIN), 0), step.AUGMENT)
    images, labels = augment.augment(to_unit_range(batch["image"]), key, 0.5)
    means = lambda name: [metrics[f"{name}_{i}"] for i in range(16)]  # noqa: E731
    np.testing.assert_allclose(means("images"), images.mean((1, 2, 3)), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(means("augment_labels"), labels.mean(1), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_eight_devices_are_one():
    config = make_config()
    one, metrics = train_step(config)
    eight, metrics_eight = train_step(config, 8)
    np.testing.assert_allclose(metrics["loss"], metrics_eight["loss"], rtol=1e-4)
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(eight.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4)


def test_the_network_is_told():
    def denoise(params, x, t, condition, dropout_key=None):
        return x * 0.0 + condition.augment_labels.sum(1)[:, None, None, None]

    objective = denoising.build(make_config(), denoise)
    images, labels = jnp.zeros((4, 2, 2, 1)), jnp.arange(36.0).reshape(4, 9)
    draws = objective.draw(images, jnp.zeros(4, jnp.int32), jax.random.key(0), jnp.int32(0), {}, labels)
    _, metrics = objective.loss({}, {}, draws, None)
    np.testing.assert_allclose(metrics["error"], labels.sum(1) ** 2, rtol=1e-5)


@pytest.mark.parametrize("conditional", [False, True])
def test_stable_targets_are_means_over_images_of_the_same_augmentation(conditional):
    config = make_config("stf", model__conditional=conditional, objective__time_mean=1.0, objective__time_std=0.1)
    objective = denoising.build(config, None)
    images = jax.random.normal(jax.random.key(1), (6, 2, 2, 1))
    classes = jnp.array([0, 0, 0, 1, 1, 1])
    kinds = jnp.array([0, 0, 1, 1, 2, 3])  # 2 and 3: warped, each like no other
    told = jnp.zeros((6, 9)).at[:, 2].set(kinds)
    draws = objective.draw(images, classes, jax.random.key(2), jnp.int32(0), {}, told)
    squared = ((draws["x_t"][:, None] - images) ** 2).sum((2, 3, 4))
    sees = (kinds[:, None] == kinds) & ((classes[:, None] == classes) | (not conditional))
    weights = jax.nn.softmax(jnp.where(sees, -squared / (2 * draws["t"][:, None] ** 2), -jnp.inf))
    assert weights[0].max() < 0.9  # two images share the first query's labels: its target is a mean
    np.testing.assert_allclose(draws["target"], jnp.einsum("qr,rhwc->qhwc", weights, images), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(draws["target"][4:], images[4:], rtol=1e-6)


def warped_batch(images, probability=0.5, seed=3):
    """The images, what is done to each, and the result with its labels."""
    done = augment.draw(jax.random.key(seed), len(images), probability)
    return (images, done), augment.apply(images, done), augment.labels(done)


@pytest.mark.parametrize("conditional", [False, True])
def test_a_warped_image_sees_others_warped_as_it_is(conditional):
    """Against the definition: its own sample and the next images of the batch, each under its own transform."""
    rows = 5
    fields = {"objective__time_mean": 2.0, "objective__time_std": 0.1, "model__conditional": conditional}
    objectives_of = [denoising.build(make_config("stf", **fields, reference__warped_rows=n), None) for n in (0, rows)]
    images = jax.random.uniform(jax.random.key(1), (8, 8, 8, 1), minval=-1.0)
    classes = jnp.arange(8) // 4
    augmented, warped, told = warped_batch(images)
    arguments = (warped, classes, jax.random.key(2), jnp.int32(0), {}, told)
    plain = objectives_of[0].draw(*arguments)["target"]
    draws = objectives_of[1].draw(*arguments, augmented)
    moved = np.asarray(augment.is_warped(augmented[1]))
    assert 2 <= moved.sum() <= 7
    np.testing.assert_array_equal(draws["target"][~moved], plain[~moved])
    np.testing.assert_allclose(plain[moved], warped[moved], rtol=1e-5, atol=1e-6)  # by itself it keeps its sample
    for query in np.flatnonzero(moved):
        one = jax.tree.map(lambda x, i=query: jnp.repeat(x[i : i + 1], 8, axis=0), augmented[1])
        all_as_it_is = np.asarray(augment.apply(images, one), np.float64)
        seen = [(query + 1 + k) % 8 for k in range(rows)]
        seen = [query, *(row for row in seen if not conditional or classes[row] == classes[query])]
        squared = ((np.asarray(draws["x_t"][query]) - all_as_it_is[seen]) ** 2).sum((1, 2, 3))
        weights = np.exp(-(squared - squared.min()) / (2 * float(draws["t"][query]) ** 2))
        expected = np.einsum("r,rhwc->hwc", weights / weights.sum(), all_as_it_is[seen])
        np.testing.assert_allclose(draws["target"][query], expected, rtol=1e-3, atol=1e-4)
        assert np.abs(expected - np.asarray(warped[query])).max() > 0.05 or len(seen) == 1


def test_stable_targets_of_warped_images_are_unbiased_and_nearer_the_posterior_mean():
    """Data of two images: E[x_0 | x_t, what was done] is known. Noise about as large as their distance."""
    pair = jax.random.uniform(jax.random.key(0), (2, 8, 8, 1), minval=-1.0)
    which = jax.random.bernoulli(jax.random.key(1), 0.5, (512,)).astype(jnp.int32)
    config = make_config(
        "stf", batch_size=512, reference__warped_rows=16, objective__time_mean=1.0, objective__time_std=0.05
    )
    augmented, warped, told = warped_batch(pair[which], probability=0.9)
    arguments = (warped, jnp.zeros(512, jnp.int32), jax.random.key(2), jnp.int32(0), {}, told, augmented)
    draws = jax.jit(denoising.build(config, None).draw)(*arguments)
    both = jnp.stack([augment.apply(jnp.broadcast_to(image, warped.shape), augmented[1]) for image in pair])
    squared = ((draws["x_t"] - both) ** 2).sum((2, 3, 4))
    weights = jax.nn.softmax(-squared / (2 * draws["t"] ** 2), axis=0)
    exact = jnp.einsum("kb,kbhwc->bhwc", weights, both)
    moved = np.asarray(augment.is_warped(augmented[1]))
    assert moved.mean() > 0.9
    error = lambda target: ((target - exact) ** 2).sum((1, 2, 3))[moved]  # noqa: E731
    assert error(draws["target"]).mean() < 0.2 * error(warped).mean()
    bias = ((draws["target"] - exact) * (both[0] - both[1])).sum((1, 2, 3))[moved]
    assert abs(float(bias.mean())) < 4 * float(bias.std()) / moved.sum() ** 0.5
    # Rows under flips alone are no samples of p(x_0 | what was done): their mean is elsewhere.
    unwarped = jnp.einsum("kb,khwc->bhwc", weights, pair)
    assert error(unwarped).mean() > 5 * error(draws["target"]).mean()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"method": "ect"}, ["ect", "edm and stf"]),
        ({"model__augment_dim": 0}, ["model.augment_dim = 9"]),
        ({"data__flip": True}, ["data.flip = False"]),
        ({"method": "stf", "reference__source": "bank"}, ["reference.source = 'batch'"]),
        ({"data__augment": 1.5}, ["data.augment", "<= 1"]),
    ],
)
def test_what_it_does_not_go_with_is_one_clear_line(fields, words):
    with pytest.raises(UserError) as caught:
        make_config(**fields)
    assert "config.data.augment" in str(caught.value)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)
