"""TCM's second stage: who answers where, what the boundary weighs, and plain ECT where nothing is divided."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sct_jax import config as config_lib
from sct_jax.diffusion import process
from sct_jax.errors import UserError
from sct_jax.objectives import bootstrap, consistency, divided, td_signal
from sct_jax.objectives.table import ROWS
from sct_jax.training import step as step_lib

KEY, STAGE1 = jax.random.key(3), jnp.float32(0.8)


def make_config(method="tcm", dtype="float32", **objective):
    config = config_lib.default_config()
    config.objective.update(ROWS[method] | objective)
    config.model.compute_dtype = dtype
    return config


def denoise(params, x, t, condition=None, dropout_key=None):
    t = process.per_image(t, x)
    return x / (1 + t**2) + params * jnp.sin(3 * x) * t / (1 + t)


def build(config, stage1=STAGE1, network=denoise):
    return consistency.build(config, network, stage1=stage1 if config.objective.bootstrap == "divided" else None)


def batch(count=16):
    return jax.random.uniform(jax.random.key(0), (count, 4, 4, 1), minval=-1), jnp.zeros(count, jnp.int32)


# The boundary.


@pytest.mark.parametrize("count", [1, 3, 4, 7, 16, 18, 40])
def test_the_boundary_has_exactly_a_quarter_of_the_batch_rounded_down(count):
    draws = build(make_config()).draw(*batch(count), KEY, jnp.int32(0))
    at_edge = np.asarray(draws["t"]) == 1.0
    assert at_edge.sum() == draws["boundary"].sum() == count // 4
    assert np.array_equal(at_edge, draws["boundary"])
    assert np.all(np.asarray(draws["t"]) >= 1.0)
    assert np.all(np.asarray(draws["r"])[at_edge] < 1.0)  # float32 can tell them apart: the frozen network answers


@pytest.mark.parametrize("share", [0.1, 0.29, 0.3, 0.5])
def test_shares_that_binary_fractions_miss(share):
    config = make_config(boundary_share=share)
    assert divided.num_boundary(config.objective, 100) == round(100 * share)


@pytest.mark.parametrize("count", [3, 18, 64])
def test_the_loss_is_the_sum_of_two_means_each_over_its_own_number(count):
    config = make_config()
    objective = build(config)
    draws = objective.draw(*batch(count), KEY, jnp.int32(0))
    losses, metrics = objective.loss(jnp.float32(1.1), objective.start(None), draws, KEY)
    plain = draws | {"weight": 1 / (draws["t"] - draws["r"])}
    each = np.asarray(objective.loss(jnp.float32(1.1), objective.start(None), plain, KEY)[0])
    boundary = np.asarray(draws["boundary"])
    own = 0.1 * each[boundary].mean() if boundary.any() else 0.0
    np.testing.assert_allclose(losses.mean(), own + each[~boundary].mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["boundary_loss"].mean(), own, rtol=1e-5)


@pytest.mark.parametrize("accumulate", [2, 3, 6])
def test_accumulation_over_parts_is_exact(accumulate):
    objective = build(make_config())
    draws = objective.draw(*batch(18), KEY, jnp.int32(0))  # four on the boundary: not the same number in every part
    context = objective.start(None)
    whole, parts = (
        step_lib.gradients(objective, jnp.float32(1.1), context, draws, KEY, number) for number in (1, accumulate)
    )
    np.testing.assert_allclose(parts[0], whole[0], rtol=1e-4)
    for name in ("loss", "boundary_loss"):
        np.testing.assert_allclose(parts[1][name], whole[1][name], rtol=1e-5)


# Who answers.


def test_a_dividing_time_of_nothing_is_ect_to_the_bit():
    """Stage 1 is never asked: its answers, which are not numbers here, change nothing."""
    low = {"t_min": 1e-6, "stage_steps": 100, "first_stage": 0}
    undivided = build(make_config("tcm1", **low))
    whole = {"dividing_time": 1e-6, "boundary_share": 0.0, "times": "truncated_lognormal"}
    times = {name: ROWS["tcm1"][name] for name in ("time_mean", "time_std")}
    objective = build(make_config("tcm", **low, **whole, **times), jnp.float32(jnp.nan))
    for step in (0, 300, 1500):
        draws, expected = (o.draw(*batch(64), KEY, jnp.int32(step)) for o in (objective, undivided))
        assert all(jnp.array_equal(draws[name], expected[name]) for name in expected)
        asked = (draws["r"] > 0) & (draws["r"] < 1e-6)
        assert not asked.any()
        assert (draws["r"] == 0).any() == (step == 0)  # terminal states bootstrap nothing, whoever would answer
        gradient = lambda o, context, d: jax.value_and_grad(lambda p: o.loss(p, context, d, KEY)[0].sum())  # noqa: E731
        found = gradient(objective, objective.start(None), draws)(jnp.float32(1.1))
        wanted = gradient(undivided, {}, expected)(jnp.float32(1.1))
        assert all(jnp.array_equal(a, b) for a, b in zip(found, wanted, strict=True))
        assert jnp.isfinite(found[0])


@pytest.mark.parametrize("first_stage", [0, 9])
def test_with_stage_1_as_the_trained_network_the_losses_are_ects(first_stage):
    objective, ect = build(make_config(first_stage=first_stage), jnp.float32(1.1)), build(make_config("tcm1"))
    draws = objective.draw(*batch(), KEY, jnp.int32(0))
    found = objective.loss(jnp.float32(1.1), objective.start(None), draws, KEY)[0]
    np.testing.assert_allclose(found, ect.loss(jnp.float32(1.1), {}, draws, KEY)[0], rtol=1e-6)


def test_each_target_is_that_of_the_network_whose_part_r_lies_in():
    objective = build(make_config(distance="squared_l2", weight="uniform", first_stage=1))
    draws = objective.draw(*batch(64), KEY, jnp.int32(0))
    below = draws["r"] < 1.0
    beyond = ~draws["boundary"] & below & (draws["r"] > 0)
    assert below.any() and not below.all() and beyond.any()  # noqa: PT018
    found = objective.loss(jnp.float32(1.1), objective.start(None), draws | {"weight": jnp.ones(64)}, KEY)[0]
    target = jnp.where(
        process.per_image(below, draws["x_r"]) > 0,
        *(denoise(params, draws["x_r"], draws["r"]) for params in (STAGE1, jnp.float32(1.1))),
    )
    target = jnp.where(process.per_image(draws["r"], target) > 0, target, draws["estimate"])
    expected = jnp.sum((denoise(jnp.float32(1.1), draws["x_t"], draws["t"]) - target) ** 2, axis=(1, 2, 3))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_stage_1_is_frozen():
    objective = build(make_config())
    draws = objective.draw(*batch(), KEY, jnp.int32(0))
    loss = lambda stage1, p: objective.loss(p, {divided.STAGE1: stage1}, draws, KEY)[0].mean()  # noqa: E731
    value, (of_stage1, of_params) = jax.value_and_grad(loss, (0, 1))(STAGE1, jnp.float32(1.1))
    assert of_stage1 == 0.0
    assert of_params != 0.0
    assert abs(loss(jnp.float32(0.9), jnp.float32(1.1)) - value) > 1e-2 * value  # though it matters to the loss
    context = objective.start(None)
    assert objective.advance(context, jnp.float32(5), jnp.int32(3))[divided.STAGE1] == STAGE1


def test_both_networks_get_the_same_dropout_key_and_labels():
    seen = []

    def spy(params, x, t, condition=None, dropout_key=None):
        seen.append((float(params), dropout_key, condition.labels))
        return x

    objective = build(make_config(), network=spy)
    images, _ = batch(4)
    draws = objective.draw(images, jnp.arange(4), KEY, jnp.int32(0))
    objective.loss(jnp.float32(1.0), objective.start(None), draws, KEY)
    assert [round(params, 3) for params, _, _ in seen] == [1.0, 1.0, 0.8]
    assert all(jnp.array_equal(jax.random.key_data(key), jax.random.key_data(KEY)) for _, key, _ in seen)
    assert all(jnp.array_equal(labels, jnp.arange(4)) for _, _, labels in seen)


def test_without_stage_1_there_is_no_objective():
    with pytest.raises(ValueError, match="stage 1"):
        build(make_config(), None)


# The form of the TD difference.


def losses_of(difference, dtype="float32", decided=None, **objective):
    made = build(make_config(dtype=dtype, difference=difference, **objective))
    draws = made.draw(*batch(64), KEY, jnp.int32(0))
    context = made.start(None)
    if decided is not None:
        context |= {bootstrap.DECISION: jnp.full_like(context[bootstrap.DECISION], decided)}
    return draws, np.asarray(made.loss(jnp.float32(1.1), context, draws, KEY)[0])


def test_a_derivative_is_taken_where_the_trained_network_answers_and_nowhere_else():
    draws, evaluated = losses_of("evaluated", first_stage=3)
    _, derived = losses_of("tangent", first_stage=3)
    below = np.asarray(draws["r"]) < 1.0
    assert below.sum() > 16 > 0 < (~below).sum()  # more than the boundary
    np.testing.assert_allclose(derived[below], evaluated[below], rtol=1e-6)  # stage 1's answers
    assert not np.allclose(derived[~below], evaluated[~below], rtol=1e-4)
    _, evaluated = losses_of("evaluated")  # at the cap: gaps of .1 to .3 %
    draws, derived = losses_of("tangent")
    near = np.asarray(draws["t"]) < 20.0  # beyond, the sine of this network turns too fast for a derivative
    np.testing.assert_allclose(derived[near], evaluated[near], rtol=2e-2)


@pytest.mark.parametrize(("decided", "form"), [(0, "evaluated"), (1, "tangent")])
def test_auto_follows_the_state(decided, form):
    assert bootstrap.form(make_config(dtype="bfloat16")) == "mixed"
    _, found = losses_of("auto", "bfloat16", decided, first_stage=3)
    np.testing.assert_allclose(found, losses_of(form, first_stage=3)[1], rtol=1e-5)


def signal_of(network, **objective):
    measure = jax.jit(td_signal.build(make_config(**objective), network, network, denoise))
    images = jax.random.uniform(jax.random.key(0), (td_signal.IMAGES, 8, 8, 1), minval=-1)
    return measure(jnp.float32(1), images, jnp.zeros(len(images), jnp.int32), KEY, jnp.int32(0))


def rounded_below(edge):
    def network(params, x, t, *rest, **more):
        """In bfloat16 below ``edge`` only."""
        value = denoise(params, x, t)
        rounded = jax.lax.stop_gradient(value.astype(jnp.bfloat16).astype(jnp.float32) - value)
        return value + jnp.where(process.per_image(t, x) < edge, rounded, 0.0)

    return network


def test_the_signal_is_that_of_images_whose_target_is_the_trained_networks():
    """Rounding at ``r < t'`` is another network's; the same rounding shows where nothing is divided."""
    signal = signal_of(rounded_below(1.0))
    share = np.asarray(signal.share)
    np.testing.assert_allclose(share.sum(), 1, rtol=1e-6)
    assert not share[: bootstrap.OCTAVES.index(0)].any()
    assert signal.mean(signal.evaluated) > 0.999
    everywhere = signal_of(rounded_below(1e9))
    assert everywhere.mean(everywhere.evaluated) < 0.97
    times = {name: ROWS["tcm1"][name] for name in ("times", "time_mean", "time_std")}
    undivided = signal_of(rounded_below(1.0), bootstrap="online", **times)
    assert undivided.mean(undivided.evaluated) < 0.97


def test_where_stage_1_answers_for_all_there_is_nothing_to_measure():
    signal = signal_of(denoise, dividing_time=79.99)
    assert not np.asarray(signal.share).any()
    assert signal.mean(signal.evaluated) == 1.0
    assert not signal.better_as_derivative().any()


# Mistakes.


@pytest.mark.parametrize(
    ("objective", "named"),
    [
        ({"stage1": ""}, "stage1 is empty"),
        ({"bootstrap": "online"}, "needs bootstrap = 'divided', not 'online'"),
        ({"times": "lognormal"}, "needs pair = 'mapping' and times"),
        ({"phases": 2}, "needs phases = 1"),
        ({"dividing_time": 0.001}, r"dividing_time = 0\.001 must be from t_min"),
        ({"dividing_time": 80.0}, "below t_max = 80"),
    ],
)
def test_configs_that_divide_nothing(objective, named):
    config = make_config(**({"stage1": "runs/one"} | objective))
    config.sampling.mid_times = (1.0,)
    with pytest.raises(UserError, match=named):
        config_lib.validate(config)


def test_noise_levels_below_the_dividing_time_are_not_sampled_at():
    config = make_config(stage1="runs/one")
    with pytest.raises(UserError, match=r"sampling.mid_times = \(0\.821,\): below objective.dividing_time = 1"):
        config_lib.validate(config)
    config.sampling.mid_times = (1.0,)
    assert math.isclose(config_lib.validate(config).sampling.mid_times[0], 1.0)
