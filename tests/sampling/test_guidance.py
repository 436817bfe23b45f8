"""Guidance: one formula, two evaluations in one call, and nothing at weight 0."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sct_jax import config as config_lib
from sct_jax.diffusion.condition import NO_CONDITION, Condition
from sct_jax.diffusion.process import per_image
from sct_jax.sampling import generate
from sct_jax.sampling.guidance import Guide, guide, guided_denoise, stack

SHAPE = (4, 4, 1)
X = jax.random.normal(jax.random.key(0), (6, *SHAPE))
TIMES = jnp.geomspace(0.1, 80.0, 6)
LABELS = jnp.array([0, 1, 2, 3, 0, 1])
GOOD, BAD = {"scale": jnp.float32(0.5), "shift": jnp.float32(0.1)}, {"scale": jnp.float32(0.2), "shift": jnp.float32(0)}


class Spy:
    """A denoiser that depends on its weights, image, time and label, and remembers the batches it was called with."""

    def __init__(self):
        self.batches = []

    def __call__(self, params, x, t, condition=NO_CONDITION):
        self.batches.append(x.shape[0])
        labels = condition.labels
        shift = params["shift"] if labels is None else 0.3 * per_image(labels + 1, x) + params["shift"]
        return jnp.tanh(params["scale"] * x / (1 + per_image(t, x)) + shift)


def separately(omega, good=GOOD, bad=BAD, labels=LABELS, bad_labels=LABELS):
    predictions = [Spy()(params, X, TIMES, Condition(c)) for params, c in ((good, labels), (bad, bad_labels))]
    return (1 + omega) * np.asarray(predictions[0]) - omega * np.asarray(predictions[1])


def test_the_guide_is_linear_and_nothing_at_zero():
    good, bad = Spy()(GOOD, X, TIMES), Spy()(BAD, X, TIMES)
    assert jnp.array_equal(guide(good, bad, 0.0), good)
    assert jnp.array_equal(guide(good, good, 3.0), good)
    np.testing.assert_allclose(guide(good, bad, -1.0), bad, atol=1e-6)
    steps = np.diff([guide(good, bad, omega) for omega in (0.0, 0.5, 1.0, 1.5)], axis=0)
    np.testing.assert_allclose(steps, np.broadcast_to(0.5 * (good - bad), steps.shape), atol=1e-6)


@pytest.mark.parametrize("omega", [0.0, 0.7, 2.0])
def test_without_labels_in_one_call_of_twice_the_batch(omega):
    spy = Spy()
    guided = guided_denoise(spy, omega, unconditional=True)(GOOD, X, TIMES, Condition(LABELS))
    assert spy.batches == [12]
    none = jnp.full_like(LABELS, -1)
    np.testing.assert_allclose(guided, separately(omega, bad=GOOD, bad_labels=none), atol=1e-6)
    if not omega:
        assert jnp.array_equal(guided, Spy()(GOOD, X, TIMES, Condition(LABELS)))


@pytest.mark.parametrize("omega", [0.0, 0.7, 2.0])
@pytest.mark.parametrize("labels", [None, LABELS], ids=["unconditional", "conditional"])
def test_two_versions_in_one_mapped_call(omega, labels):
    spy = Spy()
    guided = guided_denoise(spy, omega)(stack(GOOD, BAD), X, TIMES, Condition(labels))
    assert spy.batches == [6]  # traced once, mapped over both
    np.testing.assert_allclose(guided, separately(omega, labels=labels, bad_labels=labels), atol=1e-6)
    if not omega:
        assert jnp.array_equal(guided, Spy()(GOOD, X, TIMES, Condition(labels)))


def test_two_versions_run_as_one_batched_product():
    """In the compiled program the two networks are one matrix product, not two."""

    def linear(params, x, t, condition):
        return (x.reshape(len(x), -1) @ params).reshape(x.shape)

    weights = jax.random.normal(jax.random.key(1), (2, 16, 16))
    jaxpr = jax.make_jaxpr(guided_denoise(linear, 1.0))(weights, X, TIMES)
    assert str(jaxpr).count("dot_general[") == 1


def test_another_network_guides_by_a_call_of_its_own():
    spy, other = Spy(), Spy()
    guided = guided_denoise(spy, 0.7, bad_denoise=lambda *given: 2 * other(*given))
    result = guided((GOOD, BAD), X, TIMES, Condition(LABELS))
    assert (spy.batches, other.batches) == ([6], [6])
    good, bad = (Spy()(params, X, TIMES, Condition(LABELS)) for params in (GOOD, BAD))
    np.testing.assert_allclose(result, 1.7 * good - 1.4 * bad, atol=1e-6)


def test_guiding_multiplies_densities():
    """For Gaussians the guided prediction is the one whose score is that of ``p_good^{1+ω} / p_bad^ω``."""

    def gaussian(variance, x, t, condition):
        return x * per_image(variance / (variance + t**2), x)

    omega, good, bad = 0.6, 0.25, 0.4
    guided = guided_denoise(gaussian, omega)(stack(jnp.float32(good), jnp.float32(bad)), X, TIMES)
    t = np.asarray(TIMES, np.float64)
    score = -(1 + omega) / (good + t**2) + omega / (bad + t**2)
    np.testing.assert_allclose(guided, X * per_image(1 + t**2 * score, X), rtol=1e-3, atol=1e-5)


def test_the_two_kinds_are_not_mixed():
    with pytest.raises(ValueError, match="not both"):
        guided_denoise(Spy(), 1.0, unconditional=True, bad_denoise=Spy())
    with pytest.raises(ValueError, match="needs labels"):
        guided_denoise(Spy(), 1.0, unconditional=True)(GOOD, X, TIMES)


@pytest.mark.parametrize(
    ("kind", "method"), [("unconditional", "ect"), ("version", "ect"), ("version", "edm"), ("network", "ect")]
)
def test_at_weight_zero_the_generator_makes_the_unguided_images(kind, method):
    config = config_lib.default_config()
    config.objective.method = method
    bad = {"unconditional": Guide(), "version": Guide(BAD), "network": Guide(BAD, Spy())}[kind]
    generator = generate.Generator(Spy(), SHAPE, config)
    call = {"steps": 2, "labels": (0, 1, 2)}
    plain = generator(GOOD, 5, **call)
    assert np.array_equal(generator(GOOD, 5, **call, guide=bad, omega=0.0), plain)
    guided = generator(GOOD, 5, **call, guide=bad, omega=0.5)
    assert np.abs(guided - plain).max() > 0.01
    near = generator(GOOD, 5, **call, guide=bad, omega=1e-6)
    np.testing.assert_allclose(near, plain, atol=1e-4)


def test_a_new_weight_compiles_nothing():
    spy = Spy()
    generator = generate.Generator(spy, SHAPE, config_lib.default_config())
    for omega in (0.5, 1.0, 2.0):
        generator(GOOD, 4, guide=Guide(BAD), omega=omega)
    assert len(spy.batches) == 1
