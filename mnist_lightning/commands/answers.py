"""How readings are told: on a screen, as lines for other programs, as JSON, as a table, as pictures."""

import csv
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from PIL import Image
from rich.console import Group
from rich.style import Style
from rich.table import Table
from rich.text import Text
from torch import Tensor

from mnist_lightning.console import console
from mnist_lightning.files import unwritable
from mnist_lightning.reading import Reading

COLUMNS = ("file", "digit", "word", "confidence", "runner_up", "status", "number")
WITH_IMAGES = 8  # so many readings on a screen are shown with what the network saw
TELLS = {
    "blank": "nothing is on it",
    "none": "no digit on it",
    "unsure": "unsure",
    "number": "a number",
    "unreadable": "unreadable",
}


def printable(name: str) -> str:
    """A file's name without what could move a terminal's cursor, or is not text."""
    name = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in name)


def as_json(reading: Reading) -> None:
    """An object a line."""
    print(json.dumps(reading.row()))


def as_line(reading: Reading) -> None:
    """Columns parted by tabs: file, digit or number, word, confidence, runner-up, status; of an unreadable one, why."""
    confidence = "" if reading.confidence is None else f"{reading.confidence:.4f}"
    cells = [printable(reading.file), reading.name, reading.word, confidence, reading.runner_up, reading.status]
    print("\t".join(cell or "" for cell in [*cells, *[reading.reason] * bool(reading.reason)]))


class AsTable:
    """CSV, or Kaggle's form of a submission."""

    def __init__(self, file: TextIO, kaggle: bool) -> None:
        self._writer, self._kaggle, self._row = csv.writer(file, lineterminator="\n"), kaggle, 0
        self._writer.writerow(("ImageId", "Label") if kaggle else COLUMNS)

    def __call__(self, reading: Reading) -> None:
        self._row += 1
        if self._kaggle:
            return self._writer.writerow((self._row, reading.name))
        row = reading.row() | {"file": printable(reading.file)}
        self._writer.writerow([row.get(column) for column in COLUMNS])


class Saved:
    """Writes what the network saw as PNG files: a picture's name, then .seen.png."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._names = folder, set[str]()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(folder, error) from error

    def __call__(self, reading: Reading) -> None:
        for number, part in enumerate(reading.parts, 1):
            name = re.sub(r"\.\w+$", "", Path(reading.file).name)
            name = ("stdin" if name == "-" else name) + (f"-{number}" if len(reading.parts) > 1 else "")
            path = self._folder / f"{self._new(name)}.seen.png"
            try:
                Image.fromarray(part.numpy()).save(path)
            except OSError as error:
                raise unwritable(path, error) from error

    def _new(self, name: str) -> str:
        """The name, with a number where another picture has it."""
        found, number = name, 1
        while found in self._names:
            number += 1
            found = f"{name}-{number}"
        self._names.add(found)
        return found


# ---------------------------------------------------------------------- on a screen


def to_screen() -> Callable[[Reading], None]:
    """For a person at a terminal, the first few with what the network saw; else lines for other programs."""
    if not sys.stdout.isatty():
        return as_line
    shown = 0

    def tell(reading: Reading) -> None:
        nonlocal shown
        shown += 1
        if shown <= WITH_IMAGES and reading.parts and console.encoding.lower().startswith("utf"):
            return _with_image(reading)
        console.print(_sentence(reading, below=False), soft_wrap=True)

    return tell


def _with_image(reading: Reading) -> None:
    images = [half_blocks(part) for part in reading.parts[: max(1, console.width // 30)]]
    grid = Table.grid(padding=(0, 2))
    if len(images) == 1 and console.width >= 60:
        grid.add_row(images[0], Group(Text("\n" * 4), _sentence(reading, below=True)))
        console.print(grid)
    else:
        grid.add_row(*images)
        console.print(grid)
        console.print(_sentence(reading, below=False), soft_wrap=True)


def _sentence(reading: Reading, below: bool) -> Text:
    """What a picture says, in a line, or one part below the other."""
    styles = {"ok": "bold green", "number": "bold green", "unsure": "bold yellow"}
    said = [Text(printable(reading.file), "cyan")]
    if reading.name is not None:
        word = "" if reading.word == reading.name else f" {reading.word}"
        said.append(Text(f"{reading.name}{word}", styles[reading.status]))
    if reading.status != "ok":
        reason = f": {reading.reason}" if reading.reason else ""
        said.append(Text(f"{TELLS[reading.status]}{reason}", "yellow" if reading.status != "unreadable" else "red"))
    if reading.confidence is not None:
        then = f", else {reading.runner_up}" if reading.runner_up else ""
        share = ">99.9%" if reading.confidence > 0.999 else f"{reading.confidence:.1%}"
        said.append(Text(f"{share}{then}", "dim"))
    return Text("\n" if below else "  ").join(said)


def half_blocks(image: Tensor) -> Text:
    """uint8 [28, 28] as 14 lines of 28 cells, each of which is two pixels."""
    plain = console.color_system is None
    rows = image.tolist()
    drawn = Text()
    for upper, lower in zip(rows[::2], rows[1::2], strict=True):
        for top, bottom in zip(upper, lower, strict=True):
            if plain:
                drawn.append(" ▄▀█"[2 * (top > 127) + (bottom > 127)])
            else:
                drawn.append("▀", Style(color=f"rgb({top},{top},{top})", bgcolor=f"rgb({bottom},{bottom},{bottom})"))
        drawn.append("\n")
    return drawn
