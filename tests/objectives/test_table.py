"""The rows of the table: complete, without traces of each other, and right where the answer is known (Gaussians)."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sct_jax import config as config_lib
from sct_jax import objectives
from sct_jax.diffusion import process, times
from sct_jax.objectives import consistency
from sct_jax.objectives.table import ROWS, TRANSITIONS

CONSISTENCY = [name for name in ROWS if name not in ("edm", "stf")]
KEY = jax.random.key(5)
VARIANCE = 0.25  # of the Gaussian data


def make_config(*rows, **objective):
    config = config_lib.default_config()
    for row in rows:
        config.objective.update(ROWS[row])
    config.objective.update(objective)
    return config


def completed(config):
    """What a row cannot say: where other models lie, and where a second stage may be sampled."""
    method = config.objective.method
    config.objective.teacher = "runs/teacher" if method == "cd" else ""
    config.objective.stage1 = "runs/stage1" if method == "tcm" else ""
    config.sampling.mid_times = (1.0,)
    return config


# The rows as configs.


@pytest.mark.parametrize("name", ROWS)
def test_each_row_is_a_valid_config(name):
    assert config_lib.validate(completed(make_config(name))).objective.method == name


@pytest.mark.parametrize("name", CONSISTENCY)
def test_each_row_makes_all_five_choices(name):
    assert {"pair", "times", "transition", "bootstrap", "distance", "weight"} <= ROWS[name].keys()
    assert ROWS[name]["transition"] in TRANSITIONS[name]


class Recorder:
    """Passes on a config's fields and writes down which were asked for."""

    def __init__(self, node, prefix, seen):
        self._node, self._prefix, self._seen = node, prefix, seen

    def __getattr__(self, name):
        value = self._node[name]
        if isinstance(value, config_lib.Config):
            return Recorder(value, f"{self._prefix}{name}.", self._seen)
        self._seen.add(self._prefix + name)
        return value


def fields_read(config):
    """The fields that the objective's functions look at."""
    seen = set()
    teacher = objectives.Teacher(gaussian_denoiser, 0.0) if config.objective.method == "cd" else None
    stage1 = 0.0 if config.objective.method == "tcm" else None
    objective = objectives.build(Recorder(config, "", seen), gaussian_denoiser, teacher, stage1=stage1)

    def all_of_it(images):
        params = jnp.zeros(())
        context = objective.advance(objective.start(params), params, jnp.int32(7))
        draws = objective.draw(images, jnp.zeros(4, jnp.int32), KEY, jnp.int32(7), {})
        return objective.loss(params, context, draws, KEY)

    jax.eval_shape(all_of_it, jnp.zeros((4, 2, 2, 1)))
    return seen


@pytest.mark.parametrize("name", ROWS)
def test_a_row_leaves_nothing_of_the_row_before(name):
    alone = config_lib.flatten(make_config(name))
    matter = fields_read(make_config(name))
    assert {"objective.method", "objective.times", "model.sigma_data"} <= matter  # the recorder does record
    if ROWS[name].get("distance") == "squared_l2":
        matter.discard("objective.huber_c")  # handed to every distance; this one has no use for it
    for before in ROWS:
        after = make_config(before, name)
        left = {key for key, value in config_lib.flatten(after).items() if value != alone[key]}
        assert not left & matter, before
        config_lib.validate(completed(after))


# Identities.


def gaussian_denoiser(params, x, t, condition=None, dropout_key=None):
    """The exact posterior mean for data N(0, VARIANCE)."""
    return x * VARIANCE / (VARIANCE + process.per_image(t, x) ** 2)


def flow(x, t, r):
    """The exact flow of the probability-flow ODE from t to r for data N(0, VARIANCE)."""
    return x * process.per_image(jnp.sqrt((VARIANCE + r**2) / (VARIANCE + t**2)), x)


def batch(count):
    images = np.random.default_rng(0).normal(size=(count, 4, 4, 1)) * VARIANCE**0.5
    return jnp.asarray(images, jnp.float32), jnp.zeros(count, jnp.int32)


