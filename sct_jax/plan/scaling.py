"""Weak scaling by the floor model: the same images a chip on more chips, so that only the collectives change.

What each chip computes and moves through its memory stays as in the plan. Sums over devices keep their bytes, whatever
the number of chips, and so do gathered and scattered parameters (``mesh.fsdp``); what gathers the batch grows with it.
Each chip sends the ring's (n - 1)/n of them, over the links of the most compact slice of n chips. The posterior mean
over the global batch, whose operations a chip grow with it too, and the network between slices are left out.
"""

from collections.abc import Iterable
from typing import Any

from sct_jax.plan.chips import Chip
from sct_jax.plan.collectives import Collective
from sct_jax.plan.floor import Floor, links_of
from sct_jax.plan.topology import shape_of

CHIPS = (4, 8, 16, 32, 64, 128, 256)


def weak_scaling(
    chip: Chip, one: Floor, collectives: Iterable[Collective], split: bool, counts: Iterable[int] = CHIPS
) -> list[dict[str, Any]]:
    """For each number of chips, seconds of collectives and the share of speed that remains.

    Args:
      chip: its peaks.
      one: the floor of the plan; only compute and memory are taken.
      collectives: of the plan.
      split: whether the state is split over the devices, so that what is gathered is parameters.
      counts: numbers of chips; those without a slice are left out.

    Returns:
      For each ``chips``, ``shape``, ``interconnect_seconds``, and the efficiency when collectives run beside the rest
      (``overlapped``) and after it (``exposed``). A real program lies between.
    """
    busy, rows = max(one.compute, one.memory), []
    for count in counts:
        shape = shape_of(chip, count)
        if shape is None or not busy:
            continue
        sent = sum(_grown(each, count, split).sent for each in collectives)
        network = sent / (max(1, links_of(shape)) * chip.link_bandwidth)
        rows.append(
            {
                "chips": count,
                "shape": "x".join(map(str, shape)),
                "interconnect_seconds": network,
                "overlapped": busy / max(busy, network),
                "exposed": busy / (busy + network),
            }
        )
    return rows


def _grown(each: Collective, count: int, split: bool) -> Collective:
    grows = each.kind in ("all-gather", "all-to-all") and not split
    size = each.bytes * count // len(each.group) if grows else each.bytes
    return Collective(each.kind, each.dtype, tuple(range(count)), each.count, size)
