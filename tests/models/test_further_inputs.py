"""The time to jump to and the weight of guidance: a network that gains them is the same function, and learns them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sct_jax import config as config_lib
from sct_jax import models
from sct_jax.data import DataSpec
from sct_jax.diffusion.condition import Condition

NETWORKS = ("film_mlp", "ddpmpp", "adm", "edm2")
FIELDS = {"map_target": "target_time", "map_guidance": "guidance_input"}
SPEC = DataSpec(8, 1, 4, 64)
LABELS = np.array([0, 3, -1], np.int32)
T, S = np.float32([0.02, 0.7, 30.0]), np.float32([0.0, 0.4, 2.0])
OMEGA = np.float32([0.0, 1.5, 4.0])
X = T[:, None, None, None] * np.random.default_rng(1).standard_normal((3, 8, 8, 1)).astype(np.float32)
FAST_COMPILE = {"xla_backend_optimization_level": 0}  # these networks run in milliseconds and compile in seconds


def build(name, **fields):
    config = config_lib.default_config()
    config.model.update({"name": name, "conditional": True, "channels": 8, "num_blocks": 1, "channel_mult": (1,)})
    config.model.update({"attention_resolutions": (), "attention_head_channels": 8, "channel_mult_embedding": 2})
    config.model.update(fields)
    return models.build(config.model, SPEC)


def compiled(network):
    return jax.jit(network.denoise, compiler_options=FAST_COMPILE)


def random_params(network):
    """Every parameter random, those that start at zero too."""
    generator = np.random.default_rng(0)
    scale = lambda leaf: 1 / np.sqrt(max(1, np.prod(leaf.shape[:-1])))  # noqa: E731
    draw = lambda leaf: np.float32(scale(leaf) * generator.standard_normal(leaf.shape))  # noqa: E731
    return jax.tree.map(draw, jax.eval_shape(network.init, jax.random.key(0)))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_that_gains_inputs_is_the_same_function_to_the_bit(name):
    one, more = build(name), build(name, target_time=True, guidance_input=True)
    ours, theirs = (jax.jit(network.init)(jax.random.key(3)) for network in (one, more))
    new = {part: value for part, value in theirs.items() if part in FIELDS}
    assert new.keys() == FIELDS.keys()
    rest = {part: value for part, value in theirs.items() if part not in FIELDS}
    jax.tree.map(np.testing.assert_array_equal, rest, ours)  # a seed's initial parameters stay what they were
    trained = random_params(one)  # the initial ones end in zeros, and would hide a difference
    expected = compiled(one)(trained, X, T, Condition(LABELS))
    found = compiled(more)(trained | new, X, T, Condition(LABELS, s=S, guidance=OMEGA))
    np.testing.assert_array_equal(found, expected)
    assert np.abs(expected - X).max() > 0.1


@pytest.mark.parametrize("name", NETWORKS)
def test_each_image_is_told_its_own_time_and_weight(name):
    network = build(name, target_time=True, guidance_input=True)
    params, denoise = random_params(network), compiled(network)
    base = denoise(params, X, T, Condition(LABELS, s=S, guidance=OMEGA))
    others = {"s": S + np.float32([0, 0.1, 0]), "guidance": OMEGA + np.float32([0, 0.5, 0])}
    for field, other in others.items():
        changed = denoise(params, X, T, Condition(LABELS, s=S, guidance=OMEGA)._replace(**{field: other}))
        moved = np.abs(changed - base).max(axis=(1, 2, 3))
        assert moved[1] > 1e-4, field
        assert max(moved[0], moved[2]) < 1e-5, field
    untold = denoise(params, X, T, Condition(LABELS))
    zeros = np.zeros(3, np.float32)
    np.testing.assert_allclose(untold, denoise(params, X, T, Condition(LABELS, s=zeros, guidance=zeros)), atol=1e-6)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_first_gradient_reaches_the_new_inputs(name):
    network = build(name, target_time=True, guidance_input=True)
    params = random_params(network) | {
        part: value for part, value in network.init(jax.random.key(0)).items() if part in FIELDS
    }

    def loss(params):
        return jnp.mean((network.denoise(params, X, T, Condition(LABELS, s=S, guidance=OMEGA)) - 1.0) ** 2)

    gradient = jax.jit(jax.grad(loss), compiler_options=FAST_COMPILE)(params)
    for part in FIELDS:
        largest = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(gradient[part]))
        assert 1e-6 < largest < 1e3, part


@pytest.mark.parametrize("name", NETWORKS)
def test_forward_mode_by_the_time_to_jump_to(name):
    """Against differences, through the route that ``jax.jvp`` accepts; along ``t`` and the state at once as well."""
    network = build(name, target_time=True)
    params = random_params(network)
    t, s = jnp.float32([0.5, 0.7, 3.0]), jnp.float32([0.2, 0.4, 2.0])
    x, across = jnp.asarray(X / T[:, None, None, None]), jax.random.normal(jax.random.key(2), X.shape)

    def at(x, t, s):
        return network.forward(params, x, t, Condition(LABELS, s=s))

    @jax.jit
    def derived(x, t, s, along):
        return jax.jvp(at, (x, t, s), along)[1]

    value = jax.jit(at)
    for along in ((0 * x, 0 * t, jnp.ones(3)), (across, jnp.ones(3), 0.5 * jnp.ones(3))):
        ends = [value(*(a + sign * 5e-3 * d for a, d in zip((x, t, s), along, strict=True))) for sign in (1, -1)]
        numeric, slope = (ends[0] - ends[1]) / 1e-2, derived(x, t, s, along)
        error = np.linalg.norm(slope - numeric) / np.linalg.norm(numeric)
        assert error < 0.02, (name, error)
        assert np.abs(slope).max() > 1e-3


def test_forward_mode_in_bfloat16():
    network = build("film_mlp", target_time=True, compute_dtype="bfloat16")
    params = random_params(network)
    along = lambda denoise: jax.jvp(lambda s: denoise(params, X, T, Condition(LABELS, s=s)), (S,), (np.ones_like(S),))  # noqa: E731
    value, slope = along(network.forward)
    np.testing.assert_allclose(value, network.denoise(params, X, T, Condition(LABELS, s=S)), atol=1e-5)
    assert np.isfinite(slope).all()  # at s = 0 too
    assert np.abs(slope).max() > 0


def test_mapped_over_times():
    network = build("film_mlp", target_time=True)
    params, several = random_params(network), np.stack([S, 0 * S, T])
    mapped = jax.vmap(lambda s: network.denoise(params, X, T, Condition(LABELS, s=s)))(several)
    for s, found in zip(several, mapped, strict=True):
        np.testing.assert_allclose(found, network.denoise(params, X, T, Condition(LABELS, s=s)), atol=1e-5)


@pytest.mark.parametrize(("given", "field"), [({"s": S}, "target_time"), ({"guidance": OMEGA}, "guidance_input")])
def test_what_a_network_has_no_input_for_is_refused(given, field):
    network = build("film_mlp")
    with pytest.raises(ValueError, match=field):
        network.denoise(random_params(network), X, T, Condition(**given))


def test_edm2_keeps_the_magnitude_of_its_embedding():
    from flax import nnx

    from sct_jax.models.edm2 import Added

    added = Added(64, 512, rngs=nnx.Rngs(0))
    draw = np.random.default_rng(0).standard_normal
    embedded, features = (jnp.float32(draw((200, n))) for n in (512, 64))
    np.testing.assert_array_equal(added(embedded, features), embedded)
    for gain in (0.5, 3.0):
        added.gain[...] = jnp.float32(gain)
        assert float(jnp.std(added(embedded, features))) == pytest.approx(1.0, rel=0.05)
