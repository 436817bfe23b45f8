"""One plan: from a config and the name of a slice to a dictionary that JSON can hold."""

import dataclasses
import importlib.metadata
from typing import Any

from sct_jax import config as config_lib
from sct_jax.errors import UserError
from sct_jax.objectives import bootstrap
from sct_jax.plan import collectives as collectives_lib
from sct_jax.plan import data_spec, hlo, program, scaling, topology, traffic
from sct_jax.plan import floor as floor_lib
from sct_jax.plan.program import Compiled, Traced
from sct_jax.plan.topology import Topology
from sct_jax.schema import DENOISING

LARGEST_GROWTH = 4  # of a program's bytes from a quick to a full search; seen: 2.4 to 3.5


def make_plan(
    config: Any,
    topology_name: str = topology.LOCAL,
    *,
    price: float | None = None,
    efficiency: float = 0.4,
    data: str = "",
    full_search: bool = False,
) -> dict[str, Any]:
    """Compiles the train step of a config and says what fits, what moves and how fast it could go.

    Args:
      config: a validated config.
      topology_name: ``CHIP:SHAPE`` or ``local``.
      price: of one chip for an hour, in any currency.
      efficiency: the share of the floor's speed to expect of a real run.
      data: as ``--data-spec``; empty: what is known of the config's data.
      full_search: lets a TPU's compiler look for the fastest kernels, as a run's does: hours for a large network, and
        only the bytes of the program itself come out otherwise, some of ``code`` and ``peak``.

    Raises:
      UserError: for a topology that is not known, a mesh or batch that does not divide, data that is not known.
    """
    if not 0 < efficiency <= 1:
        raise UserError(f"--efficiency {efficiency:g}: must be above 0 and at most 1, the share of the floor's speed")
    if price is not None and price < 0:
        raise UserError(f"--price-per-chip-hour {price:g}: must not be negative")
    if topology_name != topology.LOCAL:
        topology.parse(topology_name)
    spec = data_spec.find(config, data)
    found = topology.find(topology_name)
    config, other = _one_form(config)
    traced = program.trace(config, spec, found)
    difference = _difference(config, other, spec, found, traced)
    compiled = program.compile_step(traced, full_search)
    head = _head(config, spec, found, traced) | {"difference": difference, "full_search": full_search}
    plan = head | _measures(config, spec, found, traced, compiled, price, efficiency)
    plan["notes"] += _narrow(plan)
    return plan


def _one_form(config: Any) -> tuple[Any, Any]:
    """The config with the form of the TD difference that is planned, and that with the other; None where there is none.

    In low precision ``objective.difference = "auto"`` is a program with both, of which each step runs one. What is
    planned is the dearer one, the derivative: that of most of a run.
    """
    objective = config.objective
    if objective.method in DENOISING:
        return config, None
    planned = "evaluated" if bootstrap.form(config) == "evaluated" else "tangent"
    with_form = lambda form: config_lib.replaced(config, {"objective.difference": form})  # noqa: E731
    other = "tangent" if planned == "evaluated" else "evaluated"
    return with_form(planned), None if objective.bootstrap == "ema" else with_form(other)


def _difference(config: Any, other: Any, spec: Any, found: Topology, traced: Traced) -> dict[str, Any]:
    """What each form of the TD difference costs, and which is planned."""
    if config.objective.method in DENOISING:
        return {"planned": None, "operations": {}}
    costs = {config.objective.difference: traced.operations}
    if other is not None:
        costs[other.objective.difference] = program.count_operations(other, spec, found)
    operations = {form: sum(costs[form].values()) for form in sorted(costs)}
    return {"planned": config.objective.difference, "operations": operations}


def _head(config: Any, spec: Any, found: Topology, traced: Traced) -> dict[str, Any]:
    return {
        "topology": found.name,
        "chip": found.chip.name if found.chip else found.devices[0].device_kind,
        "chips": int(traced.device_mesh.size),
        "mesh": {name: int(size) for name, size in traced.device_mesh.shape.items()},
        "method": config.objective.method,
        "network": config.model.name,
        "compute_dtype": config.model.compute_dtype,
        "parameters": traced.parameters,
        "batch_size": config.batch_size,
        "accumulate": config.optimizer.accumulate,
        "remat": config.model.remat,
        "total_steps": config.total_steps,
        "data": dataclasses.asdict(spec),
        "references": traced.references,
    }


