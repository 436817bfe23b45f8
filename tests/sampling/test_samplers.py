"""Samplers: closed forms, evaluation counts, and noise that belongs to the image and not to the batch."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sct_jax import config as config_lib
from sct_jax.data.mixtures import GaussianMixture
from sct_jax.diffusion.process import karras_grid, per_image
from sct_jax.errors import SamplingWarning, UserError
from sct_jax.sampling import generate, samplers
from sct_jax.sampling.guidance import Guide
from sct_jax.training.mesh import make_mesh

SHAPE = (4, 4, 1)


def gaussian(x, t, s=None):
    return x * 0.25 / (0.25 + per_image(t, x) ** 2)


def toy(params, x, t, condition):
    """A denoiser that depends on image, time and label."""
    shift = 0.0 if condition.labels is None else 0.1 * per_image(condition.labels, x)
    return jnp.tanh(params * x / (1 + per_image(t, x)) + shift)


def generator(method="ect", devices=1, phases=1, **sampling):
    config = config_lib.default_config()
    config.objective.method, config.objective.phases = method, phases
    config.sampling.update(sampling)
    return generate.Generator(toy, SHAPE, config, make_mesh(devices))


def test_heun_on_a_gaussian_is_the_exact_flow():
    keys = samplers.image_keys(0, jnp.arange(6))
    x = 80.0 * samplers.image_noise(keys, 0, SHAPE)
    images = jax.jit(lambda x: samplers.heun(gaussian, x, tuple(karras_grid(40)[::-1]), keys))(x)
    np.testing.assert_allclose(images, x * 0.5 / np.sqrt(0.25 + 80.0**2), atol=0.02)
    assert np.abs(images).max() > 0.5


@pytest.mark.parametrize("steps", [1, 2, 3, 18])
def test_heun_is_edms_algorithm(steps):
    """Algorithm 1 of EDM without churn, written down in float64; every evaluation in its order and at its level."""
    times = tuple(np.geomspace(80, 0.1, steps))
    seen = []

    def bend(x, t, lib):
        return lib.tanh(x / (1 + t)) + 0.3 * lib.sin(x)

    def denoise(x, t):
        seen.append(float(t[0]))
        return bend(x, per_image(t, x), jnp)

    start = 80.0 * np.random.default_rng(0).normal(size=(2, *SHAPE))
    x, expected = start, []
    for t, r in zip(times, (*times[1:], 0.0), strict=True):
        slope = (x - bend(x, t, np)) / t
        euler = x + (r - t) * slope
        expected.append(t)
        if r > 0:
            expected.append(r)
            slope = (slope + (euler - bend(euler, r, np)) / r) / 2
        x = x + (r - t) * slope
    with jax.disable_jit():
        images = samplers.heun(denoise, jnp.asarray(start, jnp.float32), times, samplers.image_keys(0, jnp.arange(2)))
    np.testing.assert_allclose(seen, expected, rtol=1e-6)
    assert len(seen) == 2 * steps - 1
    np.testing.assert_allclose(images, x, atol=2e-4)


def test_heun_holds_one_network_however_many_steps():
    """What takes time to compile, on any device."""
    draw = jax.jit(lambda x: samplers.heun(lambda x, t: jnp.cosh(x), x, tuple(karras_grid(18)[::-1]), None))
    text = draw.lower(jnp.ones((1, *SHAPE))).as_text()
    assert (text.count("cosh"), text.count("stablehlo.while")) == (1, 1)


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


def test_consistency_of_a_gaussian_keeps_its_distribution_at_every_step():
    """With the exact ``f`` each step's output is ``N(0, σ_d²)`` again, whatever the noise levels."""
    keys = samplers.image_keys(1, jnp.arange(4096))
    x = np.sqrt(80.0**2 + 0.25) * samplers.image_noise(keys, 0, SHAPE)
    for times in ((80.0,), (80.0, 0.8), (80.0, 5.0, 0.3)):
        images = samplers.consistency(lambda x, t: 0.5 * x / jnp.sqrt(0.25 + per_image(t, x) ** 2), x, times, keys)
        assert float(images.std()) == pytest.approx(0.5, rel=0.01)  # of 65,536 numbers: 0.3 %


