"""Training objectives as pure functions: draw the random parts of a batch once, then a loss for any part of it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from sct_jax.errors import UserError
from sct_jax.schema import DENOISING, INPUT_METHODS

Array = jax.Array
# What the network sees and is compared with: arrays with a leading batch axis.
Draws = dict[str, Array]
# What an objective needs beside the parameters and keeps in the state: a teacher, a target network.
Context = dict[str, Any]


class Teacher(NamedTuple):
    """A trained diffusion model to distil: its pure denoiser and its parameters."""

    denoise: Callable[..., Array]
    params: Any


class Perceptual(NamedTuple):
    """A distance by a trained network: ``distance(params, a, b) -> [B]`` of images in [-1, 1], and its parameters."""

    distance: Callable[[Any, Array, Array], Array]
    params: Any


class Objective(NamedTuple):
    """A training method.

    ``draw(images, labels, key, step, references)`` makes everything random or reference-based for a global batch (no
    network), as arrays with the batch as leading axis; those of ``schema.DENOISING`` take ``augment_labels`` too,
    ``[B, 9]``: what was done to the images (``data.augment``), and with ``reference.warped_rows`` ``augmented``: the
    images before, and the parameters of what was done. ``loss(params, context, draws, dropout_key)`` gives the
    loss of each image ``[b]`` and per-image metrics, for all of the draws or any slice of them (gradient accumulation).
    ``start(params)`` is the context before the first step, ``advance(context, params, step)`` that after a step.
    """

    draw: Callable[..., Draws]
    loss: Callable[[Any, Context, Draws, Array], tuple[Array, dict[str, Array]]]
    start: Callable[[Any], Context] = lambda params: {}
    advance: Callable[[Context, Any, Array], Context] = lambda context, params, step: context


def build(
    config: Any,
    denoise: Callable[..., Array],
    teacher: Teacher | None = None,
    device_mesh: Any = None,
    uncertainty: Callable[[Any, Array], Array] | None = None,
    forward: Callable[..., Array] | None = None,
    perceptual: Perceptual | None = None,
    stage1: Any = None,
) -> Objective:
    """The objective that ``config.objective`` and ``config.reference`` describe, over a pure denoiser.

    ``teacher`` is what the transitions ``teacher_euler`` and ``teacher_heun`` need; ``device_mesh`` is the mesh that
    the rows of ``reference.source = "dataset"`` are split over; ``uncertainty`` is the network's head for
    ``objective.uncertainty``; ``forward`` is ``denoise`` by operations that ``jax.jvp`` accepts (``models.Network``),
    None where ``denoise`` itself will do; ``perceptual`` is what ``objective.distance = "lpips"`` needs; ``stage1`` are
    the parameters, of the same network, that a divided target takes below ``objective.dividing_time``.

    Raises:
      UserError: when the network has an input that the method never trains, or lacks the head it trains.
    """
    from sct_jax.objectives import consistency, denoising

    for field, methods in INPUT_METHODS.items():
        if getattr(config.model, field) and config.objective.method not in methods:
            raise UserError(
                f"config.model.{field} = True: objective.method = {config.objective.method!r} never trains this input; "
                "set it to False"
            )

    if config.objective.method in DENOISING:
        return denoising.build(config, denoise, device_mesh, uncertainty)
    return consistency.build(config, denoise, teacher, device_mesh, forward, perceptual, stage1)


def masks_classes(config: Any) -> bool:
    """Whether a query of the posterior mean sees the rows of its own class only."""
    return config.model.conditional and config.reference.same_class


def uses_references(config: Any) -> bool:
    """Whether the method takes posterior means, and so looks at ``config.reference``."""
    return config.objective.method != "edm" and config.objective.transition == "posterior_mean"
