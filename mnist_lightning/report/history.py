"""History: what a run wrote while it was trained, read from its folder alone. No torch is imported."""

import csv
import json
import math
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mnist_lightning.run import Run

MOST_EPOCHS = 10**7  # a row with more is damaged
SPLITS = ("train", "val", "test")
MEASURES = {"accuracy": "acc", "loss": "loss"}  # as columns call them: train_acc, val_loss, …
Row = dict[str, str]


@dataclass
class Point:
    """A moment of the training: epochs that were done (2.5: in the midst of the third) and training examples seen."""

    epoch: float
    images: float | None
    value: float


@dataclass
class History:
    """The table of a run, its result, its starts.

    `epochs`: the last value of each column in each epoch, counted from 1; `curves`: by column ("val_acc") the points;
    `resumed`: where, in epochs, the training was gone on with; `damaged`: rows that are none.
    """

    name: str
    epochs: dict[int, Row] = field(default_factory=dict)
    curves: dict[str, list[Point]] = field(default_factory=dict)
    resumed: list[float] = field(default_factory=list)
    sessions: list[dict[str, Any]] = field(default_factory=list)
    result: dict[str, Any] = field(default_factory=dict)
    damaged: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def seconds(self) -> float | None:
        """Seconds of training, of all its starts together; None if they were not recorded."""
        known = [session["seconds"] for session in self.sessions if session["seconds"] is not None]
        return sum(known) if known else None

    @property
    def images_per_epoch(self) -> float | None:
        """Training examples of one epoch, where they were counted."""
        counted = [point for points in self.curves.values() for point in points if point.images and point.epoch]
        last = max(counted, key=lambda point: point.epoch, default=None)
        return last.images / last.epoch if last and last.images else None


def read_history(run: Run) -> History:
    """All that can be read of it; what cannot is in `damaged` and `notes`."""
    history = History(run.name)
    rows, history.damaged = _rows(run.table, history.notes)
    history.epochs = _epochs(rows)
    history.result = _result(run.result, history.notes)
    history.sessions = read_sessions(run.folder / "sessions.jsonl")
    steps = _steps_per_epoch(rows)
    history.curves = _curves(rows, steps)
    if rate := history.images_per_epoch:
        for point in (point for points in history.curves.values() for point in points if point.images is None):
            point.images = point.epoch * rate  # a validation inside an epoch
    starts = [session["step"] for session in history.sessions]
    history.resumed = sorted({step / steps for step in starts if step}) if steps else []
    if history.damaged:
        rows_are = "row of metrics.csv is" if history.damaged == 1 else "rows of metrics.csv are"
        history.notes.append(f"{history.damaged} {rows_are} damaged and left out")
    return history


def number(text: Any) -> float | None:
    """A finite number, or None."""
    with suppress(TypeError, ValueError):
        return value if math.isfinite(value := float(text)) else None
    return None


# ---------------------------------------------------------------------- metrics.csv


def _rows(table: Path, notes: list[str]) -> tuple[list[Row], int]:
    """The rows, each with its "epoch", counted from 0; how many are damaged. One without an epoch has that before it.

    They can have any columns, of which the empty cells are left out.
    """
    try:
        text = table.read_bytes().decode(errors="replace").replace("\0", "\ufffd")
    except FileNotFoundError:  # killed before its first row
        return [], 0
    except OSError as error:
        notes.append(f"metrics.csv cannot be read: {error.strerror or error}")
        return [], 0
    header, *lines = text.splitlines() or [""]
    columns, rows, damaged, epoch = _cells(header), [], 0, 0
    for line in lines:
        cells = _cells(line)
        row = {name: cell for name, cell in zip(columns, cells, strict=False) if name and cell}
        given = number(row.get("epoch", epoch))
        if len(cells) != len(columns) or "\ufffd" in line or given is None or not 0 <= given < MOST_EPOCHS:
            damaged += 1
            continue
        epoch = int(given)
        rows.append(row | {"epoch": str(epoch)})
    return rows, damaged


def _cells(line: str) -> list[str]:
    try:
        return next(csv.reader([line]), [])
    except csv.Error:
        return []


def _epochs(rows: list[Row]) -> dict[int, Row]:
    """What each epoch came to: the last value of each column but for those of single steps."""
    epochs: dict[int, Row] = {}
    for row in rows:
        kept = {name: value for name, value in row.items() if not name.endswith("_step")}
        epochs.setdefault(int(row["epoch"]) + 1, {}).update(kept)  # Lightning counts from 0
    for row in epochs.values():
        for name in ("epoch", "step"):
            row.pop(name, None)
    return {epoch: row for epoch, row in epochs.items() if row.keys() - {"images", "lr"}}  # none of one just begun


def _steps_per_epoch(rows: list[Row]) -> float | None:
    """Optimizer steps of an epoch, from the rows at epochs' ends; else from those inside, at least."""
    at = [(int(row["epoch"]), step, row) for row in rows if (step := number(row.get("step"))) is not None and step >= 0]
    ends = [(step + 1) / (epoch + 1) for epoch, step, row in at if any(f"train_{m}" in row for m in MEASURES.values())]
    return max(ends or [(step + 1) / (epoch + 1) for epoch, step, _ in at], default=None)


def _curves(rows: list[Row], steps: float | None) -> dict[str, list[Point]]:
    """The points of each column that is a loss or an accuracy, in the order of the training."""
    curves: dict[str, list[Point]] = {}
    names = [f"{split}_{short}" for split in SPLITS for short in MEASURES.values()] + ["train_loss_step"]
    for row in rows:
        step, images = number(row.get("step")), number(row.get("images"))
        done = (step + 1) / steps if steps and step is not None and step >= 0 else int(row["epoch"]) + 1.0
        if row.get("step") == "0" and images == 0:  # what an untrained network reads
            done = 0.0
        for name in names:
            if (value := number(row.get(name))) is not None:
                curves.setdefault(name, []).append(Point(done, images, value))
    return curves


# ---------------------------------------------------------------------- other files


def _result(file: Path, notes: list[str]) -> dict[str, Any]:
    """test.json, if it holds an accuracy."""
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}  # not tested yet
    except (OSError, ValueError, RecursionError):
        result = None
    if isinstance(result, dict) and ("accuracy" not in result or number(result["accuracy"]) is not None):
        return result
    notes.append("test.json is damaged and left out")
    return {}


def read_sessions(file: Path) -> list[dict[str, Any]]:
    """Each start of the training: its step, machine, versions, seconds until its last epoch's end."""
    sessions: list[dict[str, Any]] = []
    with suppress(OSError):
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            with suppress(ValueError, RecursionError):
                event = json.loads(line)
                if not isinstance(event, dict):
                    continue
                step, seconds = number(event.get("step")), number(event.get("seconds"))
                if "machine" in event:
                    sessions.append({**event, "step": int(step or 0), "seconds": None})
                elif sessions and seconds is not None:
                    sessions[-1]["seconds"] = seconds
    return sessions
