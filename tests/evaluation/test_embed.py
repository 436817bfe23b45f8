"""The pass over images: what it sees is what was drawn, whatever the batch, the devices and the reading."""

import dataclasses
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from feature_makers import expected_features, make_space

from sct_jax import config as config_lib
from sct_jax.data.spec import ArraySource
from sct_jax.diffusion.process import per_image
from sct_jax.errors import UserError
from sct_jax.evaluation.embed import Embedding, Wanted
from sct_jax.sampling.generate import Generator, to_uint8
from sct_jax.training.mesh import make_mesh

SHAPE = (8, 8, 3)
SPACE = make_space()
FEATURES, SPATIAL, PROBABILITIES = (("inception", name) for name in ("features", "spatial", "probabilities"))
ALL = Wanted(frozenset({FEATURES, SPATIAL}), frozenset({FEATURES, PROBABILITIES}), images=True)


def toy(params, x, t, condition):
    shift = 0.0 if condition.labels is None else 0.1 * per_image(condition.labels, x)
    return jnp.tanh(params * x / (1 + per_image(t, x)) + shift)


def drawer(devices=1, denoise=toy):
    """What a model is to a pass, over a toy network."""
    config = config_lib.default_config()
    generator = Generator(denoise, SHAPE, config, make_mesh(devices))

    def batches(num, steps, seed, **options):
        return generator.batches(jnp.float32(0.7), num, steps=steps or 1, seed=seed, **options)

    return SimpleNamespace(batches=batches, generator=generator)


def embedding(devices=1, wanted=ALL, space=SPACE):
    return Embedding({space.name: space}, wanted, make_mesh(devices))


def noise_source(num=50, size=8, channels=3):
    images = np.random.default_rng(0).integers(0, 256, (num, size, size, channels), dtype=np.uint8)
    return ArraySource(images, np.zeros(num), 0)


