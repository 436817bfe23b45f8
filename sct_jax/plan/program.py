"""The real train step of a config, compiled for devices that may not be there, and what its compiler says of it."""

import dataclasses
import math
import re
import time
from typing import Any

import jax
import jax.numpy as jnp

from sct_jax import models, objectives
from sct_jax.data import DataSpec
from sct_jax.data.pipeline import is_resident
from sct_jax.errors import UserError
from sct_jax.features import lpips
from sct_jax.objectives import distances, divided
from sct_jax.plan import operations
from sct_jax.plan.topology import Topology
from sct_jax.training import assembly, mesh, reference_choice

# The TPU compiler tries tilings of a convolution until one reaches this share of the speed that its own model of the
# chip allows. Its default, 1, tries them all, minutes for some; a plan needs none. Operations, traffic, collectives and
# temporaries come out the same (docs/results has both), the program itself smaller: a third.
QUICK = {"xla_jf_convolution_performance_target": "0.1"}


@dataclasses.dataclass(frozen=True)
class Traced:
    """A train step for one mesh, not compiled yet.

    Attributes:
      operations: of a whole step over all devices, see ``operations.count``.
      state: bytes on one chip of ``parameters``, ``optimizer``, ``ema``, ``context`` and ``batch``.
      parameters: how many numbers.
      seconds: what it took.
      references: where the rows of the posterior mean come from, in words; "" where there is none.
    """

    device_mesh: jax.sharding.Mesh
    lowered: Any
    operations: dict[str, int]
    state: dict[str, int]
    parameters: int
    seconds: float
    references: str = ""


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler says of a train step.

    Attributes:
      text: of the program of one device, None when it does not fit.
      memory: bytes on one chip as the compiler lays them out: ``temporaries``, ``code``, ``peak``.
      xla: its own count on one chip, loops once: ``operations`` and ``bytes``.
      seconds: what it took.
      overflow: the compiler's words when the program does not fit.
    """

    text: str | None
    memory: dict[str, int]
    xla: dict[str, float]
    seconds: float
    overflow: str = ""


def trace(config: Any, spec: DataSpec, topology: Topology) -> Traced:
    """Traces the train step. Weights and teacher need not be there: their shapes follow from the config.

    A teacher, and stage 1 of a divided target, are taken to be networks of the same kind and size, LPIPS to be VGG16's.

    Raises:
      UserError: when mesh, batch and devices do not fit each other.
    """
    began = time.perf_counter()
    made, state, batch, traced = _traced(config, spec, topology)
    lowered = traced.lower()
    return Traced(
        made.device_mesh,
        lowered,
        operations.count(traced.jaxpr),
        assembly.state_bytes(state) | {"batch": mesh.bytes_of_one(batch)},
        sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state.params)),
        time.perf_counter() - began,
        reference_choice.describe(made.config, spec, made.device_mesh),
    )


def count_operations(config: Any, spec: DataSpec, topology: Topology) -> dict[str, int]:
    """The operations of a whole step, as :func:`trace` has them, without anything that compiling needs."""
    return operations.count(_traced(config, spec, topology)[-1].jaxpr)


def _traced(config: Any, spec: DataSpec, topology: Topology) -> tuple[assembly.Assembly, Any, Any, Any]:
    """The config put together, the shapes of state and batch, and the traced step."""
    device_mesh = mesh.make_mesh(config.mesh.data, config.mesh.fsdp, topology.devices)
    network = models.build(config.model, spec)
    teacher = None
    if config.objective.transition.startswith("teacher"):
        teacher = objectives.Teacher(network.denoise, jax.eval_shape(network.init, jax.random.key(0)))
    perceptual = None
    if distances.is_perceptual(config.objective):
        of_shape = lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32)  # noqa: E731
        weights = jax.tree.map(of_shape, lpips.shapes("vgg"), is_leaf=lambda node: isinstance(node, tuple))
        perceptual = objectives.Perceptual(lpips.distance, weights)
    stage1 = jax.eval_shape(network.init, jax.random.key(0)) if divided.is_used(config.objective) else None
    made = assembly.assemble(config, spec, device_mesh, teacher, network, perceptual, stage1)
    state, batch = assembly.abstract_state(made), assembly.abstract_batch(made, spec)
    return made, state, batch, jax.jit(made.train_step, donate_argnums=0).trace(state, batch)


def compile_step(traced: Traced, full_search: bool = False) -> Compiled:
    """Compiles what was traced; minutes for a large network, with ``full_search`` for a TPU hours."""
    began = time.perf_counter()
    elapsed = lambda: time.perf_counter() - began  # noqa: E731
    quick = not full_search and traced.device_mesh.devices.flat[0].platform == "tpu"
    try:
        compiled = _compile(traced.lowered, QUICK if quick else {})
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) and "Ran out of memory" not in str(error):
            raise
        overflow, memory = _overflow(str(error))
        return Compiled(None, memory, {}, elapsed(), overflow)
    return Compiled(compiled.as_text(), _memory(compiled), _cost(compiled), elapsed())


def _compile(lowered: Any, options: dict[str, str]) -> Any:
    """With those of the compiler's options, or with none where this version has not got them."""
    try:
        return lowered.compile(compiler_options=options or None)
    except jax.errors.JaxRuntimeError as error:
        if not options or "No such compile option" not in str(error):
            raise
        return lowered.compile()


def resident_bytes(config: Any, spec: DataSpec) -> int:
    """Bytes on every chip of a data set that training keeps on the devices, 0 where it is streamed."""
    kept = is_resident(spec, config.data.pipeline, config.data.resident_max_mib)
    return spec.image_bytes + 4 * spec.num_examples if kept else 0


def _memory(compiled: Any) -> dict[str, int]:
    found = compiled.memory_analysis()
    if found is None:
        raise UserError("this device's compiler does not tell what memory a program takes; plan for a TPU topology")
    arguments, temporaries = found.argument_size_in_bytes, found.temp_size_in_bytes
    code = found.generated_code_size_in_bytes
    results = found.output_size_in_bytes - found.alias_size_in_bytes
    peak = arguments + results + temporaries + code
    return {"temporaries": temporaries, "code": code, "peak": peak}


def _cost(compiled: Any) -> dict[str, float]:
    found = compiled.cost_analysis()
    found = found[0] if isinstance(found, list) else (found or {})
    return {"operations": float(found.get("flops", 0)), "bytes": float(found.get("bytes accessed", 0))}


def _overflow(message: str) -> tuple[str, dict[str, int]]:
    """The bytes that a refused program needs, arguments included, where the compiler tells."""
    found = re.search(r"\(([\d.]+)([KMGT])\) exceeds available HBM \(([\d.]+)([KMGT])\)", message)
    found = found or re.search(r"Used ([\d.]+)([KMGT]) of ([\d.]+)([KMGT]) hbm", message)
    if not found:
        return message.strip().splitlines()[0][:200], {}
    units = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    words = f"it needs {found[1]} {found[2]}iB a chip and the compiler has {found[3]} {found[4]}iB"
    return words, {"peak": int(float(found[1]) * units[found[2]])}
