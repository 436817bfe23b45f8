"""A pickle reader that executes nothing: it rebuilds containers, numbers, strings, arrays, and inert descriptions.

Python's own ``pickle`` imports what a file names and calls it. Here a file is decoded by ``pickletools`` and its
opcodes move plain data on a stack; a name of the file is looked up in a closed table (:mod:`sct_jax.interop.allowed`)
of functions of this package, and a name that is not in it ends the reading. No attribute of any object is read or set.

The cost is bounded by the size of the file: a :class:`Budget` limits opcodes, what is copied and what arrays claim to
hold; keys of dicts are strings and small numbers, so that hashing them is cheap; nothing here recurses into what was
read.
"""

import pickletools
import struct
from collections.abc import Callable
from typing import Any

from sct_jax.errors import UserError
from sct_jax.interop import allowed
from sct_jax.interop.allowed import Budget, Global, Inert, quoted

LONGEST_LINE = 1 << 16  # of the opcodes whose argument is text up to the end of the line
LARGE = 1 << 12  # bytes objects from this size on are views of the file
# What reading damaged data raises.
DAMAGE = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    MemoryError,
    RecursionError,
    struct.error,
)

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_EMPTY = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set}
# The opcodes whose argument is the value.
_VALUES = frozenset(
    (
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    )
)


def loads(
    data: memoryview | bytes,
    *,
    start: int = 0,
    budget: Budget | None = None,
    persistent: Callable[[Any], Any] | None = None,
) -> tuple[Any, int]:
    """What the pickle at ``start`` holds, and where it ends.

    Args:
      data: the bytes of the file; large bytes objects and arrays are views of it.
      start: where the pickle begins.
      budget: what it may cost, shared by the pickles of one file; None: that of a file of this size.
      persistent: gives the object of a persistent id (the storages of a PyTorch file); None: there are none.

    Raises:
      UserError: for a name that is not allowed, for a damaged pickle, and for one that costs more than its size.
    """
    view = memoryview(data)
    machine = _Machine(view, start, budget or Budget(len(view)), persistent)
    try:
        return machine.run()
    except UserError:
        raise
    except DAMAGE as error:
        raise UserError(f"the pickle is damaged or cut short near byte {machine.cursor.tell()}") from error


class _Cursor:
    """The part of the file interface that ``pickletools`` needs, over memory; long reads are views, not copies."""

    def __init__(self, view: memoryview, position: int):
        self.view, self.position = view, position

    def tell(self) -> int:
        return self.position

    def read(self, count: int) -> bytes | memoryview:
        part = self.view[self.position : self.position + count]
        self.position += len(part)
        return part if count >= LARGE else bytes(part)

    def readline(self) -> bytes:
        for length in (256, LONGEST_LINE):
            line, end, _ = bytes(self.view[self.position : self.position + length]).partition(b"\n")
            if end:
                self.position += len(line) + 1
                return line + end
        raise ValueError("a line without end")


