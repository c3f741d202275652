"""metrics.csv: one table a run, which a resumed run continues without a row lost or doubled."""

import csv
import errno
import io
import os
import time
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from mnist_lightning.console import say
from mnist_lightning.errors import UserError
from mnist_lightning.files import give_name, write_whole

FIRST = ["epoch", "step"]  # columns; every other comes with the first row that has its name


class MetricsCSV(Logger):
    """A row for each step, a column for each name. (Lightning's CSVLogger starts over when a run is resumed.)

    What is logged is in the file at once, by a single write: a new last row, or, if the last is of the same step and
    lacks these names, that row again with more cells filled, never shorter. A new name has the file written anew,
    whole. So there is no moment at which a killed process loses a row.
    """

    name = version = ""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._columns: list[str] | None = None  # None: the file has not been looked at
        self._last: list[str] = []  # cells of the last row
        self._waiting: list[dict[str, str]] = []  # rows that could not be written yet
        self._told = False  # that they could not

    @property
    def save_dir(self) -> str:
        return str(self.path.parent)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """config.yaml has them."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        self._waiting.append({_text(name): _text(value) for name, value in {**metrics, "step": step}.items()})
        self.save()

    @rank_zero_only
    def save(self) -> None:
        """Writes the rows that wait. A file that cannot be written is said, and tried again with the next row."""
        try:
            while self._waiting:
                self._write(self._waiting[0])
                del self._waiting[0]
            self._told = False
        except (OSError, UserError) as error:
            self._columns = None  # to be looked at again
            if not self._told:
                why = error.strerror if isinstance(error, OSError) else error
                say(f"{self.path} cannot be written ({why}): the training goes on, its rows wait for the file")
            self._told = True

    def _write(self, row: dict[str, str]) -> None:
        columns = self._look()
        if new := [name for name in dict.fromkeys([*FIRST, *row]) if name not in columns]:
            rows = [line + b"," * len(new) + b"\n" for line in self._read(self.path).splitlines()[1:]]
            write_whole(b"".join([_line(columns + new), *rows]), self.path)
            self._columns = None
            columns = self._look()
        cells = [row.get(name, "") for name in columns]
        merged = [old or cell for old, cell in zip(self._last, cells, strict=False)]
        at = columns.index("step")
        same = bool(self._last) and row["step"] != "" and self._last[at] == cells[at]
        again = same and all(cell in ("", both) for cell, both in zip(cells, merged, strict=True))
        before = _line(self._last) if again else b""
        cells = merged if again else cells
        with self.path.open("r+b", buffering=0) as file:
            place = file.seek(-len(before), os.SEEK_END)
            line = _line(cells)
            try:
                if file.write(line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                file.seek(place)  # no half row
                file.write(before)
                file.truncate()
                raise
        self._last = cells

    @rank_zero_only
    def position(self) -> dict[str, Any]:
        """What a checkpoint remembers of the table: enough to make it again from what becomes of it."""
        try:
            data, columns = self._read(self.path), len(self._look())
        except OSError:
            return {"columns": 0, "rows": 0, "last": [], "crc32": 0}
        rows = data.count(b"\n") - 1 if columns else 0
        return {"columns": columns, "rows": rows, "last": list(self._last), "crc32": zlib.crc32(data)}

    @rank_zero_only
    def rewind(self, position: dict[str, Any], origin: Path) -> None:
        """Continues the table of `origin` from `position`: rows after it will be written again."""
        columns, count = position["columns"], position["rows"]
        data = b""
        if columns and not origin.is_file():
            say(f"{origin} is not there: the table begins with what is trained now")
        elif columns:
            lines = self._read(origin).splitlines(keepends=True)[: count + 1]
            if lines and len(_cells(lines[0])) != columns:  # it has grown since
                lines = [_line(_cells(line)[:columns]) for line in lines]
            if count and len(lines) == count + 1:  # its last row may have been filled further
                lines[-1] = _line(position["last"])
            data = b"".join(lines)
            if zlib.crc32(data) != position["crc32"]:
                data = b""
                aside = origin.with_name(f"{origin.stem}-{int(time.time())}.csv")
                if origin == self.path:
                    give_name(origin, aside)
                say(
                    f"{origin} is not the table that the checkpoint belongs to: the table begins with what is trained "
                    "now" + (f"; the other is kept as {aside}" if origin == self.path else "")
                )
        try:
            write_whole(data, self.path)
        except UserError as error:  # if no checkpoint can be written either, that is said when it is
            say(f"{error}; the training goes on without its rows")
        self._columns = None

    def _look(self) -> list[str]:
        """The columns; none before the first row."""
        if self._columns is None:
            header, *rows = self._read(self.path).splitlines() or [b""]
            self._columns = _cells(header)
            self._last = _cells(rows[-1]) if rows else []
        return self._columns

    @staticmethod
    def _read(path: Path) -> bytes:
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return b""


def _text(value: Any) -> str:
    """A cell's text, on one line."""
    value = value.tolist() if hasattr(value, "tolist") else value  # of a tensor, an array, a NumPy number
    return "" if value is None else " ".join(str(value).splitlines())


def _line(cells: Iterable[str]) -> bytes:
    line = io.StringIO()
    if cells:
        csv.writer(line, lineterminator="\n").writerow(cells)
    return line.getvalue().encode()


def _cells(line: bytes) -> list[str]:
    return next(csv.reader([line.decode(errors="replace")]), [])
