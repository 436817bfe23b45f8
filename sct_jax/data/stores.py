"""Where image files lie: in a folder or in a zip. A part of either can be sent to another process for little."""

import hashlib
import io
import os
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import IO, Protocol

from sct_jax.errors import UserError

_LOCAL_HEADER = 30  # bytes before a member's name; the lengths of name and extra field are at 26 and 28


class Store(Protocol):
    """Files by name."""

    root: Path

    def names(self) -> list[str]:
        """Returns all files, sorted, hidden ones left out."""
        ...

    def open(self, name: str) -> IO[bytes]: ...

    def describe(self, name: str) -> str:
        """What to call a file in an error."""
        ...

    def part(self, names: list[str]) -> "Store":
        """Returns what is needed to open these files, in another process."""
        ...

    def fingerprint(self, names: list[str]) -> str:
        """Returns a hash that changes when one of the files does, without reading them."""
        ...


class FolderStore:
    """The files of a folder, by path relative to it."""

    def __init__(self, root: Path):
        self.root = root

    def names(self) -> list[str]:
        found = []
        for folder, subfolders, files in os.walk(self.root, followlinks=True):
            subfolders[:] = [name for name in subfolders if not is_hidden(name)]
            prefix = os.path.relpath(folder, self.root).replace(os.sep, "/")
            start = "" if prefix == "." else f"{prefix}/"
            found += [start + name for name in files if not is_hidden(name)]
        return sorted(found)

    def open(self, name: str) -> IO[bytes]:
        return (self.root / name).open("rb")

    def describe(self, name: str) -> str:
        return str(self.root / name)

    def part(self, names: list[str]) -> "FolderStore":
        return self

    def fingerprint(self, names: list[str]) -> str:
        """By size and time of change."""
        stats = ((name, os.stat(f"{self.root}/{name}")) for name in names)
        return _hash(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}" for name, stat in stats)


class ZipStore:
    """The members of a zip; safe to read from several threads, reopened where it is unpickled."""

    def __init__(self, archive: Path):
        self.root = archive
        try:
            self._zip = zipfile.ZipFile(archive)
        except (zipfile.BadZipFile, OSError) as error:
            raise UserError(f"cannot read {archive}: {error}; it is no zip, or incomplete") from error

    def __reduce__(self):
        return ZipStore, (self.root,)

    def names(self) -> list[str]:
        names = (PurePosixPath(info.filename) for info in self._zip.infolist() if not info.is_dir())
        return sorted(str(name) for name in names if not any(map(is_hidden, name.parts)))

    def open(self, name: str) -> IO[bytes]:
        return self._zip.open(name)

    def describe(self, name: str) -> str:
        return f"{self.root}:{name}"

    def part(self, names: list[str]) -> "ZipPart":
        infos = (self._zip.getinfo(name) for name in names)
        return ZipPart(
            self.root,
            {i.filename: (i.header_offset, i.compress_type, i.compress_size, i.CRC, i.flag_bits) for i in infos},
        )

    def fingerprint(self, names: list[str]) -> str:
        """By size and checksum, which a zip notes of each member."""
        infos = (self._zip.getinfo(name) for name in names)
        return _hash(f"{info.filename}\0{info.file_size}\0{info.CRC}" for info in infos)


class ZipPart:
    """Some members of a zip, read where they lie: to list a million members takes seconds and a gigabyte."""

    def __init__(self, archive: Path, members: dict[str, tuple[int, int, int, int, int]]):
        """Takes offset of the local header, method, size as stored, CRC-32 and flags of each member."""
        self.root, self._members = archive, members

    def names(self) -> list[str]:
        return sorted(self._members)

    def open(self, name: str) -> IO[bytes]:
        offset, method, size, crc, flags = self._members[name]
        if flags & 1 or method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            with zipfile.ZipFile(self.root) as archive:  # says what is wrong with it, or knows the method
                return io.BytesIO(archive.read(name))
        with self.root.open("rb") as file:
            file.seek(offset)
            header = file.read(_LOCAL_HEADER)
            if header[:4] != b"PK\x03\x04":
                raise zipfile.BadZipFile("the member is not where the zip's directory says")
            file.seek(int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little"), os.SEEK_CUR)
            data = file.read(size)
        if method == zipfile.ZIP_DEFLATED:
            data = zlib.decompress(data, -zlib.MAX_WBITS)
        if zlib.crc32(data) != crc:
            raise zipfile.BadZipFile(f"bad CRC-32 of {name!r}")
        return io.BytesIO(data)

    def describe(self, name: str) -> str:
        return f"{self.root}:{name}"

    def part(self, names: list[str]) -> "ZipPart":
        return ZipPart(self.root, {name: self._members[name] for name in names})

    def fingerprint(self, names: list[str]) -> str:
        return _hash(f"{name}\0{self._members[name]}" for name in names)


def is_hidden(name: str) -> bool:
    """Whether a file or folder of that name is left out."""
    return name.startswith(".") or name == "__MACOSX"


def _hash(lines: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode("utf-8", "surrogateescape") + b"\n")
    return digest.hexdigest()
