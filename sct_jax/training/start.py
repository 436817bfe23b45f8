"""Where a run begins: its workdir's newest checkpoint, the weights of another run, or random ones."""

import sys
from functools import partial
from typing import Any

import jax

from sct_jax import cards, models, objectives
from sct_jax.data import DataSpec, Source, open_source
from sct_jax.errors import UserError
from sct_jax.features import lpips, store
from sct_jax.interop import weights as weights_lib
from sct_jax.objectives import distances, divided
from sct_jax.objectives.distances import LPIPS
from sct_jax.schema import DENOISING
from sct_jax.training import assembly, mesh, step
from sct_jax.training.saver import Checkpointer, kept_steps
from sct_jax.training.state import TrainState


def assembled(config: Any) -> tuple[assembly.Assembly, Source]:
    """A validated config put together on the devices here, and its data; cheap mistakes are found first.

    Raises:
      UserError: for whatever of the config does not fit devices, data or itself.
    """
    device_mesh, data = mesh.make_mesh(config.mesh.data, config.mesh.fsdp), config.data
    mesh.check_divides(device_mesh, config.batch_size, config.optimizer.accumulate)
    kept_steps(config)
    source = open_source(data.source, data.path, split=data.split, image_size=data.image_size)
    network = models.build(config.model, source.spec)
    others = {
        "teacher": load_teacher(config, source.spec),
        "perceptual": load_perceptual(config, source.spec),
        "stage1": load_stage1(config, source.spec, network),
    }
    return assembly.assemble(config, source.spec, device_mesh, network=network, **others), source


def load_teacher(config: Any, spec: DataSpec) -> objectives.Teacher | None:
    """The diffusion model of ``objective.teacher`` where the transition asks for one.

    Raises:
      UserError: when there is none, it is no diffusion model, or its images or labels are others.
    """
    if not config.objective.transition.startswith("teacher"):
        return None
    teacher = _named("objective.teacher", config.objective.teacher)
    model, method, name = teacher.config.model, teacher.config.objective.method, config.objective.teacher
    if method not in DENOISING:
        raise UserError(f"config.objective.teacher = {name} is no diffusion model: it was trained by {method!r}")
    if model.conditional and not config.model.conditional:
        raise UserError(f"config.objective.teacher = {name} is class-conditional: set config.model.conditional = True")
    _check_same_data(f"config.objective.teacher = {name}", teacher, spec, model.conditional)
    return objectives.Teacher(models.build(model, spec).denoise, teacher.params)


def load_perceptual(config: Any, spec: DataSpec) -> objectives.Perceptual | None:
    """LPIPS with the weights of ``objective.lpips`` where it is the distance.

    Raises:
      UserError: when there are none, or the data are no pictures.
    """
    if not distances.is_perceptual(config.objective):
        return None
    if spec.dtype != "uint8" or spec.channels not in (1, 3):
        raise UserError(f"config.objective.distance = {LPIPS!r} is between pictures of 1 or 3 channels, not for {spec}")
    try:
        return objectives.Perceptual(lpips.distance, store.load(LPIPS, config.objective.lpips).params)
    except UserError as error:
        raise UserError(f"config.objective.distance = {LPIPS!r}: {error}") from error


def load_stage1(config: Any, spec: DataSpec, network: models.Network) -> Any:
    """The parameters of ``objective.stage1`` where the target is divided, for this run's network; else None.

    Raises:
      UserError: when there are none, or they are of another network or of no consistency model of the whole path.
    """
    objective = config.objective
    if not divided.is_used(objective):
        return None
    found = _named("objective.stage1", objective.stage1)
    theirs, name = found.config.objective, f"config.objective.stage1 = {objective.stage1}"
    if theirs.method in DENOISING:
        raise UserError(f"{name} is no consistency model: it was trained by {theirs.method!r}")
    if theirs.phases > 1 or divided.is_used(theirs):
        what = f"has {theirs.phases} phases" if theirs.phases > 1 else "is a stage 2 itself"
        raise UserError(f"{name} {what}: stage 1 is one consistency function of the whole path")
    _check_same_data(name, found, spec, config.model.conditional)
    for field in ("name", "boundary", *(("sigma_min",) if config.model.boundary == "sigma_min" else ())):
        if found.config.model[field] != config.model[field]:
            raise UserError(
                f"{name} was trained with model.{field} = {found.config.model[field]!r}, not "
                f"{config.model[field]!r}: both stages are one network"
            )
    try:
        key = step.room_key(config.seed, step.INIT)
        return weights_lib.start_from(found, jax.eval_shape(network.init, key), config.model)
    except UserError as error:
        raise UserError(f"{name} is of another network than this run: {error}") from error


def _check_same_data(name: str, found: weights_lib.Weights, spec: DataSpec, conditional: bool) -> None:
    """Raises a UserError unless a model is of images like those of ``spec``, which this run tells it the classes of."""
    shape = lambda spec, conditional: (spec.image_size, spec.channels, spec.num_classes if conditional else 0)  # noqa: E731
    there, here = shape(found.spec, found.config.model.conditional), shape(spec, conditional)
    if there != here:
        raise UserError(
            f"{name} was trained on other data: image size, channels and classes are {there} there and {here} here"
        )


def start_state(made: assembly.Assembly, saver: Checkpointer) -> TrainState:
    """The state to go on from. Precedence: the workdir's newest checkpoint, ``init.checkpoint``, random weights.

    Where a run begins its model card is written: it says what the run began with.
    """
    writes = mesh.is_first_process()
    if saver.latest_step() is not None:
        state = saver.restore(assembly.abstract_state(made))
        if writes:
            print(f"resuming from step {int(state.step)}", file=sys.stderr)
        return state
    state, found = first_state(made)
    if writes:
        cards.write(saver.workdir, cards.make(None if found is None else weights_lib.source(found), made.config))
    if writes and found is not None:
        print(f"starting from {found.origin} ({found.profile})", file=sys.stderr)
        before, now = found.config.model.boundary, made.config.model.boundary
        if before != now:
            edge = f"from {before!r} to {now!r}"
            print(
                f"model.boundary goes {edge}: the denoiser becomes the identity at another noise level",
                file=sys.stderr,
            )
    return state


def first_state(made: assembly.Assembly) -> tuple[TrainState, weights_lib.Weights | None]:
    """The state before the first step, and the weights of ``init.checkpoint`` that it has; None where it has none.

    Raises:
      UserError: when these weights are not there or do not fit.
    """
    config = made.config
    if not config.init.checkpoint:
        return assembly.initial_state(made), None
    found = _named("init.checkpoint", config.init.checkpoint, "init.ema", config.init.ema)
    init = partial(made.network.init, step.room_key(config.seed, step.INIT))
    weights = weights_lib.start_from(found, jax.eval_shape(init), config.model, init)
    return assembly.initial_state(made, weights), found


def _named(field: str, path: str, ema_field: str = "", profile: str = "") -> weights_lib.Weights:
    """The weights that fields of the config name; what is wrong with them says which."""
    fields = f"config.{field}" + (f", config.{ema_field} = {profile!r}" if profile else "")
    try:
        return weights_lib.load(path, profile)
    except UserError as error:
        raise UserError(f"{fields}: {error}") from error
