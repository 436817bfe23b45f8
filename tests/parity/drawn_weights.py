"""Weights that a golden file need not hold: drawn alike where it is made and where it is read."""

import math
from collections.abc import Mapping, Sequence

import numpy as np


def draw(shapes: Mapping[str, Sequence[int]], seed: int) -> dict[str, np.ndarray]:
    """Float32 arrays by PyTorch's names: kernels of variance 1 / fan_in, norm scales near 1, biases near 0.

    From numpy's legacy generator, whose streams are frozen for good; `shapes` in the order in which to draw.
    """
    generator, arrays = np.random.RandomState(seed), {}
    for name, shape in shapes.items():
        noise = generator.standard_normal(shape).astype(np.float32)
        if len(shape) > 1:
            arrays[name] = noise / np.float32(math.sqrt(math.prod(shape[1:])))
        else:
            arrays[name] = np.float32(0.2) * noise + np.float32(name.endswith("weight"))
    return arrays
