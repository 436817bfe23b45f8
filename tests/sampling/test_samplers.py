"""Samplers: closed forms, evaluation counts, and noise that belongs to the image and not to the batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sct_jax import config as config_lib
from sct_jax.diffusion.process import karras_grid, per_image
from sct_jax.errors import UserError
from sct_jax.sampling import generate, samplers
from sct_jax.training.mesh import make_mesh

SHAPE = (4, 4, 1)


def gaussian(x, t):
    return x * 0.25 / (0.25 + per_image(t, x) ** 2)


def toy(params, x, t, labels=None):
    """A denoiser that depends on image, time and label."""
    shift = 0.0 if labels is None else 0.1 * per_image(labels, x)
    return jnp.tanh(params * x / (1 + per_image(t, x)) + shift)


def generator(kind="consistency", devices=1):
    return generate.Generator(toy, SHAPE, config_lib.default_config().sampling, kind, make_mesh(devices))


def test_heun_on_a_gaussian_is_the_exact_flow():
    keys = samplers.image_keys(0, jnp.arange(6))
    x = 80.0 * samplers.image_noise(keys, 0, SHAPE)
    images = jax.jit(lambda x: samplers.heun(gaussian, x, tuple(karras_grid(40)[::-1]), keys))(x)
    np.testing.assert_allclose(images, x * 0.5 / np.sqrt(0.25 + 80.0**2), atol=0.02)
    assert np.abs(images).max() > 0.5


@pytest.mark.parametrize(("steps", "evaluations"), [(1, 1), (2, 3), (18, 35)])
def test_heun_takes_two_evaluations_a_step_but_for_the_last(steps, evaluations):
    calls = []

    def count(x, t):
        calls.append(t)
        return gaussian(x, t)

    x = jnp.ones((1, *SHAPE))
    samplers.heun(count, x, tuple(np.linspace(80, 0.1, steps)), samplers.image_keys(0, jnp.arange(1)))
    assert len(calls) == evaluations


def test_consistency_adds_fresh_noise_of_each_level():
    keys = samplers.image_keys(3, jnp.arange(5))
    x = jnp.ones((5, *SHAPE))
    seen = []

    def denoise(x, t):
        seen.append((x, t))
        return 0.5 * jnp.ones_like(x)

    samplers.consistency(denoise, x, (80.0, 2.0, 0.5), keys)
    assert [float(t[0]) for _, t in seen] == [80.0, 2.0, 0.5]
    for draw, t in ((1, 2.0), (2, 0.5)):
        np.testing.assert_allclose(seen[draw][0], 0.5 + t * samplers.image_noise(keys, draw, SHAPE), rtol=1e-6)
    assert not np.allclose(seen[1][0] - 0.5, 4 * (seen[2][0] - 0.5))


def test_an_image_belongs_to_its_seed_and_index():
    labels = (0, 1, 2)
    for steps in (1, 2):
        all_at_once = generator()(jnp.float32(0.3), 10, steps=steps, seed=5, labels=labels, batch_size=10)
        in_parts = generator()(jnp.float32(0.3), 10, steps=steps, seed=5, labels=labels, batch_size=3)
        on_eight = generator(devices=8)(jnp.float32(0.3), 10, steps=steps, seed=5, labels=labels)
        fewer = generator()(jnp.float32(0.3), 4, steps=steps, seed=5, labels=labels)
        np.testing.assert_allclose(in_parts, all_at_once, atol=1e-5)
        np.testing.assert_allclose(on_eight, all_at_once, atol=1e-5)
        np.testing.assert_allclose(fewer, all_at_once[:4], atol=1e-5)
        other = generator()(jnp.float32(0.3), 10, steps=steps, seed=6, labels=labels)
        assert np.abs(other - all_at_once).max() > 0.1


def test_images_of_a_seed_are_all_different():
    images = generator()(jnp.float32(0.3), 50, seed=0)
    assert len(np.unique(images.reshape(50, -1).round(6), axis=0)) == 50


def test_the_noise_is_standard_normal():
    noise = samplers.image_noise(samplers.image_keys(0, jnp.arange(2000)), 0, SHAPE)
    assert abs(float(noise.mean())) < 0.02
    assert float(noise.std()) == pytest.approx(1.0, abs=0.02)


def test_times_of_consistency_steps():
    assert samplers.consistency_times(1, (0.821,), 80.0) == (80.0,)
    assert samplers.consistency_times(2, (0.821,), 80.0) == (80.0, 0.821)
    four = samplers.consistency_times(4, (0.821,), 80.0)
    assert four[0] == pytest.approx(80.0)
    assert four[-1] == pytest.approx(0.821)
    ratios = np.array(four[1:]) / np.array(four[:-1])
    np.testing.assert_allclose(ratios, ratios[0])


def test_times_of_heun_are_the_karras_grid():
    times = generator("diffusion").times(18)
    assert times[0] == pytest.approx(80.0)
    assert times[-1] == pytest.approx(0.002)
    assert len(times) == 18


def test_impossible_requests_are_refused():
    with pytest.raises(UserError, match="--steps 0"):
        generator().times(0)
    with pytest.raises(UserError, match="--num 0"):
        generator()(jnp.float32(1), 0)


def test_uint8_rounds_to_nearest_and_undoes_the_unit_range():
    values = np.arange(256, dtype=np.uint8)
    assert np.array_equal(generate.to_uint8(values / 127.5 - 1.0), values)
    assert generate.to_uint8(np.array([-3.0, 3.0])).tolist() == [0, 255]
