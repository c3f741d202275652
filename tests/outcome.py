"""What a command left behind."""

import csv
import json
from pathlib import Path
from typing import Any

import torch

from mnist_lightning.training.checkpoints import read_checkpoint

RUNS = Path("checkpoints")


def weights(file: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(file)["state_dict"]


def same(one: Path, other: Path) -> bool:
    """Whether two checkpoints have the same weights, to the bit."""
    first, second = weights(one), weights(other)
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def rows(run: str) -> list[dict[str, str]]:
    return list(csv.DictReader((RUNS / run / "metrics.csv").read_text().splitlines()))


def column(run: str, name: str) -> list[float]:
    """What a column of metrics.csv holds, without the empty cells."""
    return [float(row[name]) for row in rows(run) if row.get(name)]


def settings_of(run: str) -> str:
    """What config.yaml says, without the time."""
    return (RUNS / run / "config.yaml").read_text().rpartition("# last trained ")[0]


def outcome(run: str) -> dict[str, Any]:
    return json.loads((RUNS / run / "test.json").read_text())


def one_line(result: Any) -> str:
    """The one line that a person is told."""
    assert result.err.startswith("mnist_lightning: "), result.err
    assert result.err.count("\n") == 1, result.err
    assert "Traceback" not in result.err + result.out
    return result.err.removeprefix("mnist_lightning: ").strip()
