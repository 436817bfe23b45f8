"""Bytes that a compiled program moves between a chip and its main memory in one step, instruction by instruction.

Every fusion, product or copy reads its operands and writes its results once; what lies in a scratch memory (VMEM)
costs nothing. Slices and gathers read what they take, updates in place write what they change, as in XLA's own count,
which takes loops once. Sizes are without the padding of TPU tiles: so it is a lower bound of this program's traffic.
"""

from sct_jax.plan.hlo import Array, Computation, Instruction, Module

# What moves nothing by itself: names for what is there, the second half of what runs beside, what runs others.
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id"),
    *("while", "conditional", "call", "opt-barrier", "optimization-barrier", "add-dependency", "domain", "async-start"),
    *("async-update", "get-dimension-size"),
}
_FREE_CALLS = ("AllocateBuffer", "ConcatBitcast", "Sharding", "SPMD")
_TAKES = ("dynamic-slice", "gather", "slice")


def count(module: Module) -> int:
    """Bytes read and written a step, by one device."""
    return sum(times * _bytes(module, name, each) for name, each, times in module.executed())


def _bytes(module: Module, name: str, instruction: Instruction) -> int:
    opcode, inside = instruction.opcode, module.computations[name]
    if opcode in _FREE or opcode.endswith("-done"):
        return 0
    if opcode == "custom-call" and any(f'"{call}' in instruction.attributes for call in _FREE_CALLS):
        return 0
    written = _size(instruction.arrays)
    read = sum(_size(_operand(inside, instruction, index)) for index in range(len(instruction.operands)))
    if opcode == "copy-start":  # gives its target, its source, and what waits for it
        return _size(instruction.arrays[:1]) + read
    if opcode == "slice-start":
        return _size(instruction.arrays[:1]) + (sum(each.bytes for each in instruction.arrays[:1]) if read else 0)
    if opcode in ("all-gather-start", "collective-permute-start"):  # they give their operands once more
        return written
    if opcode in _TAKES:
        taken = sum(array.bytes for array in instruction.arrays)
        return written + (taken if _size(_operand(inside, instruction, 0)) else 0)
    if opcode == "dynamic-update-slice":
        return 2 * _size(_operand(inside, instruction, 1))
    if opcode == "fusion":
        return _fusion(module, inside, instruction)
    return written + read


def _fusion(module: Module, inside: Computation, instruction: Instruction) -> int:
    body = module.computations[instruction.called[0]]
    read = 0
    for index in range(len(instruction.operands)):
        arrays = _operand(inside, instruction, index)
        if _size(arrays):
            taken = _taken(module, body, _parameter(body, index))
            read += _size(arrays) if taken is None else min(taken, _size(arrays))
    root = next(each for each in body.values() if each.root)
    parts = [body[name] for name in root.operands] if root.opcode == "tuple" else [root]
    if len(parts) != len(instruction.arrays):
        return read + _size(instruction.arrays)
    return read + sum(_written(body, part, array) for part, array in zip(parts, instruction.arrays, strict=True))


def _written(body: Computation, part: Instruction, array: Array) -> int:
    while part.opcode == "bitcast" and part.operands[0] in body:
        part = body[part.operands[0]]
    if part.opcode == "dynamic-update-slice" and array.space == 0:
        return sum(each.bytes for each in body[part.operands[1]].arrays)
    return _size((array,))


def _taken(module: Module, body: Computation, parameter: str | None) -> int | None:
    """Bytes that a fusion takes of an operand, None for all of it."""
    if parameter is None:
        return None
    total = 0
    for each in body.values():
        if parameter not in each.operands:
            continue
        place = each.operands.index(parameter)
        if each.opcode in _TAKES and place == 0:
            total += sum(array.bytes for array in each.arrays)
        elif each.opcode == "bitcast" or (each.opcode == "fusion" and each.called):
            inner = module.computations[each.called[0]] if each.opcode == "fusion" else body
            name = _parameter(inner, place) if each.opcode == "fusion" else each.name
            part = None if each.root and each.opcode == "bitcast" else _taken(module, inner, name)
            if part is None:
                return None
            total += part
        elif not (each.opcode == "dynamic-update-slice" and place == 0):
            return None
    return total


def _parameter(body: Computation, index: int) -> str | None:
    return next(
        (each.name for each in body.values() if each.opcode == "parameter" and each.literal == str(index)), None
    )


def _operand(inside: Computation, instruction: Instruction, index: int) -> tuple[Array, ...]:
    if index >= len(instruction.operands) or instruction.operands[index] not in inside:
        return ()
    return inside[instruction.operands[index]].arrays


def _size(arrays: tuple[Array, ...]) -> int:
    return sum(array.bytes for array in arrays if array.space == 0)
