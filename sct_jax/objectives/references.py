"""Where the rows of the posterior mean come from: the batch, a bank of rows for each query, or the whole data set."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from sct_jax.data import augment
from sct_jax.data import references as store
from sct_jax.diffusion import process, score
from sct_jax.objectives import Array, masks_classes

# posterior(images, noise, t, labels, references, key) -> score.PosteriorMean
Posterior = Callable[..., score.PosteriorMean]


def build(config: Any, device_mesh: Mesh | None = None) -> Posterior:
    """The posterior mean with the rows that ``config.reference`` names.

    ``references`` is what the loop keeps for them (``data.references``): nothing for ``"batch"``; the store for the
    others, or the rows themselves, uint8 ``[B, n, H, W, C]``, where the store does not fit on the device; ``"dataset"``
    takes a store or a class store. ``"batch"`` also takes ``augment_labels`` ``[B, 9]``: a query then sees rows with
    its own labels only. Images that were not warped see each other. Labels of a warped one are shared by nobody: it
    keeps its sample as the target, or, with ``reference.warped_rows`` and ``augmented`` (the images before and what was
    done to each), sees so many images of the batch warped as it was: samples of ``p(x_0 | what was done)``, as its own.
    """
    reference, masked, flip = config.reference, masks_classes(config), config.data.flip

    def batch(
        images: Array,
        noise: Array,
        t: Array,
        labels: Array,
        references: Any,
        key: Array,
        augment_labels: Array | None = None,
        augmented: tuple[Array, augment.Parameters] | None = None,
    ) -> Any:
        alike = of_the_batch(images, noise, t, labels, augment_labels)
        if augmented is None:
            return alike
        before, done = augmented
        # Row k of query i is image i + 1 + k of the batch, around its end: all are others, and no two the same.
        other = lambda start: (jnp.arange(len(images)) + start + 1) % len(images)  # noqa: E731
        rows = lambda start, count: augment.apply(before[other(start)], done)[:, None]  # noqa: E731
        visible = (lambda start, count: (labels == labels[other(start)])[:, None]) if masked else None
        options = {"num_rows": reference.warped_rows, "block": 1, "visible": visible}
        warped = score.bank_posterior_mean(images, noise, t, rows, **options)
        which = augment.is_warped(done)
        return jax.tree.map(lambda a, b: jnp.where(process.per_image(which, a) > 0, a, b), warped, alike)

    def of_the_batch(
        images: Array,
        noise: Array,
        t: Array,
        labels: Array,
        augment_labels: Array | None,
    ) -> Any:
        mask = score.same_class(labels, labels) if masked else None
        if augment_labels is not None:  # they are conditions too: rows of a query must come from p(x_0 | its labels)
            alike = jnp.all(augment_labels[:, None] == augment_labels[None], axis=-1)
            mask = alike if mask is None else mask & alike
        return score.posterior_mean(images, noise, t, images, mask)

    def bank(images: Array, noise: Array, t: Array, labels: Array, references: Any, key: Array) -> Any:
        shape = (len(images), reference.size)
        flips = jax.random.bernoulli(flip_key(key), 0.5, shape) if flip else None
        drawn = lambda: store.draw_rows(row_key(key), references, labels, reference.size, masked)  # noqa: E731
        index = None if "rows" in references else drawn()

        def rows(start: Array, count: int) -> Array:
            part = lambda x: jax.lax.dynamic_slice_in_dim(x, start, count, axis=1)  # noqa: E731
            taken = part(references["rows"]) if index is None else references["image"][part(index)]
            taken = process.to_unit_range(taken)
            if flips is None:
                return taken
            return jnp.where(part(flips)[..., None, None, None], taken[..., ::-1, :], taken)

        return score.bank_posterior_mean(images, noise, t, rows, num_rows=reference.size, block=reference.bank_block)

    split = device_mesh is not None and device_mesh.size > 1

    def dataset(images: Array, noise: Array, t: Array, labels: Array, references: Any, key: Array) -> Any:
        if "start" in references:  # a class store
            rows = (references["image"], references["start"] if split else references["start"][0])
            options: dict[str, Any] = {"flip": flip, "block": reference.bank_block}
            if split:
                return score.sharded_class_posterior_mean(device_mesh, images, noise, t, labels, *rows, **options)
            return score.class_posterior_mean(images, noise, t, labels, *rows, **options)
        arguments = (images, noise, t, references["image"])
        options = {"image_labels": references["label"], "flip": flip, "block": reference.block}
        if masked:
            options["labels"] = labels
        if split:
            return score.sharded_dataset_posterior_mean(device_mesh, *arguments, **options)
        return score.dataset_posterior_mean(*arguments, **options)

    return {"batch": batch, "bank": bank, "dataset": dataset}[reference.source]


def row_key(key: Array) -> Array:
    """The key of the bank's rows, from the key of the step's draws."""
    return jax.random.fold_in(key, 101)


def flip_key(key: Array) -> Array:
    """The key of their mirroring."""
    return jax.random.fold_in(key, 102)
