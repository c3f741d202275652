"""Where a training starts: going on with a run, from a file elsewhere, and what is refused."""

from pathlib import Path

import pytest
import yaml
from outcome import RUNS, column, one_line, outcome, rows, same
from samples import content_of_3207afc

from mnist_lightning.commands.start import tell_of_precision
from mnist_lightning.training.checkpoints import write_checkpoint


def test_going_on_with_more_epochs_is_one_run(fit, cli, tiny: list[str]):
    fit("--run", "whole", "--trainer.max_epochs", 4)
    fit("--run", "parts", "--trainer.max_epochs", 2)
    assert cli("fit", "--run", "parts", "--ckpt_path", "last", "--trainer.max_epochs", 3).status == 0
    assert cli("fit", *tiny, "--run", "parts", "--ckpt_path", "last", "--trainer.max_epochs", 4).status == 0
    assert {run.name for run in RUNS.iterdir()} == {"whole", "parts"}
    assert same(RUNS / "whole" / "last.ckpt", RUNS / "parts" / "last.ckpt")
    assert (RUNS / "whole" / "metrics.csv").read_text() == (RUNS / "parts" / "metrics.csv").read_text()
    assert outcome("parts")["correct"] == outcome("whole")["correct"]
    # what is said there of the run holds for the last that was done to it
    assert yaml.safe_load((RUNS / "parts" / "config.yaml").read_text())["trainer"]["max_epochs"] == 4


def test_a_file_comes_on_top_of_the_runs_own_settings(cli, tiny: list[str]):
    Path("mine.yaml").write_text("trainer: {max_epochs: 3}\n")
    assert cli("fit", *tiny, "--config", "mine.yaml").status == 0
    result = cli("fit", "--config", "mine.yaml", "--ckpt_path", "last")  # the newest run of mine
    assert (result.status, result.err) == (0, "")
    assert len(column("mine", "val_acc")) == 3


def test_a_run_with_nothing_left_to_train_says_how_to_go_on(fit, cli):
    fit("--run", "done")
    result = cli("fit", "--run", "done", "--ckpt_path", "last")
    assert (result.status, result.err) == (0, "")
    assert "done/last.ckpt has all its steps: --trainer.max_epochs is 1; to train on, raise it" in result.out


def test_a_run_whose_time_is_used_up_says_so(fit, cli):
    fit("--run", "a", "--trainer.max_epochs", -1, "--trainer.max_time", "00:00:00:01", "--model.lr", 0)
    result = cli("fit", "--run", "a", "--ckpt_path", "last")
    assert (result.status, result.err) == (0, "")
    assert "has all its steps: --trainer.max_time is used up; to train on, raise it" in result.out


