"""The exact posterior mean of a data set: a dense float64 oracle, masks, mirror images, blocks, and devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import score_oracle as oracle

from sct_jax.diffusion import score
from sct_jax.training.mesh import make_mesh

NUM = 240
posterior_mean = jax.jit(functools.partial(score.dataset_posterior_mean, block=32), static_argnames=("flip", "block"))
DATA = {
    "random": functools.partial(oracle.random_images, NUM, channels=1),
    "digits": functools.partial(oracle.digits, NUM),
    "near duplicates": lambda: oracle.with_near_duplicates(oracle.digits(NUM // 4)),
    "near duplicates in colour": lambda: oracle.with_near_duplicates(oracle.random_images(12, 20)),  # 1,200 pixels
}


def assert_agrees(result, expected):
    """Within 1e-5 of the oracle; the distance from x_0 is that of two float32 images."""
    estimate, size, entropy, distance = expected
    assert oracle.relative(result.estimate, estimate) < 1e-5
    np.testing.assert_allclose(result.effective_sample_size, size, rtol=2e-5)
    np.testing.assert_allclose(result.entropy, entropy, atol=2e-5)
    np.testing.assert_allclose(np.sqrt(result.own_distance), np.sqrt(distance), atol=5e-7 * np.abs(estimate).max())


@pytest.mark.parametrize("kind", DATA)
def test_agrees_with_float64_from_the_smallest_to_the_largest_time(kind):
    images = DATA[kind]()
    x_0, noise, t = oracle.queries(images)
    expected = oracle.dense(x_0, noise, t, oracle.unit(images))
    if "near" in kind:  # the case that needs exact distances: several rows weigh at the smallest times too
        assert expected[1][t < 0.006].max() > 1.5
    assert_agrees(posterior_mean(x_0, noise, t, images), expected)


def test_a_clean_image_between_the_levels_loses_nothing():
    images = oracle.with_near_duplicates(oracle.digits(NUM // 4))
    x_0, noise, t = oracle.queries(images)
    x_0 = x_0 + np.random.default_rng(5).uniform(-0.004, 0.004, x_0.shape).astype(np.float32)
    expected = oracle.dense(x_0, noise, t, oracle.unit(images))
    assert_agrees(posterior_mean(x_0, noise, t, images), expected)


def test_only_the_noisy_image_matters_not_what_it_was_made_of():
    images = oracle.with_near_duplicates(oracle.digits(NUM // 4))
    x_0, noise, t = oracle.queries(images)
    x_t = x_0 + t[:, None, None, None] * noise
    nothing = np.zeros_like(noise)
    assert_agrees(posterior_mean(x_t, nothing, t, images), oracle.dense(x_t, nothing, t, oracle.unit(images)))


def test_float_images_are_taken_as_they_are():
    """A mixture's samples leave [-1, 1]; in two dimensions rows lie as near as the smallest t."""
    rows = np.random.default_rng(3).normal(0, 2, (800, 1, 1, 2)).astype(np.float32)
    rows[400:] = rows[:400] + np.random.default_rng(4).normal(0, 0.002, (400, 1, 1, 2))
    x_0 = np.tile(rows[:4], (len(oracle.TIMES), 1, 1, 1))
    noise, t = np.random.default_rng(5).normal(size=x_0.shape).astype(np.float32), np.repeat(oracle.TIMES, 4)
    expected = oracle.dense(x_0, noise, t, rows)
    assert expected[1][:4].max() > 1.2
    assert_agrees(posterior_mean(x_0, noise, t, rows, block=100), expected)


def test_one_image_is_the_answer():
    images = oracle.digits(1)
    x_0, noise, t = oracle.queries(images, each=1)
    result = posterior_mean(x_0, noise, t, images)
    np.testing.assert_allclose(result.estimate, x_0, atol=2e-7)  # the rounding of x/127.5 − 1
    np.testing.assert_array_equal(result.effective_sample_size, 1.0)
    np.testing.assert_array_equal(result.entropy, 0.0)
    np.testing.assert_allclose(result.own_distance, 0.0, atol=1e-13)


