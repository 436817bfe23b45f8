"""A plan as a page of text."""

from typing import Any

from sct_jax.plan.floor import NAMES


def describe(plan: dict[str, Any]) -> str:
    """The plan of ``run.make_plan``, one fact a line."""
    lines = _head(plan) + _memory(plan) + _work(plan) + _collectives(plan) + _time(plan)
    lines += [f"note         {note}" for note in plan["notes"]]
    seconds = plan["seconds_here"]
    lines.append(f"planned in   {seconds['tracing']:.0f} s of tracing and {seconds['compiling']:.0f} s of compiling")
    return "\n".join(lines)


def size(count: float | None) -> str:
    """Bytes in binary units: ``1.50 GiB``."""
    if count is None:
        return "unknown"
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= scale:
            return f"{count / scale:.4g} {unit}"
    return f"{count:.0f} B"


def amount(count: float | None) -> str:
    """Operations in decimal units: ``20.5 T``."""
    if count is None:
        return "unknown"
    for unit, scale in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if count >= scale:
            return f"{count / scale:.4g} {unit}"
    return f"{count:.0f} "


def duration(seconds: float | None) -> str:
    """``12.3 ms``."""
    if seconds is None:
        return "unknown"
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def _head(plan: dict[str, Any]) -> list[str]:
    data = plan["data"]
    mesh = " x ".join(f"{name} {number}" for name, number in plan["mesh"].items())
    options = (f", {plan['accumulate']} parts" if plan["accumulate"] > 1 else "") + (", remat" if plan["remat"] else "")
    return [
        f"slice        {plan['topology']}: {plan['chips']} x {plan['chip']}, mesh {mesh}",
        f"step         {plan['method']}, {plan['network']}, {plan['parameters']:,} parameters, "
        f"{plan['compute_dtype']}, batch {plan['batch_size']}{options}",
        f"data         {data['num_examples']:,} images {data['image_size']}x{data['image_size']}x{data['channels']}, "
        f"{data['num_classes']} classes",
        *([f"references   {plan['references']}"] if plan.get("references") else []),
    ]


def _memory(plan: dict[str, Any]) -> list[str]:
    memory = plan["memory"]
    verdict = {True: "fits", False: "DOES NOT FIT", None: "fit not known"}[plan["fits"]]
    names = {
        "parameters": "parameters",
        "optimizer": "optimizer",
        "ema": "EMA",
        "context": "context",
        "batch": "batch",
        "data_set": "data set",
        "temporaries": "activations and temporaries",
        "code": "code",
    }
    parts = [f"{label} {size(memory[name])}" for name, label in names.items() if memory[name]]
    return [
        f"memory       {verdict}: peak {size(memory['peak'])} of {size(memory['capacity'])} a chip",
        f"             {', '.join(parts)}",
    ]


def _work(plan: dict[str, Any]) -> list[str]:
    done, moved = plan["operations"], plan["hbm_bytes"]
    kinds = ", ".join(f"{amount(value)} {name}" for name, value in done["step"].items())
    return [
        f"operations   {amount(sum(done['step'].values()))} a step ({kinds}), {amount(done['chip'])} a chip; "
        f"XLA counts {amount(done['chip_xla'])} a chip, elementwise work too, loops once",
        *_difference(plan.get("difference") or {"planned": None}),
        f"memory moves {size(moved['chip'])} a chip and step; XLA counts {size(moved['chip_xla'])}, scratch memory too",
    ]


def _difference(difference: dict[str, Any]) -> list[str]:
    if difference["planned"] is None or len(difference["operations"]) == 1:
        return []
    forms = ", ".join(f"{form} {amount(value)}" for form, value in difference["operations"].items())
    return [f"difference   operations a step with the TD difference {forms}; planned: {difference['planned']}"]


def _collectives(plan: dict[str, Any]) -> list[str]:
    if plan["chips"] == 1 or plan["hbm_bytes"]["chip"] is None:
        return []
    lines = []
    for each in plan["collectives"]:
        if each["bytes"] < 2**10 and len(lines) > 3:
            continue
        took = f", {duration(each['seconds'])}" if each["seconds"] else ""
        lines.append(
            f"{each['count']} {each['kind']} of {size(each['bytes'])} {each['dtype']} among {each['group']}: "
            f"{size(each['sent_by_chip'])} sent by a chip{took}"
        )
    lines = lines or ["none"]
    return [f"{'collectives' if not index else '':13}{line}" for index, line in enumerate(lines)]


def _time(plan: dict[str, Any]) -> list[str]:
    one, run = plan["floor"], plan["run"]
    if one is None:
        return ["floor        none: this device's peaks are not published"]
    times = ", ".join(f"{label} {duration(one[name])}" for name, label in NAMES.items())
    lines = [f"floor        {duration(one['step'])} a step, bound by {NAMES[one['binds']]} ({times})"]
    for name, label in (("at_floor", "at the floor"), ("at_efficiency", f"at {100 * run['efficiency']:.0f} %")):
        part = run[name]
        cost = f", cost {part['cost']:,.0f}" if "cost" in part else ""
        lines.append(
            f"{label:13}{part['images_per_second']:,.0f} images/s, {part['hours']:,.1f} hours for "
            f"{plan['total_steps']:,} steps, {part['chip_hours']:,.0f} chip-hours{cost}"
        )
    if plan["weak_scaling"]:
        last = plan["weak_scaling"][-1]
        lines.append(
            f"scaling      to {last['chips']} chips with the same images a chip: {100 * last['overlapped']:.1f} % with "
            f"collectives beside the rest, {100 * last['exposed']:.1f} % after it (floor model)"
        )
    return lines