def test_without_noise_an_exact_two_time_model_stays_on_its_trajectories():
    """Where steps of an exact consistency model, which is not told ``s``, lie beside them."""
    keys = samplers.image_keys(0, jnp.arange(4))
    x, times = 80.0 * samplers.image_noise(keys, 0, SHAPE), (80.0, 5.0, 1.0, 0.3)

    def two_time(x, t, s=0.0):
        ratio = s / t
        factor = jnp.sqrt((0.25 + jnp.square(s)) / (0.25 + t**2))
        return x * per_image((factor - ratio) / (1 - ratio), x)

    end = x * 0.5 / np.sqrt(0.25 + 80.0**2)
    np.testing.assert_allclose(samplers.deterministic(two_time, x, times, keys), end, rtol=1e-4)
    blind = samplers.deterministic(lambda x, t, s=None: two_time(x, t), x, times, keys)
    assert np.abs(blind / end - 1).min() > 0.05


def test_adjusted_noise_is_as_far_from_the_mean_as_images_of_the_posterior_are():
    """Step by step: ``E ‖(1 − s/t) x_0 + (s/t) x − x̂_0‖²`` over ``x_0 ~ p(x_0 | x)``, drawn; no formula of ours."""
    t, s = 1.3, 0.4
    data = GaussianMixture.isotropic(np.full((1, 48), 0.2), 0.5)
    x = 0.2 + np.random.default_rng(0).normal(0, np.hypot(0.5, t), (4, 48))
    drawn = np.stack([data.sample_posterior(np.random.default_rng(i), row, t, 20_000) for i, row in enumerate(x)])
    mean = data.posterior_mean(x, t)
    expected = (((1 - s / t) * drawn + (s / t) * x[:, None] - mean[:, None]) ** 2).sum(axis=-1).mean(axis=-1)
    seen = []

    def denoise(x, time):
        seen.append(np.asarray(x, np.float64).reshape(4, 48))
        return jnp.asarray(data.posterior_mean(np.asarray(x).reshape(4, 48), float(time[0])), jnp.float32).reshape(
            x.shape
        )

    samplers.adjusted(denoise, jnp.asarray(x, jnp.float32).reshape(4, *SHAPE[:2], 3), (t, s), None, share=1.0)
    np.testing.assert_allclose(((seen[1] - mean) ** 2).sum(axis=-1), expected, rtol=0.01)  # of 20,000: 0.2 %
    samplers.adjusted(denoise, jnp.asarray(x, jnp.float32).reshape(4, *SHAPE[:2], 3), (t, s), None, share=0.0)
    np.testing.assert_allclose(seen[3], s / t * x + (1 - s / t) * mean, atol=1e-5)  # Euler's step


def test_adjusted_noise_gives_a_gaussian_back_most_of_the_spread_that_euler_steps_lose():
    keys = samplers.image_keys(0, jnp.arange(2048))
    x = np.sqrt(80.0**2 + 0.25) * samplers.image_noise(keys, 0, (16, 16, 1))
    times = tuple(karras_grid(18)[::-1])
    plain, euler, adjusted = (
        float(images.std())
        for images in (
            samplers.heun(gaussian, x, tuple(karras_grid(40)[::-1]), keys),
            samplers.deterministic(gaussian, x, times, keys),
            samplers.adjusted(gaussian, x, times, keys),
        )
    )
    assert plain == pytest.approx(0.5, abs=0.01)  # the data's
    assert euler < 0.43
    assert 0.46 < adjusted < 0.5
    no_noise = samplers.adjusted(lambda x, t: x, x, times, keys)
    assert jnp.all(no_noise == x)  # not 0/0


