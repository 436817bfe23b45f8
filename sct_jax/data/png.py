"""PNG files whose pixels lie in them as they are: every viewer reads them, and to read them costs a copy.

A PNG's pixels are rows, each behind the number of its filter, in one deflate stream. With filter 0 and stored (not
compressed) blocks nothing is left to decode: a core reads 64x64 images four times as fast, the record around them
included (``docs/results/input_pipeline.md``), for more space. What is not of this form is left to Pillow.
"""

import struct
import zlib

import numpy as np

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOUR = {1: 0, 3: 2}  # channels: PNG's colour type
_HEADER = struct.Struct(">I4sIIBBBBBI")  # the chunk IHDR: size, name, width, height, depth, colour, 3 methods, CRC
_CHUNK = struct.Struct(">I4s")
_STORED = b"\x78\x01"  # zlib's header of level 0
_START = len(_SIGNATURE) + _HEADER.size


def encode(pixels: np.ndarray, compress: bool = False) -> bytes:
    """Encodes uint8 ``[H, W, 1 or 3]`` as PNG, losslessly; ``compress``: smaller and slower to read."""
    if compress:
        return _by_pillow(pixels)
    height, width, channels = pixels.shape
    rows = np.zeros((height, 1 + width * channels), np.uint8)
    rows[:, 1:] = pixels.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, _COLOUR[channels], 0, 0, 0)
    data = zlib.compress(rows, 0)
    return _SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def decode_stored(data: bytes) -> np.ndarray | None:
    """Decodes what ``encode`` writes, to uint8 ``[H, W, C]``; None for any other bytes, damaged ones too."""
    if len(data) < _START + _CHUNK.size + 2 or not data.startswith(_SIGNATURE):
        return None
    length, name, width, height, depth, colour, *methods, check = _HEADER.unpack_from(data, len(_SIGNATURE))
    size, next_name = _CHUNK.unpack_from(data, _START)
    first = _START + _CHUNK.size
    channels = {code: count for count, code in _COLOUR.items()}.get(colour)
    plain = (
        length == 13 and name == b"IHDR" and depth == 8 and channels and methods == [0, 0, 0] and next_name == b"IDAT"
    )
    if not plain or data[first : first + 2] != _STORED or len(data) != first + size + 16:
        return None
    if zlib.crc32(memoryview(data)[12 : _START - 4]) != check:
        return None
    try:
        rows = np.frombuffer(zlib.decompress(memoryview(data)[first : first + size]), np.uint8)
    except zlib.error:  # its own checksum is Adler's
        return None
    if rows.size != height * (1 + width * channels):
        return None
    rows = rows.reshape(height, -1)
    return None if rows[:, 0].any() else rows[:, 1:].reshape(height, width, channels)


def _chunk(name: bytes, data: bytes) -> bytes:
    return _CHUNK.pack(len(data), name) + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(name)))


def _by_pillow(pixels: np.ndarray) -> bytes:
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(file, "PNG")
    return file.getvalue()
