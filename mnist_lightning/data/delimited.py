"""Lines of numbers parted by a separator, read in pieces: strict, and fast with NumPy alone."""

import codecs
import re
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import numpy as np

from mnist_lightning.errors import UserError

PIECE = 1 << 20  # bytes of text at once
LONGEST_LINE = 1 << 20
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
BLANKS = b" "  # as a separator it stands for any number of blanks and tabs
_NUMBER = re.compile(rb"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


class Lines(NamedTuple):
    """Some whole lines, each of them ended."""

    text: bytes
    numbers: range | list[int]  # of each line, from 1


def pieces(file: BinaryIO, where: object) -> Iterator[Lines]:
    """The lines of a file, some megabytes at a time."""
    number, rest = 1, b""
    for piece in _utf8(file, where):
        text = rest + piece if rest or number > 1 else piece.removeprefix(b"\xef\xbb\xbf")  # a byte-order mark
        end = text.rfind(b"\n") + 1
        if len(text) - end > LONGEST_LINE:
            line = number + text.count(b"\n")
            raise UserError(f"{where}, line {line} is over {LONGEST_LINE} bytes long: a line takes one image")
        if end:
            count = text.count(b"\n", 0, end)
            yield Lines(text[:end].replace(b"\r\n", b"\n"), range(number, number + count))
            number += count
        rest = text[end:]
    if rest:
        yield Lines(rest.removesuffix(b"\r") + b"\n", range(number, number + 1))


def _utf8(file: BinaryIO, where: object) -> Iterator[bytes]:
    """The pieces of a file; of one in UTF-16, as spreadsheets save it, in UTF-8."""
    is_utf16 = file.peek(2).startswith(UTF16)  # type: ignore[attr-defined]
    decoder = codecs.getincrementaldecoder("utf-16")() if is_utf16 else None
    while piece := file.read(PIECE):
        try:
            yield decoder.decode(piece).encode() if decoder else piece
        except UnicodeError as error:
            raise UserError(f"{where} is damaged UTF-16 text ({error}): save it as UTF-8") from error


def cells_of(line: bytes, separator: bytes) -> list[bytes]:
    """The values of a line, without blanks and quotes around them; none of a comment's."""
    bare = (line.partition(b"#")[0] if b"#" in line else line).rstrip().lstrip(b" ")  # a tab before all is a separator
    if not bare:
        return []
    cells = bare.split() if separator == BLANKS else bare.split(separator)
    return [_unquoted(cell.strip()) for cell in cells]


def _unquoted(cell: bytes) -> bytes:
    quoted = len(cell) > 1 and cell[:1] == cell[-1:] and cell[:1] in (b'"', b"'")
    return cell[1:-1].strip() if quoted else cell


def bare(lines: Lines, separator: bytes) -> Lines:
    """The same without empty lines, comments, quotes, and blanks around values."""
    numbers, kept = [], []
    for number, line in zip(lines.numbers, lines.text.split(b"\n"), strict=False):
        if cells := cells_of(line, separator):
            numbers.append(number)
            kept.append(separator.join(cells))
    return Lines(b"\n".join([*kept, b""]), numbers)


def values_of(text: bytes, separator: bytes, columns: int) -> np.ndarray | None:
    """uint8 or float64 [lines, columns]; None where anything stands there but plain numbers, `columns` on each line."""
    found = _bytes_of(text, separator, columns)
    return _floats_of(text, separator, columns) if found is None else found


def _bytes_of(text: bytes, separator: bytes, columns: int) -> np.ndarray | None:
    """Of whole numbers from 0 to 255."""
    digits = np.frombuffer(b"00" + text, np.uint8) - np.uint8(48)  # so that a value of one digit has two before it
    breaks = np.flatnonzero(digits > 9)
    if not _regular(breaks, digits + np.uint8(48), separator, columns):
        return None
    lengths = np.diff(breaks, prepend=1)
    if lengths.min() < 2 or lengths.max() > 4:
        return None
    values = digits[breaks - 1].astype(np.uint16)
    values += 10 * (digits[breaks - 2] * (lengths > 2)).astype(np.uint16)
    values += 100 * (digits[breaks - 3] * (lengths > 3)).astype(np.uint16)
    return values.astype(np.uint8).reshape(-1, columns) if values.max() <= 255 else None


def _regular(breaks: np.ndarray, text: np.ndarray, separator: bytes, columns: int) -> bool:
    """Whether what ends the values are separators, and the end of the line after each `columns` of them."""
    if len(breaks) == 0 or len(breaks) % columns:
        return False
    ends = text[breaks].reshape(-1, columns)
    return bool((ends[:, :-1] == separator[0]).all() and (ends[:, -1] == 10).all())


def _floats_of(text: bytes, separator: bytes, columns: int) -> np.ndarray | None:
    if separator == b";" and b"," in text:  # as spreadsheets write it where numbers have a decimal comma
        text = text.replace(b",", b".")
    if text.translate(None, b"0123456789.+-eE\n" + separator):
        return None
    characters = np.frombuffer(text, np.uint8)
    breaks = np.flatnonzero((characters == separator[0]) | (characters == 10))
    if not _regular(breaks, characters, separator, columns):
        return None
    try:
        values = np.array([*map(_Known().__getitem__, text.replace(b"\n", separator).split(separator)[:-1])])
    except ValueError:
        return None
    return values.reshape(-1, columns) if np.isfinite(values).all() else None


class _Known(dict[bytes, float]):
    """What texts of numbers say; most of an image's occur often, and looking one up is faster than reading it."""

    def __missing__(self, text: bytes) -> float:
        value = self[text] = float(text)
        return value


def refuse(lines: Lines, separator: bytes, columns: int, label: int | None, where: object, takes: str) -> None:
    """Raises a UserError that names the first line, and the value in it, that is not as it should be."""
    for number, line in zip(lines.numbers, lines.text.split(b"\n"), strict=False):
        cells = line.split(separator)
        if len(cells) != columns:
            raise UserError(f"{where}, line {number} has {len(cells)} values, expected {columns}: {takes}")
        for column, cell in enumerate(cells):
            value = number_of(cell)
            right = value is not None and (value.is_integer() if column == label else 0 <= value <= 255)
            if not right:
                shown = f"{cell[:20]!r}"[1:]  # shows no controls
                problem = "no whole number, as labels before are" if column == label else "no number from 0 to 255"
                raise UserError(f"{where}, line {number}, value {column + 1}: {shown} is {problem}: correct it")


def number_of(cell: bytes) -> float | None:
    """The number that a cell holds, with a decimal point or a decimal comma."""
    plain = cell.replace(b",", b".")
    return float(plain) if _NUMBER.fullmatch(plain) else None
