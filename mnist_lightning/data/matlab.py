"""MATLAB's .mat files of version 5 (-v6 and -v7): their numeric arrays, by their names.

Read here and not by scipy.io, which believes what a header announces and takes the memory for it.
"""

import math
import struct
import zlib
from collections.abc import Iterator

import numpy as np

from mnist_lightning.data.packed import Item, unpacked
from mnist_lightning.errors import UserError

_MATRIX, _COMPRESSED = 14, 15
_TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_CELL, _STRUCT, _NUMERIC = 1, 2, range(6, 16)
_DEEP, _MOST = 6, 10_000  # structs in structs; arrays in a file
_RATIO, _SMALL = 100, 1 << 26  # what is over 64 MB and packs 100 times as well as its file is a trap


def read(path: Item) -> dict[str, np.ndarray]:
    """Arrays by their names, such as "dataset.train.images"; columns come first, as MATLAB has them."""
    with unpacked(path) as source:
        content = bytearray(0 if source.packing else source.size)
        source.file.readinto(content)  # type: ignore[attr-defined]
        while piece := source.file.read(1 << 20):
            content += piece
            source.check(len(content), f"{path} unpacks to over {len(content):,} bytes")
    if content[:10] == b"MATLAB 7.3" or content[512:516] == b"\x89HDF" or content[:4] == b"\x89HDF":
        raise UserError(f"{path} is a file of MATLAB 7.3: save it with -v7")
    if len(content) < 136 or content[126:128] not in (b"IM", b"MI"):
        raise UserError(f"{path} is no file of MATLAB 5 to 7.2: save it with -v7")
    order = "<" if content[126:128] == b"IM" else ">"
    found: dict[str, np.ndarray] = {}
    try:
        for kind, body in _elements(memoryview(content)[128:], order):
            if kind == _COMPRESSED:
                kind, body = next(_elements(memoryview(_unpacked(body)), order), (0, memoryview(b"")))
            if kind == _MATRIX:
                _collect(body, order, "", found, _DEEP)
    except (struct.error, ValueError, zlib.error, StopIteration, OverflowError) as error:
        raise UserError(f"{path} is truncated or damaged ({error or 'it ends too early'}): get it anew") from error
    return found


def _unpacked(body: memoryview) -> bytearray:
    """A compressed element, unpacked as far as is in proportion."""
    most = max(_SMALL, _RATIO * len(body))
    unpacker, content = zlib.decompressobj(), bytearray()
    rest: bytes | memoryview = body
    while len(rest) and not unpacker.eof:
        content += unpacker.decompress(rest, 1 << 20)
        rest = unpacker.unconsumed_tail
        if len(content) > most:
            raise ValueError(f"{len(body)} bytes unpack to over {most}")
    content += unpacker.flush()
    if not unpacker.eof:
        raise ValueError("a compressed variable is cut off")
    return content


def _elements(content: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    """Type and body of each element; small ones have both in eight bytes."""
    at = 0
    while at + 8 <= len(content):
        kind, size = struct.unpack_from(f"{order}II", content, at)
        if kind >> 16:
            kind, size, start, end = kind & 0xFFFF, kind >> 16, at + 4, at + 8
            if size > 4:
                raise ValueError("an element is longer than it can be")
        else:
            start = at + 8
            end = start + size if kind == _COMPRESSED else start + -(-size // 8) * 8
        if start + size > len(content):
            raise ValueError(f"an element announces {size} bytes where {len(content) - start} are left")
        yield kind, content[start : start + size]
        at = end


def _collect(body: memoryview, order: str, prefix: str, found: dict[str, np.ndarray], deep: int) -> None:
    """Adds the array, or those in the struct or cell, that an element of the matrix type holds."""
    if len(found) > _MOST or deep < 0 or not len(body):
        return
    elements = _elements(body, order)
    flags, sides, name = (next(elements)[1] for _ in range(3))
    kind = struct.unpack_from(f"{order}I", flags)[0] & 0xFF
    shape = tuple(np.frombuffer(sides[: len(sides) // 4 * 4], f"{order}i4").tolist())
    full = f"{prefix}{bytes(name).decode('latin-1')}"
    if kind in _NUMERIC:
        type_, numbers = next(elements)
        if type_ not in _TYPES or not shape or min(shape) < 0:
            raise ValueError("an array is of no known type")
        dtype = np.dtype(order + _TYPES[type_])
        if math.prod(shape) * dtype.itemsize != len(numbers):
            raise ValueError(f"an array of {shape} has {len(numbers)} bytes")
        found[full or f"array{len(found)}"] = np.frombuffer(numbers, dtype).reshape(shape, order="F")
    elif kind == _STRUCT:
        width = struct.unpack_from(f"{order}i", next(elements)[1])[0]
        fields = bytes(next(elements)[1])
        if not 0 < width <= 64:
            raise ValueError("a struct has damaged names")
        names = [fields[at : at + width].split(b"\0")[0].decode("latin-1") for at in range(0, len(fields), width)]
        for at, (kind_, inner) in enumerate(elements):
            if names and kind_ == _MATRIX and at < _MOST:
                row = f"{at // len(names)}." if at >= len(names) else ""
                _collect(inner, order, f"{full}.{row}{names[at % len(names)]}", found, deep - 1)
    elif kind == _CELL:
        for at, (kind_, inner) in enumerate(elements):
            if kind_ == _MATRIX and at < _MOST:
                _collect(inner, order, f"{full}.{at}", found, deep - 1)
