"""The least time that a step can take on a chip of given peaks, and what a run of so many steps then takes.

Three times, each as if nothing else had to be done: matrix operations at the peak of their precision, bytes through HBM
at its bandwidth, bytes to other chips at that of the links. The largest is the floor, and binds. Elementwise work,
latencies, padding to the matrix unit's size, and waiting are not in it: no program reaches it.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from sct_jax.plan.chips import Chip
from sct_jax.plan.collectives import Collective

NAMES = {"compute": "compute", "memory": "HBM", "interconnect": "interconnect"}


@dataclasses.dataclass(frozen=True)
class Floor:
    """Seconds a step; ``binds`` names the largest of the three."""

    compute: float
    memory: float
    interconnect: float

    @property
    def step(self) -> float:
        return max(self.compute, self.memory, self.interconnect)

    @property
    def binds(self) -> str:
        return max(NAMES, key=lambda name: getattr(self, name))


def floor(chip: Chip, operations: Mapping[str, float], traffic: float, interconnect: float) -> Floor:
    """The floor of a step on one chip.

    Args:
      chip: its peaks.
      operations: of this chip, by ``chips.PRECISIONS``.
      traffic: bytes through its memory.
      interconnect: seconds of its collectives, one after another.
    """
    compute = sum(count / chip.operations[precision] for precision, count in operations.items())
    return Floor(compute, traffic / chip.memory_bandwidth, interconnect)


def seconds(chip: Chip, collective: Collective, coordinates: Sequence[Sequence[int]]) -> float:
    """Seconds of a collective: the bytes each chip sends, over all of its links that lead to others of its group.

    ``coordinates`` are those of each device of the mesh on the torus. 0 where the links' bandwidth is not known.
    """
    if not chip.link_bandwidth:
        return 0.0
    links = 1
    if chip.axes:
        group = [coordinates[device] for device in collective.group]
        links = max(1, sum(_links(len({place[axis] for place in group})) for axis in range(len(group[0]))))
    return collective.sent / (links * chip.link_bandwidth)


def links_of(shape: Sequence[int]) -> int:
    """Links of a chip within a slice of that shape, as if every axis of more than two chips were a ring."""
    return sum(_links(size) for size in shape)


def _links(size: int) -> int:
    return min(size - 1, 2)


def run(step: float, batch_size: int, total_steps: int, chips: int, price: float | None = None) -> dict[str, Any]:
    """Images a second, hours and chip-hours of a whole run at ``step`` seconds a step; with a price, what it costs."""
    hours = step * total_steps / 3600
    cost = {} if price is None else {"cost": hours * chips * price}
    return {
        "step_seconds": step,
        "images_per_second": batch_size / step,
        "hours": hours,
        "chip_hours": hours * chips,
    } | cost
