"""metrics.csv: a column for each name, a row for each step, and the same bytes however often a run is killed."""

import csv
import io
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor
from torch.utils.data import DataLoader, TensorDataset

from mnist_lightning.training import metrics_csv
from mnist_lightning.training.metrics_csv import MetricsCSV


@pytest.fixture
def table(tmp_path) -> MetricsCSV:
    return MetricsCSV(tmp_path / "metrics.csv")


def text(table: MetricsCSV) -> str:
    return table.path.read_text()


# ---------------------------------------------------------------------- rows and columns


def test_a_column_for_each_new_name(table):
    table.log_metrics({"loss": 0.5, "epoch": 0}, 4)
    table.log_metrics({"loss": 0.25, "epoch": 0, "lr-SGD": 0.1}, 9)
    assert text(table) == "epoch,step,loss,lr-SGD\n0,4,0.5,\n0,9,0.25,0.1\n"


def test_rows_of_one_step_become_one(table):
    table.log_metrics({"lr": 0.1}, 9)
    table.log_metrics({"val_loss": 0.5, "epoch": 0}, 9)
    table.log_metrics({"train_loss": 0.25, "epoch": 0}, 9)
    assert text(table) == "epoch,step,lr,val_loss,train_loss\n0,9,0.1,0.5,0.25\n"


def test_no_value_is_written_over(table):
    table.log_metrics({"loss": 0.5, "epoch": 0}, 9)
    table.log_metrics({"loss": 0.25, "epoch": 0}, 9)
    table.log_metrics({"loss": 0.25, "acc": 1.0}, 9)
    table.log_metrics({"loss": 1.0}, None)
    table.log_metrics({"acc": 1.0}, None)
    assert text(table) == "epoch,step,loss,acc\n0,9,0.5,\n0,9,0.25,1.0\n,,1.0,\n,,,1.0\n"


def test_values_and_names_of_all_kinds(table):
    row = {"a,b": torch.tensor(0.5), "two\nlines": "x\ny", 'q"': np.float32(0.25), "é": float("nan"), "no": None,
           "list": [1, 2], "step": 3}  # fmt: skip
    table.log_metrics(row, 7)
    with table.path.open(newline="", encoding="utf-8") as file:
        (read,) = csv.DictReader(file)
    assert read == {"epoch": "", "step": "7", "a,b": "0.5", "two lines": "x y", 'q"': "0.25", "é": "nan", "no": "",
                    "list": "[1, 2]"}  # fmt: skip


def test_each_row_is_one_write(table, monkeypatch):
    """What is between two writes cannot be lost to a kill."""
    table.log_metrics({"loss": 0.5, "acc": None}, 0)
    sizes = [table.path.stat().st_size]
    inode = table.path.stat().st_ino
    for metrics, step in (({"loss": 0.25}, 1), ({"acc": 0.125}, 1), ({"acc": 0.5}, 2)):
        table.log_metrics(metrics, step)
        sizes.append(table.path.stat().st_size)
    assert sizes == sorted(sizes)
    assert table.path.stat().st_ino == inode


