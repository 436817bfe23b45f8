"""From ``v5e:4x4`` to the devices of a TPU slice that is not there, through libtpu's ahead-of-time compiler."""

import dataclasses
import difflib
import importlib.util
import math
import os
import re
from collections.abc import Sequence
from typing import Any

from sct_jax.errors import UserError
from sct_jax.plan import chips

LOCAL = "local"
# Slices that Google offers, from one chip to 256 (docs of chips.py); others of fitting shape compile too.
_SHAPES = {
    2: ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
    3: ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8"),
}
KNOWN = {name: _SHAPES[chip.axes] for name, chip in chips.TPUS.items()}


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices to compile for, in JAX's order.

    Attributes:
      name: as the user wrote it.
      devices: of ``jax``; only local ones can run.
      chip: their peaks, None where none are published.
      shape: chips along each axis of the torus; ``(n,)`` for local devices.
    """

    name: str
    devices: Sequence[Any]
    chip: chips.Chip | None
    shape: tuple[int, ...]


def parse(name: str) -> tuple[str, tuple[int, ...]]:
    """``"v5e:4x4"`` as ``("v5e", (4, 4))``.

    Raises:
      UserError: for a name that is none, listing those that are.
    """
    chip, _, shape = name.strip().lower().partition(":")
    if chip not in KNOWN or not re.fullmatch(r"[1-9]\d{0,2}(x[1-9]\d{0,2}){1,2}", shape):
        near = difflib.get_close_matches(name.lower(), [f"{c}:{s}" for c, shapes in KNOWN.items() for s in shapes], n=1)
        raise UserError(f"unknown topology {name!r}{f'; did you mean {near[0]}?' if near else '.'} {_known()}")
    sizes = tuple(int(size) for size in shape.split("x"))
    axes = chips.TPUS[chip].axes
    if len(sizes) > axes:
        raise UserError(f"topology {name!r}: {chip} is a torus of {axes} axes. {_known()}")
    return chip, sizes


def find(name: str) -> Topology:
    """The slice of that name, or the devices of this machine for ``local``.

    Raises:
      UserError: for an unknown name, a shape that is no slice, or when libtpu is not installed.
    """
    import jax

    if name == LOCAL:
        devices = jax.devices()
        return Topology(name, devices, chips.find(devices[0].device_kind), (len(devices),))
    chip, shape = parse(name)
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(f"planning for {name} needs the TPU compiler: pip install libtpu (or pip install -e '.[plan]')")
    prepare_environment()
    from jax.experimental import topologies

    # v4 and v5p join their two cores to one device, as they do in training.
    options = {"chip_config_name": "megacore"} if chip in ("v4", "v5p") else {}
    try:
        found = topologies.get_topology_desc(
            platform="tpu", topology_name=f"{chip}:{'x'.join(map(str, shape))}", **options
        )
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"libtpu does not know the topology {name!r}: {reason[:150]}. {_known()}") from error
    if len(found.devices) != math.prod(shape):
        raise UserError(f"topology {name!r}: libtpu makes {len(found.devices)} devices of it, not {math.prod(shape)}")
    return Topology(name, found.devices, chips.TPUS[chip], shape)


def prepare_environment() -> None:
    """Settings for libtpu as a mere compiler: beside other processes, without looking for a TPU, without its log.

    They have to precede the first use of JAX: a TPU that is here would else be taken.
    """
    for name, value in {
        "JAX_PLATFORMS": "cpu",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
        "TPU_STDERR_LOG_LEVEL": "3",
        "TPU_MIN_LOG_LEVEL": "3",
    }.items():
        os.environ.setdefault(name, value)


def shape_of(chip: chips.Chip, count: int) -> tuple[int, ...] | None:
    """The most compact slice of ``count`` chips, None where none is offered."""
    shapes = [tuple(int(size) for size in shape.split("x")) for shape in _SHAPES.get(chip.axes, ())]
    return next((shape for shape in shapes if math.prod(shape) == count), None)


def _known() -> str:
    listed = "; ".join(f"{', '.join(names)}: {' '.join(shapes)}" for names, shapes in _by_shapes().items())
    return f"The topologies are CHIP:SHAPE with {listed}; or local"


def _by_shapes() -> dict[tuple[str, ...], tuple[str, ...]]:
    return {
        tuple(name for name, shapes in KNOWN.items() if shapes == each): each for each in dict.fromkeys(KNOWN.values())
    }
