"""The TD difference as a derivative: the same as the evaluated one up to the cube of the gap, and sound in bfloat16."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sct_jax import config as config_lib
from sct_jax import models
from sct_jax.data import DataSpec
from sct_jax.diffusion import process
from sct_jax.diffusion.condition import Condition
from sct_jax.errors import UserError
from sct_jax.objectives import bootstrap, consistency
from sct_jax.objectives.table import ROWS

NETWORKS = {
    "film_mlp": {"channels": 32, "num_blocks": 2},
    "ddpmpp": {"channels": 8, "channel_mult": (1, 2), "num_blocks": 1, "attention_resolutions": (4,)},
    "adm": {"channels": 8, "channel_mult": (1, 2), "num_blocks": 1, "attention_resolutions": (4,)},
    "edm2": {"channels": 8, "channel_mult": (1, 2), "num_blocks": 1, "attention_resolutions": (4,)},
}
SPEC = DataSpec(8, 1, 10, 64)
COUNT = 4
# Relative gaps at which the cubic error is neither float32's rounding nor has left its leading term.
GAPS = {"film_mlp": (0.04, 0.02), "ddpmpp": (0.3, 0.15), "adm": (0.3, 0.15), "edm2": (0.3, 0.15)}


def make_network(name, dtype="float32", **fields):
    config = config_lib.default_config()
    config.model.name, config.model.conditional, config.model.compute_dtype = name, True, dtype
    config.model.attention_head_channels, config.model.dropout = 8, 0.2
    config.model.update(NETWORKS[name] | fields)
    return models.build(config.model, SPEC)


def random_params(network):
    """Every parameter random: at their start the last layers are zero, and so is their derivative."""
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    leaves, tree = jax.tree.flatten(shapes)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    scale = lambda leaf: 1 / np.sqrt(max(1, np.prod(leaf.shape[:-1])))  # noqa: E731
    draw = lambda key, leaf: scale(leaf) * jax.random.normal(key, leaf.shape)  # noqa: E731
    return jax.tree.unflatten(tree, [draw(k, x) for k, x in zip(keys, leaves, strict=True)])


def states(count=COUNT, seed=2):
    keys = jax.random.split(jax.random.key(seed), 3)
    images = jnp.clip(jax.random.normal(keys[0], (count, 8, 8, 1)) * 0.5, -1, 1)
    noise = jax.random.normal(keys[1], images.shape)
    estimate = images + 0.1 * jax.random.normal(keys[2], images.shape)  # another one than the sample, as SCT's
    return images, noise, estimate


def both_forms(network):
    """``D(x_t) − D(x_r)``, and as the derivative gives it: one compiled function of parameters and relative gap."""
    images, noise, estimate = states()
    t, labels, key = jnp.array([0.3, 0.6, 1.2, 2.4]), jnp.arange(COUNT), jax.random.key(7)

    @jax.jit
    def differences(params, gap):
        r = t * (1 - gap)
        x_t = process.add_noise(images, noise, t)
        x_r = process.euler_step(x_t, estimate, t, r)
        at = lambda x, t: network.denoise(params, x, t, Condition(labels), dropout_key=key)  # noqa: E731
        forward = lambda x, t: network.forward(params, x, t, Condition(labels), dropout_key=key)  # noqa: E731
        prediction, every = at(x_t, t), jnp.ones(COUNT, bool)
        derived = bootstrap.by_derivative(forward, x_t, estimate, x_r, t, r, prediction, every)
        return prediction - at(x_r, r), prediction - derived

    return differences


def sizes(x):
    return np.sqrt(np.sum(np.asarray(x, np.float64) ** 2, axis=(1, 2, 3)))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_derivative_is_the_difference_to_third_order(name):
    """With dropout on: both sides have one key's masks. Halving the gap divides the error by about eight."""
    network = make_network(name)
    params, differences = random_params(network), both_forms(network)
    errors = []
    for gap in GAPS[name]:
        evaluated, derived = differences(params, gap)
        errors.append(sizes(evaluated - derived) / sizes(evaluated) * gap)
    assert (errors[1] < 0.02 * GAPS[name][1]).all()
    order = np.log2(errors[0] / errors[1])
    assert ((order > 2.5) & (order < 3.7)).all(), order


@pytest.mark.parametrize(
    "name", ["film_mlp", *(pytest.param(name, marks=pytest.mark.slow) for name in ("ddpmpp", "adm", "edm2"))]
)
def test_bfloat16_keeps_the_derivative_and_drowns_the_difference(name):
    network, exact = make_network(name, "bfloat16"), make_network(name)
    params = random_params(exact)
    wanted, _ = both_forms(exact)(params, 0.005)
    evaluated, derived = both_forms(network)(params, 0.005)
    cosine = lambda a, b: np.sum(a * b, axis=(1, 2, 3)) / sizes(a) / sizes(b)  # noqa: E731
    assert cosine(derived, wanted).mean() > 0.99
    assert cosine(evaluated, wanted).mean() < 0.95


