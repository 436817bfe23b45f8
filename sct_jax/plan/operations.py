"""Operations that a program asks for, counted in its jaxpr: matrix products and convolutions, by precision.

XLA's own count (``cost_analysis``) takes the body of a loop once and does not tell float32 at 6 passes from one; this
one multiplies with the length of ``scan`` and keeps precisions apart. It counts the whole program over all devices,
before XLA removes what is done twice.
"""

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np


def count(jaxpr: Any) -> dict[str, int]:
    """Operations (a multiply-add is two) by ``chips.PRECISIONS``; those of a loop of unknown length count once."""
    return dict(_count(jaxpr.jaxpr if hasattr(jaxpr, "jaxpr") else jaxpr))


def _count(jaxpr: Any) -> Counter[str]:
    total: Counter[str] = Counter()
    for equation in jaxpr.eqns:
        kind, parameters = equation.primitive.name, equation.params
        if kind == "dot_general":
            total[_precision(equation)] += _product(equation)
        elif kind == "conv_general_dilated":
            total[_precision(equation)] += _convolution(equation)
        elif kind == "cond":
            total += max((_count(branch.jaxpr) for branch in parameters["branches"]), key=lambda c: c.total())
        else:
            times = {"scan": lambda p: p["length"], "shard_map": _shards}.get(kind, lambda p: 1)(parameters)
            for inner in _inner(parameters):
                total += Counter({precision: times * value for precision, value in _count(inner).items()})
    return total


def _inner(parameters: dict[str, Any]) -> Iterator[Any]:
    for value in parameters.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if hasattr(item, "eqns"):
                yield item
            elif hasattr(getattr(item, "jaxpr", None), "eqns"):
                yield item.jaxpr


def _shards(parameters: dict[str, Any]) -> int:
    mesh = parameters["mesh"]
    axes = parameters.get("manual_axes") or mesh.axis_names
    return math.prod(mesh.shape[axis] for axis in axes)


def _precision(equation: Any) -> str:
    if equation.invars[0].aval.dtype.itemsize < 4:
        return "bfloat16"
    precision = equation.params["precision"]
    first = precision[0] if isinstance(precision, tuple) else precision
    named = {jax.lax.Precision.HIGH: "high", jax.lax.Precision.HIGHEST: "highest"}
    return f"float32 {named.get(first, 'default')}"


def _product(equation: Any) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)


def _convolution(equation: Any) -> int:
    """Products with padding and with the holes of a dilated input are not counted: no one has to make them."""
    parameters, numbers = equation.params, equation.params["dimension_numbers"]
    image, kernel, out = (variable.aval.shape for variable in (*equation.invars, *equation.outvars))
    pairs = 1
    for axis, (low, _) in enumerate(parameters["padding"]):
        pairs *= _pairs(
            image[numbers.lhs_spec[2 + axis]],
            kernel[numbers.rhs_spec[2 + axis]],
            out[numbers.out_spec[2 + axis]],
            low,
            parameters["window_strides"][axis],
            parameters["lhs_dilation"][axis],
            parameters["rhs_dilation"][axis],
        )
    features = out[numbers.out_spec[0]] * out[numbers.out_spec[1]] * kernel[numbers.rhs_spec[1]]
    return 2 * pairs * features


def _pairs(size: int, kernel: int, out: int, low: int, stride: int, dilation: int, kernel_dilation: int) -> int:
    """Pairs of an output and a kernel position that meet a pixel, along one axis."""
    place = np.arange(out)[:, None] * stride + np.arange(kernel) * kernel_dilation - low
    inside = (place >= 0) & (place <= (size - 1) * dilation) & (place % dilation == 0)
    return int(inside.sum())
