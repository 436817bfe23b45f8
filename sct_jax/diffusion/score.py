"""The score identity: the posterior mean of the clean image, estimated from a reference set.

``E[x_0 | x_t] = Σ_i w_i x^(i)`` with ``w = softmax(−‖x_t − x^(i)‖²/2t²)`` over samples ``x^(i)`` of the data
(self-normalised importance sampling; Stable Target Field, arXiv 2302.00670, eq. 6; SCT, arXiv 2410.18958, eq. 12).
When the reference set holds the query's own sample the estimate is unbiased, and its variance given ``x_t`` is never
larger than that of the sample itself: this is the variance reduction of SCT.

The same estimate for each kind of reference set: ``posterior_mean`` for rows that all queries share, few enough to
weigh at once (the batch); ``bank_posterior_mean`` for rows of each query's own; ``dataset_posterior_mean`` for all
rows, ``class_posterior_mean`` for all rows of the query's class, both with a sharded form. All but the first go block
by block, so their memory does not grow with the rows.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from sct_jax.diffusion import online_softmax, pixel_distance
from sct_jax.diffusion.process import per_image, to_unit_range

Array = jax.Array
HIDDEN = -2  # the label of rows that no query may see: what pads a data set to a multiple of the devices


class PosteriorMean(NamedTuple):
    """``estimate`` is ``[B, ...]`` as the queries; the diagnostics are ``[B]``, float32."""

    estimate: Array
    effective_sample_size: Array  # 1 / Σ w²: 1 where one reference holds all the weight, n where all are alike
    entropy: Array  # of the weights, in nats
    own_distance: Array  # ‖x̂_0 − x_0‖² / D: how far the estimate moved from the sample


def posterior_mean(x_0: Array, noise: Array, t: Array, references: Array, mask: Array | None = None) -> PosteriorMean:
    """Estimates ``E[x_0 | x_t]`` at ``x_t = x_0 + t·noise`` from ``references``.

    The references are used exactly as given: the caller includes each query's own sample (with the batch as the
    reference set this is so by construction). Correct in float32 for ``t`` from 0.002 to 80: log-weights are taken
    relative to the query's own clean image, ``‖x_t − x^(i)‖² − ‖x_t − x_0‖² = Σ d (d + 2tε)``, ``d = x_0 − x^(i)``,
    which is summed from the differences and so loses nothing to cancellation; no ``[B, n, ...]`` array is made.

    Args:
      x_0: clean images ``[B, ...]`` in [-1, 1].
      noise: standard normal noise, as ``x_0``.
      t: noise levels ``[B]``, ``> 0``.
      references: ``[n, ...]``.
      mask: optional ``[B, n]`` of booleans: the references a query may see (say, those of its class).

    Returns:
      The estimate ``[B, ...]`` and its diagnostics. Gradients do not flow through it: it is a target.

    Raises:
      ValueError: for shapes that do not fit, and for a query with no visible reference. Where the mask is traced
        (under ``jit``) its values cannot be raised on: that query's estimate is NaN, which stops a training run.
    """
    _check_queries(x_0, noise, t)
    batch, count = len(x_0), len(references)
    if references.shape[1:] != x_0.shape[1:] or count == 0:
        raise ValueError(f"references must be [n, ...] like x_0 {x_0.shape}, n >= 1, got {references.shape}")
    if mask is not None:
        _check_mask(mask, batch, count)
    x_0, noise, t, references = map(jax.lax.stop_gradient, (x_0, noise, t, references))
    rows = references.reshape(count, -1).astype(jnp.float32)
    distance = squared_distance_gap(x_0.reshape(batch, -1), noise.reshape(batch, -1), t, rows)
    log_weights = -distance / (2.0 * t[:, None] ** 2)
    if mask is not None:
        log_weights = jnp.where(mask, log_weights, -jnp.inf)
    return _result(x_0, *online_softmax.finish(online_softmax.summarise(log_weights, rows)))


def bank_posterior_mean(
    x_0: Array,
    noise: Array,
    t: Array,
    rows: Array | Callable[[Array, int], Array],
    *,
    num_rows: int | None = None,
    block: int = 16,
    visible: Callable[[Array, int], Array] | None = None,
) -> PosteriorMean:
    """Estimates ``E[x_0 | x_t]`` from ``n`` rows of each query's own, and its own sample: ``n + 1`` in all.

    Args:
      x_0, noise, t: the queries, as for :func:`posterior_mean`.
      rows: ``[B, n, H, W, C]``, uint8 or float, without the own sample; or ``rows(start, count)`` that gives rows
        ``start ... start + count − 1`` of them (``start`` is traced, ``count`` is not) where all together would be
        too many: only ``block`` of them exist as floats at a time.
      num_rows: ``n``; needed with a callable.
      block: rows for each query worked on at a time.
      visible: ``visible(start, count)``, booleans ``[B, count]``: which of these rows a query may see. None: all.

    Raises:
      ValueError: for shapes that do not fit.
    """
    if not callable(rows):
        stored, num_rows = jnp.asarray(rows), rows.shape[1]
        rows = lambda start, count: jax.lax.dynamic_slice_in_dim(stored, start, count, axis=1)  # noqa: E731
    _check_queries(x_0, noise, t)
    if num_rows is None or num_rows < 1 or block < 1:
        raise ValueError(f"bank_posterior_mean needs num_rows >= 1 and block >= 1, got {num_rows} and {block}")
    x_0, noise, t = map(jax.lax.stop_gradient, (x_0, noise, t))
    batch, count = len(x_0), min(block, num_rows)
    queries, tilt = (x.reshape(batch, 1, -1) for x in (x_0, 2.0 * per_image(t, x_0) * noise))

    def absorb(start: Array, fresh: Array, seen: online_softmax.Partial) -> online_softmax.Partial:
        taken = rows(start, count)
        if taken.shape != (batch, count, *x_0.shape[1:]):
            raise ValueError(f"rows must be {(batch, count, *x_0.shape[1:])}, got {taken.shape}")
        taken = to_unit_range(jax.lax.stop_gradient(taken)).reshape(batch, count, -1)
        seen_here = fresh if visible is None else fresh & visible(start, count)
        return online_softmax.merge(seen, _summarise_own(queries, tilt, t, taken, seen_here))

    partial = online_softmax.over_blocks(absorb, num_rows, count, online_softmax.single(queries[:, 0]))
    return _result(x_0, *online_softmax.finish(partial))


def dataset_posterior_mean(
    x_0: Array,
    noise: Array,
    t: Array,
    images: Array,
    *,
    labels: Array | None = None,
    image_labels: Array | None = None,
    flip: bool = False,
    block: int = 1024,
    axis_name: str | tuple[str, ...] | None = None,
) -> PosteriorMean:
    """The exact ``E[x_0 | x_t]`` where the data are ``images`` alone (their empirical distribution).

    Attention with ``x_t`` as queries and the data as keys and values, block by block. Distances to uint8 images are
    matrix products of integers, exact where it matters (see ``pixel_distance``); to float images they are summed from
    the differences, as in :func:`posterior_mean`.

    Args:
      x_0, noise, t: the queries, as for :func:`posterior_mean`; ``x_0`` need not be among the images, and a point ``x``
        of another origin is given as ``x_0`` without noise (``own_distance`` is then that from ``x``).
      images: ``[N, H, W, C]``, or flat as ``[N, H·W·C]`` (rows then lie together on a TPU, which saves it copies);
        uint8, or float and taken as they are. ``N`` need not be a multiple of ``block``.
      labels: int32 ``[B]``: a query sees the images of its label only. None: all images.
      image_labels: int32 ``[N]``. Images labelled ``HIDDEN`` are seen by nobody, with or without ``labels``.
      flip: the data are the images and their mirror images, ``2 N`` rows.
      block: images worked on at a time.
      axis_name: inside ``shard_map``, the mesh axes over which ``images`` and ``image_labels`` are split: each
        device works on its part and the parts are combined, so that all hold the whole result.

    Raises:
      ValueError: for shapes that do not fit, and for a query that sees no image; where labels are traced (under
        ``jit``) that query's estimate is NaN.
    """
    _check_dataset(x_0, noise, t, images, labels, image_labels, block)
    x_0, noise, t, images = map(jax.lax.stop_gradient, (x_0, noise, t, images))
    # ‖x_t − mirror(row)‖ = ‖mirror(x_t) − row‖: mirrored queries see the rows as they are.
    twice = (lambda x: jnp.concatenate([x, x])) if flip else (lambda x: x)
    with_mirrored = (lambda x: jnp.concatenate([x, x[..., ::-1, :]])) if flip else (lambda x: x)
    weigh, as_float, to_unit = _distances(with_mirrored(x_0), with_mirrored(noise), twice(t), images.dtype)
    all_labels = None if labels is None else twice(labels)
    count = min(block, len(images))

    def absorb(start: Array, fresh: Array, seen: online_softmax.Partial) -> online_softmax.Partial:
        part = lambda x: jax.lax.dynamic_slice_in_dim(x, start, count)  # noqa: E731
        visible = fresh[None]
        if image_labels is not None:
            here = part(image_labels)
            visible = visible & (here != HIDDEN) & (True if all_labels is None else same_class(all_labels, here))
        rows = as_float(part(images).reshape(count, -1))
        log_weights = jnp.where(visible, weigh(rows), -jnp.inf)
        return online_softmax.merge(seen, online_softmax.summarise(log_weights, rows))

    start = online_softmax.empty(len(twice(t)), x_0[0].size)
    if axis_name is not None:
        start = jax.lax.pcast(start, axis_name, to="varying")
    partial = online_softmax.over_blocks(absorb, len(images), count, start)
    if flip:
        partial = _fold_mirrored(partial, x_0.shape)
    if axis_name is not None:
        partial = online_softmax.merge_axis(partial, axis_name)
    mean, *diagnostics = online_softmax.finish(partial)
    return _result(x_0, to_unit(mean), *diagnostics)


def sharded_dataset_posterior_mean(
    mesh: Mesh,
    x_0: Array,
    noise: Array,
    t: Array,
    images: Array,
    *,
    labels: Array | None = None,
    image_labels: Array | None = None,
    flip: bool = False,
    block: int = 1024,
) -> PosteriorMean:
    """:func:`dataset_posterior_mean` with the images split over all devices of ``mesh``, the queries replicated.

    ``N`` is a multiple of the devices; pad with images labelled ``HIDDEN`` (``data.references.make_store`` does).
    """
    devices = mesh.size
    if len(images) % devices:
        raise ValueError(f"{len(images)} images do not divide over {devices} devices: pad with the label {HIDDEN}")
    _check_dataset(x_0, noise, t, images, labels, image_labels, block)

    def local(x_0: Array, noise: Array, t: Array, labels: Any, images: Array, image_labels: Any) -> PosteriorMean:
        seen = {"labels": labels, "image_labels": image_labels}
        return dataset_posterior_mean(x_0, noise, t, images, **seen, flip=flip, block=block, axis_name=mesh.axis_names)

    whole, split = P(), P(mesh.axis_names)
    specs = (whole, whole, whole, whole, split, split)
    run = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=whole)
    return run(x_0, noise, t, labels, images, image_labels)


def class_posterior_mean(
    x_0: Array,
    noise: Array,
    t: Array,
    labels: Array,
    images: Array,
    start: Array,
    *,
    flip: bool = False,
    block: int = 16,
    axis_name: str | tuple[str, ...] | None = None,
) -> PosteriorMean:
    """:func:`dataset_posterior_mean` where a query sees its class only, looking at no row of the other classes.

    Rows of each query's own are gathered from images that lie class by class. With many classes this is far less work
    than masking: the masked products grow with all rows, the gathered ones with those of a class.

    Args:
      x_0, noise, t: the queries, as for :func:`posterior_mean`.
      labels: their classes, int32 ``[B]``.
      images: ``[N, H, W, C]`` or ``[N, H·W·C]``, uint8 or float, sorted by class.
      start: int32 ``[classes + 1]``: class ``c`` is ``images[start[c] : start[c + 1]]``. What lies behind
        ``start[classes]`` is seen by nobody.
      flip: the data are the images and their mirror images.
      block: images for each query worked on at a time.
      axis_name: inside ``shard_map``, the mesh axes over which ``images`` and ``start`` are split: each device works
        on its share of every class.

    Raises:
      ValueError: for shapes that do not fit. A query that sees no image has the estimate NaN.
    """
    _check_queries(x_0, noise, t)
    if not _fits(images, x_0) or start.ndim != 1 or labels.shape != t.shape or block < 1:
        raise ValueError(
            f"images must be [N, ...] like x_0 {x_0.shape}, labels [B], start [classes + 1], block >= 1; got "
            f"{images.shape}, {labels.shape}, {start.shape}, {block}"
        )
    x_0, noise, t, images = map(jax.lax.stop_gradient, (x_0, noise, t, images))
    batch, begin, end = len(x_0), start[labels], start[labels + 1]
    # as in dataset_posterior_mean: mirrored queries see the rows as they are
    mirrored = (lambda x: x, lambda x: x[..., ::-1, :])[: 1 + flip]
    tilt = 2.0 * per_image(t, x_0) * noise
    queries = [[turn(x).reshape(batch, 1, -1) for x in (x_0, tilt)] for turn in mirrored]

    def absorb(index: Array, seen: list[online_softmax.Partial]) -> list[online_softmax.Partial]:
        place = begin[:, None] + index * block + jnp.arange(block)
        taken = to_unit_range(images[jnp.minimum(place, len(images) - 1)]).reshape(batch, block, -1)
        fresh = [_summarise_own(*query, t, taken, place < end[:, None]) for query in queries]
        return [online_softmax.merge(*each) for each in zip(seen, fresh, strict=True)]

    partials = [online_softmax.empty(batch, x_0[0].size) for _ in mirrored]
    if axis_name is not None:
        partials = jax.lax.pcast(partials, axis_name, to="varying")
    partials = jax.lax.fori_loop(0, -(-jnp.max(end - begin) // block), absorb, partials)  # to the largest class
    partial = partials[0]
    if flip:
        partial = _fold_mirrored(jax.tree.map(lambda *x: jnp.concatenate(x), *partials), x_0.shape)
    if axis_name is not None:
        partial = online_softmax.merge_axis(partial, axis_name)
    return _result(x_0, *online_softmax.finish(partial))


def sharded_class_posterior_mean(
    mesh: Mesh,
    x_0: Array,
    noise: Array,
    t: Array,
    labels: Array,
    images: Array,
    start: Array,
    *,
    flip: bool = False,
    block: int = 16,
) -> PosteriorMean:
    """:func:`class_posterior_mean` with the images split over all devices of ``mesh``, the queries replicated.

    ``images`` are the parts of the devices one after another, each sorted by class, and ``start``, int32
    ``[devices, classes + 1]``, counts within each (``data.references.make_class_store`` makes both). A device's work is
    that of its largest class in the batch, so classes are best spread evenly.
    """
    if len(images) % mesh.size or len(start) != mesh.size:
        raise ValueError(f"{len(images)} images and {len(start)} starts do not divide over {mesh.size} devices")

    def local(x_0: Array, noise: Array, t: Array, labels: Array, images: Array, start: Array) -> PosteriorMean:
        arguments = (x_0, noise, t, labels, images, start[0])
        return class_posterior_mean(*arguments, flip=flip, block=block, axis_name=mesh.axis_names)

    whole, split = P(), P(mesh.axis_names)
    run = jax.shard_map(local, mesh=mesh, in_specs=(whole, whole, whole, whole, split, split), out_specs=whole)
    return run(x_0, noise, t, labels, images, start)


def squared_distance_gap(x_0: Array, noise: Array, t: Array, rows: Array) -> Array:
    """``‖x_t − row‖² − ‖x_t − x_0‖²`` for queries ``[B, D]`` and rows ``[n, D]``, as ``[B, n]`` in float32.

    One fused pass over ``B·n·D`` products; the compiler keeps the differences in registers.
    """
    difference = x_0[:, None, :] - rows[None, :, :]
    return jnp.sum(difference * (difference + (2.0 * per_image(t, x_0) * noise)[:, None, :]), axis=-1)


def same_class(labels: Array, reference_labels: Array) -> Array:
    """The mask ``[B, n]`` of references that share the query's class."""
    return labels[:, None] == reference_labels[None, :]


