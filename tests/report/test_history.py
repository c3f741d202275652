"""What a run wrote while it was trained, whatever became of the files since."""

import json
from pathlib import Path

import pytest

from mnist_lightning.report.history import read_history
from mnist_lightning.run import Run

ROWS = [
    "epoch,step,train_loss_step,lr,images,val_loss,val_acc,train_loss,train_acc",
    "0,49,0.4,0.003,6400,,,,",
    "0,78,,0.0024,10000,0.15,0.96,0.97,0.68",
    "1,99,0.1,0.001,12688,,,,",
    "1,157,,6e-07,20000,0.08,0.97,0.15,0.95",
]


def history(folder: Path, table: bytes = b"", **files: str):
    folder.mkdir(exist_ok=True)
    (folder / "metrics.csv").write_bytes(table or "\n".join(ROWS).encode())
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return read_history(Run(folder))


def test_points_over_epochs_and_examples(tmp_path: Path):
    found = history(tmp_path)
    assert [(p.epoch, p.images, p.value) for p in found.curves["val_acc"]] == [(1, 10000, 0.96), (2, 20000, 0.97)]
    assert [p.epoch for p in found.curves["train_loss_step"]] == [pytest.approx(50 / 79), pytest.approx(100 / 79)]
    assert found.images_per_epoch == 10000
    assert list(found.epochs) == [1, 2]
    assert found.epochs[2]["train_acc"] == "0.95"


def test_a_validation_inside_an_epoch(tmp_path: Path):
    found = history(tmp_path, b"epoch,step,images,val_acc,train_acc\n0,4,,0.5,\n0,9,100,0.6,0.7\n1,14,,0.7,\n")
    assert [(p.epoch, p.images) for p in found.curves["val_acc"]] == [(0.5, 50), (1, 100), (1.5, 150)]


def test_a_resume_is_marked_where_it_was(tmp_path: Path):
    events = [
        {"step": 0, "started": "2026-01-01", "machine": {"device": "a"}, "versions": {}},
        {"step": 79, "seconds": 4.5},
        {"step": 99, "seconds": 6.0},
        {"step": 79, "started": "2026-01-02", "machine": {"device": "b"}, "versions": {}},
        {"step": 158, "seconds": 4.0},
    ]
    lines = "\n".join(map(json.dumps, events)) + '\n{"half": \n[1]\n"x"\n'
    found = history(tmp_path, sessions__jsonl=lines)
    assert (found.resumed, found.seconds) == ([1.0], 10.0)
    assert [session["machine"]["device"] for session in found.sessions] == ["a", "b"]


@pytest.mark.parametrize(
    "row", ["nonsense", "0,1,2", "x,1,,,,,,,", "-3,1,,,,,,,", "1e300,1,,,,,,,", "nan,1,,,,,,,", "\0,1,,,,,,,"]
)
def test_a_damaged_row_is_left_out_and_told(row: str, tmp_path: Path):
    found = history(tmp_path, "\n".join([*ROWS[:3], row, *ROWS[3:]]).encode())
    assert (found.damaged, found.notes) == (1, ["1 row of metrics.csv is damaged and left out"])
    assert [p.value for p in found.curves["val_acc"]] == [0.96, 0.97]


def test_bytes_that_are_no_text(tmp_path: Path):
    assert history(tmp_path, b"\xff\xfe\x00\x01" * 50).epochs == {}


def test_values_that_are_not_finite_are_no_points(tmp_path: Path):
    found = history(tmp_path, b"epoch,step,val_loss\n0,9,nan\n1,19,inf\n2,29,0.5\n")
    assert [p.value for p in found.curves["val_loss"]] == [0.5]


@pytest.mark.parametrize("text", ["{", "[]", '{"accuracy": "high"}', '{"accuracy": NaN}', "[" * 100_000])
def test_a_damaged_result(text: str, tmp_path: Path):
    found = history(tmp_path, test__json=text)
    assert (found.result, found.notes) == ({}, ["test.json is damaged and left out"])


def test_nothing_was_written_yet(tmp_path: Path):
    found = read_history(Run(tmp_path))
    assert (found.epochs, found.curves, found.seconds, found.notes) == ({}, {}, None, [])
