"""The names a checkpoint may use, and what each becomes: plain data, an array, or an inert description of an object.

A name of a pickle stands for a function of the code that wrote it. None of that code is imported here; what is not in
this table is refused by its name. Descriptions (:class:`Inert`) are for the classes of networks and losses: a class
name and its attributes.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from sct_jax.errors import UserError

MOST_OPCODES = 1_000_000  # the largest checkpoints have some 100,000
LARGEST_PICKLE_IN_PICKLE = 2  # how deep PyTorch files may lie inside pickles
LARGEST_KEY = 1 << 32  # of whole numbers as keys
_UNSET = np.dtype("V1")  # of an array whose content is still to come
_DTYPE = re.compile(r"[<>=|]?(?:b1|\?|[iu][1248]|f[248])")
# What holds only a name and attributes. The first are the rooms of NVIDIA's code and of its descendants; the last has
# the classes of TorchScript programs.
_INERT_MODULES = ("training.", "torch_utils.", "dnnlib.", "torch.nn.", "__torch__.")


class Budget:
    """What reading one file may cost: opcodes, bytes copied, bytes that arrays claim; all are raised when spent."""

    def __init__(self, size: int):
        self.opcodes = MOST_OPCODES
        self.copies = self.claims = 4 * size + (1 << 20)
        self.depth = LARGEST_PICKLE_IN_PICKLE

    def spend_opcode(self) -> None:
        self.opcodes -= 1
        if self.opcodes < 0:
            raise UserError(f"the pickle has more than {MOST_OPCODES:,} opcodes: it is no checkpoint")

    def spend_bytes(self, count: int) -> None:
        self.copies -= count
        if self.copies < 0:
            raise UserError("the pickle copies more than the file holds: it is no checkpoint")

    def claim(self, count: int) -> None:
        self.claims -= count
        if self.claims < 0:
            raise UserError("the arrays of the file claim more than it holds: it is damaged or no checkpoint")


class Global(NamedTuple):
    """A name that is allowed, and what a call of it becomes; None: it is a mere name."""

    name: str
    call: Callable[..., Any] | None = None


class Inert:
    """What is known of an object of a class that is not imported.

    Attributes:
      name: of its class.
      arguments: it was made with.
      state: its attributes.
      source: the text of the module that defined it, where the file holds that; never run.
    """

    __slots__ = ("arguments", "name", "source", "state")

    def __init__(self, name: str, arguments: tuple = (), state: dict | None = None, source: str = ""):
        self.name, self.arguments, self.source = name, arguments, source
        self.state: dict = {} if state is None else state


class Storage(NamedTuple):
    """The numbers behind PyTorch's tensors, one-dimensional."""

    values: np.ndarray


class _Dtype:
    """A numpy dtype on its way: its byte order is set after it was made."""

    __slots__ = ("value",)

    def __init__(self, value: np.dtype):
        self.value = value


def find(module: str, name: str) -> Global:
    """The entry of the table, or a UserError that says which name is not in it."""
    full = f"{_MOVED.get(module, module)}.{name}"
    if full in _TABLE:
        return Global(full, _TABLE[full])
    if full.startswith(_INERT_MODULES):
        return Global(full, lambda budget, *arguments: Inert(full, arguments))
    raise UserError(
        f"the pickle wants {quoted(full)}, which is not among the names a checkpoint needs: nothing of it was run; "
        "save the weights as a state_dict (torch.save(model.state_dict(), ...)) or as safetensors"
    )


def quoted(text: str) -> str:
    """A text of the file, fit for one line of a message."""
    return repr(text if len(text) <= 80 else text[:77] + "...")


def shown(text: str) -> str:
    """The same without quotes where it needs none."""
    return text if text.isprintable() and len(text) <= 80 else quoted(text)


def key_of(value: Any) -> Any:
    """A key of a dict or an item of a set: what hashes in a bounded time and not as thousands of others do.

    Whole numbers hash as themselves modulo 2^61 - 1, tuples by a fixed formula: a file could choose them to collide.
    """
    if type(value) is tuple and len(value) <= 8 and all(type(part) is str for part in value):
        return value
    small = type(value) is int and abs(value) < LARGEST_KEY
    if not (value is None or small or type(value) in (str, bytes, float, bool)):
        raise UserError("the pickle has dict keys or set items other than strings and small numbers: it was not read")
    return value


