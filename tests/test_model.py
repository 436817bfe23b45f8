"""``sct_jax.load`` and ``Model``: what a Python user calls."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sct_jax
from sct_jax import config as config_lib
from sct_jax import models
from sct_jax.data import DataSpec
from sct_jax.diffusion import precondition, process
from sct_jax.diffusion.condition import Condition
from sct_jax.errors import SamplingWarning, UserError
from sct_jax.model import Model
from sct_jax.objectives.table import ROWS
from sct_jax.sampling import samplers


@pytest.fixture(scope="module")
def model(tiny_run):
    return sct_jax.load(tiny_run)


def test_denoise_is_the_identity_without_noise(model):
    x = jnp.linspace(-1, 1, 2 * 64).reshape(2, 8, 8, 1)
    np.testing.assert_allclose(model.denoise(x, jnp.zeros(2), [3, 4]), x, atol=1e-6)


def test_sample_takes_labels_in_turn_and_is_in_range(model):
    images = model.sample(6, steps=2, seed=1, labels=np.array([3, 4]))
    assert images.shape == (6, 8, 8, 1)
    assert np.abs(images).max() <= 1
    again = model.sample(4, steps=2, seed=1, labels=[3, 4, 3, 4])
    np.testing.assert_allclose(images[:4], again, atol=1e-5)


def test_the_profile_chooses_the_weights(tiny_run, model):
    raw = sct_jax.load(tiny_run, "raw")
    assert model.profile == "constant:0.9"
    x, t = jnp.ones((1, 8, 8, 1)), jnp.ones(1)
    assert not jnp.array_equal(model.denoise(x, t, [3]), raw.denoise(x, t, [3]))


def test_an_older_checkpoint_loads_by_its_folder(tiny_run, model):
    assert sct_jax.load(tiny_run / "checkpoints" / "2").step == 2
    assert model.step == 4


@pytest.mark.parametrize("labels", [[10], [-2], [[1]]])
def test_labels_that_are_no_classes_are_refused(model, labels):
    with pytest.raises(ValueError, match="labels must be"):
        model.denoise(jnp.zeros((1, 8, 8, 1)), jnp.ones(1), labels)


@pytest.mark.parametrize("labels", [None, [3, -1]])
def test_a_model_that_has_never_seen_a_row_without_label_asks_for_labels(model, labels):
    with pytest.raises(ValueError, match="give labels"):
        model.denoise(jnp.zeros((2, 8, 8, 1)), jnp.ones(2), labels)


def test_shapes_that_do_not_fit_are_refused(model):
    with pytest.raises(ValueError, match="denoise needs"):
        model.denoise(jnp.zeros((1, 16, 16, 1)), jnp.ones(1))
    with pytest.raises(UserError, match="out of range"):
        model.sample(1, labels=[])


@pytest.mark.parametrize("name", ["film_mlp", "ddpmpp"])
def test_no_labels_is_the_label_minus_one(name):
    config = config_lib.default_config()
    config.model.update({"name": name, "channels": 8, "channel_mult": (1,), "num_blocks": 1, "conditional": True})
    network = models.build(config.model, DataSpec(8, 1, 3, 10))
    params = jax.tree.map(lambda p: p + 0.1, jax.jit(network.init)(jax.random.key(0)))  # biases are not 0
    x, t = jnp.ones((2, 8, 8, 1)), jnp.ones(2)
    denoise = jax.jit(network.denoise)
    assert jnp.array_equal(denoise(params, x, t), denoise(params, x, t, Condition(jnp.array([-1, -1]))))
    assert not jnp.array_equal(denoise(params, x, t), denoise(params, x, t, Condition(jnp.array([0, 1]))))


def test_steps_and_times_that_are_hardly_meant_warn(model):
    with pytest.warns(SamplingWarning, match=r"--steps 4: config.sampling.mid_times has 1 noise level, not 3"):
        model.sample(2, steps=4)
    with pytest.warns(SamplingWarning, match=r"--times 100.0,1.0 starts at 100, above 80"):
        model.sample(2, times=(100.0, 1.0))


# The boundary of sampling.


def test_sampling_has_a_boundary_of_its_own(tiny_run, model):
    """Trained with the identity at 0 and asked with the identity at 0.01: the same network, shifted coefficients."""
    shifted, labels = sct_jax.load(tiny_run, boundary="sigma_min", sigma_min=0.01), jnp.arange(3)
    assert (shifted.config.model.boundary, shifted.config.sampling.boundary) == ("zero", "sigma_min")
    x, t = jax.random.normal(jax.random.key(0), (3, 8, 8, 1)), jnp.array([0.01, 0.5, 80.0])
    ours, theirs = shifted.denoise(x, t, labels), model.denoise(x, t, labels)
    np.testing.assert_allclose(ours[0], x[0], atol=1e-6)
    a, b = (precondition.coefficients(t, 0.5, *boundary) for boundary in (("sigma_min", 0.01), ("zero",)))
    a, b = (jax.tree.map(lambda c: c[:, None, None, None], c) for c in (a, b))
    network = (theirs - b.c_skip * x) / b.c_out  # what the network itself answers
    np.testing.assert_allclose(ours, a.c_skip * x + a.c_out * network, atol=1e-5)
    images = np.clip(shifted.denoise(start(3), jnp.full(3, 80.0), labels), -1, 1)
    np.testing.assert_allclose(shifted.sample(3), images, atol=1e-5)


def test_a_guide_by_its_folder_has_the_boundary_that_was_asked_for(tiny_run):
    shifted = sct_jax.load(tiny_run, boundary="sigma_min", sigma_min=0.01)
    bad, _ = shifted.check_guide(tiny_run / "checkpoints" / "2", 1.0)
    assert config_lib.sampled_model(bad.config) == config_lib.sampled_model(shifted.config)
    assert bad.config.sampling.sigma_min == 0.01


def test_networks_that_are_asked_with_other_boundaries_are_two(good):
    """Their predictions differ, so one mapped call cannot make both."""
    other = fresh_model(model__label_dropout=0.1, sampling__boundary="sigma_min", sampling__sigma_min=20.0)
    other.params = good.params
    x, t, labels = start(4), jnp.full(4, 80.0), jnp.arange(4)
    one, two = (np.asarray(m.denoise(x, t, labels)) for m in (good, other))
    assert np.abs(one - two).max() > 0.01
    expected = np.clip(3 * one - 2 * two, -1, 1)
    np.testing.assert_allclose(good.sample(4, guide=other, omega=2.0), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("objective", "options", "problem"),
    [
        ("sct", {"boundary": "one"}, "--boundary one: must be zero or sigma_min"),
        ("sct", {"sigma_min": 0.003}, "--sigma-min 0.003 needs --boundary sigma_min"),
        ("sct", {"boundary": "zero", "sigma_min": 0.003}, "nothing is shifted"),
        ("sct", {"boundary": "sigma_min", "sigma_min": 0.0}, "--sigma-min 0: must be above 0"),
        ("edm", {"boundary": "sigma_min"}, "a diffusion model is sampled with the boundary it was trained with"),
    ],
)
def test_boundaries_that_cannot_be_are_refused(objective, options, problem):
    config = config_lib.default_config()
    config.objective.update(ROWS[objective])
    with pytest.raises(UserError, match=problem):
        config_lib.with_boundary(config, **options)


# Guidance.


def fresh_model(seed=0, spec=None, **fields):
    """A model of large random weights, which tell labels apart; ``objective__phases=4`` sets a field of its config."""
    config = config_lib.default_config()
    config.model.update({"name": "film_mlp", "channels": 8, "num_blocks": 1, "conditional": True})
    for key, value in fields.items():
        config_lib._set(config, key.replace("__", "."), value)
    spec = spec or DataSpec(8, 1, 10, 100)
    params = jax.jit(models.build(config.model, spec).init)(jax.random.key(seed))
    return Model(config, spec, jax.tree.map(lambda p: 8 * p + 0.05, params), path=f"model {seed}")


def start(num):
    return 80.0 * samplers.image_noise(samplers.image_keys(0, jnp.arange(num)), 0, (8, 8, 1))


@pytest.fixture(scope="module")
def good():
    return fresh_model(model__label_dropout=0.1)


@pytest.mark.parametrize("fields", [{}, {"model__channels": 12}, {"model__sigma_data": 0.4}])
def test_a_bad_version_is_any_model_of_the_same_images(good, fields):
    """Of the same network (one mapped call) or of another (two calls)."""
    bad, labels = fresh_model(1, **fields), jnp.arange(4)
    x, t = start(4), jnp.full(4, 80.0)
    predictions = [np.asarray(m.denoise(x, t, labels)) for m in (good, bad)]
    assert np.abs(predictions[0] - predictions[1]).max() > 0.05
    expected = np.clip(1.5 * predictions[0] - 0.5 * predictions[1], -1, 1)
    np.testing.assert_allclose(good.sample(4, guide=bad, omega=0.5), expected, atol=1e-4)


@pytest.mark.parametrize("bad", ["unconditional", "another"])
def test_guided_predictions_are_those_that_sampling_uses(good, bad):
    guide = fresh_model(1) if bad == "another" else bad
    prediction = good.guided(guide, 0.5)(start(4), jnp.full(4, 80.0), jnp.arange(4))
    assert jnp.abs(prediction - good.denoise(start(4), jnp.full(4, 80.0), jnp.arange(4))).max() > 0.01
    np.testing.assert_allclose(good.sample(4, guide=guide, omega=0.5), np.clip(prediction, -1, 1), atol=1e-4)


def test_a_diffusion_model_takes_the_steps_of_its_config_where_none_are_asked_for():
    model = fresh_model(objective__method="edm", sampling__steps=(3, 5))
    assert np.array_equal(model.sample(2), model.sample(2, steps=3))
    assert not np.array_equal(model.sample(2), model.sample(2, steps=1))


def test_a_model_that_has_never_seen_a_row_without_label_does_not_sample_one():
    with pytest.raises(UserError, match=r"label -1 .*label_dropout"):
        fresh_model().sample(2, labels=[0, -1])


def test_a_diffusion_model_does_not_guide_a_consistency_model(good):
    diffusion = fresh_model(1, objective__method="edm")
    with pytest.raises(UserError, match="it is a diffusion model and this is a consistency model"):
        good.sample(2, guide=diffusion)


def test_the_unconditional_prediction_guides(good):
    x, t = start(4), jnp.full(4, 80.0)
    conditional, unconditional = good.denoise(x, t, jnp.arange(4)), good.denoise(x, t)
    assert jnp.abs(conditional - unconditional).max() > 0.02
    expected = np.clip(3 * conditional - 2 * unconditional, -1, 1)
    np.testing.assert_allclose(good.sample(4, guide="unconditional", omega=2.0), expected, atol=1e-4)


def test_at_weight_zero_a_guide_changes_no_bit(good):
    plain = good.sample(3, steps=2)
    for guide in ("unconditional", fresh_model(1), fresh_model(1, model__channels=12)):
        assert np.array_equal(good.sample(3, steps=2, guide=guide, omega=0.0), plain)


def test_a_snapshot_of_the_run_guides_by_its_folder(tiny_run, model):
    early = tiny_run / "checkpoints" / "2"
    guided = model.sample(4, guide=early)
    np.testing.assert_array_equal(guided, model.sample(4, guide=sct_jax.load(early), omega=1.0))
    assert not np.array_equal(guided, model.sample(4))


@pytest.mark.parametrize(
    ("guide", "problem"),
    [
        (dict(spec=DataSpec(6, 1, 10, 100)), "its images are 6x6x1, not 8x8x1"),
        (dict(spec=DataSpec(8, 1, 4, 100)), "it has 4 classes, not 10"),
        (dict(objective__phases=2), "the edges of its phases"),
    ],
    ids=["images", "classes", "phases"],
)
def test_a_model_of_something_else_cannot_guide(good, guide, problem):
    with pytest.raises(UserError, match=f"model 1 cannot guide this model: {problem}"):
        good.sample(1, guide=fresh_model(1, **guide))


def test_labels_that_only_one_of_the_two_has(good):
    unconditional = fresh_model(1, model__conditional=False)
    with pytest.raises(UserError, match="it is conditional and this model is not"):
        unconditional.sample(1, guide=good)
    x, t = start(2), jnp.full(2, 80.0)
    expected = np.clip(2 * good.denoise(x, t, jnp.arange(2)) - unconditional.denoise(x, t), -1, 1)
    np.testing.assert_allclose(good.sample(2, guide=unconditional), expected, atol=1e-4)


@pytest.mark.parametrize("fields", [{}, {"model__conditional": False}])
def test_the_unconditional_prediction_must_have_been_trained(fields):
    with pytest.raises(UserError, match=r"--guide unconditional needs .*label_dropout > 0"):
        fresh_model(**fields).sample(1, guide="unconditional")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"omega": 0.5}, "--omega 0.5 needs --guide"),
        ({"guide": "unconditional", "omega": float("nan")}, "--omega nan"),
        ({"guide": "nowhere"}, "no checkpoint nowhere"),
        ({"guide": ""}, "no checkpoint"),
    ],
)
def test_guides_that_are_none(good, options, problem):
    with pytest.raises(UserError, match=problem):
        good.sample(1, **options)


# Phases.


def test_a_phased_model_takes_a_step_for_each_phase():
    phased = fresh_model(objective__phases=3)
    assert phased.kind == "phased"
    assert np.array_equal(phased.sample(2), phased.sample(2, steps=3))
    np.testing.assert_array_equal(phased.sample(2, eta=0.8), phased.sample(2, times=phased.times(3, eta=0.8)))
    with pytest.raises(UserError, match="this model has 3 phases: use --steps 3"):
        phased.sample(2, steps=1)


# Jumps.


def two_time_model(seed=0, scale=1.0):
    """A two-time model; with ``scale = 0`` its new input says nothing, and its other weights are a one-time model's."""
    model = fresh_model(seed, model__target_time=True, model__label_dropout=0.1)
    draw = lambda leaf: scale * jax.random.normal(jax.random.key(seed), leaf.shape)  # noqa: E731
    model.params = model.params | {"map_target": jax.tree.map(draw, model.params["map_target"])}
    return model


