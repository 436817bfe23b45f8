"""DDPM++/NCSN++ as a function: its size, its randomness, its conditioning, its dtype, what it refuses."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sct_jax.models.ddpmpp import DDPMpp, UNetBlock

NCSNPP = dict(embedding="fourier", channel_mult_noise=2, encoder="residual", resample_filter=(1, 3, 3, 1))
TINY = dict(
    image_size=8,
    in_channels=1,
    out_channels=1,
    channels=8,
    channel_mult=(1, 2),
    num_blocks=1,
    attention_resolutions=(4,),
    label_dim=4,
    augment_dim=3,
    **NCSNPP,
)
X = np.random.default_rng(1).standard_normal((4, 8, 8, 1)).astype(np.float32)
C_NOISE = np.array([-1.0, -0.3, 0.2, 1.0], np.float32)
LABELS = np.eye(4, dtype=np.float32)
AUGMENT_LABELS = np.random.default_rng(2).standard_normal((4, 3)).astype(np.float32)
FAST_COMPILE = {"xla_backend_optimization_level": 0}  # these networks run in milliseconds and compile in seconds


def abstract(**config) -> tuple:
    """The graph and the shapes of a network, nothing allocated."""
    graph, state = nnx.split(nnx.eval_shape(lambda: DDPMpp(rngs=nnx.Rngs(0), **config)))
    return graph, nnx.to_pure_dict(state)


def random_params(shapes: dict) -> dict:
    """Every parameter random, the ones that start at zero too, so that no branch is silent."""
    generator = np.random.default_rng(0)

    def draw(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        fan_in = math.prod(leaf.shape[:-1]) if leaf.ndim > 1 else 1
        return (generator.standard_normal(leaf.shape) / math.sqrt(fan_in)).astype(np.float32)

    return jax.tree.map(draw, shapes)


class Network:
    """A network as a function of its parameters, compiled once with dropout and once without."""

    def __init__(self, **config):
        self.graph, shapes = abstract(**config)
        self.params = random_params(shapes)
        self.apply = jax.jit(
            lambda params, *arguments: nnx.merge(self.graph, params)(*arguments), compiler_options=FAST_COMPILE
        )

    def __call__(self, x, c_noise, labels=LABELS, augment_labels=AUGMENT_LABELS, key=None) -> np.ndarray:
        return np.asarray(self.apply(self.params, x, c_noise, labels, augment_labels, key))

    def embed(self, *arguments) -> np.ndarray:
        return np.asarray(nnx.merge(self.graph, self.params).embed(C_NOISE, *arguments))


@pytest.fixture(scope="module")
def network() -> Network:
    return Network(**TINY, dropout=0.3)


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({}, 55_732_739),
        (dict(label_dim=10, augment_dim=9), 55_735_299),
        (NCSNPP, 56_395_523 + 128),  # and the frequencies, which the original does not count
    ],
)
def test_published_cifar10_networks_have_their_parameter_count(options, count):
    _, shapes = abstract(image_size=32, in_channels=3, out_channels=3, **options)
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == count
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(shapes))


def test_parameters_leave_as_a_plain_dict_with_string_keys_and_return_inside_jit(network):
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(network.params)]
    assert all(isinstance(entry.key, str) for path in paths for entry in path)
    assert network(X, C_NOISE).shape == X.shape  # Network.apply merges them inside jit


def test_a_fresh_network_is_nearly_silent(network):
    @functools.partial(jax.jit, compiler_options=FAST_COMPILE)
    def fresh(key):
        return nnx.to_pure_dict(nnx.state(DDPMpp(rngs=nnx.Rngs(params=key), **TINY, dropout=0.3)))

    output = network.apply(fresh(jax.random.key(0)), X, C_NOISE, LABELS, AUGMENT_LABELS, None)
    assert 0 < np.abs(output).max() < 1e-3  # the last convolution starts at 1e-5 of the usual scale
    assert np.abs(network(X, C_NOISE)).max() > 0.1


def test_evaluation_is_deterministic(network):
    np.testing.assert_array_equal(network(X, C_NOISE), network(X, C_NOISE))


def test_dropout_is_a_function_of_its_key(network):
    first, again, other = (network(X, C_NOISE, key=jax.random.key(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.01
    assert np.abs(first - network(X, C_NOISE)).max() > 0.01


def test_each_block_has_its_own_number_and_so_its_own_mask():
    network = nnx.eval_shape(lambda: DDPMpp(rngs=nnx.Rngs(0), **TINY))
    blocks = [node for _, node in nnx.iter_graph(network) if isinstance(node, UNetBlock)]
    # encoder: 1 + down + 1; decoder: 2 + 2 + up + 2; number 0 is for dropping labels
    assert sorted(block.index for block in blocks) == list(range(1, 11))


def test_every_input_matters_and_samples_do_not_see_each_other(network):
    plain = network(X, C_NOISE)
    changed = dict(x=X, c_noise=C_NOISE, labels=LABELS, augment_labels=AUGMENT_LABELS)
    for name, value in changed.items():
        other = value.copy()
        other[0] = 0
        output = network(**{**changed, name: other})
        assert np.abs(output[0] - plain[0]).max() > 0.01, name
        np.testing.assert_array_equal(output[1:], plain[1:])


def test_a_zero_label_row_is_no_label(network):
    unlabelled, labelled = network.embed(), network.embed(LABELS * [[0], [1], [1], [1]])
    np.testing.assert_array_equal(network.embed(np.zeros((4, 4))), unlabelled)
    np.testing.assert_allclose(labelled[0], unlabelled[0], atol=1e-6)
    assert (np.abs(labelled[1:] - unlabelled[1:]).max(1) > 0.01).all()


def test_no_augmentation_labels_are_zeros(network):
    np.testing.assert_allclose(network.embed(None, np.zeros((4, 3))), network.embed(), atol=1e-6)


def test_label_dropout_removes_whole_labels_of_some_samples():
    graph, shapes = abstract(**TINY, label_dropout=0.5)
    network = nnx.merge(graph, random_params(shapes))
    c_noise, labels = np.zeros(64), np.tile([0.0, 0.0, 1.0, 0.0], (64, 1))
    labelled, unlabelled = network.embed(c_noise, labels), network.embed(c_noise)
    dropped = network.embed(c_noise, labels, None, jax.random.key(0))
    is_labelled = np.abs(dropped - labelled).max(1) < 1e-5
    is_unlabelled = np.abs(dropped - unlabelled).max(1) < 1e-5
    assert (is_labelled ^ is_unlabelled).all()
    assert 16 <= is_labelled.sum() <= 48


def test_bfloat16_is_close_to_float32_and_its_time_embedding_is_exact(network):
    rounded = Network(**TINY, dropout=0.3, compute_dtype="bfloat16")
    output, exact = rounded(X, C_NOISE), network(X, C_NOISE)
    assert output.dtype == np.float32
    assert 1e-5 < np.linalg.norm(output - exact) / np.linalg.norm(exact) < 0.03
    arguments = LABELS, AUGMENT_LABELS
    np.testing.assert_array_equal(rounded.embed(*arguments), network.embed(*arguments))


@pytest.mark.parametrize(
    "options",
    [
        dict(image_size=12),
        dict(image_size=20, channel_mult=(1, 2, 2), in_channels=3, out_channels=6),
        dict(image_size=5, channel_mult=(1,)),
        dict(num_blocks=3, encoder="skip", decoder="skip"),
        dict(channels=20, channel_mult=(2, 1), embedding="positional"),
    ],
)
def test_any_size_the_levels_divide_works(options):
    config = {**TINY, **options}
    size = config["image_size"]
    network = nnx.eval_shape(lambda: DDPMpp(rngs=nnx.Rngs(0), **config))
    graph, params = nnx.split(network)
    shape = jax.eval_shape(
        lambda params, x, c_noise: nnx.merge(graph, params)(x, c_noise),
        params,
        jax.ShapeDtypeStruct((2, size, size, config["in_channels"]), jnp.float32),
        jax.ShapeDtypeStruct((2,), jnp.float32),
    )
    assert shape.shape == (2, size, size, config["out_channels"])


def test_a_size_that_cannot_be_halved_is_named_with_its_divisor():
    with pytest.raises(ValueError, match="image_size 30 is not divisible by 4"):
        DDPMpp(rngs=nnx.Rngs(0), **{**TINY, "image_size": 30, "channel_mult": (1, 2, 2)})


def test_an_image_of_another_size_is_refused(network):
    with pytest.raises(ValueError, match=r"\(8, 8, 1\).*\(16, 16, 1\)"):
        network(np.ones((4, 16, 16, 1)), C_NOISE)


@pytest.mark.parametrize("option", ["embedding", "encoder", "decoder"])
def test_an_unknown_option_is_named(option):
    with pytest.raises(ValueError, match=f"{option} 'nonsense'"):
        DDPMpp(rngs=nnx.Rngs(0), **{**TINY, option: "nonsense"})
