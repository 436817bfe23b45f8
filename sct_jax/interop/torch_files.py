"""PyTorch's files (``.pt``, ``.pth``): the zip container of today and the one before version 1.6, without PyTorch."""

import struct
from typing import Any, NamedTuple

import numpy as np

from sct_jax.errors import UserError
from sct_jax.interop import unpickle
from sct_jax.interop.allowed import Budget, Storage, storage_dtype

ZIP_MAGIC = b"PK\x03\x04"
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
_STORED = 0
_LARGEST_DIRECTORY = 1 << 24


def loads(data: memoryview, budget: Budget | None = None) -> Any:
    """The object that ``torch.save`` or ``torch.jit.save`` wrote, tensors as arrays (in a zip: views of ``data``).

    Raises:
      UserError: for what is no PyTorch file, is damaged, or wants a name that is not allowed.
    """
    budget = budget or Budget(len(data))
    try:
        return _load_zip(data, budget) if bytes(data[:4]) == ZIP_MAGIC else _load_legacy(data, budget)
    except UserError:
        raise
    except unpickle.DAMAGE as error:
        raise UserError("the PyTorch file is damaged or cut short") from error


def is_legacy(data: memoryview) -> bool:
    """Whether a file that begins with a pickle is one of ``torch.save`` before version 1.6."""
    return LEGACY_MAGIC.to_bytes(10, "little") in bytes(data[:32])


def is_script(data: memoryview) -> bool:
    """Whether a zip archive is one of ``torch.jit.save``: it has code beside the data.

    Raises:
      UserError: as :func:`zip_members`.
    """
    return any("/code/" in name for name in zip_members(data))


def _load_zip(data: memoryview, budget: Budget) -> Any:
    """``NAME/data.pkl`` beside ``NAME/data/KEY``, the bytes of the storages, none compressed."""
    members = zip_members(data)
    pickles = [name for name in members if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise UserError("the file is a zip archive but not one of torch.save: it has no data.pkl")
    root = pickles[0].removesuffix("data.pkl")
    if bytes(members.get(f"{root}byteorder", b"little")) != b"little":
        raise UserError("the file was written on a big-endian machine, which is not read")
    storages: dict[str, Storage] = {}

    def persistent(identity: Any) -> Storage:
        dtype, key, count = _storage_identity(identity)
        if key not in storages:
            content = members[f"{root}data/{key}"]
            if count * dtype.itemsize > len(content):
                raise ValueError("a storage that is shorter than it should be")
            storages[key] = Storage(np.frombuffer(content, dtype, count))
        return storages[key]

    value, _ = unpickle.loads(members[pickles[0]], budget=budget, persistent=persistent)
    return value


def _load_legacy(data: memoryview, budget: Budget) -> Any:
    """Five pickles (magic, protocol, machine, object, keys of storages), then each storage: its length, its bytes."""
    storages: dict[str, Storage] = {}

    def persistent(identity: Any) -> Storage:
        dtype, key, count = _storage_identity(identity)
        if key not in storages:
            budget.claim(count * dtype.itemsize)
            storages[key] = Storage(np.empty(count, dtype))
        return storages[key]

    def read(start: int) -> tuple[Any, int]:
        return unpickle.loads(data, start=start, budget=budget, persistent=persistent)

    magic, end = read(0)
    protocol, end = read(end)
    if magic != LEGACY_MAGIC or protocol != LEGACY_PROTOCOL:
        raise UserError("the file is not one of torch.save")
    machine, end = read(end)
    if not machine["little_endian"]:
        raise UserError("the file was written on a big-endian machine, which is not read")
    value, end = read(end)
    keys, end = read(end)
    if sorted(keys) != sorted(storages):
        raise ValueError("not the storages of the object")
    for key in keys:
        values = storages[key].values
        (count,) = struct.unpack_from("<q", data, end)
        if count != values.size:
            raise ValueError("a storage of another length")
        end += 8
        values[:] = np.frombuffer(data, values.dtype, count, end)
        end += values.nbytes
    return value


def _storage_identity(identity: Any) -> tuple[np.dtype, str, int]:
    kind, dtype, key, _, count, *view = identity
    if kind != "storage" or type(key) is not str or type(count) is not int or count < 0 or any(view):
        raise ValueError("no storage")
    return storage_dtype(dtype), key, count


class _Tail(NamedTuple):
    """The directory of a zip archive: where it begins, how long it is, how many members it lists."""

    start: int
    length: int
    count: int


def zip_members(data: memoryview) -> dict[str, memoryview]:
    """The members of an uncompressed zip archive by name, each a view of ``data``; compressed code is left out.

    Raises:
      UserError: when it is damaged, compressed or encrypted.
    """
    tail, members = _zip_tail(data), {}
    position = tail.start
    for _ in range(tail.count):
        signature, flags, method, packed, size, n_name, n_extra, n_comment, start = struct.unpack_from(
            "<4s4xHH8xIIHHH8xI", data, position
        )
        if signature != b"PK\x01\x02":
            raise UserError("the zip archive is damaged: its directory is not where it should be")
        position += 46
        name = bytes(data[position : position + n_name]).decode("utf-8")
        extra = data[position + n_name : position + n_name + n_extra]
        position += n_name + n_extra + n_comment
        packed, size, start = _zip64(extra, packed, size, start)
        if "/code/" in name and method != _STORED:
            members[name] = data[:0]  # of a program, which is not wanted here
            continue
        if flags & 1 or method != _STORED or packed != size:
            raise UserError("the zip archive is compressed or encrypted, which torch.save never does: it was not read")
        local, n_name, n_extra = struct.unpack_from("<4s22xHH", data, start)
        begin = start + 30 + n_name + n_extra
        if local != ZIP_MAGIC or begin + size > len(data):
            raise UserError("the zip archive is damaged or cut short")
        members[name] = data[begin : begin + size]
    return members


def _zip_tail(data: memoryview) -> _Tail:
    last = bytes(data[-(1 << 16) - 22 :])
    at = last.rfind(b"PK\x05\x06")
    if at < 0:
        raise UserError("the zip archive is cut short: its end is missing; was the download complete?")
    count, length, start = struct.unpack_from("<10xHII", last, at)
    if count == 0xFFFF or 0xFFFFFFFF in (length, start):
        locator = last.rfind(b"PK\x06\x07", 0, at)
        (record,) = struct.unpack_from("<8xQ", last, locator) if locator >= 0 else (len(data),)
        signature, count, length, start = struct.unpack_from("<4s28xQQQ", data, record)
        if signature != b"PK\x06\x06":
            raise UserError("the zip archive is damaged: its end is not where it should be")
    if length > _LARGEST_DIRECTORY or 46 * count > length or start + length > len(data):
        raise UserError("the zip archive is damaged: its directory does not fit into it")
    return _Tail(start, length, count)


def _zip64(extra: memoryview, packed: int, size: int, start: int) -> tuple[int, int, int]:
    """Sizes beyond 4 GiB stand in the extra field with the tag 1, those only, in this order."""
    values = {"size": size, "packed": packed, "start": start}
    wide = [name for name, value in values.items() if value == 0xFFFFFFFF]
    position = 0
    while wide and position + 4 <= len(extra):
        tag, length = struct.unpack_from("<HH", extra, position)
        if tag == 1:
            values |= zip(wide, struct.unpack_from(f"<{len(wide)}Q", extra, position + 4), strict=True)
            break
        position += 4 + length
    return values["packed"], values["size"], values["start"]
