"""GC's generated images: iCT where there are none or they are the data; one noise at both ends; a frozen maker."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sct_jax import config as config_lib
from sct_jax.diffusion import precondition, process
from sct_jax.errors import UserError
from sct_jax.objectives import bootstrap, consistency, generated
from sct_jax.objectives.table import ROWS

KEY, GENERATOR = jax.random.key(3), jnp.float32(0.8)
TOTAL, STEPS = 8000, (0, 3500, 7999)


def make_config(method="gc", **objective):
    config = config_lib.default_config()
    config.total_steps = TOTAL
    config.objective.update(ROWS[method] | objective)
    return config


def denoise(params, x, t, condition=None, dropout_key=None):
    t = process.per_image(t, x)
    return x / (1 + t**2) + params * jnp.sin(3 * x) * t / (1 + t)


def batch(count=32):
    return jax.random.uniform(jax.random.key(0), (count, 4, 4, 1), minval=-1), jnp.zeros(count, jnp.int32)


def draws_and_loss(config, step, network=denoise, params=1.1, images=None):
    objective = consistency.build(config, network)
    images = batch()[0] if images is None else images
    draws = objective.draw(images, jnp.zeros(len(images), jnp.int32), KEY, jnp.int32(step))
    context = {generated.GENERATOR: GENERATOR} if config.objective.method == "gc" else {}
    loss = lambda p: objective.loss(p, context, draws, KEY)[0].sum()  # noqa: E731
    return draws, objective.loss(jnp.float32(params), context, draws, KEY)[0], jax.grad(loss)(jnp.float32(params))


@pytest.mark.parametrize("step", STEPS)
def test_without_generated_images_it_is_ict_to_the_bit(step):
    found, wanted = (draws_and_loss(config, step) for config in (make_config(generated=0.0), make_config("ict")))
    assert all(jnp.array_equal(found[0][name], value) for name, value in wanted[0].items())
    assert jnp.array_equal(found[1], wanted[1])
    assert jnp.array_equal(found[2], wanted[2])
    assert not jnp.allclose(draws_and_loss(make_config(generated=1.0), step)[1], wanted[1], rtol=1e-3)


def test_of_one_data_point_the_generated_image_is_the_data():
    point = jnp.linspace(-1, 1, 16).reshape(1, 4, 4, 1)

    def network(params, x, *rest, **more):
        """The exact function for the generator's weights, and off it for the trained ones."""
        return jnp.where(params == GENERATOR, 1.0, params * x) * jnp.broadcast_to(point, x.shape)

    images = jnp.broadcast_to(point, (8, 4, 4, 1))
    found, wanted = (draws_and_loss(make_config(*row), 3500, network, images=images)[1] for row in (("gc",), ("ict",)))
    all_generated = draws_and_loss(make_config(generated=1.0), 3500, network, images=images)[1]
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    np.testing.assert_allclose(all_generated, wanted, rtol=1e-6)


def shifted(params, x, t, *rest, **more):
    """A preconditioned network: the identity at t_min."""
    c_skip, c_out, c_in, _ = precondition_at(t, x)
    return c_skip * x + c_out * params * jnp.sin(3 * c_in * x)


def precondition_at(t, x):
    return tuple(process.per_image(c, x) for c in precondition.coefficients(t, 0.5, "sigma_min", 0.002))


def states_of(r, network=denoise):
    images = batch(1)[0]
    noise = jax.random.normal(jax.random.key(9), images.shape)
    t = jnp.float32([2 * r])
    draws = {
        "r": t / 2,
        "x_t": process.add_noise(images, noise, t),
        "x_r": process.add_noise(images, noise, t / 2),
        "estimate": images,
        generated.CHOSEN: jnp.array([True]),
    }
    return images, noise, t, generated.states(lambda x, t: network(GENERATOR, x, t), draws)


