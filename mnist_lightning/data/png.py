"""PNG files of the plain kind (8 bits, grey or RGB, not interlaced), many at once.

Pillow takes longer to open such a small file than to decode it, and lets no other thread run meanwhile; torchvision's
decoder ends the process where a file is damaged. Whatever is not plain, or not whole, is left to Pillow.
"""

import struct
import zlib
from typing import NamedTuple

import numpy as np

_CHANNELS = {
    b"\x08\x00\x00\x00\x00": 1,
    b"\x08\x02\x00\x00\x00": 3,
}  # depth, colour, packing, filter, interlace
_WITHOUT_EFFECT = {b"pHYs", b"tEXt", b"zTXt", b"iTXt", b"tIME", b"gAMA", b"sRGB", b"cHRM", b"iCCP", b"sBIT", b"bKGD"}


class Rows(NamedTuple):
    """The unpacked content of a file: each row of pixels after the number of its filter."""

    shape: tuple[int, int, int]  # high, wide, channels
    content: bytes


def rows_of(data: bytes, most: int) -> Rows | None:
    """None where it is not plain, not whole, or has over `most` pixels."""
    channels = _CHANNELS.get(data[24:29])
    if channels is None or data[:16] != b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR":
        return None
    wide, high = struct.unpack_from(">II", data, 16)
    packed, at = b"", 8
    while True:
        if at + 12 > len(data):
            return None
        size, name = struct.unpack_from(">I4s", data, at)
        body = data[at + 8 : at + 8 + size]
        if data[at + 8 + size : at + 12 + size] != struct.pack(">I", zlib.crc32(body, zlib.crc32(name))):
            return None
        if name == b"IDAT":
            packed += body
        elif name == b"IEND":
            break
        elif name not in _WITHOUT_EFFECT and at > 8:
            return None
        at += 12 + size
    size = high * (1 + wide * channels)
    if not 0 < wide * high <= most:
        return None
    unpacking = zlib.decompressobj()
    try:
        content = unpacking.decompress(packed, size + 1)
    except zlib.error:
        return None
    whole = len(content) == size and unpacking.eof and max(content[:: 1 + wide * channels]) <= 4
    return Rows((high, wide, channels), content) if whole else None


def pixels_of(files: list[Rows]) -> np.ndarray:
    """uint8 [n, H, W], or [n, H, W, 3], of files of one shape."""
    high, wide, channels = files[0].shape
    rows = np.frombuffer(b"".join(file.content for file in files), np.uint8).reshape(len(files), high, -1)
    # a row, a pixel after the other, is a contiguous block of all images
    made = np.ascontiguousarray(rows[:, :, 1:].reshape(len(files), high, wide, channels).transpose(1, 2, 0, 3))
    above = np.zeros_like(made[0])
    for row, kinds in zip(made, rows[:, :, 0].T, strict=True):
        for kind in np.unique(kinds):
            if kind:
                which = np.flatnonzero(kinds == kind)
                row[:, which] = _FILTERS[int(kind) - 1](row[:, which], above[:, which])
        above = row
    images = np.ascontiguousarray(made.transpose(2, 0, 1, 3))
    return images[..., 0] if channels == 1 else images


# ------------------------------------------------------------------ filters of a row and the one above, uint8 [W, n, C]


def _sub(row: np.ndarray, above: np.ndarray) -> np.ndarray:
    return np.cumsum(row, axis=0, dtype=np.uint8)


def _up(row: np.ndarray, above: np.ndarray) -> np.ndarray:
    return row + above


def _average(row: np.ndarray, above: np.ndarray) -> np.ndarray:
    left = np.zeros_like(row[0])
    for at, up in enumerate(above):
        row[at] += ((left.astype(np.uint16) + up) >> 1).astype(np.uint8)
        left = row[at]
    return row


def _paeth(row: np.ndarray, above: np.ndarray) -> np.ndarray:
    """Each pixel is told from whichever of left, up and up-left is nearest to left + up - up-left."""
    left = corner = np.zeros(row.shape[1:], np.int16)
    for at, up in enumerate(above.astype(np.int16)):
        to_left, to_up = up - corner, left - corner
        to_corner = np.abs(to_left + to_up)
        to_left, to_up = np.abs(to_left), np.abs(to_up)
        best = np.where(to_up <= to_corner, up, corner)
        best = np.where((to_left <= to_up) & (to_left <= to_corner), left, best)
        row[at] += best.astype(np.uint8)
        left, corner = row[at].astype(np.int16), up
    return row


_FILTERS = (_sub, _up, _average, _paeth)