def test_rows_of_lightning(table):
    """As Lightning calls it: learning rates, the step, validation and the epoch are one row where the step is one."""

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(2, 1)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = self.layer(batch[0]).square().mean()
            self.log("train_loss", loss, on_step=True, on_epoch=True)
            return loss

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", self.layer(batch[0]).square().mean())

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.1)

    trainer = Trainer(
        logger=table, max_epochs=2, log_every_n_steps=2, callbacks=[LearningRateMonitor()], accelerator="cpu",
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    loader = DataLoader(TensorDataset(torch.randn(8, 2)), batch_size=2)
    trainer.fit(Module(), loader, loader)
    rows = list(csv.DictReader(text(table).splitlines()))
    assert list(rows[0]) == ["epoch", "step", "lr-SGD", "train_loss_step", "val_loss", "train_loss_epoch"]
    assert [(row["epoch"], row["step"]) for row in rows] == [
        ("", "0"), ("0", "1"), ("0", "3"), ("", "4"), ("1", "5"), ("1", "7"),
    ]  # fmt: skip
    assert all(rows[index][name] for index in (2, 5) for name in rows[0])


# ---------------------------------------------------------------------- killed and resumed


def log(table: MetricsCSV, calls: list[tuple[dict[str, Any], int]]) -> list[dict[str, Any]]:
    """The positions before each call and after the last."""
    positions = [table.position()]
    for metrics, step in calls:
        table.log_metrics(metrics, step)
        positions.append(table.position())
    return positions


def some_calls(random_: random.Random) -> list[tuple[dict[str, Any], int]]:
    """What may be logged: names that appear late, several calls of a step, clashes."""
    calls, step = [], 0
    for _ in range(random_.randint(1, 14)):
        step += random_.choice([0, 0, 1, 5])
        names = random_.sample(["epoch", "a", "b", "c,c", "d", "lr"], random_.randint(1, 3))
        calls.append(({name: random_.choice([0, 0.5, "x,y", None]) for name in names}, step))
    return calls


def left_by_a_kill(
    folder: Path, calls: list[tuple[dict[str, Any], int]], monkeypatch, torn: int = 0
) -> list[tuple[int, bytes]]:
    """Every content that a killed process can leave: the number of calls that had returned, and the file's bytes.

    And `torn` places for each row where its one write could have been cut off in the middle, at the end of a page.
    """
    table, done, found, write = MetricsCSV(folder / "seen.csv"), 0, [(0, b"")], metrics_csv.write_whole

    def write_whole(content: bytes, path: Path) -> None:
        write(content, path)
        found.append((done, content))

    with monkeypatch.context() as patch:
        patch.setattr(metrics_csv, "write_whole", write_whole)
        for metrics, step in calls:
            table.log_metrics(metrics, step)
            before, after = found[-1][1], table.path.read_bytes()
            places = [len(after) * (place + 1) // (torn + 1) for place in range(torn)]
            found += [(done, after[:place] + before[place:]) for place in places]
            done += 1
            found.append((done, after))
    return found


@pytest.mark.parametrize("seed", range(12))
def test_killed_anywhere_and_rewound_to_anywhere(tmp_path, monkeypatch, seed):
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    random_ = random.Random(seed)
    calls = some_calls(random_)
    whole = MetricsCSV(tmp_path / "metrics.csv")
    positions = log(whole, calls)
    for done, left in left_by_a_kill(tmp_path, calls, monkeypatch, torn=3):
        at = random_.randint(0, done)  # the checkpoint that is continued
        path = tmp_path / "killed.csv"
        path.write_bytes(left)
        again = MetricsCSV(path)
        again.rewind(positions[at], path)
        assert again.position() == positions[at]
        assert log(again, calls[at:]) == positions[at:]
        assert path.read_bytes() == whole.path.read_bytes()


@pytest.mark.parametrize("seed", range(6))
def test_no_row_is_lost_to_a_kill(tmp_path, monkeypatch, seed):
    """Whatever the moment, what had been logged by then can be read."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    calls = some_calls(random.Random(seed))
    for done, left in left_by_a_kill(tmp_path, calls, monkeypatch):
        rows = list(csv.DictReader(left.decode().splitlines()))
        for metrics, step in calls[:done]:
            wanted = {name: "" if value is None else str(value) for name, value in metrics.items()} | {
                "step": str(step)
            }
            assert any(all(row.get(name) == value or not value for name, value in wanted.items()) for row in rows)


def test_a_checkpoint_from_before_a_new_column(table):
    table.log_metrics({"loss": 0.5}, 0)
    position = table.position()
    before = table.path.read_bytes()
    table.log_metrics({"acc": 0.25}, 0)
    table.log_metrics({"lr": 0.25}, 1)
    assert text(table) == "epoch,step,loss,acc,lr\n,0,0.5,0.25,\n,1,,,0.25\n"
    table.rewind(position, table.path)
    assert table.path.read_bytes() == before


def test_continued_in_another_folder(table, tmp_path):
    log(table, [({"loss": 0.5}, 0), ({"loss": 0.25}, 1)])
    (tmp_path / "other").mkdir()
    other = MetricsCSV(tmp_path / "other" / "metrics.csv")
    other.rewind(table.position(), table.path)
    other.log_metrics({"acc": 1}, 1)
    assert text(other) == "epoch,step,loss,acc\n,0,0.5,\n,1,0.25,1\n"
    assert text(table) == "epoch,step,loss\n,0,0.5\n,1,0.25\n"


def test_the_table_is_gone(table, capsys):
    table.log_metrics({"loss": 0.5}, 0)
    position = table.position()
    table.path.unlink()
    table.rewind(position, table.path)
    assert "is not there: the table begins with what is trained now" in " ".join(capsys.readouterr().out.split())
    table.log_metrics({"loss": 0.25}, 1)
    assert text(table) == "epoch,step,loss\n,1,0.25\n"


@pytest.mark.parametrize(
    "content", [b"", b"epoch,step,loss\n", b"epoch,step,loss\n,0,0.75\n,1,1\n", b"\xff\x00,\n\n\n"]
)
def test_another_table_is_put_aside(table, content, capsys):
    """As half of a copy leaves it: a table never bars the way on."""
    log(table, [({"loss": 0.5}, 0), ({"loss": 1}, 1)])
    position = table.position()
    table.path.write_bytes(content)
    table.rewind(position, table.path)
    assert "is not the table that the checkpoint belongs to: the table begins with what is" in capsys.readouterr().out
    assert table.path.read_bytes() == b""
    (kept,) = table.path.parent.glob("metrics-*.csv")
    assert kept.read_bytes() == content


def test_a_row_waits_until_the_file_can_be_written(table, capsys):
    table.log_metrics({"loss": 0.5}, 0)
    before = table.path.rename(table.path.with_name("kept"))
    table.path.mkdir()
    for step in (1, 2):
        table.log_metrics({"loss": 0.5, "acc": 1}, step)
        table.save()  # as Lightning calls it after each row
    assert table.position() == {"columns": 0, "rows": 0, "last": [], "crc32": 0}
    said = capsys.readouterr().out
    assert said.count("the training goes on, its rows wait for the file") == said.count("\n") == 1
    table.path.rmdir()
    before.rename(table.path)
    table.log_metrics({"loss": 0.25}, 3)
    assert text(table) == "epoch,step,loss,acc\n,0,0.5,\n,1,0.5,1\n,2,0.5,1\n,3,0.25,\n"


@pytest.mark.parametrize("names", [{"loss"}, {"loss", "acc"}])  # a new row; the last one filled further
def test_no_half_row_is_left_when_the_disk_is_full(table, monkeypatch, names):
    log(table, [({"loss": 0.5, "acc": 1}, 0), ({"loss": 0.5}, 1)])
    before, write = text(table), io.FileIO.write
    row = {"loss": 0.25} if names == {"loss"} else {"acc": 0.125}
    step = 2 if names == {"loss"} else 1

    class Full(io.FileIO):
        def write(self, data: bytes) -> int:  # only half of it has room
            return write(self, data[: len(data) // 2]) if data == full else write(self, data)

    full = b",2,0.25,\n" if step == 2 else b",1,0.5,0.125\n"
    monkeypatch.setattr(Path, "open", lambda path, mode, buffering=0: Full(path, mode))
    table.log_metrics(row, step)
    monkeypatch.undo()
    assert text(table) == before
    table.save()
    assert text(table) == "epoch,step,loss,acc\n,0,0.5,1\n" + (",1,0.5,\n,2,0.25,\n" if step == 2 else ",1,0.5,0.125\n")