def test_ct_with_the_posterior_mean_of_one_image_is_ct():
    images, labels = batch(1)
    denoise = lambda params, x, t, *rest, **more: jnp.tanh(x) / (1 + process.per_image(t, x))  # noqa: E731

    def results(**changes):
        objective = consistency.build(make_config("ct", **changes), denoise)

        @jax.jit
        def draws_and_loss(step):
            draws = objective.draw(images, labels, KEY, step)
            return draws, objective.loss(None, {"target": None}, draws, KEY)[0]

        return [draws_and_loss(jnp.int32(step)) for step in (0, 5000, 9999)]

    reduced = results(method="sct", transition="posterior_mean")
    for (draws, loss), (reduced_draws, reduced_loss) in zip(results(), reduced, strict=True):
        assert all(jnp.array_equal(draws[name], reduced_draws[name]) for name in draws)  # to the bit
        assert jnp.array_equal(loss, reduced_loss)


@pytest.mark.parametrize("phases", [1, 2, 4, 8])
def test_the_target_lies_between_the_estimate_and_the_bootstrap(phases):
    edges = times.phase_edges(phases, 0.002, 80.0)

    @jax.jit
    def shares():  # of the estimate, for r in [s, t), some of them at the edge, and for a smaller step
        t = times.lognormal(KEY, (500,), 0.0, 2.0)
        s = times.phase_start(t, edges)
        r = s + jnp.maximum(jax.random.uniform(jax.random.key(0), (500,), minval=-0.3, maxval=0.99), 0.0) * (t - s)
        share = lambda r: consistency.combine(jnp.ones((500, 1)), jnp.zeros((500, 1)), t, r, s)[:, 0]  # noqa: E731
        return s, r, share(r), share(r + 0.3 * (t - r))

    s, r, alpha, smaller_step = map(np.asarray, shares())
    assert np.all((alpha >= 0) & (alpha <= 1 + 1e-6))
    assert np.all(alpha[r == s] == 1)  # a terminal state is the estimate, whatever the network says of it
    assert np.all(alpha[(s == 0) & (r > 0)] == 0)  # the plain model bootstraps all of it
    assert np.all(smaller_step <= alpha)
    assert np.any((alpha > 0.1) & (alpha < 0.9)) == (phases > 1)


def test_a_network_that_is_not_a_number_at_the_edge_does_no_harm():
    t, s = jnp.array([1.0, 2.0]), jnp.array([0.0, 0.5])
    target = jax.jit(consistency.combine)(jnp.ones((2, 3)), jnp.full((2, 3), jnp.nan), t, s, s)
    assert np.array_equal(target, np.ones((2, 3)))


@pytest.mark.parametrize("phases", [1, 4, 8])
def test_the_exact_phased_function_is_a_fixed_point(phases):
    # g*(x, t) = [f*(x, t→s) − (s/t) x] / (1 − s/t). Along the exact flow the target is the prediction, whatever r. One
    # Euler step with the exact posterior mean errs by O((t − r)²), and so does the target; for another function the
    # error is O(t − r).
    edges = times.phase_edges(phases, 0.002, 80.0)
    inside = np.linspace(0.4, 0.9, 8)[:, None] * np.minimum(np.diff(edges), 2.0) + edges[:-1]
    t = jnp.asarray(inside[:, edges[1:] > 0.1].ravel(), jnp.float32)
    assert len(set(times.phase_start(t, edges).tolist())) == (edges[1:] > 0.1).sum() > phases / 2

    @jax.jit
    def errors():
        s = times.phase_start(t, edges)
        spread = process.per_image(jnp.sqrt(VARIANCE + t**2), jnp.zeros((1, 1, 1, 1)))
        x_t = jax.random.normal(KEY, (len(t), 4, 4, 1)) * spread

        def exact(x, at, to=s):  # the difference of two square roots written as that of their squares: nothing cancels
            both = jnp.sqrt((VARIANCE + to**2) / (VARIANCE + at**2)) + to / at
            return process.per_image(VARIANCE * (at + to) / (at * (VARIANCE + at**2) * both), x) * x

        def error(function, gap, on_the_flow=False):
            r = t - gap * (t - s)
            estimate = exact(x_t, t, r) if on_the_flow else gaussian_denoiser(None, x_t, t)
            x_r = process.euler_step(x_t, estimate, t, r)
            target = consistency.combine(estimate, function(x_r, r), t, r, s)
            return jnp.sqrt(jnp.mean(((target - function(x_t, t)) * spread) ** 2))

        ratio = process.per_image(s / t, x_t)
        definition = (1 - ratio) * exact(x_t, t) + ratio * x_t - flow(x_t, t, s)
        other = partial(gaussian_denoiser, None)
        on_the_flow = [error(exact, gap, True) for gap in (0.04, 0.7, 1.0)]
        stepped = [error(f, gap) for f in (exact, other) for gap in (0.08, 0.04)]
        return jnp.abs(definition / spread).max(), on_the_flow, stepped

    definition, on_the_flow, (exact, exact_half, other, other_half) = errors()
    assert definition < 1e-6
    assert max(on_the_flow) < 1e-6
    assert 1.8 < np.log2(exact / exact_half) < 2.2
    assert 0.8 < np.log2(other / other_half) < 1.2


