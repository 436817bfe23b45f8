"""Pickles and zip archives written by hand, byte by byte, as no pickler would write them."""

import struct
import zlib


def text(value: str) -> bytes:
    """Pushes a string."""
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def raw(value: bytes) -> bytes:
    """Pushes bytes."""
    return b"B" + struct.pack("<I", len(value)) + value


def integer(value: int) -> bytes:
    """Pushes a whole number of 32 bits, or, above, of any size."""
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8b" + struct.pack("<i", len(data)) + data


def tuple_of(*items: bytes) -> bytes:
    """Pushes a tuple of what the items push."""
    return b"(" + b"".join(items) + b"t"


def name(module: str, attribute: str) -> bytes:
    """Pushes what the file calls a function or class of a module."""
    return f"c{module}\n{attribute}\n".encode()


def name_on_stack(module: str, attribute: str) -> bytes:
    """The same by the newer opcode."""
    return text(module) + text(attribute) + b"\x93"


def call(function: bytes, *arguments: bytes) -> bytes:
    """Pushes the result of a call."""
    return function + tuple_of(*arguments) + b"R"


def pickled(*pushes: bytes, protocol: int = 4) -> bytes:
    """A whole pickle of the last thing pushed."""
    return b"\x80" + bytes([protocol]) + b"".join(pushes) + b"."


def zipped(members: dict[str, bytes], *, compress: bool = False, copies: int = 1) -> bytes:
    """A zip archive; `copies` lists each member so many times under other names, all at the same place."""
    body, directory, count = b"", b"", 0
    for member, content in members.items():
        method, packed = 0, content
        if compress:
            compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
            method, packed = 8, compressor.compress(content) + compressor.flush()
        sizes = struct.pack("<III", zlib.crc32(content), len(packed), len(content))
        at = len(body)
        body += b"PK\x03\x04" + struct.pack("<HHHHH", 20, 0, method, 0, 0) + sizes
        body += struct.pack("<HH", len(member), 0) + member.encode() + packed
        for copy in range(copies):
            alias = (member if copy == 0 else f"{member}{copy}").encode()
            directory += b"PK\x01\x02" + struct.pack("<HHHHHH", 20, 20, 0, method, 0, 0) + sizes
            directory += struct.pack("<HHHHHII", len(alias), 0, 0, 0, 0, 0, at) + alias
            count += 1
    tail = struct.pack("<HHHHIIH", 0, 0, min(count, 65535), min(count, 65535), len(directory), len(body), 0)
    return body + directory + b"PK\x05\x06" + tail
