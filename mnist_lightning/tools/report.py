"""What the runs came to, from the files of their folders alone: no torch is imported."""

import csv
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from mnist_lightning import runs

console = Console()


def report(root: Path, run: str | None) -> None:
    """A table of all runs in `root`, or of the epochs of one."""
    if run is None:
        runs.newest_run(root, None)  # says so if there is none
        _all_runs(root)
    else:
        _one_run(runs.named_run(root, run))


def _all_runs(root: Path) -> None:
    table = Table("run", "epochs", "validation", "test", "images of")
    for folder in sorted(file.parent for file in root.glob("*/config.yaml")):
        rows, result = _epochs(folder), _result(folder / "test.json")
        validated = [float(row["val_acc"]) for row in rows if row["val_acc"]]
        source = str(result.get("source", ""))
        table.add_row(
            folder.name,
            rows[-1]["epoch"] if rows else "0",
            f"{max(validated):.2%}" if validated else "",
            f"{result['accuracy']:.2%}" if "accuracy" in result else "",
            "[red]synthetic, not MNIST[/]" if source == "synthetic" else source,
        )
    console.print(table)


def _one_run(folder: Path) -> None:
    table = Table("epoch", "images", "learning rate", title=str(folder))
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
        console.print(
            f"test: {result['accuracy']:.2%} of {result['images']:,} images of {result['source']}",
            highlight=False,
        )


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
