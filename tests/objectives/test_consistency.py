"""The TD objective: what ECT and SCT share, where they differ, and ECT's original loss (golden numbers)."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sct_jax import config as config_lib
from sct_jax import objectives
from sct_jax.diffusion import process, score
from sct_jax.objectives import consistency
from sct_jax.objectives.table import ROWS

GOLDEN = Path(__file__).parent.parent / "parity" / "golden" / "ect_loss.npz"
KEY, STEP = jax.random.key(3), jnp.int32(0)


def make_config(method="sct", **objective):
    config = config_lib.default_config()
    config.objective.update(ROWS[method] | objective)
    return config


def network(x, t):
    """The fixed smooth function that the golden numbers were made with."""
    t = process.per_image(t, x)
    return jnp.tanh(x) / (1 + t**2) + 0.1 * jnp.sin(3 * x) * t / (1 + t)


def build(config, denoiser=None):
    """The objective with both of its functions jitted."""
    objective = consistency.build(config, denoiser or denoise)
    return objective._replace(draw=jax.jit(objective.draw), loss=jax.jit(objective.loss))


def denoise(params, x, t, condition=None, dropout_key=None):
    return params * network(x, t)


def batch(count, seed=0):
    images = jax.random.uniform(jax.random.key(seed), (count, 8, 8, 3), minval=-1.0)
    return images, jnp.arange(count, dtype=jnp.int32) % 3


@pytest.mark.parametrize("stage", [0, 1, 3, 7])
@pytest.mark.parametrize("c", [0.0, 0.06])
def test_ect_is_the_original_loss(c, stage):
    golden = {name: jnp.asarray(value) for name, value in np.load(GOLDEN).items()}
    of = lambda name: golden[f"c{c}_stage{stage}_{name}"]  # noqa: E731
    config = make_config("ect", huber_c=c or 1e-8, ratio_limit=1.0, stage_steps=100)
    objective = build(config)
    # The draws the original made, in place of ours.
    t, noise, images = of("t"), of("noise"), golden["images"]
    r = consistency.times.map_to_r(t, jnp.float32(stage), ratio_limit=1.0)
    np.testing.assert_allclose(r, of("r"), rtol=1e-5, atol=1e-8)
    draws = {
        "labels": jnp.zeros(16, jnp.int32),
        "t": t,
        "r": r,
        "x_t": process.add_noise(images, noise, t),
        "x_r": process.add_noise(images, noise, r),
        "estimate": images,
        "s": jnp.zeros(16),
        "weight": 1 / (t - r),
    }
    losses, _ = objective.loss(jnp.float32(1), {}, draws, KEY)
    np.testing.assert_allclose(losses, of("loss"), rtol=2e-4)


def test_sct_with_a_single_reference_is_ect():
    images, labels = batch(1)
    for step in (0, 30_000):
        kwargs = {"schedule": "staged", "stage_steps": 25_000}
        draws = [
            build(make_config(method, **kwargs)).draw(images, labels, KEY, jnp.int32(step)) for method in ("ect", "sct")
        ]
        assert jnp.array_equal(draws[0]["x_r"], draws[1]["x_r"])  # to the bit
        assert jnp.array_equal(draws[0]["x_t"], draws[1]["x_t"])
        assert jnp.array_equal(draws[0]["r"], draws[1]["r"])


def test_sct_moves_x_r_to_the_posterior_mean_by_one_minus_the_ratio():
    images, labels = batch(24)
    ect, sct = (build(make_config(m, schedule="staged")).draw(images, labels, KEY, STEP) for m in ("ect", "sct"))
    noise = jax.random.normal(jax.random.split(KEY)[1], images.shape)
    estimate = score.posterior_mean(images, noise, ect["t"], images).estimate
    moved = process.per_image(1 - ect["r"] / ect["t"], images) * (estimate - images)
    np.testing.assert_allclose(sct["x_r"] - ect["x_r"], moved, atol=2e-4)
    assert jnp.abs(moved).max() > 0.1  # the two do differ


def test_a_conditional_model_sees_its_class_only():
    images, labels = batch(12)
    config = make_config("sct")
    config.model.conditional = True
    draws = build(config).draw(images, labels, KEY, STEP)
    changed = images.at[labels != 0].set(0.0)  # other classes' images must not matter to class 0
    other = build(config).draw(changed, labels, KEY, STEP)
    np.testing.assert_allclose(draws["x_r"][labels == 0], other["x_r"][labels == 0], atol=1e-5)
    config.reference.same_class = False
    blind = build(config).draw(images, labels, KEY, STEP)
    assert jnp.abs(draws["x_r"] - blind["x_r"]).max() > 0.05


def test_the_target_is_a_constant():
    images, labels = batch(6)
    objective = build(make_config("sct"))
    draws = objective.draw(images, labels, KEY, jnp.int32(50_000))
    params = jnp.float32(0.7)
    target = jnp.where(
        process.per_image(draws["r"], images) == 0, draws["x_r"], params * network(draws["x_r"], draws["r"])
    )

    def by_hand(p):
        difference = p * network(draws["x_t"], draws["t"]) - target
        norm = jnp.sqrt(jnp.sum(difference**2, axis=(1, 2, 3)))
        return jnp.sum(norm / (draws["t"] - draws["r"]))

    gradient = jax.grad(lambda p: objective.loss(p, {}, draws, KEY)[0].sum())(params)
    np.testing.assert_allclose(gradient, jax.grad(by_hand)(params), rtol=1e-4)


def test_terminal_states_use_x_r_itself():
    images, labels = batch(64)
    config = make_config("sct")
    objective = consistency.build(
        config, lambda p, x, t, *a, **k: jnp.where(process.per_image(t, x) == 0, jnp.nan, x * p)
    )
    draws = objective.draw(images, labels, KEY, STEP)
    terminal = draws["r"] == 0
    assert 0 < terminal.sum() < 64
    losses, metrics = objective.loss(jnp.float32(0.5), {}, draws, KEY)
    difference = 0.5 * draws["x_t"] - draws["x_r"]
    expected = jnp.sqrt(jnp.sum(difference**2, axis=(1, 2, 3))) / draws["t"]
    np.testing.assert_allclose(losses[terminal], expected[terminal], rtol=1e-4)
    assert jnp.array_equal(metrics["terminal"], terminal.astype(jnp.float32))


def test_both_passes_get_the_same_dropout_key_and_labels():
    seen = []

    def spy(params, x, t, condition=None, dropout_key=None):
        seen.append((dropout_key, condition.labels))
        return x

    images, labels = batch(3)
    objective = consistency.build(make_config("ect"), spy)
    objective.loss(None, {}, objective.draw(images, labels, KEY, STEP), KEY)
    assert len(seen) == 2
    assert jnp.array_equal(jax.random.key_data(seen[0][0]), jax.random.key_data(seen[1][0]))
    assert jnp.array_equal(seen[0][1], seen[1][1])


@pytest.mark.parametrize("distance", ["pseudo_huber", "squared_l2", "l1"])
def test_no_nan_where_prediction_and_target_meet(distance):
    images, labels = batch(4)
    objective = build(make_config("sct", distance=distance), lambda p, x, t, *a, **k: p * jnp.ones_like(x))
    draws = objective.draw(images, labels, KEY, jnp.int32(10**6))
    value, gradient = jax.value_and_grad(lambda p: objective.loss(p, {}, draws, KEY)[0].sum())(jnp.float32(0.3))
    assert value == 0.0
    assert jnp.isfinite(gradient)


def test_normalizing_the_stage_keeps_the_scale_of_the_loss():
    images, labels = batch(8)
    for step in (0, 10_000, 20_000):
        plain, normal = (build(make_config("sct", stage_steps=5000, normalize_stage=n)) for n in (False, True))
        a, b = (
            o.loss(jnp.float32(1), {}, o.draw(images, labels, KEY, jnp.int32(step)), KEY)[0] for o in (plain, normal)
        )
        np.testing.assert_allclose(b, a / 2.0 ** (step / 5000), rtol=1e-5)


def test_a_phased_model_compares_predictions_of_the_clean_image():
    # The loss by hand in the segment's own space: f(x_t, t→s) against f(x_r, r→s), divided by 1 − s/t.
    images, labels = batch(64)
    objective = build(make_config("sct", phases=4))
    draws = objective.draw(images, labels, KEY, jnp.int32(60_000))
    t, r, s = (process.per_image(draws[name], images) for name in "trs")
    assert jnp.all((draws["s"] <= draws["r"]) & (draws["r"] < draws["t"]))
    assert len(set(draws["s"].tolist())) > 1

    def f(x, at):
        return s / at * x + (1 - s / at) * 0.7 * network(x, at.ravel())

    # where r = s, f(x_s, s→s) = x_s, the terminal state
    target = jnp.where(r > s, f(draws["x_r"], jnp.maximum(r, 1e-9)), draws["x_r"])
    difference = (f(draws["x_t"], t) - target) / (1 - s / t)
    expected = draws["weight"] * jnp.sqrt(jnp.sum(difference**2, axis=(1, 2, 3)))
    losses, metrics = objective.loss(jnp.float32(0.7), {}, draws, KEY)
    roomy = draws["t"] - draws["s"] > 0.02 * draws["t"]  # nearer to the edge the form by hand cancels
    np.testing.assert_allclose(losses[roomy], expected[roomy], rtol=2e-3)
    assert jnp.isfinite(losses).all()
    assert jnp.array_equal(metrics["terminal"] == 1, draws["r"] == draws["s"])


def gaussian_teacher(params, x, t, condition=None, dropout_key=None):
    return x * params / (params + process.per_image(t, x) ** 2)


@pytest.mark.parametrize(("transition", "order"), [("teacher_euler", 2), ("teacher_heun", 3)])
def test_a_teacher_steps_along_the_exact_flow(transition, order):
    # For data N(0, v) the flow is x_r = x_t √((v + r²)/(v + t²)); one step errs by O((t − r)^order).
    variance = jnp.float32(0.25)
    teacher = objectives.Teacher(gaussian_teacher, variance)
    seen = {}

    def spy(params, x, t, condition=None, dropout_key=None):
        seen[len(seen)] = (x, t)
        return x

    errors = []
    for step in (5000, 6000):  # the gap halves from one to the other
        seen.clear()
        config = make_config("cd", transition=transition, pair="mapping", times="lognormal", stage_steps=1000)
        config.objective.update({"teacher": "there", "schedule": "staged", "bootstrap": "online", "b": 0.0})
        objective = consistency.build(config, spy, teacher)
        draws = objective.draw(*batch(256), KEY, jnp.int32(step))
        objective.loss(None, objective.start(None), draws, KEY)
        (x_t, t), (x_r, r) = seen[0], seen[1]
        middle = (t > 0.3) & (t < 1.0) & (r > 0)
        exact = x_t * process.per_image(jnp.sqrt((variance + r**2) / (variance + t**2)), x_t)
        errors.append(float(jnp.abs(x_r - exact)[middle].max()))
    assert 2 ** (order - 0.6) < errors[0] / errors[1] < 2 ** (order + 0.8)


def test_the_target_network_of_ct_is_an_average_of_the_trained_one():
    config = make_config("ct")
    config.total_steps = 1000
    objective = consistency.build(config, denoise)
    params = {"w": jnp.float32(1.0)}
    context = objective.start(params)
    expected = 1.0
    for step, value in ((0, 2.0), (500, 3.0), (999, -1.0)):
        points = int(consistency.times.num_scales(jnp.int32(step), 1000, 2, 150, "progressive"))
        decay = 0.9 ** (2 / (points - 1))
        expected = decay * expected + (1 - decay) * value
        context = objective.advance(context, {"w": jnp.float32(value)}, jnp.int32(step))
        assert float(context["target"]["w"]) == pytest.approx(expected, rel=1e-5)
    # and it is what the bootstrap uses
    images, labels = batch(8)
    objective = build(config)
    draws = objective.draw(images, labels, KEY, jnp.int32(900))
    bootstrap_of = lambda target: objective.loss(jnp.float32(1), {"target": target}, draws, KEY)[0]  # noqa: E731
    assert not jnp.allclose(bootstrap_of(jnp.float32(1)), bootstrap_of(jnp.float32(0.5)))


def test_a_transition_without_its_teacher_is_refused():
    with pytest.raises(ValueError, match="teacher"):
        consistency.build(make_config("cd"), denoise)
