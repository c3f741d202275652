"""What stands where in a table of pixels: separator, header, label, and which columns are the image."""

import re
from collections import Counter
from typing import NamedTuple

from mnist_lightning.data.delimited import BLANKS, Lines, cells_of, number_of
from mnist_lightning.data.digits import MOST_CLASSES
from mnist_lightning.errors import UserError

LABEL = re.compile(
    r"(the |true |class |y )?(labels?|class(es)?|targets?|digits?|y|category|characters?|letters?|symbols?)"
)
INDEX = re.compile(r"|id|(image|row|sample) ?id|index|idx|unnamed 0")
LOOKED_AT = 200  # lines, to tell which column is the label


class Layout(NamedTuple):
    """What stands where in a table of pixels."""

    separator: bytes
    columns: int
    first: int  # number of the first line with an image
    label: int | None  # column of the label
    pixels: list[int]  # columns
    size: tuple[int, ...]  # (H, W) or (H, W, 3)
    words: list[int]  # columns, of those that are no pixels, that hold other than numbers
    told: str  # how the label was found

    @property
    def takes(self) -> str:
        """What a line takes, for who has another."""
        label = "the label" if self.label is not None else "no label"
        return f"a line takes {len(self.pixels)} pixels and {label}, as most do"


def layout_of(start: Lines, more: list[bytes], where: object, label: str) -> Layout | None:
    """That of a table which begins with these lines and has `more` later on; None: it is no table of pixels."""
    rows = [
        row
        for row in zip(start.numbers, start.text.split(b"\n"), strict=False)
        if row[1].partition(b"#")[0].strip() and not row[1].startswith((b"@", b"%"))  # what ARFF has before its lines
    ]
    if not rows:
        return None
    separator = _separator(rows[0][1].partition(b"#")[0])
    table = [cells_of(line, separator) for _, line in rows[: LOOKED_AT + 1]]
    names = [cell.decode("utf-8", "replace") for cell in table[0]] if _is_header(table) else None
    rows, table = (rows[1:], table[1:]) if names else (rows, table)
    columns = len(names) if names else Counter(map(len, table)).most_common(1)[0][0]
    table = [row for row in table if len(row) == columns]
    if not table:
        return None
    others = _numbering(names, table)
    later = [cells_of(line, separator) for line in more]  # the first lines of what is sorted are all of one class
    table += [row for row in later if len(row) == columns]
    rest = [index for index in range(columns) if index not in others]
    if not rest:  # bytes that look like a line of running numbers
        return None
    column, told = _label_column(names, rest, table, label, where)
    pixels = _in_order([index for index in rest if index != column], names)
    size = size_of(len(pixels))
    if size is None or 2 * sum(number_of(table[-1][index]) is not None for index in pixels) < len(pixels):
        return None
    aside = [index for index in (column, *others) if index is not None]
    words = [index for index in aside if _are_words([row[index] for row in table])]
    return Layout(separator, columns, rows[0][0], column, pixels, size, words, told)


def _in_order(pixels: list[int], names: list[str] | None) -> list[int]:
    """The pixels' columns by the numbers in their names, pixel0, pixel1, …; as they stand where they have no such."""
    matches = [re.fullmatch(r"(\D*)(\d+)", names[index].strip()) for index in pixels] if names else [None]
    numbers = [(match[1], int(match[2])) for match in matches if match]
    if len(set(numbers)) < len(matches) or len({before for before, _ in numbers}) > 1:
        return pixels
    return [index for _, index in sorted(zip(numbers, pixels, strict=True))]


def _are_words(cells: list[bytes]) -> bool:
    """Whether there are names in a column; a single one among numbers is a slip, and will be told."""
    words = [cell for cell in cells if number_of(cell) is None]
    return len(set(words)) > 1 or len(words) == len(cells)


def _separator(line: bytes) -> bytes:
    counts = {sign: line.count(sign) for sign in (b"\t", b";", b"|")}
    best = max(counts, key=lambda sign: counts[sign])
    return best if counts[best] > 2 else b"," if b"," in line else BLANKS


def plain(name: str) -> str:
    """A column's name in small letters, whatever parts its words."""
    return re.sub(r"[^a-z0-9]+", " ", name.lower()).strip()


def _is_header(table: list[list[bytes]]) -> bool:
    """Names, or (as programs number columns) numbers that are all distinct, which those of an image are not."""
    cells, *below = table
    words = sum(number_of(cell) is None for cell in cells)
    distinct = len(cells) > 16 and len(set(cells)) == len(cells) and bool(below) and len(set(below[0])) < len(cells)
    return words > 1 or distinct


def _numbering(names: list[str] | None, table: list[list[bytes]]) -> list[int]:
    """The columns that only number the images."""
    if names is not None:
        return [index for index, name in enumerate(names) if INDEX.fullmatch(plain(name))]
    columns, numbers = len(table[0]), [row[0] for row in table]
    counted = any(numbers == [b"%d" % (at + start) for at in range(len(table))] for start in (0, 1))
    square = [size_of(columns - fewer) is not None for fewer in range(3)]
    return [0] if counted and len(table) > 2 and square in ([False, True, False], [False, False, True]) else []


def size_of(pixels: int) -> tuple[int, ...] | None:
    """(H, W), or in colour (H, W, 3), of so many numbers."""
    for channels in ((), (3,)):
        side = round((max(pixels, 0) / (channels or (1,))[0]) ** 0.5)
        if side >= 5 and side * side * (channels or (1,))[0] == pixels:
            return (side, side, *channels)
    return None


# ---------------------------------------------------------------------- which column is the label


def _label_column(
    names: list[str] | None, rest: list[int], table: list[list[bytes]], label: str, where: object
) -> tuple[int | None, str]:
    """The column and what is to be said about it; `label` is the setting."""
    if label in ("first", "last"):
        return rest[0 if label == "first" else -1], f"label {label}"
    if label == "none":
        return None, ""
    if label != "auto":
        if names is None or label not in names:
            raise UserError(f"{where} has no column {label!r}: --data.label takes first, last, none or a column's name")
        return names.index(label), f"label in column {label}"
    if names is not None:
        known = [index for index in rest if LABEL.fullmatch(plain(names[index]))]
        if not known and size_of(len(rest)) is None:  # the one column that is called otherwise than all pixels
            known = [index for index in (rest[0], rest[-1]) if not re.search(r"\d", names[index])]
        if len(known) == 1:
            return known[0], f"label in column {names[known[0]]}"
    if size_of(len(rest)) is not None or len(rest) < 2:
        return None, ""
    return _first_or_last(rest[0], rest[-1], table)


def _first_or_last(first: int, last: int, table: list[list[bytes]]) -> tuple[int, str]:
    """By the values: labels are few, and spread; the pixel of a corner is mostly the paper."""
    shares = {column: _largest_share([row[column] for row in table]) for column in (first, last)}
    column = min(shares, key=lambda column: shares[column])
    name, other = ("first", "last") if column == first else ("last", "first")
    doubtful = shares[first + last - column] < 0.9 or shares[column] > 0.9
    return column, f"label {name}" + (f"; --data.label {other} takes the {other} column for it" if doubtful else "")


def _largest_share(cells: list[bytes]) -> float:
    """How many of a column's values are its most frequent one; above 1 where they can hardly be labels."""
    counts = Counter(cells)
    values = {number_of(cell) for cell in counts}
    fractions = [value for value in values if value is not None and not value.is_integer()]
    if len(counts) > MOST_CLASSES or len(fractions) > 1:
        return 3.0
    return max(counts.values()) / len(cells) + (values <= {0.0, 255.0})  # what corners are full of
