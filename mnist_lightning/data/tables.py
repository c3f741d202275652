"""Tables of pixels: CSV, TSV and text, an image a line, with or without header and label, plain or packed."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch

from mnist_lightning.data.columns import Layout, layout_of
from mnist_lightning.data.delimited import UTF16, Lines, bare, pieces, refuse, values_of
from mnist_lightning.data.digits import ARRAYS, PICTURES, SIDE, Digits, Part, digits_of, fitted, kind_of, scaling
from mnist_lightning.data.packed import Item, Unpacked, items_of, unpacked
from mnist_lightning.errors import UserError
from mnist_lightning.files import whole_file

Scale = tuple[float, float]  # what is added to a pixel, and what it is then multiplied with


def recognise(root: Path, files: list[Path], label: str = "auto") -> list[Part]:
    """The tables of pixels among `files`. `label`: auto, first, last, none, or the name of a column."""
    return [part for file in files if _may_be(file.name) for part in _parts(root, file, label)]


def _may_be(name: str) -> bool:
    return Path(name).suffix.lower() not in PICTURES | ARRAYS


def _parts(root: Path, file: Path, label: str) -> Iterator[Part]:
    for item in items_of(file):
        if not _may_be(item.member):
            continue
        where = file / item.member  # as if it were unpacked
        try:
            layout = _layout(item, label)
        except UserError:
            continue  # not text, or none that this can read
        if layout:
            form = {b",": "CSV", b";": "CSV", b"\t": "TSV"}.get(layout.separator, "text")
            told = f" ({layout.told})" if layout.told else ""
            read = partial(_read, item, layout)
            yield Part(where, form + told, read, kind_of(where, root), None, layout.size, layout.label is not None)


def _layout(item: Item, label: str) -> Layout | None:
    with unpacked(item) as source:
        start = next(pieces(source.file, item), None)
        return layout_of(start, _later(source), item, label) if start else None


def _later(source: Unpacked) -> list[bytes]:
    """Some lines from all over a file, if it is a large one that is not packed."""
    lines: list[bytes] = []
    if source.size <= 1 << 20 or source.packing:
        return lines
    source.file.seek(0)
    for eighth in range(1, 8) if source.file.read(2) not in UTF16 else ():
        source.file.seek(source.size * eighth // 8)
        lines += source.file.read(1 << 15).split(b"\n")[1:-1]
    return lines


# ---------------------------------------------------------------------- reading and writing


def _read(item: Item, layout: Layout) -> Digits:
    """All digits of a table. Where its numbers turn out to have another range than at first, it is read again."""
    scale = None
    while True:
        images, labels, used, right = _read_as(scale, item, layout)
        if used == right:
            return digits_of(images, labels, item)
        scale = right


def _read_as(scale: Scale | None, item: Item, layout: Layout) -> tuple:
    """Images, labels, the scale that made the pixels (given, or that of the first lines), and the right one."""
    pixels, labels, low, high = bytearray(), [], np.inf, -np.inf
    for lines, values, names in _blocks(item, layout):
        first, last = layout.pixels[0], layout.pixels[-1]
        in_a_row = layout.pixels == list(range(first, last + 1))
        block = values[:, first : last + 1] if in_a_row else values[:, layout.pixels]
        low, high = min(low, float(block.min())), max(high, float(block.max()))
        try:
            right = scaling(low, high, np.dtype(float), layout.size[0], item)
        except UserError:
            refuse(lines, layout.separator, layout.columns, layout.label, item, layout.takes)
            raise
        scale = scale or right
        shift, factor = scale
        if block.dtype != np.uint8 or scale != (0.0, 1.0):
            block = ((block + shift) * factor).round().clip(0, 255).astype(np.uint8)
        pixels += fitted(torch.from_numpy(np.ascontiguousarray(block)).view(-1, *layout.size)).numpy().tobytes()
        labels += [names if names is not None else values[:, layout.label].copy()] if layout.label is not None else []
    if not pixels:
        raise UserError(f"{item} holds no images: get it anew")
    images = np.frombuffer(pixels, np.uint8).reshape(-1, SIDE, SIDE)
    return images, np.concatenate(labels) if labels else None, scale, right


def _blocks(item: Item, layout: Layout) -> Iterator[tuple[Lines, np.ndarray, np.ndarray | None]]:
    """Some lines, their numbers [n, columns], and their labels where those are words (then 0 among the numbers)."""
    with unpacked(item) as source:
        read = 0
        for lines in pieces(source.file, item):
            read += len(lines.text)
            source.check(read, f"{item} unpacks to over {read:,} bytes")
            if lines.numbers[0] < layout.first:
                skipped = layout.first - lines.numbers[0]
                lines = Lines(lines.text.split(b"\n", skipped)[-1], lines.numbers[skipped:])
            values = None if layout.words else values_of(lines.text, layout.separator, layout.columns)
            if values is not None and _whole(values, layout):
                yield lines, values, None
            elif (lines := bare(lines, layout.separator)).numbers:
                yield _with_care(lines, item, layout)


def _with_care(lines: Lines, item: Item, layout: Layout) -> tuple[Lines, np.ndarray, np.ndarray | None]:
    """The same of lines with words for labels, quotes or the like; what is wrong with one is told."""
    names = None
    if layout.words:
        lines, names = _without_words(lines, layout)
    values = values_of(lines.text, layout.separator, layout.columns)
    if values is None or not _whole(values, layout):
        refuse(lines, layout.separator, layout.columns, layout.label, item, layout.takes)
        raise UserError(f"{item}, lines {lines.numbers[0]} to {lines.numbers[-1]}: no numbers: correct them")
    return lines, values, names


def _whole(values: np.ndarray, layout: Layout) -> bool:
    """Whether labels are whole numbers."""
    if layout.label is None or values.dtype == np.uint8:
        return True
    labels = values[:, layout.label]
    return bool((labels == np.floor(labels)).all())


def _without_words(lines: Lines, layout: Layout) -> tuple[Lines, np.ndarray | None]:
    """The lines with 0 in the place of each word, and the labels where they are words."""
    table = [line.split(layout.separator) for line in lines.text.split(b"\n")[:-1]]
    whole = [cells for cells in table if len(cells) == layout.columns]
    names = None
    if layout.label in layout.words:
        names = np.array([cells[layout.label].decode("utf-8", "replace") for cells in whole])
    for cells in whole:
        for column in layout.words:
            cells[column] = b"0"
    text = b"".join(layout.separator.join(cells) + b"\n" for cells in table)
    return Lines(text, lines.numbers), names


def read_text(path: Path) -> Digits:
    """Digits from a table of pixels, as `--data.train_file` names it."""
    item = items_of(path)[0]
    layout = _layout(item, "auto")
    if layout and (digits := _read(item, layout)).labels is not None:
        return digits
    raise UserError(f"{path} holds no digits: a line takes 784 pixels and the label, parted by tabs, commas or blanks")


_TEXT = [b"%d" % value for value in range(256)]


def write_text(digits: Digits, path: Path) -> None:
    """Writes lines of 784 pixels and the label, parted by tabs; the file appears whole or not at all."""
    with whole_file(path) as file:
        file.write(b"# %d digits: 28 rows of 28 pixels (0 to 255), then the label\n" % len(digits.labels))
        for image, label in zip(digits.images, digits.labels.tolist(), strict=True):
            file.write(b"\t".join([_TEXT[value] for value in (*image.flatten().tolist(), label)]) + b"\n")
