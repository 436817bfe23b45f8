"""A softmax-weighted mean of rows that come block by block, so that the weights of all rows never exist at once.

The sums of a block are kept relative to its largest log-weight and rescaled when a larger one turns up (online softmax,
Milakov and Gimelshein, arXiv 1805.02867); parts made on different devices combine by the same rule.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array


class Partial(NamedTuple):
    """Sums over the rows seen so far, with ``u = exp(log w − maximum)``; float32, a query an entry of ``[B]``."""

    maximum: Array  # [B], the largest log-weight; −inf while no row is visible
    mass: Array  # [B], Σ u
    squares: Array  # [B], Σ u²
    exponents: Array  # [B], Σ u ln u
    total: Array  # [B, D], Σ u row


def empty(batch: int, size: int) -> Partial:
    """The sums over no rows, for rows of ``size`` numbers."""
    zeros = jnp.zeros(batch, jnp.float32)
    return Partial(zeros - jnp.inf, zeros, zeros, zeros, jnp.zeros((batch, size), jnp.float32))


def single(rows: Array) -> Partial:
    """The sums over one row for each query, ``[B, D]``, of log-weight 0."""
    one = jnp.ones(rows.shape[0], jnp.float32)
    return Partial(0 * one, one, one, 0 * one, rows)


def summarise(log_weights: Array, rows: Array) -> Partial:
    """The sums over one block: log-weights ``[B, n]`` (−inf: not visible), rows ``[n, D]`` or ``[B, n, D]``."""
    maximum = jnp.max(log_weights, axis=1)
    exponent = log_weights - jnp.where(maximum == -jnp.inf, 0.0, maximum)[:, None]
    weight = jnp.exp(exponent)
    each = "bnd" if rows.ndim == 3 else "nd"
    return Partial(
        maximum=maximum,
        mass=jnp.sum(weight, axis=1),
        squares=jnp.sum(weight**2, axis=1),
        exponents=jnp.sum(weight * jnp.where(weight == 0, 0.0, exponent), axis=1),
        total=jnp.einsum(f"bn,{each}->bd", weight, rows, precision="highest"),
    )


def merge(a: Partial, b: Partial) -> Partial:
    """The sums over the rows of both."""
    maximum = jnp.maximum(a.maximum, b.maximum)
    return Partial(maximum, *map(jnp.add, _rescaled(a, maximum)[1:], _rescaled(b, maximum)[1:]))


def merge_axis(partial: Partial, axis_name: str | tuple[str, ...]) -> Partial:
    """The sums over the rows of all devices along a mesh axis or several, inside ``shard_map``."""
    maximum = jax.lax.pmax(partial.maximum, axis_name)
    return Partial(maximum, *jax.lax.psum(_rescaled(partial, maximum)[1:], axis_name))


def finish(partial: Partial) -> tuple[Array, Array, Array]:
    """The weighted mean ``[B, D]``, ``1/Σ w²`` and the entropy of the weights ``[B]``; NaN where nothing was seen."""
    mean = partial.total / partial.mass[:, None]
    entropy = jnp.log(partial.mass) - partial.exponents / partial.mass
    return mean, partial.mass**2 / partial.squares, entropy


def over_blocks(absorb: Callable[[Array, Array, Partial], Partial], total: int, count: int, start: Partial) -> Partial:
    """``absorb(start, fresh, seen)`` over blocks of ``count`` of ``total`` rows; ``fresh [count]``: not seen before.

    A last block that is short begins earlier and so holds rows of the one before it.
    """

    def body(index: Array, seen: Partial) -> Partial:
        begin = jnp.minimum(index * count, total - count)
        return absorb(begin, begin + jnp.arange(count) >= index * count, seen)

    return jax.lax.fori_loop(0, -(-total // count), body, start)


def _rescaled(partial: Partial, maximum: Array) -> Partial:
    """The same sums relative to a larger maximum."""
    unseen = partial.maximum == -jnp.inf
    shift = jnp.where(unseen, 0.0, partial.maximum - maximum)
    scale = jnp.where(unseen, 0.0, jnp.exp(shift))
    return Partial(
        maximum=maximum,
        mass=scale * partial.mass,
        squares=scale**2 * partial.squares,
        exponents=scale * (partial.exponents + shift * partial.mass),
        total=scale[:, None] * partial.total,
    )
