"""A run travels: copied, moved, in part, to a folder that cannot be written."""

import os
import shutil
from pathlib import Path

import pytest
from outcome import RUNS, one_line, rows, same

from mnist_lightning.run import Run
from mnist_lightning.training.checkpoints import read_checkpoint

LAST = ("--ckpt_path", "last")


@pytest.mark.slow
def test_copied_in_the_wrong_order_and_renamed_it_goes_on_where_it_was(fit, cli):
    """`cp -r`: new times in any order, three files instead of second names; the newest is no later copy."""
    fit("--run", "whole", "--trainer.max_epochs", 3)
    fit("--run", "a", "--trainer.max_epochs", 2)
    fit("--run", "b")
    for name in ("b", "a"):
        shutil.copytree(RUNS / name, Path("copies") / f"{name} of mine", copy_function=shutil.copyfile)
    for at, name in enumerate(("last.ckpt", "config.yaml", "metrics.csv", "best.ckpt", "previous.ckpt"), 1):
        os.utime(Path("copies") / "a of mine" / name, (at, at))
    root = ("--trainer.default_root_dir", "copies")
    result = cli("fit", *root, "--run", "a of mine", *LAST, "--trainer.max_epochs", 3)
    assert (result.status, result.err) == (0, "")
    assert same(Path("copies/a of mine/last.ckpt"), RUNS / "whole" / "last.ckpt")
    assert (Path("copies") / "a of mine" / "metrics.csv").read_bytes() == (RUNS / "whole" / "metrics.csv").read_bytes()
    assert "Run copies/a of mine " in cli("fit", *root, *LAST).out  # it was trained after b


def test_half_of_a_copy_goes_on(fit, cli, tmp_path: Path):
    """Settings, table, `last.ckpt` and hidden files are missing: as after a broken transfer."""
    fit("--run", "whole", "--trainer.max_epochs", 2)
    fit("--run", "a")
    data = ["--data.root", str(read_checkpoint(RUNS / "a" / "last.ckpt")["datamodule_hyper_parameters"]["root"])]
    for name in ("config.yaml", "metrics.csv", "last.ckpt", ".job", "test.json"):
        (RUNS / "a" / name).unlink(missing_ok=True)
    assert cli("test", "--run", "a", *data).status == 0
    result = cli("fit", "--run", "a", *LAST, *data, "--trainer.max_epochs", 2)
    assert (result.status, result.err) == (0, "")
    assert "a/config.yaml is not there: model and data are set as the checkpoint has them" in result.out
    assert "a/metrics.csv is not there: the table begins with what is trained now" in result.out
    assert same(RUNS / "a" / "last.ckpt", RUNS / "whole" / "last.ckpt")
    assert rows("a")[-1] == rows("whole")[-1]


@pytest.mark.parametrize("command", ["test", "validate"])
def test_a_result_is_shown_where_its_file_cannot_be_written(fit, cli, command):
    fit("--run", "a")
    name = {"test": "test.json", "validate": "val.json"}[command]
    (RUNS / "a" / name).unlink(missing_ok=True)
    (RUNS / "a" / name / "in the way").mkdir(parents=True)  # root may write to a read-only folder
    result = cli(command, "--run", "a")
    assert (result.status, result.err) == (0, "")
    assert "accuracy" in result.out
    assert f"checkpoints/a/{name} cannot be written: Is a directory" in result.out


def test_a_run_that_another_process_has_trained_meanwhile_is_not_trained_from_an_old_state(fit, cli, monkeypatch):
    """Both read the same checkpoint; the second waits for the first to end, and then sees that it is another."""
    fit("--run", "a")
    hold = Run.hold

    def late(run: Run, patience: float = 3.0) -> None:
        hold(run, patience)
        os.utime(run.last)

    monkeypatch.setattr(Run, "hold", late)
    result = cli("fit", "--run", "a", *LAST, "--trainer.max_epochs", 2)
    assert result.status == 1
    assert "last.ckpt is another than a moment ago, by another training in checkpoints/a" in one_line(result)
    monkeypatch.undo()


def test_a_run_that_cannot_be_written_goes_on_elsewhere(fit, cli):
    fit("--run", "a")
    (RUNS / "a" / "config.yaml").rename(RUNS / "a" / "kept")
    (RUNS / "a" / "config.yaml" / "in the way").mkdir(parents=True)
    result = cli("test", "--run", "a")
    assert (result.status, result.err) == (0, "")
    data = ["--data.root", str(read_checkpoint(RUNS / "a" / "last.ckpt")["datamodule_hyper_parameters"]["root"])]
    (RUNS / "a" / "config.yaml" / "in the way").rmdir()
    (RUNS / "a" / "config.yaml").rmdir()
    (RUNS / "a" / "kept").rename(RUNS / "a" / "config.yaml")
    (RUNS / "a" / ".config.yaml.tmp" / "in the way").mkdir(parents=True)
    told = one_line(cli("fit", "--run", "a", *LAST, "--trainer.max_epochs", 2))
    assert told.endswith(
        "or go on elsewhere, with --ckpt_path checkpoints/a/last.ckpt --trainer.default_root_dir FOLDER"
    )
    words = ("--ckpt_path", "checkpoints/a/last.ckpt", "--trainer.default_root_dir", "other", "--trainer.max_epochs", 2)
    assert cli("fit", *words, *data).status == 0
    assert read_checkpoint(Path("other/mlp/last.ckpt"))["epoch"] == 2