@pytest.mark.parametrize("kind", ["diffusion", "consistency", "phased", "two-time"])
def test_a_jump_ends_where_the_kind_of_model_says(kind, good):
    fields = {"diffusion": {"objective__method": "edm"}, "phased": {"objective__phases": 3}}.get(kind, {})
    model = two_time_model(scale=0.0) if kind == "two-time" else fresh_model(model__label_dropout=0.1, **fields)
    assert model.kind == kind
    labels, t = jnp.arange(3), jnp.float32([0.3, 5.0, 80.0])
    x, s = start(3) / 80 * t[:, None, None, None], jnp.float32([0.1, 1.0, 30.0])
    np.testing.assert_array_equal(model.jump(x, t, t, labels), x)
    if kind == "phased":  # from 80 to 1 through its edges, and within its segment along the chord
        edges = samplers.skip_edges(model.times(3), 1.0)
        by_hand = x[2:]
        for now, then in itertools.pairwise((*edges[:2], 1.0)):
            by_hand = process.euler_step(by_hand, model.denoise(by_hand, jnp.full(1, now), labels[2:]), now, then)
        found = model.jump(x[2:], t[2:], jnp.ones(1), labels[2:])
        assert edges[2] < 1 < edges[1]
        np.testing.assert_allclose(found, by_hand, rtol=1e-5, atol=1e-5)
    else:
        np.testing.assert_array_equal(model.jump(x, t, 0 * t, labels), model.denoise(x, t, labels))
        chord = process.euler_step(x, model.denoise(x, t, labels), t, s)
        np.testing.assert_array_equal(model.jump(x, t, s, labels), chord)


