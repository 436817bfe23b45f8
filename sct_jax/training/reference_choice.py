"""What ``reference.source = "auto"`` stands for: decided once, where a run begins, from its data and its mesh.

All rows, where their part on each device takes at most ``reference.resident_max_mib``; with a conditional model these
are all rows of the query's class. Otherwise a bank, whose rows the host gathers and sends with each step. Its size is
what ``reference.send_max_mib`` of a process holds, at most the rows that a query may see. The default of 128 MiB is
what one core gathers at 1 GB/s in 0.13 s, beside the device's work on the step before: about what a step of EDM2-S at
batch 128 (121 TFLOP) takes an H100 at its peak. Cost alone sets the size, for each row more helps the target a little
(``docs/results/reference_sets_cifar10.md``): there is no size that is enough.
"""

from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from sct_jax import config as config_lib
from sct_jax import objectives
from sct_jax.data import DataSpec
from sct_jax.data.references import by_class
from sct_jax.errors import UserError
from sct_jax.training import checkpoint, mesh

AUTO = "auto"
MIB = 2**20


def settle(config: Any, spec: DataSpec, device_mesh: Mesh) -> Any:
    """The config with the source of its references, and the size of a bank, in place of ``"auto"``."""
    if config.reference.source != AUTO or not objectives.uses_references(config):
        return config
    reference = config.reference
    if device_bytes(spec, device_mesh) <= reference.resident_max_mib * MIB:
        return config_lib.replaced(config, {"reference.source": "dataset"})
    seen = spec.num_examples // max(1, spec.num_classes) if objectives.masks_classes(config) else spec.num_examples
    processes = len({device.process_index for device in device_mesh.devices.flat})
    queries = -(-config.batch_size // processes)
    affordable = int(reference.send_max_mib * MIB * spec.num_examples // (queries * spec.image_bytes))
    return config_lib.replaced(config, {"reference.source": "bank", "reference.size": max(1, min(seen, affordable))})


def settled_before(config: Any, workdir: Path) -> Any:
    """The config with what the run in ``workdir`` settled on when it began, on whatever mesh that was."""
    if config.reference.source != AUTO:
        return config
    folder = workdir / checkpoint.FOLDER
    found = -1
    if mesh.is_first_process():
        newest_first = reversed(checkpoint.steps_in(folder))
        found = next((step for step in newest_first if _readable(folder / str(step))), -1)
    found = mesh.from_first(found)
    if found < 0:
        return config
    before = checkpoint.read_meta(folder / str(found))["config"]["reference"]
    return config_lib.replaced(config, {f"reference.{name}": before[name] for name in ("source", "size")})


def describe(config: Any, spec: DataSpec, device_mesh: Mesh) -> str:
    """One line: where the rows of the posterior mean come from; "" where none is taken."""
    if not objectives.uses_references(config):
        return ""
    reference, masked = config.reference, objectives.masks_classes(config)
    of_class = " of the query's class" if masked else ""
    each = device_bytes(spec, device_mesh) / MIB
    if reference.source == "batch":
        return f"the batch's {config.batch_size} rows{of_class and ' that are' + of_class}"
    if reference.source == "bank":
        limit = (
            f"all rows would take {each:,.0f} MiB a device, reference.resident_max_mib is {reference.resident_max_mib}"
        )
        return f"a bank of {reference.size} rows{of_class} for each query ({limit})"
    seen = f"a query sees those{of_class or ' of all classes'}" + (", gathered" if by_class(spec, masked) else "")
    return f"all {spec.num_examples:,} rows, {each:,.1f} MiB a device; {seen}"


def device_bytes(spec: DataSpec, device_mesh: Mesh) -> int:
    """Bytes on one device of all images, split over the mesh."""
    return -(-spec.num_examples // device_mesh.size) * (spec.image_bytes // spec.num_examples)


def _readable(place: Path) -> bool:
    try:
        return "source" in checkpoint.read_meta(place)["config"]["reference"]
    except (UserError, KeyError, OSError):
        return False
