"""What the runs came to, from the files of their folders alone: no torch is imported."""

import csv
import json
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from mnist_lightning import runs
from mnist_lightning.console import console, say
from mnist_lightning.errors import UserError

NOT_OURS = (AttributeError, LookupError, TypeError, ValueError, csv.Error)  # what a damaged file comes to


def report(root: Path, run: str | None) -> None:
    """A table of all runs in `root`, or of the epochs of one."""
    if run is None:
        runs.newest_run(root, None)  # says so if there is none
        _all_runs(root)
    else:
        folder = runs.named_run(root, run)
        try:
            _one_run(folder)
        except NOT_OURS as error:
            raise UserError(f"{folder}: metrics.csv or test.json is damaged") from error


def _all_runs(root: Path) -> None:
    table = Table("run", "epochs", "validation", "test", "images of")
    for folder in sorted(file.parent for file in root.glob("*/config.yaml")):
        try:
            table.add_row(escape(folder.name), *_summary(folder))
        except NOT_OURS:
            table.add_row(escape(folder.name), "", "", "", "[red]metrics.csv or test.json is damaged[/]")
    console.print(table)


def _summary(folder: Path) -> list[str]:
    rows, result = _epochs(folder), _result(folder / "test.json")
    validated = [float(row["val_acc"]) for row in rows if row["val_acc"]]
    source = str(result.get("source", ""))
    return [
        rows[-1]["epoch"] if rows else "0",
        f"{max(validated):.2%}" if validated else "",
        f"{result['accuracy']:.2%}" if "accuracy" in result else "",
        "[red]synthetic, not MNIST[/]" if source == "synthetic" else escape(source),
    ]


def _one_run(folder: Path) -> None:
    table = Table("epoch", "images", "learning rate", title=escape(str(folder)))
    splits = [split for split in ("train", "val", "test") if any(row[f"{split}_acc"] for row in _epochs(folder))]
    for split in splits:
        table.add_column(f"{split} accuracy", justify="right")
        table.add_column("loss", justify="right")
    for row in _epochs(folder):
        cells = [row["epoch"], f"{int(row['images']):,}", f"{float(row['lr']):.3g}"]
        for split in splits:
            accuracy, loss = row[f"{split}_acc"], row[f"{split}_loss"]
            cells += [f"{float(accuracy):.2%}" if accuracy else "", f"{float(loss):.4f}" if loss else ""]
        table.add_row(*cells)
    console.print(table)
    if result := _result(folder / "test.json"):
        say(f"test: {result['accuracy']:.2%} of {result['images']:,} images of {result['source']}")


def _epochs(folder: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv that say what an epoch came to."""
    try:
        with (folder / "metrics.csv").open(newline="") as file:
            return [row for row in csv.DictReader(file) if not row["train_loss_step"]]
    except OSError:
        return []  # killed before its first row


def _result(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        return {}  # not tested yet
