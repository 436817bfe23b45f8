"""A compiled program's text (``compiled.as_text()``): its computations, and how often each instruction runs in a step.

The text is that of one device (SPMD). ``cost_analysis`` takes loops once; here the body of a loop counts as often as it
runs, where the program tells.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

_BITS = {"pred": 8, "token": 0, "opaque": 0}  # of all others the name tells
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,<= ]*)\](?:\{([^}]*)\})?")
_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_CALLED = re.compile(r"\b(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Array:
    """``space`` is where it lies: 0 the device's main memory (HBM), others its scratch memories or the host."""

    dtype: str
    dims: tuple[int, ...]
    space: int = 0

    @property
    def bytes(self) -> int:
        bits = _BITS[self.dtype] if self.dtype in _BITS else int(re.findall(r"\d+", self.dtype)[0])
        return math.prod(self.dims) * bits // 8


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line; ``arrays`` are its results, ``attributes`` what stands behind the operands."""

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    attributes: str
    literal: str
    root: bool

    @property
    def called(self) -> tuple[str, ...]:
        """Names of the computations that it runs (a loop's condition among them)."""
        branches = re.search(r"branch_computations=\{([^}]*)\}", self.attributes)
        listed = re.findall(r"%?([\w.\-]+)", branches[1]) if branches else []
        return (*_CALLED.findall(self.attributes), *listed)


Computation = dict[str, Instruction]


@dataclasses.dataclass(frozen=True)
class Module:
    """``partitions`` is the number of devices of the program."""

    computations: dict[str, Computation]
    entry: str
    partitions: int

    def executed(self) -> Iterator[tuple[str, Instruction, int]]:
        """Each instruction that a step runs, with the name of its computation and how often it runs.

        What is inside a fusion, a reduction or a sort belongs to that one instruction. All branches of a conditional
        are among them, once each: an upper bound.
        """
        yield from self._run(self.entry, 1)

    def _run(self, name: str, times: int) -> Iterator[tuple[str, Instruction, int]]:
        for instruction in self.computations[name].values():
            yield name, instruction, times
            if instruction.opcode == "while":
                repeats = self.trip_count(instruction) or 1
                for inner in instruction.called:
                    yield from self._run(inner, times * repeats)
            elif instruction.opcode in ("call", "conditional", "async-start"):
                for inner in instruction.called:
                    yield from self._run(inner, times)

    def trip_count(self, loop: Instruction) -> int | None:
        """How often a loop runs: as XLA notes it, or by its condition ``i < n`` with ``i`` counted from 0."""
        noted = re.search(r'known_trip_count"?:\{"n":"(\d+)"', loop.attributes)
        if noted:
            return int(noted[1])
        condition = re.search(r"condition=%?([\w.\-]+)", loop.attributes)
        inside = self.computations[condition[1]] if condition else {}
        root = next((each for each in inside.values() if each.root), None)
        if root is None or root.opcode != "compare" or "direction=LT" not in root.attributes:
            return None
        limits = [inside[name].literal for name in root.operands if inside[name].opcode == "constant"]
        return int(limits[0]) if len(limits) == 1 and limits[0].isdigit() else None

    def unknown_loops(self) -> int:
        """Loops whose length is not known; they were taken once."""
        loops = [each for _, each, _ in self.executed() if each.opcode == "while"]
        return sum(self.trip_count(loop) is None for loop in loops)


def parse(text: str) -> Module:
    """Reads a whole module.

    Raises:
      ValueError: when the text has no entry computation.
    """
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in text.splitlines():
        if line[:1] in ("}", ""):
            current = None if line else current
        elif not line[0].isspace():
            header = _HEADER.match(line)
            if header:
                current = computations.setdefault(header[2], {})
                entry = header[2] if header[1] else entry
        elif current is not None:
            found = _INSTRUCTION.match(line)
            if found:
                instruction = _instruction(found[2], re.sub(r"/\*.*?\*/", "", found[3]), bool(found[1]))
                current[instruction.name] = instruction
    if not entry:
        raise ValueError("no ENTRY computation in the text")
    partitions = re.search(r"num_partitions=(\d+)", text[:100_000].split("\n", 1)[0])
    return Module(computations, entry, int(partitions[1]) if partitions else 1)


def arrays_of(shape: str) -> tuple[Array, ...]:
    """The arrays of a shape such as ``f32[8,128]{1,0:T(8,128)S(1)}`` or a tuple of them."""
    found = []
    for dtype, dims, layout in _ARRAY.findall(shape):
        space = re.search(r"S\((\d+)\)", layout)
        sizes = tuple(int(size.strip(" <=")) for size in dims.split(",") if size.strip())
        found.append(Array(dtype, sizes, int(space[1]) if space else 0))
    return tuple(found)


def _instruction(name: str, text: str, root: bool) -> Instruction:
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    shape, rest = text[:end], text[end:].lstrip()
    opening = rest.index("(")
    closing = _closing(rest, opening)
    inner = rest[opening + 1 : closing]
    names = tuple(re.findall(r"%([\w.\-]+)", inner))
    return Instruction(name, rest[:opening], arrays_of(shape), names, rest[closing + 1 :], inner, root)


def _closing(text: str, opening: int) -> int:
    """Where the parenthesis at ``opening`` ends."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, opening):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.start()
    return len(text)