def assert_same(one, other, exact=True):
    assert one.num == other.num
    np.testing.assert_array_equal(one.images, other.images)
    for output in ALL.rows:
        np.testing.assert_allclose(one.rows[output], other.rows[output], rtol=1e-5, atol=1e-6)
    for output in ALL.moments:
        np.testing.assert_allclose(one.moments[output].mean, other.moments[output].mean, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(one.moments[output].cov, other.moments[output].cov, rtol=1e-5, atol=1e-7)


def test_one_program_sees_what_the_generator_draws():
    """The fused pass against its parts, one after the other on the host."""
    model = drawer()
    options = {"steps": 2, "seed": 3, "labels": (0, 1, 2), "noise": "none", "batch_size": 16}
    images = to_uint8(model.generator(jnp.float32(0.7), 45, **options))
    seen = embedding().samples(model, 45, **options)
    assert seen.num == 45
    assert seen.images.dtype == np.uint8
    np.testing.assert_array_equal(seen.images, images)
    features = expected_features(SPACE, images)
    np.testing.assert_allclose(seen.rows[FEATURES], features, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(seen.moments[FEATURES].mean, features.mean(axis=0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(seen.moments[FEATURES].cov, np.cov(features.T), rtol=1e-5, atol=1e-6)
    spatial = expected_features(SPACE, images, "spatial")
    np.testing.assert_allclose(seen.moments[SPATIAL].cov, np.cov(spatial.T), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(seen.rows[PROBABILITIES].sum(axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize(("devices", "batch"), [(1, 7), (8, 16), (8, 100)])
def test_batches_and_devices_change_nothing(devices, batch):
    whole = embedding().samples(drawer(), 45, 2, 3, labels=(0, 1, 2), batch_size=45)
    parts = embedding(devices).samples(drawer(devices), 45, 2, 3, labels=(0, 1, 2), batch_size=batch)
    assert_same(parts, whole)
    source = noise_source()
    assert_same(embedding(devices).images(source, batch_size=batch), embedding().images(source, batch_size=50))


def test_ranges_of_a_seed_join_to_the_whole():
    model, labels = drawer(), (0, 1, 2)
    whole = embedding().samples(model, 40, 1, 5, labels=labels)
    first, second = (embedding().samples(model, 20, 1, 5, labels=labels, first=start) for start in (0, 20))
    np.testing.assert_array_equal(np.concatenate([first.images, second.images]), whole.images)
    merged = first.moments[FEATURES].merge(second.moments[FEATURES])
    np.testing.assert_allclose(merged.cov, whole.moments[FEATURES].cov, rtol=1e-9)


def test_other_times_need_no_other_program():
    model, seeing = drawer(), embedding()
    two = [seeing.samples(model, 16, times=(80.0, t)).images for t in (0.5, 2.0)]
    assert (two[0] != two[1]).any()
    assert model.generator._compiled._cache_size() == 1


def test_real_images_are_seen_as_they_are():
    source = noise_source(37)
    seen = embedding(8).images(source, batch_size=8)
    np.testing.assert_array_equal(seen.images, source.read_all()[0])
    np.testing.assert_allclose(
        seen.rows[FEATURES], expected_features(SPACE, source.read_all()[0]), rtol=1e-5, atol=1e-5
    )


def test_fewer_images_than_all_are_of_every_class():
    """Though a data set is often sorted by class."""
    sorted_by_class = np.arange(200, dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 3), np.uint8)
    source = ArraySource(sorted_by_class, np.arange(200) // 20, 10)
    seen = embedding().images(source, num=100, batch_size=16)
    chosen = seen.images[:, 0, 0, 0]
    assert len(set(chosen)) == seen.num == 100
    assert set(chosen // 20) == set(range(10))
    np.testing.assert_array_equal(seen.images, sorted_by_class[chosen])
    np.testing.assert_array_equal(embedding(8).images(source, num=100).images, seen.images)


def test_only_what_is_wanted_is_kept():
    seen = embedding(wanted=Wanted(moments=frozenset({FEATURES}))).samples(drawer(), 10)
    assert seen.num == 10
    assert (list(seen.moments), seen.rows, seen.images) == ([FEATURES], {}, None)
    nothing = Embedding({}, Wanted(images=True), make_mesh(1)).samples(drawer(), 10)
    assert nothing.images.shape == (10, *SHAPE)


def test_the_device_works_ahead_of_the_host():
    """When the caller gets a batch, the next is dispatched already, and no more than that."""
    model, indices = drawer(), []
    original = model.generator._indices
    model.generator._indices = lambda *given: (indices.append(1) or batch for batch in original(*given))
    stream = model.batches(40, 1, 0, batch_size=8)
    dispatched = []
    for _ in stream:
        dispatched.append(len(indices))
    assert dispatched == [2, 3, 4, 5, 5]


def test_what_is_not_finite_is_named():
    broken = drawer(denoise=lambda params, x, t, condition: x * jnp.nan)
    with pytest.raises(UserError, match="10 of 10 samples are not finite: the model has diverged"):
        embedding().samples(broken, 10)
    blind = make_space(see=lambda params, images: {"features": jnp.full((len(images), 6), jnp.inf)})
    for wanted in (Wanted(moments=frozenset({FEATURES})), Wanted(rows=frozenset({FEATURES}))):
        with pytest.raises(UserError, match="non-finite features"):
            embedding(wanted=wanted, space=blind).images(noise_source(20))


def test_points_and_impossible_numbers_are_refused():
    source = noise_source(20)
    with pytest.raises(UserError, match="--num 21: there are 20 images"):
        embedding().images(source, num=21)
    with pytest.raises(UserError, match="--batch-size 0"):
        embedding().images(source, batch_size=0)
    source.spec = dataclasses.replace(source.spec, dtype="float32")
    with pytest.raises(UserError, match="points, not images"):
        embedding().images(source)
