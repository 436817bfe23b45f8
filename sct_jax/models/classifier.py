"""A small convolutional image classifier: the offline stand-in for a pretrained feature network."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from flax import nnx

LARGEST_TINY_IMAGE = 12  # pixels a side; up to here the first layer keeps the full resolution

# (kernel, channels, stride) of each convolution, then the width of the penultimate layer: the features.
TINY = (((3, 32, 1), (3, 64, 2)), 64)
SMALL = (((5, 32, 2), (3, 64, 2), (3, 64, 2)), 128)


class ClassifierNetwork(NamedTuple):
    """``init(key) -> params``; ``apply(params, x [B,H,W,C] in [-1,1]) -> (features [B,F], logits [B,K])``.

    ``params`` is a nested dict of float32 arrays; ``architecture`` describes the network in plain JSON types.
    """

    init: Callable[[jax.Array], dict]
    apply: Callable[[dict, jax.Array], tuple[jax.Array, jax.Array]]
    architecture: dict[str, Any]


def build_classifier(image_size: int, channels: int, num_classes: int) -> ClassifierNetwork:
    """The classifier for square images of ``image_size`` pixels; 64 features for tiny images, else 128."""
    if num_classes < 2:
        raise ValueError(f"a classifier needs at least 2 classes, got {num_classes}")
    convolutions, features = TINY if image_size <= LARGEST_TINY_IMAGE else SMALL

    def make(key: jax.Array) -> nnx.Module:
        return _ConvNet(image_size, channels, num_classes, convolutions, features, rngs=nnx.Rngs(key))

    graph, _ = nnx.split(nnx.eval_shape(lambda: make(jax.random.key(0))))

    def init(key: jax.Array) -> dict:
        return nnx.to_pure_dict(nnx.state(make(key)))

    def apply(params: dict, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        return nnx.merge(graph, nnx.State(params))(x)

    architecture = {
        "network": "convolutional classifier",
        "convolutions": [list(layer) for layer in convolutions],
        "features": features,
        "input": [image_size, image_size, channels],
        "num_classes": num_classes,
    }
    return ClassifierNetwork(init, apply, architecture)


class _ConvNet(nnx.Module):
    def __init__(
        self,
        image_size: int,
        channels: int,
        num_classes: int,
        convolutions: tuple[tuple[int, int, int], ...],
        features: int,
        *,
        rngs: nnx.Rngs,
    ):
        self.num_convolutions = len(convolutions)
        he = nnx.initializers.he_normal()
        for index, (kernel, width, stride) in enumerate(convolutions):
            conv = nnx.Conv(channels, width, (kernel, kernel), strides=stride, kernel_init=he, rngs=rngs)
            setattr(self, f"conv{index}", conv)
            channels, image_size = width, -(-image_size // stride)
        self.hidden = nnx.Linear(image_size * image_size * channels, features, kernel_init=he, rngs=rngs)
        self.head = nnx.Linear(features, num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        for index in range(self.num_convolutions):
            x = nnx.relu(getattr(self, f"conv{index}")(x))
        features = nnx.relu(self.hidden(x.reshape(x.shape[0], -1)))
        return features, self.head(features)