@pytest.mark.parametrize(
    ("options", "call"),
    [
        ({}, {"steps": 2}),
        ({}, {"steps": 2, "noise": "none"}),
        ({}, {"steps": 2, "noise": "adjusted:0.3"}),
        ({"phases": 3}, {"steps": 3, "eta": 0.7}),
        ({}, {"steps": 2, "guide": Guide(), "omega": 0.8}),
        ({}, {"steps": 2, "guide": Guide(jnp.float32(0.1)), "omega": 0.8}),
    ],
    ids=["fresh noise", "no noise", "adjusted noise", "phased", "unconditional guide", "bad version"],
)
def test_an_image_belongs_to_its_seed_and_index(options, call):
    call = call | {"labels": (0, 1, 2), "seed": 5}
    one, eight = generator(**options), generator(devices=8, **options)
    all_at_once = eight(jnp.float32(0.3), 10, **call)
    in_parts = one(jnp.float32(0.3), 10, batch_size=3, **call)
    fewer = one(jnp.float32(0.3), 4, batch_size=3, **call)
    np.testing.assert_allclose(in_parts, all_at_once, atol=1e-5)
    np.testing.assert_allclose(fewer, all_at_once[:4], atol=1e-5)
    other = eight(jnp.float32(0.3), 10, **call | {"seed": 6})
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
    assert samplers.consistency_times(4, (5.0, 20.0, 0.8), 80.0) == (80.0, 20.0, 5.0, 0.8)
    assert samplers.consistency_times(2, (5.0, 20.0, 0.8), 80.0) == pytest.approx((80.0, 0.8))
    four = samplers.consistency_times(4, (0.821,), 80.0)
    assert four[0] == pytest.approx(80.0)
    assert four[-1] == pytest.approx(0.821)
    ratios = np.array(four[1:]) / np.array(four[:-1])
    np.testing.assert_allclose(ratios, ratios[0])


def test_times_of_heun_are_the_karras_grid():
    times = generator("edm").times(18)
    assert times[0] == pytest.approx(80.0)
    assert times[-1] == pytest.approx(0.002)
    assert len(times) == 18


def test_impossible_requests_are_refused():
    with pytest.raises(UserError, match="--steps 0"):
        generator().times(0)
    with pytest.raises(UserError, match="--num 0"):
        generator()(jnp.float32(1), 0)


# Levels that a model was not trained or tuned for.


