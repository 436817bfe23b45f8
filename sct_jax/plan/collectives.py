"""The collectives of a compiled program: what kind, how often, how many bytes of which type, among how many devices."""

import dataclasses
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from sct_jax.plan.hlo import Array, Computation, Instruction, Module

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute")


@dataclasses.dataclass(frozen=True)
class Collective:
    """Collectives of one kind, type and group.

    Attributes:
      kind: one of ``KINDS``; XLA may join many arrays into one of them.
      dtype: XLA's name, such as ``f32``.
      group: the devices, by their place in the mesh, of the first of the groups that work side by side.
      count: how many run in a step; one that takes arrays of two types counts with both.
      bytes: the whole array that they sum, gather, scatter or exchange within a group, a step, all ``count`` together.
    """

    kind: str
    dtype: str
    group: tuple[int, ...]
    count: int
    bytes: int

    @property
    def sent(self) -> float:
        """Bytes that each device sends in a step by the ring algorithms, the least that any can."""
        size = len(self.group)
        share = {"all-reduce": 2 * (size - 1) / size, "collective-permute": 1.0}.get(self.kind, (size - 1) / size)
        return share * self.bytes


def find(module: Module) -> list[Collective]:
    """All collectives of a step, those that move most first; groups of one device move nothing and are left out."""
    counts: Counter[tuple[str, str, tuple[int, ...]]] = Counter()
    sizes: Counter[tuple[str, str, tuple[int, ...]]] = Counter()
    seen: set[str] = set()
    for name, instruction, times in module.executed():
        for place, kind, each in _within(module, name, instruction):
            chain = _chain(each)
            if chain in seen:
                continue
            seen |= {chain} if chain else set()
            group = _group(each, module.partitions)
            if len(group) < 2:
                continue
            operands = _operand_arrays(module.computations[place], each)
            whole = len(group) if kind == "all-gather" else 1
            for dtype in dict.fromkeys(array.dtype for array in operands):
                sizes[kind, dtype, group] += times * whole * sum(a.bytes for a in operands if a.dtype == dtype)
                counts[kind, dtype, group] += times
    found = [Collective(*key, count=counts[key], bytes=size) for key, size in sizes.items()]
    return sorted(found, key=lambda each: -each.sent)


def _within(module: Module, name: str, instruction: Instruction) -> list[tuple[str, str, Instruction]]:
    """The collectives that an instruction is or, as a fusion, holds: where, of which kind, and the instruction."""
    if instruction.opcode == "fusion":
        inner = instruction.called[0]
        return [found for each in module.computations[inner].values() for found in _within(module, inner, each)]
    kind = instruction.opcode.removesuffix("-start")
    if kind not in KINDS:
        return []
    # A TPU has no instruction for it: it fuses a sum with the slice of it that each device keeps.
    return [(name, "reduce-scatter" if name.startswith("all-reduce-scatter") else kind, instruction)]


def _chain(instruction: Instruction) -> str | None:
    """What the pieces of one collective share that a TPU's compiler spreads over the fusions it runs beside."""
    chain = re.search(r'chain_id="(\d+)"', instruction.attributes)
    channel = re.search(r"channel_id=(\d+)", instruction.attributes)
    return f"{chain[1]} {channel[1]} {instruction.opcode}" if chain and channel else None


def _operand_arrays(inside: Computation, instruction: Instruction) -> list[Array]:
    return [array for name in instruction.operands for array in inside[name].arrays]


def _group(instruction: Instruction, partitions: int) -> tuple[int, ...]:
    text = instruction.attributes
    listed = re.search(r"(?:replica_groups|source_target_pairs)=\{\{([\d, ]*)\}", text)
    if instruction.opcode.startswith("collective-permute"):
        pairs = re.search(r"source_target_pairs=\{(.*?)\}\}", text)
        members = sorted({int(number) for number in re.findall(r"\d+", pairs[1])}) if pairs else []
        return tuple(members)
    if listed:
        return tuple(int(number) for number in listed[1].split(",") if number.strip())
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    if iota:
        shape, order = _numbers(iota[1]), _numbers(iota[3] or "")
        devices = np.arange(np.prod(_numbers(iota[2]))).reshape(_numbers(iota[2]))
        devices = devices.transpose(order) if order else devices
        return tuple(int(device) for device in devices.reshape(shape)[0])
    meshed = re.search(r"replica_groups=@?mesh\[([^\]]*)\][^{]*\{([^}]*)\}", text)
    if meshed:
        return _mesh_group(meshed[1], meshed[2])
    return tuple(range(partitions))


def _mesh_group(sizes: str, axes: str) -> tuple[int, ...]:
    """``'a'=2, 'b'=4`` and ``'b'``: the devices that differ along ``b`` only."""
    names = re.findall(r"'([^']+)'=(\d+)", sizes)
    shape = [int(size) for _, size in names]
    part: Sequence[tuple[str, str, str]] = re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", axes)
    devices = np.arange(np.prod(shape)).reshape(shape)
    index: list[slice] = [slice(0, 1)] * len(shape)
    for name, before, size in part:
        axis = [known for known, _ in names].index(name)
        step = shape[axis] // (int(before) * int(size)) if size else 1
        index[axis] = slice(0, step * int(size) if size else None, step)
    return tuple(int(device) for device in devices[tuple(index)].ravel())


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]