def test_the_limits_of_time():
    images = oracle.digits(NUM)
    x_0, noise, t = oracle.queries(images, times=[0.002] * 4 + [1e5] * 5)
    result = posterior_mean(x_0, noise, t, images)
    np.testing.assert_allclose(result.estimate[:16], x_0[:16], atol=2e-7)
    np.testing.assert_array_equal(result.effective_sample_size[:16], 1.0)
    np.testing.assert_allclose(result.estimate[16:], np.tile(oracle.unit(images).mean(0), (20, 1, 1, 1)), atol=1e-3)
    np.testing.assert_allclose(result.effective_sample_size[16:], NUM, rtol=1e-3)
    np.testing.assert_allclose(result.entropy[16:], np.log(NUM), rtol=1e-3)


@pytest.mark.parametrize("block", [7, 64])
def test_the_blocks_do_not_matter(block):
    images, labels = oracle.digits(50), np.arange(50) % 3
    x_0, noise, t = oracle.queries(images, times=[0.5, 2.0])
    own = labels[np.tile(np.arange(4), 2)]
    result = posterior_mean(x_0, noise, t, images, labels=own, image_labels=labels, block=block)
    assert_agrees(result, oracle.dense(x_0, noise, t, oracle.unit(images), own[:, None] == labels))


def test_the_order_of_images_does_not_matter():
    images = oracle.digits(NUM)
    x_0, noise, t = oracle.queries(images)
    order = np.random.default_rng(0).permutation(NUM)
    a, b = (posterior_mean(x_0, noise, t, rows) for rows in (images, images[order]))
    for one, other in zip(a, b, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=1e-6)