@pytest.mark.parametrize("r", [0.002, 0.5, 20.0])
def test_both_ends_are_the_generated_image_with_the_same_noise(r):
    images, noise, t, (x_t, x_r, image) = states_of(r)
    expected = denoise(GENERATOR, process.add_noise(images, noise, t / 2), t / 2)
    np.testing.assert_allclose(image, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(x_t, process.add_noise(image, noise, t), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(x_r, process.add_noise(image, noise, t / 2), rtol=1e-5, atol=1e-5)
    # so that the Euler step from x_t with x̂ ends at x_r: what the derivative form needs
    np.testing.assert_allclose(process.euler_step(x_t, image, t, t / 2), x_r, rtol=1e-4, atol=1e-4)


def test_at_small_noise_the_generated_image_is_the_data():
    """The error falls with the noise level: x̂ − x_0 = O(r)."""
    errors = [float(jnp.abs(states_of(r)[3][2] - states_of(r)[0]).max()) for r in (0.02, 0.01, 0.005)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[0] / errors[2] == pytest.approx(4, rel=0.2)
    images, noise, _, (x_t, _, image) = states_of(0.002, shifted)  # the lowest level of the grid, as GC trains
    np.testing.assert_allclose(image - images, 0.002 * noise, atol=1e-6)
    np.testing.assert_allclose(x_t - images, 0.006 * noise, atol=1e-6)  # CT's is 0.004


def test_the_share_of_generated_images():
    for share in (0.25, 0.5):
        objective = consistency.build(make_config(generated=share), denoise)
        chosen = objective.draw(*batch(4000), KEY, jnp.int32(0))[generated.CHOSEN]
        assert float(chosen.mean()) == pytest.approx(share, abs=0.03)


def test_a_terminal_state_makes_no_image():
    r = jnp.array([0.0, 1.0] * 100)
    config = make_config(generated=1.0)
    assert jnp.array_equal(generated.choose(config.objective, KEY, r), r > 0)


def test_the_generator_is_asked_without_dropout_and_is_not_trained_through():
    seen = []

    def spy(params, x, t, condition=None, dropout_key=None):
        seen.append((t, dropout_key))
        return denoise(params, x, t)

    objective = consistency.build(make_config(generated=1.0), spy)
    images, _ = batch()
    draws = objective.draw(images, jnp.zeros(32, jnp.int32), KEY, jnp.int32(0))
    loss = lambda generator, p: objective.loss(p, {generated.GENERATOR: generator}, draws, KEY)[0].mean()  # noqa: E731
    value, (of_generator, of_params) = jax.value_and_grad(loss, (0, 1))(GENERATOR, jnp.float32(1.1))
    assert of_generator == 0.0
    assert of_params != 0.0
    assert abs(loss(jnp.float32(0.7), jnp.float32(1.1)) - value) > 1e-3 * value
    made, trained, target = seen[:3]
    assert made[1] is None
    assert trained[1] is target[1] is KEY
    assert jnp.array_equal(made[0], draws["r"])


def test_the_derivative_goes_along_the_generated_transition():
    results = []
    for difference in ("evaluated", "tangent"):
        config = make_config(generated=1.0, difference=difference, distance="squared_l2", weight="uniform", t_max=5.0)
        results.append(draws_and_loss(config, 7999)[1:])
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=2e-2)
    np.testing.assert_allclose(results[0][1], results[1][1], rtol=2e-2)
    config = make_config()
    config.model.compute_dtype = "bfloat16"
    assert bootstrap.form(config) == "mixed"


def test_the_generator_begins_as_the_weights_and_moves_every_few_steps():
    objective = consistency.build(make_config(), denoise)
    context = objective.start({"w": jnp.ones(2)})
    assert jnp.array_equal(context[generated.GENERATOR]["w"], jnp.ones(2))
    step = 10 * TOTAL  # the warm-up is over: (1 + k)^(−2/3) < 1e-4 from k = 10^6 on, here it is 5e-4
    for k, moves in ((step, True), (step + 1, False), (step + 4, False), (step + 5, True)):
        after = objective.advance(context, {"w": jnp.full(2, 3.0)}, jnp.int32(k))[generated.GENERATOR]["w"]
        assert bool((after != 1.0).all()) is moves
    late = objective.advance(context, {"w": jnp.full(2, 3.0)}, jnp.int32(5_000_000))[generated.GENERATOR]["w"]
    np.testing.assert_allclose(late, 1 + 1e-4 * 2, atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"transition": "sample"}, "method = 'gc' goes with objective.transition = 'generated'"),
        ({"phases": 2}, "needs objective.phases = 1"),
        ({"generated": 1.5}, "objective.generated = 1.5: must be <= 1"),
    ],
)
def test_mistakes(fields, named):
    with pytest.raises(UserError, match=named):
        config_lib.validate(make_config(**fields))