def storage_dtype(kind: Global) -> np.dtype:
    """The dtype of ``torch.FloatStorage`` and its like."""
    if type(kind) is not Global or kind.name not in STORAGES:
        raise UserError(
            f"the file holds numbers of kind {quoted(getattr(kind, 'name', 'unknown'))}, which are not read"
        )
    return STORAGES[kind.name]


def set_state(budget: Budget, target: Any, state: Any) -> None:
    """What BUILD does to an array or a dtype."""
    if type(target) is _Dtype:
        _, order, *structure = state
        if order not in ("<", ">", "|", "=") or any(part is not None for part in structure[:3]):
            raise UserError("the pickle holds structured arrays, which no checkpoint needs: it was not read")
        target.value = target.value.newbyteorder(order)
    elif type(target) is np.ndarray and target.dtype == _UNSET and target.flags.owndata:
        _, shape, dtype, fortran, data = state
        values = _from_bytes(budget, data, dtype, shape, "F" if fortran else "C")
        target.__setstate__((1, values.shape, values.dtype, False, values.tobytes()))
    else:
        raise ValueError("no object whose state can be set")


def _from_bytes(budget: Budget, data: Any, dtype: Any, shape: Any, order: str) -> np.ndarray:
    if type(dtype) is not _Dtype or type(data) not in (bytes, memoryview) or order not in ("C", "F"):
        raise UserError("the pickle holds arrays of objects, which are not read")
    count = _count(shape)
    if count * dtype.value.itemsize != len(data):
        raise ValueError("an array whose bytes are not those of its shape")
    budget.spend_bytes(len(data))
    return np.frombuffer(data, dtype.value).reshape(shape, order=order)


def _count(shape: Any) -> int:
    """Numbers in an array of this shape; ValueError when it is no shape."""
    if type(shape) is not tuple or len(shape) > 32 or any(type(n) is not int or not 0 <= n < 2**48 for n in shape):
        raise ValueError("no shape of an array")
    count = 1
    for n in shape:
        count *= n
    return count


