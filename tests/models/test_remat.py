"""Computing blocks again in the backward pass: the same numbers, less to keep for it."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sct_jax import models
from sct_jax.config import default_config
from sct_jax.data import DataSpec
from sct_jax.models import adm, ddpmpp
from sct_jax.models.unet import UNetBlock

FAST_COMPILE = {"xla_backend_optimization_level": 0}


@pytest.mark.parametrize("style", [ddpmpp.STYLE, adm.STYLE], ids=["ddpmpp", "adm"])
def test_a_block_has_the_same_value_and_gradients(style):
    def parts(remat: bool) -> tuple:
        options = dict(embedding_channels=4, index=1, style=style, dropout=0.3, down=True, attention=True, remat=remat)
        graph, state = nnx.split(nnx.eval_shape(lambda: UNetBlock(8, 8, rngs=nnx.Rngs(0), **options)))
        return graph, nnx.to_pure_dict(state)

    (plain, shapes), (again, _) = parts(remat=False), parts(remat=True)
    draw = np.random.RandomState(0).standard_normal
    params = jax.tree.map(lambda leaf: (0.3 * draw(leaf.shape)).astype(np.float32), shapes)
    x, embedded = draw((2, 8, 8, 8)).astype(np.float32), draw((2, 4)).astype(np.float32)

    def loss(graph, params, x, embedded):
        return jnp.square(nnx.merge(graph, params)(x, embedded, jax.random.key(2))).mean()

    @jax.jit
    def both(*inputs):
        gradients = jax.value_and_grad(loss, argnums=(1, 2, 3))
        return gradients(plain, *inputs), gradients(again, *inputs)

    kept, recomputed = both.lower(params, x, embedded).compile(FAST_COMPILE)(params, x, embedded)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), kept, recomputed)
    assert all(np.abs(leaf).max() > 1e-4 for leaf in jax.tree.leaves(kept[1][1:]))


@pytest.mark.parametrize("name", ["ddpmpp", "adm", "edm2"])
def test_a_network_keeps_far_less_for_its_backward_pass(name):
    def residuals(remat: bool) -> int:
        """Bytes that the forward pass of a batch of 64 hands to the backward pass, parameters included."""
        model = default_config().model
        sizes = dict(channels=8, channel_mult=(1,), num_blocks=1, attention_resolutions=())
        model.update(dict(sizes, name=name, remat=remat, attention_head_channels=8))
        network = models.build(model, DataSpec(image_size=8, channels=1, num_classes=0, num_examples=0))
        params = jax.eval_shape(network.init, jax.random.key(0))
        x, t = jax.ShapeDtypeStruct((64, 8, 8, 1), jnp.float32), jax.ShapeDtypeStruct((64,), jnp.float32)
        kept = jax.eval_shape(lambda params, x, t: jax.vjp(lambda p: network.denoise(p, x, t), params)[1], params, x, t)
        return sum(leaf.dtype.itemsize * math.prod(leaf.shape) for leaf in jax.tree.leaves(kept))

    assert residuals(remat=True) < 0.25 * residuals(remat=False)