def test_distilling_an_exact_teacher_into_the_exact_function_costs_only_heuns_error():
    exact = lambda params, x, t, *rest, **more: flow(x, t, jnp.zeros_like(t))  # noqa: E731

    def td_error(points):
        grid = {"s_0": points, "s_1": points, "t_min": 0.05, "t_max": 5.0}
        config = make_config("cd", bootstrap="online", **grid)
        objective = consistency.build(config, exact, objectives.Teacher(gaussian_denoiser, None))
        draws = objective.draw(jnp.zeros((64, 4, 4, 1)), jnp.zeros(64, jnp.int32), KEY, jnp.int32(0))
        return objective.loss(None, {"teacher": None}, draws, KEY)[1]["td_error"].mean()

    coarse, fine = jax.jit(lambda: (td_error(81), td_error(161)))()
    assert 2**2.7 < (coarse / fine) ** 0.5 < 2**3.3  # O((t − r)³)


# The target network.


@pytest.mark.parametrize(
    ("name", "decays"), [("cd", (0.95, 0.95, 0.95)), ("ct", (0.81, 0.9 ** (2 / 74), 0.9 ** (2 / 149)))]
)
def test_the_target_network_follows_by_hand(name, decays):
    # CT, K = 1000: 1 interval at k = 0, 74 at 246 (√(0.246 · 22,797 + 4) − 1 = 73.9), 149 at 974 (148.02).
    config = make_config(name)
    config.total_steps = 1000
    if name == "cd":
        config.objective.update({"bootstrap": "ema", "target_decay": 0.95, "target_decay_adaptive": False})
    teacher = objectives.Teacher(gaussian_denoiser, {"frozen": jnp.ones(2)}) if name == "cd" else None
    objective = consistency.build(config, gaussian_denoiser, teacher)
    params = {"w": jnp.array([1.0, -2.0])}
    context = objective.start(params)
    assert jnp.array_equal(context["target"]["w"], params["w"])
    expected = np.array([1.0, -2.0])
    for step, decay, value in zip((0, 246, 974), decays, ([3.0, 0.0], [0.5, 0.5], [-1.0, 7.0]), strict=True):
        context = objective.advance(context, {"w": jnp.array(value)}, jnp.int32(step))
        expected = decay * expected + (1 - decay) * np.array(value)
        np.testing.assert_allclose(context["target"]["w"], expected, rtol=1e-6)
    if name == "cd":
        assert jnp.array_equal(context["teacher"]["frozen"], jnp.ones(2))  # the teacher never moves


def test_an_online_bootstrap_keeps_nothing():
    for name in ("ict", "ect", "sct"):
        objective = consistency.build(make_config(name), gaussian_denoiser)
        assert objective.start({"w": jnp.ones(2)}) == {}


@pytest.mark.parametrize("name", ["ct", "cd"])
def test_gradients_reach_neither_the_target_network_nor_the_teacher(name):
    denoise = lambda params, x, t, *rest, **more: params * x / (1 + process.per_image(t, x))  # noqa: E731
    teacher = objectives.Teacher(denoise, jnp.float32(0.9)) if name == "cd" else None
    objective = consistency.build(make_config(name, bootstrap="ema"), denoise, teacher)

    @jax.jit
    def gradients(params, context):
        draws = objective.draw(*batch(8), KEY, jnp.int32(5000), {})
        return jax.grad(lambda both: objective.loss(*both, draws, KEY)[0].sum())((params, context))

    of_params, of_context = gradients(jnp.float32(1.1), objective.start(jnp.float32(0.7)))
    assert of_params != 0
    assert of_context.keys() == ({"target", "teacher"} if name == "cd" else {"target"})
    assert all(gradient == 0 for gradient in of_context.values())
