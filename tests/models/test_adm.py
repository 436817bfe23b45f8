"""ADM as a function: its size, its randomness, its conditioning. (Its values: tests/parity/test_drawn_networks.py.)"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sct_jax.models.adm import ADM
from sct_jax.models.unet import UNetBlock

TINY = dict(
    image_size=8,
    in_channels=1,
    out_channels=1,
    channels=8,
    channel_mult=(1, 2),
    num_blocks=1,
    attention_resolutions=(4,),
    attention_head_channels=8,
    label_dim=4,
    augment_dim=3,
)
FAST_COMPILE = {"xla_backend_optimization_level": 0}  # these networks run in milliseconds and compile in seconds


def abstract(**config) -> tuple:
    """The graph and the shapes of a network, nothing allocated."""
    graph, state = nnx.split(nnx.eval_shape(lambda: ADM(rngs=nnx.Rngs(0), **config)))
    return graph, nnx.to_pure_dict(state)


def random_network(**config) -> ADM:
    """Every parameter random, the ones that start at zero too, so that no branch is silent."""
    graph, shapes = abstract(**config)
    draw = np.random.RandomState(0).standard_normal

    def leaf(shape: tuple[int, ...]) -> np.ndarray:
        return (draw(shape) / math.sqrt(math.prod(shape[:-1]) if len(shape) > 1 else 1)).astype(np.float32)

    return nnx.merge(graph, jax.tree.map(lambda a: leaf(a.shape), shapes))


def test_heads_have_their_channels_and_narrow_layers_one():
    network = nnx.eval_shape(lambda: ADM(rngs=nnx.Rngs(0), **{**TINY, "attention_head_channels": 12}))
    assert network.encoder["level1_block0"].attention.num_heads == 1
    network = nnx.eval_shape(lambda: ADM(rngs=nnx.Rngs(0), **TINY))
    assert network.encoder["level1_block0"].attention.num_heads == 2


def test_attention_is_at_its_resolutions_in_encoder_and_decoder_and_in_the_bottleneck():
    network = nnx.eval_shape(lambda: ADM(rngs=nnx.Rngs(0), **{**TINY, "attention_resolutions": (8,)}))
    blocks = {**network.encoder, **network.decoder}
    attending = {name for name, block in blocks.items() if getattr(block, "attention", None) is not None}
    assert attending == {"level0_block0", "level0_block1", "level1_in0"}


def test_each_block_has_its_own_number_and_so_its_own_mask():
    network = nnx.eval_shape(lambda: ADM(rngs=nnx.Rngs(0), **TINY))
    blocks = [node for _, node in nnx.iter_graph(network) if isinstance(node, UNetBlock)]
    assert sorted(block.index for block in blocks) == list(range(1, 11))


def test_the_last_layer_of_each_branch_starts_at_zero():
    @functools.partial(jax.jit, compiler_options=FAST_COMPILE)
    def last_layers():
        network = ADM(rngs=nnx.Rngs(0), **TINY)
        block = network.encoder["level1_block0"]
        return [layer.kernel[...] for layer in (block.conv0, network.out_conv, block.conv1, block.attention.out)]

    other, *last = last_layers()
    assert np.any(other)
    assert not any(np.any(kernel) for kernel in last)


def test_the_time_scale_multiplies_the_time():
    c_noise = jnp.array([-0.5, 0.25])
    scaled = random_network(**TINY, time_scale=1000.0).embed(c_noise)
    np.testing.assert_array_equal(scaled, random_network(**TINY).embed(1000 * c_noise))


def test_no_labels_are_zeros_and_labels_are_dropped_as_a_whole():
    network = random_network(**TINY, label_dropout=0.5)
    c_noise, labels = jnp.zeros(64), jnp.tile(jnp.eye(4)[2], (64, 1))
    unlabelled, labelled = network.embed(c_noise), network.embed(c_noise, labels)
    np.testing.assert_allclose(network.embed(c_noise, 0 * labels, jnp.zeros((64, 3))), unlabelled, atol=1e-6)
    dropped = network.embed(c_noise, labels, None, jax.random.key(0))
    is_labelled = np.abs(dropped - labelled).max(1) < 1e-5
    is_unlabelled = np.abs(dropped - unlabelled).max(1) < 1e-5
    assert (is_labelled ^ is_unlabelled).all()
    assert 16 <= is_labelled.sum() <= 48


@pytest.mark.parametrize(
    ("options", "message"),
    [(dict(image_size=9), "not divisible by 2"), (dict(channels=9), "odd"), (dict(attention_head_channels=5), "heads")],
)
def test_sizes_that_do_not_fit_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        nnx.eval_shape(lambda: ADM(rngs=nnx.Rngs(0), **{**TINY, **options}))