def test_a_query_sees_its_class_only_even_where_whole_blocks_are_hidden():
    images, labels = oracle.digits(NUM), np.repeat([0, 1, 2], NUM // 3).astype(np.int32)
    x_0, noise, t = oracle.queries(images)
    own = np.int32([2, 0, 1, 2] * len(oracle.TIMES))
    result = posterior_mean(x_0, noise, t, images, labels=own, image_labels=labels)
    for label in range(3):
        chosen = own == label
        expected = oracle.dense(x_0[chosen], noise[chosen], t[chosen], oracle.unit(images[labels == label]))
        assert_agrees(score.PosteriorMean(*(x[chosen] for x in result)), expected)


@pytest.mark.parametrize("masked", [False, True])
def test_hidden_images_are_seen_by_nobody(masked):
    images, labels = oracle.digits(NUM), np.int32([0, 1] * (NUM // 2))
    labels[[3, 10, 20, NUM - 1]] = score.HIDDEN
    x_0, noise, t = oracle.queries(images)
    own = np.int32([0, 1, score.HIDDEN, 1] * len(oracle.TIMES))  # to ask for the hidden label shows nothing either
    options = {"labels": own} if masked else {}
    result = posterior_mean(x_0, noise, t, images, image_labels=labels, **options)
    visible = (own[:, None] == labels) if masked else np.ones((len(t), NUM), bool)
    visible &= labels != score.HIDDEN
    sees = visible.any(axis=1)
    expected = oracle.dense(x_0[sees], noise[sees], t[sees], oracle.unit(images), visible[sees])
    assert_agrees(score.PosteriorMean(*(x[sees] for x in result)), expected)
    assert np.isnan(result.estimate[~sees]).all()
    assert (~sees).sum() == (len(oracle.TIMES) if masked else 0)


def test_flip_is_the_doubled_data_set():
    images, labels = oracle.random_images(30), np.arange(30, dtype=np.int32) % 2
    images[20:] = images[:10, :, ::-1]  # some whose mirror image is there already
    x_0, noise, t = oracle.queries(images)
    own = np.tile(labels[:4], len(oracle.TIMES))
    doubled, both = np.concatenate([images, images[:, :, ::-1]]), np.concatenate([labels, labels])
    result = posterior_mean(x_0, noise, t, images, labels=own, image_labels=labels, flip=True, block=8)
    assert_agrees(result, oracle.dense(x_0, noise, t, oracle.unit(doubled), own[:, None] == both))


@pytest.mark.parametrize("flip", [False, True])
def test_eight_devices_give_what_one_gives(flip):
    mesh = make_mesh(8)
    images, labels = oracle.with_near_duplicates(oracle.digits(22))[:86], np.arange(86, dtype=np.int32) % 3
    x_0, noise, t = oracle.queries(images)
    own = np.tile(labels[:4], len(oracle.TIMES))
    # Padded to 8 × 11; the last shard sees nothing of class 2 but rows of the others, so parts differ in what they saw.
    images, labels = np.pad(images, [(0, 2), (0, 0), (0, 0), (0, 0)]), np.pad(labels, (0, 2), constant_values=-2)
    labels[77:][labels[77:] == 2] = score.HIDDEN
    sharded = jax.jit(functools.partial(score.sharded_dataset_posterior_mean, mesh, flip=flip, block=4))
    options = {"labels": own, "image_labels": labels}
    one = posterior_mean(x_0, noise, t, images, flip=flip, **options)
    eight = sharded(x_0, noise, t, images, **options)
    for a, b in zip(one, eight, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)
    rows = np.concatenate([images, images[:, :, ::-1]]) if flip else images
    visible = own[:, None] == (np.concatenate([labels, labels]) if flip else labels)
    assert_agrees(eight, oracle.dense(x_0, noise, t, oracle.unit(rows), visible))


def test_memory_does_not_grow_with_the_images():
    def temporaries(count):
        x_0, t = jax.ShapeDtypeStruct((16, 16, 16, 3), jnp.float32), jax.ShapeDtypeStruct((16,), jnp.float32)
        images = jax.ShapeDtypeStruct((count, 16, 16, 3), jnp.uint8)
        compiled = posterior_mean.lower(x_0, x_0, t, images, block=256).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    small, large = temporaries(4096), temporaries(16384)
    assert large < 1.02 * small
    assert large < 4 * 4 * 256 * 16 * 16 * 3  # four blocks of floats, far below 4096 rows as floats


def test_a_query_that_sees_no_image_is_an_error_and_under_jit_a_nan():
    images, labels = oracle.digits(NUM), np.int32([0, 1] * (NUM // 2))
    x_0, noise, t = oracle.queries(images)
    own, hidden = np.zeros(len(t), np.int32), np.full(NUM, score.HIDDEN)
    own[1] = 3
    for call in (score.dataset_posterior_mean, functools.partial(score.sharded_dataset_posterior_mean, make_mesh(4))):
        with pytest.raises(ValueError, match=r"queries \[1\] see no reference"):
            call(x_0, noise, t, images, labels=own, image_labels=labels)
        with pytest.raises(ValueError, match=r"queries \[0, 1, 2, .* see no reference"):
            call(x_0, noise, t, images, image_labels=hidden)
    estimate = posterior_mean(x_0, noise, t, images, labels=own, image_labels=labels).estimate
    assert np.isnan(estimate[1]).all()
    assert np.isfinite(np.delete(estimate, 1, axis=0)).all()


@pytest.mark.parametrize("change", ["noise", "t", "images", "labels", "image_labels"])
def test_shapes_that_do_not_fit_are_refused(change):
    images, labels = oracle.digits(4), np.zeros(4, np.int32)
    x_0, noise, t = oracle.queries(images, times=[1.0])
    given = {"x_0": x_0, "noise": noise, "t": t, "images": images, "labels": labels, "image_labels": labels}
    given[change] = given[change][:3, :2] if change == "images" else given[change][:3]
    with pytest.raises(ValueError, match="must be"):
        score.dataset_posterior_mean(**given)


def test_what_cannot_be_split_evenly_or_masked_is_refused():
    images = oracle.digits(10)
    x_0, noise, t = oracle.queries(images, times=[1.0])
    with pytest.raises(ValueError, match="10 images do not divide over 8 devices"):
        score.sharded_dataset_posterior_mean(make_mesh(8), x_0, noise, t, images)
    with pytest.raises(ValueError, match="labels need image_labels"):
        score.dataset_posterior_mean(x_0, noise, t, images, labels=np.zeros(4, np.int32))


def test_no_gradient_flows_through_the_estimate():
    images = oracle.digits(4)
    x_0, noise, t = oracle.queries(images, times=[1.0])
    gradient = jax.jit(jax.grad(lambda x: score.dataset_posterior_mean(x, noise, t, images).estimate.sum()))(x_0)
    assert not gradient.any()
