"""Deterministic steps and phases, on a Gaussian whose trajectories are known: ``x(t) = x(T) h(t)/h(T)``."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from sct_jax import config as config_lib
from sct_jax.diffusion.process import per_image
from sct_jax.diffusion.times import phase_edges, phase_start
from sct_jax.errors import UserError
from sct_jax.sampling import generate, samplers

SHAPE = (4, 4, 1)
STD, T = 0.5, 80.0
KEYS = samplers.image_keys(0, jnp.arange(5))
START = T * samplers.image_noise(KEYS, 0, SHAPE)


def h(t):
    return np.sqrt(STD**2 + np.square(t, dtype=np.float64))


def exact(x, t, s=None):
    """The consistency function: the end of the trajectory through ``(x, t)``."""
    return x * STD / jnp.sqrt(STD**2 + per_image(t, x) ** 2)


def exact_phased(edges):
    """``g`` of the phased model that maps ``(x, t)`` to its trajectory at the edge below ``t``."""

    def g(x, t, to=None):
        s = phase_start(t, edges)
        ratio = jnp.sqrt((STD**2 + s**2) / (STD**2 + t**2))
        return x * per_image((ratio - s / t) / (1 - s / t), x)

    return g


def descending(phases):
    edges = phase_edges(phases, 0.002, T)
    return edges, tuple(float(s) for s in edges[:0:-1])


def factor(phases, eta):
    """What edge skipping multiplies the start by, in float64: the chord of each phase, prolonged to ``η s``."""
    edges, _ = descending(phases)
    edges = edges.astype(np.float64)
    t, total = edges[-1], 1.0
    for s in edges[-2::-1]:
        chord = (h(s) / h(t) - s / t) / (1 - s / t)
        total *= eta * s / t + (1 - eta * s / t) * chord
        t = eta * s
    return total


@pytest.mark.parametrize("times", [(T, 0.8), (T, 10.0, 1.0, 0.1)])
def test_without_noise_a_step_follows_the_chord(times):
    """The exact ``f`` is not enough for an exact result: where trajectories bend, the chord lies beside them."""
    ratios = [((s / t) * h(t) + (1 - s / t) * STD) / h(s) for t, s in itertools.pairwise(times)]
    images = samplers.deterministic(exact, START, times, KEYS)
    np.testing.assert_allclose(images, START * (STD / h(T) * np.prod(ratios)), rtol=1e-5)
    assert np.prod(ratios) > 1.01


def test_the_chord_is_exact_at_its_ends():
    once = samplers.deterministic(exact, START, (T,), KEYS)
    for level, tolerance in ((T * 0.9999, 2e-3), (1e-5, 1e-3)):
        np.testing.assert_allclose(samplers.deterministic(exact, START, (T, level), KEYS), once, rtol=tolerance)


def test_where_trajectories_are_straight_any_times_are_exact():
    """All mass in one point: ``x(t) = c + t ε``, and the model says ``c``; on the way the noise is kept as it is."""
    seen = []

    def point(x, t, s=None):
        seen.append((x - 0.3) / per_image(t, x))
        return jnp.full_like(x, 0.3)

    images = samplers.deterministic(point, 0.3 + START, (T, 5.0, 0.1), KEYS)
    np.testing.assert_array_equal(images, np.float32(0.3))
    for noise in seen:
        np.testing.assert_allclose(noise, START / T, atol=2e-5)


@pytest.mark.parametrize("phases", [1, 2, 4, 8])
def test_the_exact_phased_model_gives_the_exact_map(phases):
    edges, times = descending(phases)
    images = samplers.phased(exact_phased(edges), START, times, KEYS)
    np.testing.assert_allclose(images, START * STD / h(T), rtol=2e-5)


def test_one_phase_is_one_step():
    edges, times = descending(1)
    g = exact_phased(edges)
    for eta in (1.0, 0.5):
        assert jnp.array_equal(samplers.phased(g, START, times, KEYS, eta), samplers.consistency(g, START, times, KEYS))


@pytest.mark.parametrize(("phases", "eta"), [(2, 0.5), (4, 0.7), (8, 0.9)])
def test_past_an_edge_the_step_follows_the_prolonged_chord(phases, eta):
    """Even the exact phased model is not exact past its edges: trajectories bend upwards, the chord falls below."""
    edges, times = descending(phases)
    images = samplers.phased(exact_phased(edges), START, times, KEYS, eta)
    np.testing.assert_allclose(images, START * factor(phases, eta), rtol=5e-5)
    assert factor(phases, eta) < 0.99 * STD / h(T)


def test_the_error_of_edge_skipping_is_of_first_order():
    errors = [STD / h(T) - factor(4, 1 - skipped) for skipped in (0.0, 0.001, 0.002)]
    assert abs(errors[0]) < 1e-9
    assert errors[2] / errors[1] == pytest.approx(2.0, rel=0.01)


def test_fresh_randomness_plays_no_part():
    other = samplers.image_keys(9, jnp.arange(5))
    for sampler in (samplers.deterministic, samplers.phased):
        images = [sampler(exact, START, (T, 3.0, 0.5), keys) for keys in (KEYS, other)]
        assert jnp.array_equal(*images)
    assert not jnp.array_equal(*(samplers.consistency(exact, START, (T, 3.0), keys) for keys in (KEYS, other)))


def test_a_phased_model_is_evaluated_once_in_each_phase():
    edges, times = descending(4)
    seen = []

    def spy(x, t, s=None):
        seen.append(float(t[0]))
        return exact(x, t)

    samplers.phased(spy, START, times, KEYS, 0.8)
    assert seen == pytest.approx([T, *(0.8 * edges[3:0:-1])])


# The generator.


def generator(phases=4, eta=1.0, denoise=None, **objective):
    config = config_lib.default_config()
    config.objective.update({"method": "sct", "phases": phases, **objective})
    config.sampling.eta = eta
    edges = generate.phase_edges(config)
    g = denoise or exact_phased(edges)
    return generate.Generator(lambda params, x, t, condition: params * g(x, t), SHAPE, config, clip=False)


def test_the_generator_walks_the_edges_of_the_objective():
    generate_images = generator(phases=3, t_max=40.0, rho=3.0)
    assert generate_images.times(3) == pytest.approx(tuple(phase_edges(3, 0.002, 40.0, 3.0)[:0:-1]))
    start = 40.0 * samplers.image_noise(samplers.image_keys(0, jnp.arange(6)), 0, SHAPE)
    np.testing.assert_allclose(generate_images(jnp.float32(1), 6, steps=3), start * STD / h(40.0), rtol=2e-5)


def test_eta_of_the_config_or_of_the_call():
    of_config = generator(eta=0.7)(jnp.float32(1), 4, steps=4)
    of_call = generator()(jnp.float32(1), 4, steps=4, eta=0.7)
    np.testing.assert_array_equal(of_config, of_call)
    start = T * samplers.image_noise(samplers.image_keys(0, jnp.arange(4)), 0, SHAPE)
    np.testing.assert_allclose(of_call, start * factor(4, 0.7), rtol=5e-5)
    assert generator().times(4, 0.7)[1:] == pytest.approx([0.7 * t for t in generator().times(4)[1:]])
    assert generator(eta=0.7).times(4) == generator().times(4, 0.7)


def test_times_may_stop_within_a_phase():
    """A level within a phase is no edge of the model, but its chord to the edge can be followed in parts."""
    edges, times = descending(2)
    more = (T, 40.0, times[1], times[1] / 2)
    images = generator(phases=2)(jnp.float32(1), 4, times=more)
    start = T * samplers.image_noise(samplers.image_keys(0, jnp.arange(4)), 0, SHAPE)
    np.testing.assert_allclose(images, samplers.deterministic(exact_phased(edges), start, more, KEYS), rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "problem"),
    [
        ({"steps": 1}, "this model has 4 phases: use --steps 4"),
        ({"steps": 5}, "this model has 4 phases: use --steps 4"),
        ({"times": (80.0, 0.5)}, "--times 80.0,0.5 leaves out a whole phase"),
        ({"times": (80.0, 20.0)}, "leaves out a whole phase"),
        ({"steps": 4, "eta": 0.01}, "eta = 0.01 leaves out a whole phase"),
        ({"steps": 4, "eta": 0.0}, "--eta 0: must be above 0"),
        ({"steps": 4, "eta": 1.1}, "--eta 1.1: must be above 0 and at most 1"),
        ({"steps": 4, "eta": float("nan")}, "--eta nan"),
        ({"times": (80.0, 20.0, 2.0, 0.1), "eta": 0.5}, "--eta and --times"),
        ({"steps": 4, "noise": "fresh"}, "a phased model is sampled without fresh noise"),
    ],
    ids=str,
)
def test_what_a_phased_model_cannot_do_is_said(call, problem):
    with pytest.raises(UserError, match=problem):
        generator()(jnp.float32(1), 1, **call)