def _tensor(budget: Budget, storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> np.ndarray:
    """``torch._utils._rebuild_tensor_v2``: a view of a storage, checked to lie inside it."""
    if type(storage) is not Storage:
        raise ValueError("a tensor without storage")
    values, count = storage.values, _count(size)
    if _count(stride) < 0 or len(stride) != len(size) or type(offset) is not int or offset < 0:
        raise ValueError("no layout of a tensor")
    budget.claim(64 + count * values.itemsize)
    if not count:
        return np.zeros(size, values.dtype)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if last >= values.size or count > values.size:
        raise ValueError("a tensor larger than its storage")
    strides = tuple(step * values.itemsize for step in stride)
    return np.lib.stride_tricks.as_strided(values[offset:], size, strides, writeable=False)


def _parameter(budget: Budget, tensor: Any, *_: Any) -> np.ndarray:
    if type(tensor) is not np.ndarray:
        raise ValueError("a parameter without tensor")
    return tensor


def _storage_from_bytes(budget: Budget, data: Any) -> Storage:
    """``torch.storage._load_from_bytes``: a PyTorch file inside the pickle, read under the same rules."""
    from sct_jax.interop import torch_files

    if type(data) not in (bytes, memoryview) or budget.depth == 0:
        raise ValueError("no storage")
    budget.depth -= 1
    storage = torch_files.loads(memoryview(data), budget)
    budget.depth += 1
    if type(storage) is not Storage:
        raise ValueError("no storage")
    return storage


def _persistent_object(budget: Budget, meta: Any) -> Inert:
    """NVIDIA's ``persistence``: the class name and the attributes; the source code beside them stays a string."""
    name, state, source = meta["class_name"], meta["state"], meta.get("module_src", "")
    if type(name) is not str or type(state) is not dict or type(source) is not str:
        raise ValueError("no persistent object")
    return Inert(name, (), state, source)


def _reconstructed(budget: Budget, kind: Any, base: Any = None, state: Any = None) -> Any:
    """``copyreg._reconstructor`` for plain objects: an object of ``kind`` without its attributes."""
    if type(kind) is not Global or kind.call is None or state is not None:
        raise ValueError("no class to make an object of")
    return kind.call(budget)


def _method(budget: Budget, owner: Any, name: Any) -> Inert:
    """A bound method (ECT's loss keeps one) is pickled as ``getattr``; nothing is looked up: it is a name."""
    if type(owner) is not Inert or type(name) is not str:
        raise UserError("the pickle wants 'builtins.getattr' of something that is no network or loss: it was not read")
    return Inert(f"method {name}")


def _make(kind: type) -> Callable[..., Any]:
    """list(items), tuple(items), set(items), frozenset(items), of a list or tuple of the file."""

    def make(budget: Budget, items: Any = ()) -> Any:
        if type(items) not in (list, tuple):
            raise ValueError("no items")
        budget.spend_bytes(64 * len(items))
        return kind(map(key_of, items) if kind in (set, frozenset) else items)

    return make


def _dictionary(budget: Budget, items: Any = ()) -> dict:
    if type(items) is dict:
        items = list(items.items())
    if type(items) not in (list, tuple):
        raise ValueError("no items of a dict")
    budget.spend_bytes(128 * len(items))
    if any(type(item) not in (list, tuple) or len(item) != 2 for item in items):
        raise ValueError("no items of a dict")
    return {key_of(key): value for key, value in items}


def _dtype(budget: Budget, code: Any, *_: Any) -> _Dtype:
    if type(code) is not str or not _DTYPE.fullmatch(code):
        raise UserError(f"the pickle holds arrays of dtype {quoted(str(code)[:80])}, which are not read")
    return _Dtype(np.dtype(code))


def _scalar(budget: Budget, dtype: Any, data: Any) -> Any:
    return _from_bytes(budget, data, dtype, (), "C")[()]


def _array_from_buffer(budget: Budget, data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    return _from_bytes(budget, data, dtype, shape, order).copy()


def _encode(budget: Budget, text: Any, encoding: Any) -> bytes:
    """How old protocols store bytes."""
    if type(text) is not str or encoding != "latin1":
        raise ValueError("no bytes")
    budget.spend_bytes(len(text))
    return text.encode("latin-1")


def _size(budget: Budget, items: Any = ()) -> tuple:
    _count(tuple(items))
    return tuple(items)


STORAGES: dict[str, np.dtype] = {
    "torch.FloatStorage": np.dtype("<f4"),
    "torch.HalfStorage": np.dtype("<f2"),
    "torch.BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch.DoubleStorage": np.dtype("<f8"),
    "torch.LongStorage": np.dtype("<i8"),
    "torch.IntStorage": np.dtype("<i4"),
    "torch.ShortStorage": np.dtype("<i2"),
    "torch.CharStorage": np.dtype("i1"),
    "torch.ByteStorage": np.dtype("u1"),
    "torch.BoolStorage": np.dtype("?"),
}

# The same modules under their names in other versions.
_MOVED = {
    "__builtin__": "builtins",
    "copy_reg": "copyreg",
    "numpy._core.multiarray": "numpy.core.multiarray",
    "numpy._core.numeric": "numpy.core.numeric",
    "dnnlib": "dnnlib.util",
    "torch.tensor": "torch._tensor",
}

_MERE_NAMES = (
    *STORAGES,
    *(f"torch.{name}" for name in ("float32", "float16", "bfloat16", "float64", "bool", "uint8")),
    *(f"torch.int{bits}" for bits in (8, 16, 32, 64)),
    "builtins.object",
    "numpy.ndarray",
)

_TABLE: dict[str, Callable[..., Any] | None] = {
    **dict.fromkeys(_MERE_NAMES),
    "builtins.list": _make(list),
    "builtins.tuple": _make(tuple),
    "builtins.set": _make(set),
    "builtins.frozenset": _make(frozenset),
    "builtins.dict": _dictionary,
    "builtins.getattr": _method,
    "collections.OrderedDict": _dictionary,
    "copyreg._reconstructor": _reconstructed,
    "_codecs.encode": _encode,
    "dnnlib.util.EasyDict": _dictionary,
    "numpy.dtype": _dtype,
    "numpy.core.multiarray._reconstruct": lambda budget, *_: np.zeros(0, _UNSET),
    "numpy.core.multiarray.scalar": _scalar,
    "numpy.core.numeric._frombuffer": _array_from_buffer,
    "torch.Size": _size,
    "torch.device": lambda budget, *arguments: Inert("torch.device", arguments),
    **{f"torch.jit._pickle.build_{kind}list": _make(list) for kind in ("int", "double", "bool", "tensor")},
    "torch.jit._pickle.restore_type_tag": lambda budget, value, *_: value,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch.storage._load_from_bytes": _storage_from_bytes,
    "torch_utils.persistence._reconstruct_persistent_obj": _persistent_object,
}