def test_going_on_from_a_file_elsewhere_starts_a_run_of_its_own(fit, cli, tmp_path: Path):
    fit("--run", "a", "--trainer.max_epochs", 2)
    moved = tmp_path / "other" / "moved.ckpt"
    moved.parent.mkdir()
    moved.write_bytes((RUNS / "a" / "last.ckpt").read_bytes())
    before = (RUNS / "a" / "last.ckpt").read_bytes()
    result = cli("fit", "--ckpt_path", moved, "--trainer.max_epochs", 3)
    assert (result.status, result.err) == (0, "")
    assert "the table begins with what is trained now" in result.out
    assert [row["epoch"] for row in rows("mlp")] == ["2"]
    (tmp_path / "other" / "metrics.csv").write_bytes((RUNS / "a" / "metrics.csv").read_bytes())
    assert cli("fit", "--run", "b", "--ckpt_path", moved, "--trainer.max_epochs", 3).status == 0
    assert [row["epoch"] for row in rows("b")] == ["0", "1", "2"]
    assert same(RUNS / "b" / "last.ckpt", RUNS / "mlp" / "last.ckpt")
    assert (RUNS / "a" / "last.ckpt").read_bytes() == before


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--model.lr", "0.1"], "--model.lr was 0.001, is 0.1"),
        (["--model.hidden", "[9]"], "--model.hidden was [8], is [9]"),
        (["--model.optimizer", "SGD"], "--model.optimizer was Adam, is SGD"),
        (["--data.batch_size", "16"], "--data.batch_size was 32, is 16"),
        (["--data.val_size", "40"], "--data.val_size was 50, is 40"),
        (["--data.train_size", "99"], "--data.train_size was None, is 99"),
        (["--data.normalize", "none"], "--data.normalize was auto, is none"),
        (["--seed", "3"], "--data.seed was 0, is 3"),
        (["--trainer.precision", "bf16-mixed"], "--trainer.precision was 32-true, is bf16-mixed"),
        (["--trainer.accumulate_grad_batches", "2"], "--trainer.accumulate_grad_batches was 1, is 2"),
        (["--model", "CNN"], "holds a MLP, this is a CNN"),
        (["--trainer.max_epochs", "1"], "has 2 epochs already, more than --trainer.max_epochs 1: raise it"),
        (["--data.root", "plain"], "the training images are not those"),
    ],
)
def test_going_on_otherwise_is_refused(fit, cli, tiny_mnist: Path, words: list[str], named: str):
    fit("--run", "a", "--trainer.max_epochs", 2)
    others = Path("plain")
    others.mkdir()
    for file in tiny_mnist.iterdir():  # the test images in place of the training images
        (others / file.name).symlink_to(tiny_mnist / file.name.replace("train", "t10k"))
    before = {path.name: path.read_bytes() for path in (RUNS / "a").iterdir() if path.is_file()}
    result = cli("fit", "--trainer.max_epochs", 3, "--run", "a", "--ckpt_path", "last", *words)
    assert result.status == 1
    assert named in one_line(result)
    after = {path.name: path.read_bytes() for path in (RUNS / "a").iterdir() if path.is_file()}
    assert {name for name in before if after[name] != before[name]} <= {"config.yaml", ".job"}
    assert [run.name for run in RUNS.iterdir()] == ["a"]


def test_a_checkpoint_of_an_earlier_version_is_tested_and_not_continued(cli, tiny_mnist: Path):
    file = Path("old.ckpt")
    write_checkpoint(content_of_3207afc(), file)
    for words in (["--ckpt_path", file], ["--ckpt_path", file, "--run", "a", "--data.root", tiny_mnist]):
        result = cli("fit", *words)
        assert result.status == 1
        assert "was written by an earlier version" in one_line(result)
        assert "start a new run without --ckpt_path" in one_line(result)
    assert not RUNS.exists()
    for command in ("test", "predict"):
        result = cli(command, "--ckpt_path", file, "--data.root", tiny_mnist)
        assert (result.status, result.err) == (0, "")


FAILS = [
    ("--ckpt_path last", "there is no run in checkpoints: start one with fit"),
    ("--ckpt_path last --run nope", "there is no run 'nope' in checkpoints; there are: none"),
    ("--ckpt_path no.ckpt", "no.ckpt cannot be read: No such file or directory"),
    ("--run a/b", "--run 'a/b' is no folder's name"),
    ("--run ..", "--run '..' is no folder's name"),
    ("--config odd.yaml", "--run 3 is no folder's name"),
]


@pytest.mark.parametrize(("words", "expected"), FAILS, ids=[words for words, _ in FAILS])
def test_failures(cli, words: str, expected: str):
    Path("odd.yaml").write_text("run: 3\ntrainer: {default_root_dir: null}\n")
    assert expected in one_line(cli("fit", *words.split()))
    assert not RUNS.exists()


@pytest.mark.parametrize(
    ("precision", "on_cpu", "told"),
    [("32-true", True, True), ("32-true", False, True), ("bf16-mixed", True, True), ("bf16-mixed", False, False)],
)
def test_only_a_cpu_is_told_to_be_slow_in_bf16(precision: str, on_cpu: bool, told: bool, monkeypatch, capsys):
    monkeypatch.setattr("mnist_lightning.commands.start.computes_in_bf16", lambda accelerator: False)
    tell_of_precision([("config", "fast")], precision, on_cpu)
    assert ("slow on this processor" in capsys.readouterr().out) == told