@pytest.mark.parametrize(
    ("method", "objective"),
    [
        ("ict", {"pair": "grid"}),
        ("ct", {"pair": "grid", "times": "uniform"}),
        ("ect", {"times": "truncated_lognormal"}),
        ("edm", {"times": "truncated_student"}),
    ],
)
def test_levels_above_all_of_training_are_refused(method, objective):
    config = config_lib.default_config()
    config.objective.update({"method": method, "t_max": 50.0, **objective})
    sampler = generate.Generator(toy, SHAPE, config)
    for refused in (sampler.check_options, lambda times: sampler(jnp.float32(1), 2, times=times)):
        with pytest.raises(UserError, match=r"--times 80.0,1.0: this model was trained at noise levels up to 50 only"):
            refused(times=(80.0, 1.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sampler.check_options(times=(50.0, 1.0))


@pytest.mark.parametrize(("method", "phases"), [("ect", 1), ("edm", 1), ("sct", 2)])
def test_a_start_above_the_usual_one_is_said(method, phases):
    """Lognormal times have no end, so there is an answer, but one that training seldom asks for."""
    sampler = generator(method, phases=phases)
    with pytest.warns(SamplingWarning, match=r"--times 100.0,1.0 starts at 100, above 80") as caught:
        sampler(jnp.float32(1), 2, times=(100.0, 1.0))
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sampler(jnp.float32(1), 2, times=(80.0, 1.0))


def test_a_config_that_starts_above_its_training_is_said():
    config = config_lib.default_config()
    config.objective.update({"method": "ict", "pair": "grid", "t_max": 50.0})
    with pytest.warns(SamplingWarning, match="config.sampling.t_max starts at 80, above 50"):
        generate.Generator(toy, SHAPE, config)(jnp.float32(1), 2)


@pytest.mark.parametrize("mid", [(), (0.821,), (5.0, 2.0, 0.8, 0.3)])
def test_steps_without_levels_of_their_own_say_which_are_taken(mid):
    sampler = generator(mid_times=mid)
    listed = ",".join(f"{t:.3g}" for t in sampler.times(4))
    for call in (lambda steps: sampler(jnp.float32(1), 2, steps=steps), sampler.program):
        with pytest.warns(SamplingWarning, match=f"--steps 4: .* {len(mid)} noise levels?, not 3: taken are {listed}"):
            call(4)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for steps in {1, len(mid) + 1}:
                call(steps)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sampler(jnp.float32(1), 2, steps=4, times=(80.0, 20.0, 5.0, 1.0))
        generator("edm")(jnp.float32(1), 2, steps=4)  # Heun's grid suits any number
        generator("sct", phases=4)(jnp.float32(1), 2, steps=4)


def test_the_noise_option_chooses_the_sampler():
    fresh, none = generator(noise="fresh"), generator(noise="none")
    images = none(jnp.float32(0.3), 4, steps=2)
    assert np.array_equal(fresh(jnp.float32(0.3), 4, steps=2, noise="none"), images)
    assert np.abs(fresh(jnp.float32(0.3), 4, steps=2) - images).max() > 0.1
    adjusted = generator(noise="adjusted", adjusted_share=0.4)(jnp.float32(0.3), 4, steps=2)
    assert np.array_equal(fresh(jnp.float32(0.3), 4, steps=2, noise="adjusted:0.4"), adjusted)
    assert np.abs(adjusted - images).max() > 0.01
    np.testing.assert_allclose(fresh(jnp.float32(0.3), 4, steps=2, noise="adjusted:0"), images, atol=1e-5)


@pytest.mark.parametrize(
    ("method", "options", "problem"),
    [
        ("ect", {"noise": "some"}, "--noise some: must be fresh, none, adjusted"),
        ("ect", {"noise": "adjusted:2"}, "--noise adjusted:2: must be .* a share from 0 to 1"),
        ("ect", {"noise": "none:0.1"}, "--noise none:0.1: must be"),
        ("edm", {"noise": "fresh"}, "--noise fresh: a diffusion model"),
        ("ect", {"eta": 0.5}, "only phased models have edges"),
    ],
)
def test_options_that_do_nothing_are_refused(method, options, problem):
    with pytest.raises(UserError, match=problem):
        generator(method)(jnp.float32(0.3), 1, **options)


def test_floats_of_any_range_are_not_cut():
    config = config_lib.default_config()
    cut = generate.Generator(lambda *a: 3 * toy(*a), SHAPE, config)(jnp.float32(9), 8)
    wide = generate.Generator(lambda *a: 3 * toy(*a), SHAPE, config, clip=False)(jnp.float32(9), 8)
    assert np.abs(wide).max() > 1.5
    np.testing.assert_allclose(cut, np.clip(wide, -1, 1))


@pytest.mark.parametrize(
    ("method", "phases", "kind", "steps"),
    [
        ("edm", 1, "diffusion", (1, 2)),
        ("stf", 4, "diffusion", (1, 2)),
        ("sct", 1, "consistency", (1, 2)),
        ("sct", 4, "phased", (4,)),
    ],
)
def test_the_method_says_how_a_model_is_sampled(method, phases, kind, steps):
    config = config_lib.default_config()
    config.objective.method, config.objective.phases = method, phases
    assert generate.sampler_kind(config) == kind
    assert generate.default_steps(config) == steps
    assert generate.num_phases(config) == (phases if kind == "phased" else 1)


def test_uint8_rounds_to_nearest_and_undoes_the_unit_range():
    values = np.arange(256, dtype=np.uint8)
    assert np.array_equal(generate.to_uint8(values / 127.5 - 1.0), values)
    assert generate.to_uint8(np.array([-3.0, 3.0])).tolist() == [0, 255]