def _measures(
    config: Any,
    spec: Any,
    found: Topology,
    traced: Traced,
    compiled: Compiled,
    price: float | None,
    efficiency: float,
) -> dict[str, Any]:
    module = hlo.parse(compiled.text) if compiled.text else None
    chips, chip = traced.device_mesh.size, found.chip
    per_chip = {name: value / chips for name, value in traced.operations.items()}
    moved = traffic.count(module) if module else None
    all_collectives = collectives_lib.find(module) if module else []
    coordinates = [getattr(device, "coords", (0,)) for device in traced.device_mesh.devices.flat]
    times = [floor_lib.seconds(chip, each, coordinates) if chip else None for each in all_collectives]
    result: dict[str, Any] = {
        "fits": _fits(config, spec, found, compiled),
        "memory": _memory(config, spec, found, traced, compiled),
        "operations": {
            "step": traced.operations,
            "chip": sum(per_chip.values()),
            "chip_xla": compiled.xla.get("operations"),
        },
        "hbm_bytes": {"chip": moved, "chip_xla": compiled.xla.get("bytes")},
        "collectives": [
            {
                "kind": each.kind,
                "dtype": each.dtype,
                "count": each.count,
                "bytes": each.bytes,
                "group": len(each.group),
                "sent_by_chip": each.sent,
                "seconds": seconds,
            }
            for each, seconds in zip(all_collectives, times, strict=True)
        ],
        "seconds_here": {"tracing": traced.seconds, "compiling": compiled.seconds},
        "versions": {name: _version(name) for name in ("jax", "jaxlib", "libtpu")},
        "notes": _notes(found, traced, compiled, module),
    }
    if chip is None:
        return result | {"floor": None, "run": None, "weak_scaling": []}
    one = floor_lib.floor(chip, per_chip, moved or 0, sum(times))  # type: ignore[arg-type]
    arguments = (config.batch_size, config.total_steps, chips, price)
    known = dataclasses.asdict(one) if module else {"compute": one.compute, "memory": None, "interconnect": None}
    return result | {
        "floor": known | {"step": one.step, "binds": one.binds},
        "run": {
            "at_floor": floor_lib.run(one.step, *arguments),
            "efficiency": efficiency,
            "at_efficiency": floor_lib.run(one.step / efficiency, *arguments),
            "price_per_chip_hour": price,
        },
        "weak_scaling": scaling.weak_scaling(chip, one, all_collectives, config.mesh.fsdp > 1) if module else [],
    }


def _capacity(found: Topology) -> int | None:
    """Bytes of one device's memory: as it says itself, else as published."""
    if found.name == topology.LOCAL:
        stated = (found.devices[0].memory_stats() or {}).get("bytes_limit")
        if stated:
            return int(stated)
    return int(found.chip.memory) if found.chip else None


def _peak(config: Any, spec: Any, compiled: Compiled) -> int | None:
    return compiled.memory["peak"] + program.resident_bytes(config, spec) if "peak" in compiled.memory else None


def _fits(config: Any, spec: Any, found: Topology, compiled: Compiled) -> bool | None:
    peak, capacity = _peak(config, spec, compiled), _capacity(found)
    if compiled.overflow:
        return False
    return None if peak is None or capacity is None else peak <= capacity


def _memory(config: Any, spec: Any, found: Topology, traced: Traced, compiled: Compiled) -> dict[str, Any]:
    return {
        **traced.state,
        "data_set": program.resident_bytes(config, spec),
        "temporaries": compiled.memory.get("temporaries"),
        "code": compiled.memory.get("code"),
        "peak": _peak(config, spec, compiled),
        "capacity": _capacity(found),
    }


def _notes(found: Topology, traced: Traced, compiled: Compiled, module: hlo.Module | None) -> list[str]:
    notes = []
    if compiled.overflow:
        notes.append(
            f"does not fit: {compiled.overflow}; try config.optimizer.accumulate, config.model.remat = True, "
            "config.mesh.fsdp, config.model.compute_dtype = 'bfloat16', or more chips"
        )
        notes.append("the floor is that of the operations alone: what would move is known of a program that fits only")
    if found.chip is None:
        notes.append(f"no peaks are published for {found.devices[0].device_kind!r}: no floor")
    if module and module.unknown_loops():
        notes.append(f"{module.unknown_loops()} loops of unknown length were counted once")
    ours = sum(traced.operations.values()) / traced.device_mesh.size
    theirs = compiled.xla.get("operations", 0)
    if ours and theirs > 1.5 * ours:
        notes.append(f"the compiled program does {theirs / ours:.1f} times the matrix operations asked for")
    return notes


def _narrow(plan: dict[str, Any]) -> list[str]:
    """A word where a quick plan fits, but by less than the program of a full search may be larger."""
    memory = plan["memory"]
    if plan["full_search"] or plan["topology"] == topology.LOCAL or not plan["fits"]:
        return []
    if memory["peak"] + (LARGEST_GROWTH - 1) * memory["code"] <= memory["capacity"]:
        return []
    return ["fits by less than the program itself may grow in a run: --full-search tells, in hours"]


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