def test_a_two_time_model_is_at_first_the_one_time_model_to_the_bit_and_then_looks_at_both_times(good):
    two, labels, t = two_time_model(scale=0.0), jnp.arange(3), jnp.float32([0.3, 5.0, 80.0])
    x, s = start(3) / 80 * t[:, None, None, None], jnp.float32([0.1, 1.0, 30.0])
    np.testing.assert_array_equal(two.jump(x, t, s, labels), good.jump(x, t, s, labels))
    np.testing.assert_array_equal(two.denoise(x, t, labels), good.denoise(x, t, labels))
    options = {"labels": [0, 1], "times": (80.0, 5.0, 0.5), "noise": "none"}
    np.testing.assert_array_equal(two.sample(2, **options), good.sample(2, **options))
    told = two_time_model()
    prediction = (told.jump(x, t, s, labels) - (s / t)[:, None, None, None] * x) / (1 - s / t)[:, None, None, None]
    assert np.abs(prediction - told.denoise(x, t, labels)).max() > 0.01
    image = start(1)
    for now, then in itertools.pairwise((80.0, 5.0, 0.5, 0.0)):
        image = told.jump(image, jnp.full(1, now), jnp.full(1, then), [0])
    found = told.sample(1, labels=[0], times=(80.0, 5.0, 0.5), noise="none")
    np.testing.assert_allclose(found, np.clip(image, -1, 1), atol=1e-4)