def _summarise_own(queries: Array, tilt: Array, t: Array, rows: Array, visible: Array) -> online_softmax.Partial:
    """The sums over rows ``[B, n, D]`` of each query's own; ``queries`` and ``tilt = 2tε`` are ``[B, 1, D]``."""
    difference = queries - rows
    gap = jnp.sum(difference * (difference + tilt), axis=-1)
    log_weights = jnp.where(visible, -gap / (2.0 * t[:, None] ** 2), -jnp.inf)
    return online_softmax.summarise(log_weights, rows)


def _distances(x_0: Array, noise: Array, t: Array, dtype: Any) -> tuple[Callable[..., Array], ...]:
    """For images of ``dtype``: log-weights ``[B, n]`` of rows, the rows as floats, and their mean in the unit range."""
    x_0, noise = (x.reshape(len(x), -1) for x in (x_0, noise))
    spread = 2.0 * t[:, None] ** 2
    if dtype == jnp.uint8:
        queries = pixel_distance.split(x_0, noise, t)
        weigh = lambda rows: -pixel_distance.squared_distance_gap(queries, rows) / spread  # noqa: E731
        return weigh, pixel_distance.centred, pixel_distance.to_unit_range
    weigh = lambda rows: -squared_distance_gap(x_0, noise, t, rows) / spread  # noqa: E731
    return weigh, to_unit_range, lambda mean: mean


