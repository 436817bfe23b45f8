"""A config put together: network, objective and train step, and the state they start from, real or as shapes alone."""

import math
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from sct_jax import models, objectives
from sct_jax.data import DataSpec
from sct_jax.data.references import by_class
from sct_jax.training import mesh, reference_choice, step
from sct_jax.training.state import TrainState


class Assembly(NamedTuple):
    """What a config trains with on one mesh; its ``config`` says what ``reference.source = "auto"`` stands for."""

    config: Any
    network: models.Network
    teacher: objectives.Teacher | None
    perceptual: objectives.Perceptual | None
    objective: objectives.Objective
    device_mesh: Mesh
    train_step: step.TrainStep
    stage1: Any = None


def assemble(
    config: Any,
    spec: DataSpec,
    device_mesh: Mesh,
    teacher: objectives.Teacher | None = None,
    network: models.Network | None = None,
    perceptual: objectives.Perceptual | None = None,
    stage1: Any = None,
) -> Assembly:
    """Puts a validated config together for images of ``spec``; nothing is computed yet.

    ``stage1`` are the parameters below the dividing time, for ``objective.bootstrap = "divided"``.

    Raises:
      UserError: when batch or images do not fit.
    """
    mesh.check_divides(device_mesh, config.batch_size, config.optimizer.accumulate)
    config = reference_choice.settle(config, spec, device_mesh)
    network = network or models.build(config.model, spec)
    objective = _objective(config, network, teacher, device_mesh, perceptual, stage1)
    train_step = step.make_train_step(config, objective, device_mesh, network.project)
    return Assembly(config, network, teacher, perceptual, objective, device_mesh, train_step, stage1)


def _objective(
    config: Any,
    network: models.Network,
    teacher: objectives.Teacher | None,
    device_mesh: Mesh,
    perceptual: objectives.Perceptual | None,
    stage1: Any,
) -> objectives.Objective:
    return objectives.build(
        config, network.denoise, teacher, device_mesh, network.uncertainty, network.forward, perceptual, stage1
    )


def state_shardings(made: Assembly, state: TrainState) -> TrainState:
    """How the state lies on the mesh: a tree of shardings."""
    return mesh.split_state(made.device_mesh, state, made.config.mesh.fsdp_min_size)


def initial_state(made: Assembly, weights: Any = None) -> TrainState:
    """The state before the first step, on the mesh: from ``weights`` (a nested dict of arrays), or random ones."""
    key = step.room_key(made.config.seed, step.INIT)
    start = lambda params: step.initial_state(made.config, params, made.network.project)  # noqa: E731
    if weights is None:
        fresh = lambda: start(made.network.init(key))  # noqa: E731
        state = jax.jit(fresh, out_shardings=state_shardings(made, jax.eval_shape(fresh)))()
    else:
        weights = mesh.put(weights, mesh.split_state(made.device_mesh, weights, made.config.mesh.fsdp_min_size))
        state = jax.jit(start, out_shardings=state_shardings(made, jax.eval_shape(start, weights)))(weights)
    context = state.context | made.objective.start(state.params)  # not jitted: a teacher is no constant of a function
    return replace(state, context=mesh.put(context, state_shardings(made, context)))


def abstract_state(made: Assembly) -> TrainState:
    """The shapes, types and shardings of the state, without making it; what others give it may be shapes too."""

    def make(teacher_params: Any, perceptual_params: Any, stage1: Any) -> TrainState:
        params = made.network.init(step.room_key(made.config.seed, step.INIT))
        state = step.initial_state(made.config, params, made.network.project)
        teacher = made.teacher and made.teacher._replace(params=teacher_params)
        perceptual = made.perceptual and made.perceptual._replace(params=perceptual_params)
        objective = _objective(made.config, made.network, teacher, made.device_mesh, perceptual, stage1)
        return replace(state, context=state.context | objective.start(state.params))

    others = (made.teacher and made.teacher.params, made.perceptual and made.perceptual.params, made.stage1)
    shapes = jax.eval_shape(make, *others)
    return _with_shardings(shapes, state_shardings(made, shapes))


def state_bytes(state: TrainState) -> dict[str, int]:
    """Bytes on one device of each part of a state, or of its shapes."""
    parts = {"parameters": state.params, "optimizer": state.opt_state, "ema": state.ema, "context": state.context}
    return {name: mesh.bytes_of_one(part) for name, part in parts.items()}


def abstract_batch(made: Assembly, spec: DataSpec) -> dict[str, Any]:
    """The shapes and shardings of what the train step takes beside the state, with the rows of its references."""
    config, shape = made.config, (spec.image_size, spec.image_size, spec.channels)
    split, whole = mesh.split_batch(made.device_mesh), mesh.replicated(made.device_mesh)

    def array(count: int, rest: tuple[int, ...], dtype: Any, sharding: Any = split) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((count, *rest), dtype, sharding=sharding)

    pixels, size = np.dtype(spec.dtype), config.batch_size
    batch: dict[str, Any] = {"image": array(size, shape, pixels), "label": array(size, (), jnp.int32)}
    source = config.reference.source if objectives.uses_references(config) else "batch"
    if source == "dataset":
        devices = made.device_mesh.size
        rows = -(-spec.num_examples // devices) * devices
        batch["references"] = {"image": array(rows, (math.prod(shape),), pixels)}
        if by_class(spec, objectives.masks_classes(config)):
            batch["references"]["start"] = array(devices, (spec.num_classes + 1,), jnp.int32)
        else:
            batch["references"]["label"] = array(rows, (), jnp.int32)
    elif source == "bank":
        if spec.image_bytes > config.reference.resident_max_mib * 2**20:
            batch["references"] = {"rows": array(size, (config.reference.size, *shape), pixels)}
        else:
            count, classes = spec.num_examples, max(1, spec.num_classes)
            batch["references"] = {
                "image": array(count, shape, pixels, whole),
                "label": array(count, (), jnp.int32, whole),
                "order": array(count, (), jnp.int32, whole),
                "start": array(classes + 1, (), jnp.int32, whole),
            }
    return batch


def _with_shardings(shapes: Any, shardings: Any) -> Any:
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), shapes, shardings
    )