class _Machine:
    """The stack, the marks and the memo of one pickle."""

    def __init__(self, view: memoryview, start: int, budget: Budget, persistent: Callable[[Any], Any] | None):
        self.cursor, self.budget, self.persistent = _Cursor(view, start), budget, persistent
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> tuple[Any, int]:
        for opcode, argument, _ in pickletools.genops(self.cursor):
            name = opcode.name
            self.budget.spend_opcode()
            if name in _VALUES:
                self.stack.append(bytes(argument) if name == "BYTEARRAY8" else argument)
            elif name in _EMPTY:
                self.stack.append(_EMPTY[name]())
            elif name in _CONSTANTS:
                self.stack.append(_CONSTANTS[name])
            elif name in _ACTIONS:
                _ACTIONS[name](self, argument)
            elif name == "STOP":
                return self.stack.pop(), self.cursor.tell()
            elif name not in ("PROTO", "FRAME"):
                raise UserError(f"the pickle uses the opcode {name}, which no checkpoint needs: it was not read")
        raise ValueError("no STOP")

    def _above_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marked.pop()
        return items

    def mark(self, _: Any) -> None:
        self.marked.append(self.stack)
        self.stack = []

    def pop(self, _: Any) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self._above_mark()

    def pop_mark(self, _: Any) -> None:
        self._above_mark()

    def duplicate(self, _: Any) -> None:
        self.stack.append(self.stack[-1])

    def make_tuple(self, _: Any) -> None:
        items = tuple(self._above_mark())
        self.stack.append(items)

    def make_short_tuple(self, count: int) -> None:
        if len(self.stack) < count:
            raise ValueError("the stack is too short")
        self.stack[-count:] = [tuple(self.stack[-count:])]

    def make_list(self, _: Any) -> None:
        items = self._above_mark()
        self.stack.append(items)

    def make_dict(self, _: Any) -> None:
        items = self._above_mark()
        self.stack.append({})
        self._put_items(items)

    def make_frozenset(self, _: Any) -> None:
        items = self._above_mark()
        self.stack.append(frozenset(allowed.key_of(item) for item in items))

    def append(self, _: Any) -> None:
        self._extend([self.stack.pop()])

    def extend(self, _: Any) -> None:
        self._extend(self._above_mark())

    def _extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not list:
            raise ValueError("no list to append to")
        target.extend(items)

    def set_item(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._put_items([key, value])

    def set_items(self, _: Any) -> None:
        self._put_items(self._above_mark())

    def _put_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict or len(items) % 2:
            raise ValueError("no dict to put items into")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[allowed.key_of(key)] = value

    def add_items(self, _: Any) -> None:
        items, target = self._above_mark(), self.stack[-1]
        if type(target) is not set:
            raise ValueError("no set to add to")
        target.update(allowed.key_of(item) for item in items)

    def put(self, index: int) -> None:
        self.memo[allowed.key_of(index)] = self.stack[-1]

    def memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def get(self, index: int) -> None:
        self.stack.append(self.memo[index])

    def find(self, argument: str) -> None:
        self.stack.append(allowed.find(*argument.split(" ", 1)))

    def find_on_stack(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if type(name) is not str or type(module) is not str:
            raise ValueError("names must be strings")
        self.stack.append(allowed.find(module, name))

    def call(self, _: Any) -> None:
        arguments, target = self.stack.pop(), self.stack.pop()
        if type(target) is not Global or type(arguments) is not tuple:
            raise UserError("the pickle calls something that is no name: it was not read")
        if target.call is None:
            raise UserError(f"the pickle calls {quoted(target.name)}, which no checkpoint needs: it was not read")
        self.stack.append(target.call(self.budget, *arguments))

    def build(self, _: Any) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if type(target) is Inert:
            parts = state if type(state) is tuple else (state,)
            for part in parts:
                if part is not None and type(part) is not dict:
                    raise ValueError("the state of an object must be a dict")
                self.budget.spend_bytes(64 * len(part or ()))
                target.state |= part or {}
        elif type(target) is not dict:  # attributes of a dict (metadata of a state_dict) say nothing about weights
            allowed.set_state(self.budget, target, state)

    def persistent_id(self, _: Any) -> None:
        if self.persistent is None:
            raise UserError("the pickle asks for objects outside of it: it was not read")
        self.stack.append(self.persistent(self.stack.pop()))


_ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": _Machine.mark,
    "POP": _Machine.pop,
    "POP_MARK": _Machine.pop_mark,
    "DUP": _Machine.duplicate,
    "TUPLE": _Machine.make_tuple,
    "TUPLE1": lambda machine, _: machine.make_short_tuple(1),
    "TUPLE2": lambda machine, _: machine.make_short_tuple(2),
    "TUPLE3": lambda machine, _: machine.make_short_tuple(3),
    "LIST": _Machine.make_list,
    "DICT": _Machine.make_dict,
    "FROZENSET": _Machine.make_frozenset,
    "APPEND": _Machine.append,
    "APPENDS": _Machine.extend,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "ADDITEMS": _Machine.add_items,
    "PUT": _Machine.put,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "MEMOIZE": _Machine.memoize,
    "GET": _Machine.get,
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "GLOBAL": _Machine.find,
    "STACK_GLOBAL": _Machine.find_on_stack,
    "REDUCE": _Machine.call,
    "NEWOBJ": _Machine.call,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.persistent_id,
}
