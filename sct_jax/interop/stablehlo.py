"""The sampler of a model as a program without its source: StableHLO, serialised by ``jax.export``.

The program takes the weights as an argument, by name, and they lie in a safetensors file beside it. So it is small
whatever the network (a serialised program ends at 2 GB), the weights can be mapped, checked or replaced by another
average, and a compiler does not fold them.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import export

from sct_jax import config as config_lib
from sct_jax import models, trees
from sct_jax.interop import own_names
from sct_jax.sampling.generate import Generator

PLATFORMS = ("cpu", "cuda", "tpu")


def serialize(model: Any, steps: int) -> bytes:
    """``program(weights, seed, index[, labels]) -> images`` of a :class:`sct_jax.model.Model`, for any batch size.

    ``weights`` are float32 arrays by :func:`own_names.state_dict`; ``seed`` is int32; ``index`` int32 ``[b]`` says
    which images of the seed; ``labels`` int32 ``[b]`` (−1: none) is there where the model is conditional; images are
    float32 ``[b, H, W, C]``, the same as :meth:`Model.sample`'s.

    Raises:
      UserError: for a number of steps that the model cannot be sampled with.
    """
    (batch,) = export.symbolic_shape("b")
    vector = jax.ShapeDtypeStruct((batch,), jnp.int32)
    arrays = own_names.state_dict(model.params)
    weights = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in arrays.items()}
    arguments = [weights, jax.ShapeDtypeStruct((), jnp.int32), vector]
    arguments += [vector] if model.config.model.conditional else []
    with jax.default_device(jax.devices("cpu")[0]):  # nothing in it that this machine's device alone can do
        return bytes(export.export(jax.jit(_program(model, steps)), platforms=PLATFORMS)(*arguments).serialize())


def inputs(model: Any) -> list[str]:
    """The program's arguments, in words."""
    labels = ["labels: int32 [b], -1 for none"] if model.config.model.conditional else []
    return ["weights: {name: float32 array}", "seed: int32 []", "index: int32 [b], which images of the seed", *labels]


def _program(model: Any, steps: int) -> Callable[..., jax.Array]:
    # Jitted by itself the network is one function of the program, whatever the number of its evaluations.
    denoise = jax.jit(models.build(config_lib.sampled_model(model.config), model.spec).denoise)
    shape = (model.spec.image_size, model.spec.image_size, model.spec.channels)
    draw = Generator(denoise, shape, model.config, clip=model.spec.dtype == "uint8").program(steps)

    def sample(weights: dict[str, jax.Array], seed: jax.Array, index: jax.Array, *labels: jax.Array) -> jax.Array:
        return draw(trees.nested(weights), seed, index, *labels)

    return sample