def _fold_mirrored(partial: online_softmax.Partial, shape: tuple[int, ...]) -> online_softmax.Partial:
    """Joins the sums of the queries ``shape`` with those of their mirror images, whose rows are mirrored back."""
    plain, mirrored = (jax.tree.map(lambda x, i=i: x.reshape(2, shape[0], *x.shape[1:])[i], partial) for i in range(2))
    total = mirrored.total.reshape(shape)[..., ::-1, :].reshape(shape[0], -1)
    return online_softmax.merge(plain, mirrored._replace(total=total))


def _result(x_0: Array, mean: Array, effective_sample_size: Array, entropy: Array) -> PosteriorMean:
    own_distance = jnp.mean((mean - x_0.reshape(mean.shape)) ** 2, axis=1)
    return PosteriorMean(mean.reshape(x_0.shape), effective_sample_size, entropy, own_distance)


def _check_queries(x_0: Array, noise: Array, t: Array) -> None:
    if noise.shape != x_0.shape or t.shape != x_0.shape[:1]:
        raise ValueError(f"x_0 and noise must be [B, ...] and t [B], got {x_0.shape}, {noise.shape}, {t.shape}")


def _check_dataset(
    x_0: Array, noise: Array, t: Array, images: Array, labels: Any, image_labels: Any, block: int
) -> None:
    _check_queries(x_0, noise, t)
    if not _fits(images, x_0) or block < 1:
        raise ValueError(f"images must be [N, ...] like x_0 {x_0.shape}, block >= 1; got {images.shape}, {block}")
    if image_labels is None:
        if labels is not None:
            raise ValueError("labels need image_labels")
        return
    if image_labels.shape != images.shape[:1] or (labels is not None and labels.shape != t.shape):
        raise ValueError("labels must be [B] and image_labels [N]")
    if isinstance(image_labels, jax.core.Tracer) or isinstance(labels, jax.core.Tracer):
        return
    seen = np.setdiff1d(image_labels, [HIDDEN])
    _check_sight(np.full(len(t), seen.size > 0) if labels is None else np.isin(np.asarray(labels), seen))


def _fits(images: Array, x_0: Array) -> bool:
    """Whether there are images, of the queries' shape or flat."""
    return len(images) > 0 and images.shape[1:] in (x_0.shape[1:], (x_0[0].size,))


def _check_mask(mask: Array, batch: int, count: int) -> None:
    if mask.shape != (batch, count):
        raise ValueError(f"mask must be [B, n] = {(batch, count)}, got {mask.shape}")
    if not isinstance(mask, jax.core.Tracer):
        _check_sight(np.asarray(mask).any(axis=1))


def _check_sight(sees: Any) -> None:
    blind = np.flatnonzero(np.logical_not(sees))
    if blind.size:
        raise ValueError(f"queries {blind.tolist()[:8]} see no reference: include each query's own sample")