def test_a_two_time_model_is_guided_on_its_way_to_that_time(good):
    told, bad = two_time_model(), two_time_model(1)
    x, t, s, labels = start(2), jnp.full(2, 80.0), jnp.full(2, 5.0), jnp.arange(2)
    prediction = told.guided(bad, 0.5)(x, t, labels, s)
    expected = 1.5 * told._predict(x, t, labels, s) - 0.5 * bad._predict(x, t, labels, s)
    np.testing.assert_allclose(prediction, expected, atol=1e-4)
    image = process.euler_step(x, prediction, 80.0, 5.0)
    image = told.guided(bad, 0.5)(image, s, labels)
    found = told.sample(2, labels=[0, 1], times=(80.0, 5.0), noise="none", guide=bad, omega=0.5)
    np.testing.assert_allclose(found, np.clip(image, -1, 1), atol=1e-4)
    blind = told.guided("unconditional", 1.0)(x, t, labels)
    expected = np.clip(blind, -1, 1)
    np.testing.assert_allclose(told.sample(2, labels=[0, 1], guide="unconditional"), expected, atol=1e-4)
    with pytest.raises(UserError, match="it is a consistency model and this is a two-time model"):
        told.sample(1, guide=good)


@pytest.mark.parametrize("s", [[81.0], [-0.1], [1.0, 1.0], [float("nan")]])
def test_jumps_upwards_are_refused(good, s):
    with pytest.raises(ValueError, match="0 <= s <= t"):
        good.jump(start(1), jnp.full(1, 80.0), s, [0])