def test_the_route_of_forward_mode_has_the_same_values():
    for name, dtype in (("ddpmpp", "bfloat16"), ("edm2", "bfloat16"), ("film_mlp", "bfloat16"), ("ddpmpp", "float32")):
        network = make_network(name, dtype)
        params, (images, noise, _) = random_params(network), states()
        arguments = (params, images + noise, jnp.full(COUNT, 1.0), Condition(jnp.arange(COUNT)))
        found, wanted = jax.jit(network.forward)(*arguments), jax.jit(network.denoise)(*arguments)
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_the_denoiser_itself_takes_no_forward_mode_in_bfloat16():
    """Else ``forward`` were for nothing."""
    network = make_network("film_mlp", "bfloat16")
    params, (images, noise, _) = random_params(network), states()
    along = lambda denoise: jax.jvp(lambda x: denoise(params, x, jnp.ones(COUNT)), (images,), (noise,))  # noqa: E731
    with pytest.raises(TypeError, match="custom_vjp"):
        along(network.denoise)
    value, slope = along(network.forward)
    assert value.shape == slope.shape == images.shape


def test_images_that_are_not_chosen_are_evaluated_in_the_same_pass():
    images, noise, estimate = states()
    network = lambda x, t: jnp.tanh(x) / process.per_image(1 + t, x)  # noqa: E731
    t = jnp.array([0.5, 1.0, 2.0, 4.0])
    r = t * jnp.array([0.9, 0.9, 0.0, 0.0])
    x_t = process.add_noise(images, noise, t)
    x_r = process.euler_step(x_t, estimate, t, r)
    chosen = jnp.array([True, False, True, False])
    with jax.debug_nans(True):  # r = 0 has no bootstrap, and must not bring a NaN either
        found = bootstrap.by_derivative(network, x_t, estimate, x_r, t, r, network(x_t, t), chosen)
    assert jnp.array_equal(found[1], network(x_r, r)[1])
    assert not jnp.array_equal(found[0], network(x_r, r)[0])
    np.testing.assert_allclose(found[0], network(x_r, r)[0], atol=2e-4)
    assert jnp.isfinite(found).all()


def config_for(difference, dtype="float32", method="sct", **objective):
    config = config_lib.default_config()
    config.objective.update(ROWS[method] | {"difference": difference} | objective)
    config.model.compute_dtype = dtype
    return config


def smooth(params, x, t, condition=None, dropout_key=None):
    t = process.per_image(t, x)
    return params * jnp.tanh(x) / (1 + t**2) + 0.1 * jnp.sin(3 * x) * t / (1 + t)


@pytest.mark.parametrize("phases", [1, 4])
def test_losses_and_gradients_agree_where_gaps_are_small(phases):
    images, labels = states(16)[0], jnp.zeros(16, jnp.int32)
    results = []
    for difference in ("evaluated", "tangent"):
        config = config_for(difference, phases=phases, stage_steps=100, distance="squared_l2", weight="uniform")
        objective = consistency.build(config, smooth)
        draws = objective.draw(images, labels, jax.random.key(0), jnp.int32(700))
        mean = lambda p, objective=objective, draws=draws: jnp.mean(objective.loss(p, {}, draws, jax.random.key(1))[0])  # noqa: E731
        results.append(jax.value_and_grad(mean)(jnp.float32(1.3)))
    np.testing.assert_allclose(results[0], results[1], rtol=2e-3)


def test_auto_takes_the_derivative_where_the_state_says_so():
    images, labels = states(16)[0], jnp.zeros(16, jnp.int32)
    losses = {}
    for difference in ("auto", "evaluated", "tangent"):
        objective = consistency.build(config_for(difference, "bfloat16", stage_steps=100), smooth)
        draws = objective.draw(images, labels, jax.random.key(0), jnp.int32(300))
        context = objective.start(jnp.float32(1))
        for decided in (0, 1) if difference == "auto" else (None,):
            if decided is not None:
                context = {bootstrap.DECISION: jnp.full_like(context[bootstrap.DECISION], decided)}
            losses[difference, decided] = objective.loss(jnp.float32(1), context, draws, jax.random.key(1))[0]
    np.testing.assert_allclose(losses["auto", 0], losses["evaluated", None], rtol=1e-5)
    np.testing.assert_allclose(losses["auto", 1], losses["tangent", None], rtol=1e-4)
    assert not jnp.allclose(losses["evaluated", None], losses["tangent", None], rtol=1e-3)


def test_what_auto_comes_to():
    assert bootstrap.form(config_for("auto")) == "evaluated"
    assert bootstrap.form(config_for("auto", "bfloat16")) == "mixed"
    assert bootstrap.form(config_for("auto", "tf32", "ict")) == "mixed"
    assert bootstrap.form(config_for("auto", "bfloat16", "ct")) == "evaluated"  # its target is another network
    assert bootstrap.form(config_for("tangent")) == "tangent"


def test_no_derivative_of_two_networks():
    with pytest.raises(UserError, match=r"objective\.bootstrap"):
        config_lib.validate(config_for("tangent", method="ct"))


def test_octaves():
    t = jnp.array([1e-9, 2.0**-9, 0.0039, 0.5, 1.0, 1.99, 2.0, 80.0, 1e4])
    assert bootstrap.octave(t).tolist() == [0, 0, 0, 8, 9, 9, 10, 15, 15]
