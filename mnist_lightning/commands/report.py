"""What the runs came to, from the files of their folders alone: no torch is imported."""

import csv
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from mnist_lightning.console import console, say
from mnist_lightning.errors import BadSetting, UserError, nearest
from mnist_lightning.processes import Signals
from mnist_lightning.run import Run
from mnist_lightning.words import pairs_of_words

USAGE = """usage: python -m mnist_lightning report [--run NAME] [--trainer.default_root_dir FOLDER]

A table of all runs in FOLDER (checkpoints), or of the epochs of one.
"""
DAMAGED = (AttributeError, LookupError, TypeError, ValueError, csv.Error)  # what such a file comes to
# Columns of the table, in this order, and how they are written
SHOWN = {"images": ",.0f", "lr": ".3g"}
for split in ("train", "val", "test"):
    SHOWN |= {f"{split}_acc": ".2%", f"{split}_loss": ".4f"}


def command(name: str, words: list[str], signals: Signals) -> None:
    """A table of all runs, or of the epochs of one."""
    asked = dict(pairs_of_words(words))
    if "help" in asked:
        print(USAGE, end="")
        return
    for name in asked.keys() - {"run", "trainer.default_root_dir", "debug"}:
        raise BadSetting(f"there is no flag --{name}; {nearest(name, ['--run', '--trainer.default_root_dir'])}")
    root = Path(asked.get("trainer.default_root_dir", "checkpoints"))
    if "run" not in asked:
        Run.newest(root)  # says so if there is none
        return _all_runs(root)
    run = Run.named(root, asked["run"])
    try:
        _one_run(run)
    except DAMAGED as error:
        raise UserError(f"{run}: metrics.csv or test.json is damaged") from error


def _all_runs(root: Path) -> None:
    table = Table("run", "epochs", "validation", "test", "images of")
    for run in Run.all(root):
        try:
            table.add_row(escape(run.name), *_summary(run))
        except DAMAGED:
            table.add_row(escape(run.name), "", "", "", "[red]metrics.csv or test.json is damaged[/]")
    console.print(table)


def _summary(run: Run) -> list[str]:
    epochs, result = _epochs(run.table), _result(run.result)
    validated = [float(row["val_acc"]) for row in epochs.values() if row.get("val_acc")]
    source = str(result.get("source", ""))
    return [
        str(max(epochs, default=0)),
        f"{max(validated):.2%}" if validated else "",
        f"{result['accuracy']:.2%}" if "accuracy" in result else "",
        "[red]synthetic, not MNIST[/]" if source == "synthetic" else escape(source),
    ]


def _one_run(run: Run) -> None:
    """Loss and accuracy of its epochs, and whatever else was logged."""
    epochs, result = _epochs(run.table), _result(run.result)
    there = {name for row in epochs.values() for name in row}
    columns = [*(name for name in SHOWN if name in there), *sorted(there - SHOWN.keys())]
    table = Table("epoch", *columns, title=escape(str(run)))
    for epoch, row in epochs.items():
        table.add_row(str(epoch), *(_cell(row.get(name, ""), SHOWN.get(name, ".4g")) for name in columns))
    console.print(table)
    if "accuracy" in result:
        images = f"{result['images']} images" if "images" in result else "the images"
        say(f"test: {result['accuracy']:.2%} of {images} of {result['source']}")


def _cell(value: str, form: str) -> str:
    try:
        return f"{float(value):{form}}"
    except ValueError:
        return escape(value)  # a callback's own text


def _epochs(table: Path) -> dict[int, dict[str, str]]:
    """What each epoch, counted from 1, came to: the last value of each column but for those of single steps.

    Rows can have any columns; one without an epoch is of that of the row before.
    """
    epochs: dict[int, dict[str, str]] = {}
    epoch = 1
    with suppress(FileNotFoundError), table.open(newline="") as file:  # killed before its first row
        for row in csv.DictReader(file):
            with suppress(KeyError, TypeError, ValueError):
                epoch = int(float(row["epoch"])) + 1  # Lightning counts from 0
            kept = {name: value for name, value in row.items() if name and value and not name.endswith("_step")}
            epochs.setdefault(epoch, {}).update(kept)
    for row in epochs.values():
        for name in ("epoch", "step"):
            row.pop(name, None)
    return {epoch: row for epoch, row in epochs.items() if row.keys() - {"images", "lr"}}  # none of one just begun


def _result(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        return {}  # not tested yet
