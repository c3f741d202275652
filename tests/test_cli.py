"""What a person sees: runs and their names, every command from its words, one line for every error."""

import csv
import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mnist_lightning.runs import newest_run
from mnist_lightning.training.checkpoints import load_model, read_checkpoint

RECIPES = Path(__file__).parents[1] / "configs"
RUNS = Path("checkpoints")


@pytest.fixture
def tiny(tiny_mnist: Path) -> list[str]:
    """Settings of a small MLP on 250 images: 8 steps an epoch."""
    words = "--model MLP --model.hidden [8] --data.source mnist --data.val_size 50 --data.batch_size 32"
    return [*words.split(), "--data.root", str(tiny_mnist), "--trainer.max_epochs", "1"]


@pytest.fixture
def fit(cli, tiny: list[str]):
    """`fit("--run", "a")` trains a small MLP for an epoch; it must do."""

    def run(*words: object):
        result = cli("fit", *tiny, *words)
        assert (result.status, result.err) == (0, "")
        return result

    return run


def weights(file: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(file)["state_dict"]


def same(one: Path, other: Path) -> bool:
    first, second = weights(one), weights(other)
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def rows(run: str) -> list[dict[str, str]]:
    return list(csv.DictReader((RUNS / run / "metrics.csv").read_text().splitlines()))


def outcome(run: str) -> dict:
    return json.loads((RUNS / run / "test.json").read_text())


def replace(file: Path, content: bytes) -> None:
    """Not in place: a checkpoint can have two names."""
    file.unlink()
    file.write_bytes(content)


# ---------------------------------------------------------------------- the run folder


def test_what_a_run_leaves(fit):
    out = fit("--trainer.max_epochs", 2).out
    assert {path.name for path in (RUNS / "mlp").iterdir()} >= {
        "config.yaml", "best.ckpt", "last.ckpt", "metrics.csv", "test.json", "tensorboard",
    }  # fmt: skip
    assert list((RUNS / "mlp" / "tensorboard").glob("events*"))
    assert not list((RUNS / "mlp").glob("*.tmp"))
    result = outcome("mlp")
    assert result.keys() == {
        "accuracy", "loss", "images", "correct", "source", "checkpoint", "epoch", "step", "seed", "precision",
        "versions",
    }  # fmt: skip
    assert result["versions"].keys() == {"mnist_lightning", "torch", "lightning"}
    assert (result["images"], result["source"], result["seed"]) == (100, "mnist", 0)
    assert result["accuracy"] == result["correct"] / 100
    assert result["checkpoint"] == "checkpoints/mlp/best.ckpt"
    assert f"{result['accuracy']:.2%}" in out
    assert f"({result['correct']} of 100 images)" in out
    assert "checkpoints/mlp" in out


def test_output_into_a_pipe_is_plain_lines(fit):
    out = fit("--trainer.max_epochs", 2).out
    assert "\x1b" not in out
    assert "\r" not in out
    lines = [line for line in out.splitlines() if line.startswith("epoch ")]
    assert [line.split()[1] for line in lines] == ["1/2", "2/2"]
    assert "images/s" in lines[0]


def test_metrics_csv(fit):
    fit("--trainer.max_epochs", 2, "--trainer.log_every_n_steps", 3, "--run", "a")
    table = rows("a")
    assert list(table[0]) == [
        "epoch", "step", "images", "lr", "train_loss_step",
        "train_loss", "train_acc", "val_loss", "val_acc", "test_loss", "test_acc",
    ]  # fmt: skip
    assert [(row["epoch"], row["step"], row["images"]) for row in table] == [
        ("1", "3", "96"), ("1", "6", "192"), ("1", "8", "250"),
        ("2", "9", "282"), ("2", "12", "378"), ("2", "15", "474"), ("2", "16", "500"),
    ]  # fmt: skip
    for row in table:
        at_end = row["step"] in ("8", "16")
        assert [bool(row[name]) for name in ("train_loss_step", "train_loss", "train_acc", "val_loss", "val_acc")] == (
            [not at_end, at_end, at_end, at_end, at_end]
        )
        assert row["test_loss"] == ""


def test_best_is_the_epoch_with_the_best_validation(fit):
    fit("--trainer.max_epochs", 4, "--model.lr", 0.03)
    accuracies = [(float(row["val_acc"]), -float(row["val_loss"])) for row in rows("mlp")]
    assert outcome("mlp")["epoch"] == accuracies.index(max(accuracies)) + 1


def test_watching_the_test_images_chooses_nothing(fit):
    fit("--trainer.max_epochs", 4, "--model.lr", 0.03, "--run", "plain")
    fit("--trainer.max_epochs", 4, "--model.lr", 0.03, "--run", "watched", "--data.test_each_epoch", "true")
    assert all(row["test_acc"] for row in rows("watched"))
    assert outcome("watched")["epoch"] == outcome("plain")["epoch"]
    assert same(RUNS / "watched" / "best.ckpt", RUNS / "plain" / "best.ckpt")


def test_the_evaluation_before_any_training_is_a_row(fit):
    fit("--trainer.num_sanity_val_steps", -1)
    first, *_ = rows("mlp")
    assert (first["epoch"], first["step"], first["images"], first["train_loss"]) == ("0", "0", "0", "")
    assert float(first["val_acc"]) < 0.4


def test_names_of_runs(fit, tiny: list[str], cli, tmp_path: Path):
    for expected in ("mlp", "mlp-2", "mlp-3"):
        before = {run.name: (run / "last.ckpt").read_bytes() for run in RUNS.glob("*")}
        fit("--seed", len(before))
        assert {run.name for run in RUNS.iterdir()} - before.keys() == {expected}
        assert all((RUNS / name / "last.ckpt").read_bytes() == content for name, content in before.items())
    assert cli("fit", *tiny[4:], "--trainer.max_steps", 1).status == 0
    assert (RUNS / "cnn").is_dir()  # plain `fit` is the CNN
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("model:\n  class_path: MLP\n")
    fit("--config", recipe)
    fit("--config", recipe, "--run", "chosen")
    assert {run.name for run in RUNS.iterdir()} == {"mlp", "mlp-2", "mlp-3", "cnn", "mine", "chosen"}


def test_default_root_dir(fit):
    fit("--trainer.default_root_dir", "elsewhere/deep", "--run", "a")
    assert Path("elsewhere/deep/a/test.json").exists()
    assert not RUNS.exists()


def test_plain_fit_is_the_recipe_cnn(cli, tiny_mnist: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mnist_lightning.fit._computes_in_bf16", lambda accelerator: True)
    data = ["--data.root", tiny_mnist, "--data.val_size", 50, "--trainer.max_steps", 1]
    assert cli("fit", *data).status == 0
    assert cli("fit", "--config", RECIPES / "cnn.yaml", *data).status == 0
    assert (RUNS / "cnn" / "config.yaml").read_text() == (RUNS / "cnn-2" / "config.yaml").read_text()


def test_test_computes_as_fit_did(fit, cli):
    fit("--trainer.precision", "64-true", "--run", "a")
    told = (RUNS / "a" / "test.json").read_text()
    assert cli("test", "--run", "a").status == 0
    assert (RUNS / "a" / "test.json").read_text() == told
    assert json.loads(told)["precision"] == "64-true"
    assert cli("test", "--run", "a", "--trainer.precision", "bf16-true").status == 0
    assert json.loads((RUNS / "a" / "test.json").read_text())["loss"] != json.loads(told)["loss"]


def test_a_configuration_file_says_where_a_run_lies(tiny, cli, tmp_path: Path):
    (tmp_path / "mine.yaml").write_text("run: chosen\nmodel: MLP\ntrainer: {default_root_dir: elsewhere}\n")
    assert cli("fit", "--config", "mine.yaml", *tiny).status == 0
    assert (tmp_path / "elsewhere" / "chosen" / "best.ckpt").exists()
    assert cli("fit", "--config", "mine.yaml", *tiny, "--run", "other").status == 0
    assert (tmp_path / "elsewhere" / "other" / "best.ckpt").exists()
    assert "elsewhere/chosen" in cli("test", "--config", "mine.yaml").out


def test_validate_keeps_to_the_images_that_were_held_out(fit, cli):
    fit("--run", "a")
    result = cli("validate", "--run", "a", "--data.val_size", 200)
    assert (result.status, "held out 50 images" in result.err) == (2, True)


def test_report(fit, cli):
    fit("--run", "a", "--trainer.max_epochs", 3)
    fit("--run", "[b]")
    with (RUNS / "a" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["val_acc"]]
    accuracy = json.loads((RUNS / "a" / "test.json").read_text())["accuracy"]
    table = {line.split("│")[1].strip(): line for line in cli("report").out.splitlines() if "│" in line}
    cells = [cell.strip() for cell in table["a"].split("│")[2:-1]]
    assert cells == ["3", f"{max(float(row['val_acc']) for row in rows):.2%}", f"{accuracy:.2%}", "mnist"]
    assert "[b]" in table
    one = cli("report", "--run", "a").out
    assert all(f"{float(row['val_loss']):.4f}" in one for row in rows)
    (RUNS / "[b]" / "metrics.csv").write_text("a,b\n1,2\n")
    assert "is damaged" in cli("report").out
    result = cli("report", "--run", "[b]")
    assert (result.status, "is damaged" in one_line(result)) == (1, True)


def test_config_yaml_makes_the_same_run_again(fit, cli):
    fit("--model.dropout", "[0.5]", "--seed", 3, "--model.optimizer_args", "{betas: [0.8, 0.9]}")
    assert cli("fit", "--config", "checkpoints/mlp/config.yaml").status == 0
    assert (RUNS / "mlp-2" / "config.yaml").read_text() == (RUNS / "mlp" / "config.yaml").read_text()
    assert same(RUNS / "mlp" / "last.ckpt", RUNS / "mlp-2" / "last.ckpt")
    settings = yaml.safe_load((RUNS / "mlp" / "config.yaml").read_text())
    assert settings["seed"] == 3
    assert settings["model"]["init_args"]["dropout"] == [0.5]
    assert settings["data"]["source"] == "mnist"


def test_seeds(fit):
    fit("--run", "a")
    fit("--run", "b")
    fit("--run", "c", "--seed", 1)
    assert same(RUNS / "a" / "last.ckpt", RUNS / "b" / "last.ckpt")
    assert not same(RUNS / "a" / "last.ckpt", RUNS / "c" / "last.ckpt")
    assert outcome("c")["seed"] == 1


def test_seeds_of_model_and_data_can_differ(fit):
    fit("--run", "a")
    fit("--run", "b", "--data.seed", 5)
    assert not same(RUNS / "a" / "last.ckpt", RUNS / "b" / "last.ckpt")


# ---------------------------------------------------------------------- synthetic digits


def test_synthetic_digits_are_said_loudly(cli, monkeypatch: pytest.MonkeyPatch):
    from mnist_lightning.data.synthetic import synthetic_digits

    monkeypatch.setattr("mnist_lightning.data.module.synthetic_digits", lambda count, seed: synthetic_digits(300, seed))
    result = cli("fit", "--model", "MLP", "--data.val_size", 50, "--trainer.max_steps", 2, "--data.root", "no[/b]")
    assert result.status == 0
    assert "no[/b]" in result.out
    assert "Training on SYNTHETIC digits, not on MNIST." in result.out
    assert "no network" in result.out
    assert "MNIST_ROOT" in result.out
    assert "SYNTHETIC digits, not MNIST" in result.out.partition("Test result")[2]
    assert outcome("mlp")["source"] == "synthetic"
    assert (RUNS / "mlp" / "config.yaml").read_text().startswith("# synthetic digits (no MNIST could be had)\n")
    again = cli("test")
    assert "SYNTHETIC digits, not MNIST" in again.out


# ---------------------------------------------------------------------- test, validate, predict


def test_commands_after_fit(fit, cli):
    fit("--trainer.max_epochs", 2, "--run", "a")
    first = outcome("a")
    (RUNS / "a" / "test.json").unlink()
    for words in ([], ["--run", "a"], ["--ckpt_path", "best"], ["--ckpt_path", "checkpoints/a/best.ckpt"]):
        result = cli("test", *words)
        assert (result.status, result.err) == (0, "")
        assert outcome("a") == first
    assert cli("test", "--ckpt_path", "last").status == 0
    assert outcome("a") == first | {"checkpoint": "checkpoints/a/last.ckpt", "epoch": 2, "step": 16} | {
        key: outcome("a")[key] for key in ("accuracy", "loss", "correct")
    }
    assert cli("validate", "--ckpt_path", "last").status == 0
    validated = json.loads((RUNS / "a" / "val.json").read_text())
    assert validated["images"] == 50
    assert validated["accuracy"] == pytest.approx(float(rows("a")[-1]["val_acc"]))
    assert validated["loss"] == pytest.approx(float(rows("a")[-1]["val_loss"]))


def test_the_newest_run_is_meant(fit, cli):
    fit("--run", "a")
    fit("--run", "b")
    assert "checkpoints/b" in cli("test").out
    assert "checkpoints/a" in cli("test", "--run", "a").out


def test_the_newest_run_of_a_recipe_is_none_of_one_with_a_longer_name(tmp_path: Path):
    for i, name in enumerate(("fidle_cnn", "fidle_cnn-2", "fidle_cnn2", "fidle_cnn2-2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").touch()
        os.utime(tmp_path / name / "config.yaml", (i, i))
    assert newest_run(tmp_path, "fidle_cnn").name == "fidle_cnn-2"
    assert newest_run(tmp_path, None).name == "fidle_cnn2-2"


def test_predict_writes_a_table(fit, cli, tiny_digits):
    fit()
    assert cli("predict").status == 0
    table = list(csv.DictReader((RUNS / "mlp" / "predictions.csv").read_text().splitlines()))
    assert [int(row["image"]) for row in table] == list(range(100))
    assert [int(row["label"]) for row in table] == tiny_digits[1][1].tolist()
    assert sum(row["label"] == row["prediction"] for row in table) == outcome("mlp")["correct"]
    checkpoint = read_checkpoint(RUNS / "mlp" / "best.ckpt")
    mean, std = (checkpoint["MNISTDataModule"][name] for name in ("mean", "std"))
    images = (tiny_digits[1][0].unsqueeze(1) / 255 - mean) / std
    with torch.inference_mode():
        probabilities = load_model(RUNS / "mlp" / "best.ckpt")(images).softmax(1).amax(1)
    assert [float(row["probability"]) for row in table] == pytest.approx(probabilities.tolist(), abs=1e-5)


def test_a_checkpoint_carries_its_normalisation(fit, cli, tiny_mnist: Path, tmp_path: Path):
    fit("--data.normalize", "[0.3, 0.2]", "--run", "a")
    moved = tmp_path / "moved.ckpt"
    moved.write_bytes((RUNS / "a" / "best.ckpt").read_bytes())
    assert cli("test", "--ckpt_path", moved).status == 0
    there = json.loads((tmp_path / "test.json").read_text())
    assert there == outcome("a") | {"checkpoint": str(moved)}


def test_limits_are_told_in_the_result(fit, cli, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mnist_lightning.data.module.EVAL_BATCH_SIZE", 30)
    fit()
    assert outcome("mlp")["images"] == 100
    assert cli("test", "--trainer.limit_test_batches", 2).status == 0
    assert outcome("mlp")["images"] == 60
    assert cli("predict", "--trainer.limit_predict_batches", 2).status == 0
    assert len((RUNS / "mlp" / "predictions.csv").read_text().splitlines()) == 61


# ---------------------------------------------------------------------- convert


def test_convert_and_back(fit, cli, tiny_mnist: Path, tmp_path: Path):
    for split in ("train", "test"):
        result = cli("convert", "--data.root", tiny_mnist, "--split", split, "--output", f"{split}.txt")
        assert (result.status, result.err) == (0, "")
    assert "300 images of mnist written to train.txt" in cli(
        "convert", "--data.root", tiny_mnist, "--output", "train.txt"
    ).out  # fmt: skip
    fit("--run", "idx")
    fit(
        "--run",
        "text",
        "--data.source",
        "text",
        "--data.train_file",
        "train.txt",
        "--data.test_file",
        "test.txt",
    )
    assert same(RUNS / "idx" / "last.ckpt", RUNS / "text" / "last.ckpt")
    assert outcome("text")["correct"] == outcome("idx")["correct"]
    assert outcome("text")["source"] == "text"
    assert cli("convert", "--data.root", tiny_mnist, "--rows", 7, "--output", "few.txt").status == 0
    assert len([line for line in Path("few.txt").read_text().splitlines() if line[0] != "#"]) == 7


# ---------------------------------------------------------------------- going on with a run


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


def test_a_run_with_nothing_left_to_train_says_how_to_go_on(fit, cli):
    fit("--run", "done")
    result = cli("fit", "--run", "done", "--ckpt_path", "last")
    assert (result.status, result.err) == (0, "")
    assert "checkpoints/done/last.ckpt has all its steps: to train on, raise --trainer.max_epochs" in result.out


def test_going_on_from_a_file_elsewhere_starts_a_run_of_its_own(fit, cli, tmp_path: Path):
    fit("--run", "a", "--trainer.max_epochs", 2)
    moved = tmp_path / "other" / "moved.ckpt"
    moved.parent.mkdir()
    moved.write_bytes((RUNS / "a" / "last.ckpt").read_bytes())
    (tmp_path / "other" / "metrics.csv").write_bytes((RUNS / "a" / "metrics.csv").read_bytes())
    before = (RUNS / "a" / "last.ckpt").read_bytes()
    result = cli("fit", "--run", "b", "--ckpt_path", moved, "--trainer.max_epochs", 3)
    assert result.err == ""
    assert [row["epoch"] for row in rows("b")] == ["1", "2", "3"]
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
        (["--model", "CNN"], "holds a MLP, this is a CNN"),
        (["--trainer.max_epochs", "1"], "has 2 epochs already, more than --trainer.max_epochs 1: raise it"),
        (["--data.root", "plain"], "the training images are not those"),
    ],
)
def test_going_on_otherwise_is_refused(fit, cli, tiny: list[str], tiny_mnist: Path, words: list[str], named: str):
    fit("--run", "a", "--trainer.max_epochs", 2)
    others = Path("plain")
    others.mkdir()
    for file in tiny_mnist.iterdir():  # the test images in place of the training images
        (others / file.name).symlink_to(tiny_mnist / file.name.replace("train", "t10k"))
    before = {path.name: path.read_bytes() for path in (RUNS / "a").iterdir() if path.is_file()}
    model = [] if "CNN" in words else ["--model", "MLP", "--model.hidden", "[8]"]
    settings = [*model, *tiny[4:-2], "--trainer.max_epochs", "3"]
    result = cli("fit", *settings, "--run", "a", "--ckpt_path", "last", *words)
    assert result.status == 1
    assert named in one_line(result)
    assert {path.name: path.read_bytes() for path in (RUNS / "a").iterdir() if path.is_file()} == before
    assert [run.name for run in RUNS.iterdir()] == ["a"]


# ---------------------------------------------------------------------- Trainer's settings


def test_fast_dev_run(fit):
    fit("--trainer.fast_dev_run", "true")
    assert outcome("mlp")["step"] == 1


def test_limit_train_batches_counts_mini_batches(fit):
    fit("--trainer.limit_train_batches", 3, "--trainer.max_epochs", 2, "--run", "int")
    assert [(row["step"], row["images"]) for row in rows("int")] == [("3", "96"), ("6", "192")]
    fit("--trainer.limit_train_batches", 0.5, "--trainer.max_epochs", 2, "--run", "share")
    assert [(row["step"], row["images"]) for row in rows("share")] == [("4", "128"), ("8", "256")]


def test_limit_train_batches_of_one_is_one_mini_batch(fit):
    fit("--trainer.limit_train_batches", 1)
    assert [row["step"] for row in rows("mlp")] == ["1"]


def test_overfit_batches_sees_the_same_images_each_epoch(fit):
    fit(
        "--trainer.overfit_batches",
        1,
        "--trainer.max_epochs",
        80,
        "--model.lr",
        0.01,
        "--data.steps_per_block",
        1,
    )
    assert float(rows("mlp")[-1]["train_acc"]) == 1.0


@pytest.mark.filterwarnings("ignore:You requested to overfit")
def test_overfit_batches_limits_the_epoch(fit):
    fit("--trainer.overfit_batches", 2, "--trainer.max_epochs", 2)
    assert [(row["step"], row["images"]) for row in rows("mlp")] == [("2", "64"), ("4", "128")]


def test_max_steps(fit):
    fit("--trainer.max_steps", 11, "--trainer.max_epochs", -1)
    last = read_checkpoint(RUNS / "mlp" / "last.ckpt")
    assert last["global_step"] == 11
    assert (last["mnist_lightning"]["epoch"], last["mnist_lightning"]["batch"]) == (1, 3)
    assert outcome("mlp")["step"] == 8  # the best is that of the one epoch that came to its end


def test_val_check_interval_counts_mini_batches(fit, cli, tiny: list[str]):
    fit("--trainer.val_check_interval", 4, "--data.steps_per_block", 2, "--run", "int")
    assert [row["step"] for row in rows("int") if row["val_acc"]] == ["4", "8"]
    fit("--trainer.val_check_interval", 0.25, "--data.steps_per_block", 2, "--run", "share")
    assert [row["step"] for row in rows("share") if row["val_acc"]] == ["2", "4", "6", "8"]
    result = cli("fit", *tiny, "--trainer.val_check_interval", 3, "--data.steps_per_block", 2)
    assert result.status == 2
    assert "--trainer.val_check_interval 3 must be a multiple of the 2 steps" in one_line(result)


EARLY_STOPPING = """
trainer:
  callbacks:
    - class_path: EarlyStopping
      init_args: {monitor: val_loss, min_delta: 10, patience: 2}
    - class_path: ModelCheckpoint
      init_args: {save_top_k: -1}
"""


def test_callbacks_from_a_file(fit, tmp_path: Path):
    (tmp_path / "stop.yaml").write_text(EARLY_STOPPING)
    fit("--config", "stop.yaml", "--trainer.max_epochs", 9)
    assert [row["epoch"] for row in rows("stop")] == ["1", "2", "3"]
    assert {path.name for path in RUNS.iterdir()} == {"stop"}  # everything of a run lies in its folder
    assert len(list((RUNS / "stop" / "checkpoints").glob("*.ckpt"))) == 3


def test_timer_as_a_callback(fit, cli):
    """Its interval is an Enum, which YAML does not know."""
    fit("--run", "a", "--trainer.callbacks", "Timer", "--trainer.callbacks.duration", "01:00:00:00")
    assert cli("fit", "--config", str(RUNS / "a" / "config.yaml")).status == 0


@pytest.mark.parametrize(
    "precision",
    [
        "bf16-mixed",
        "64-true",
        "bf16-true",
    ],
)
def test_precision(fit, precision: str):
    fit("--trainer.precision", precision)
    assert outcome("mlp")["images"] == 100


# ---------------------------------------------------------------------- help


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict", "convert"])
def test_help_of_a_command(cli, command: str):
    result = cli(command, "--help")
    assert (result.status, result.err) == (0, "")
    assert f"usage: python -m mnist_lightning {command}" in result.out
    assert "--data.root" in result.out
    assert "Folder with the four IDX files" in result.out


def test_help_without_a_command(cli):
    for words in ([], ["--help"], ["-h"]):
        result = cli(*words)
        assert (result.status, result.err) == (0, "")
        assert all(f"mnist_lightning {command} " in result.out for command in ("fit", "test", "validate", "convert"))


def test_version(cli):
    assert cli("--version").out == "0.1.0\n"


# ---------------------------------------------------------------------- errors: one line, nothing left


def one_line(result) -> str:
    assert result.err.startswith("mnist_lightning: ")
    assert result.err.count("\n") == 1
    assert "Traceback" not in result.err + result.out
    return result.err.strip()


WORDS = [
    ("fti", "there is no command 'fti'; did you mean fit?"),
    ("--modle MLP", "there is no command '--modle'; there are convert, fit, predict, "),
    ("fit --modle MLP", "there is no flag --modle; did you mean --model?"),
    ("fit --data.batchsize 3", "there is no flag --data.batchsize; did you mean --data.batch_size?"),
    ("fit --data.batch 3", "there is no flag --data.batch; did you mean --data.batch_size?"),
    ("fit --trainer.max_epoch 3", "there is no flag --trainer.max_epoch; did you mean --trainer.max_epochs?"),
    ("fit --dat.root x", "there is no group of flags --dat; did you mean --data?"),
    ("fit --model.hidden [3] --model MLP", "--model.hidden: say first which network, --model MLP or CNN"),
    ("fit --model MLP --model.hiden [3]", "there is no setting 'hiden'; did you mean hidden?"),
    ("fit --model MPL", "there is no model 'MPL'; did you mean MLP?"),
    ("fit --model cnn", "there is no model 'cnn'; did you mean CNN?"),
    ("fit --model torch.nn.Linear", "there is no model 'torch.nn.Linear'; there are CNN, MLP"),
    ("fit stray", "there is a word too many: 'stray'"),
    ("fit --data.batch_size 0", "--data.batch_size is 0; it must be at least 1"),
    ("fit --data.batch_size x", "--data.batch_size: 'x' is not what it takes: int"),
    (
        "fit --data.source emnist",
        "'emnist' is not what it takes: one of 'auto', 'mnist', 'text', 'synthetic'",
    ),
    ("fit --model MLP --model.lr fast", "--model.lr: 'fast' is not what it takes: float"),
    (
        "fit --model MLP --model.loss nll",
        "--model.loss: 'nll' is not what it takes: one of 'cross_entropy', 'mse'",
    ),
    ("fit --model MLP --model.optimizer Adamm", "--model.optimizer: there is no 'Adamm'; did you mean Adam?"),
    ("fit --model MLP --model.activation Relu", "--model.activation: there is no 'Relu'; did you mean ReLU?"),
    ("fit --model MLP --model.dropout 2", "dropout probability has to be between 0 and 1"),
    ("fit --model MLP --model.activation GLU", "--model.activation: GLU does not map [n, width] to [n, width]"),
    ("fit --model MLP --model.output_activation GLU", "--model.output_activation: GLU does not map"),
    ("fit --model MLP --model.seed 99999999999999999999", "--model.seed is 99999999999999999999; it must be from 0"),
    ("fit --trainer.val_check_interval 0", "--trainer.val_check_interval is 0; it must be at least 1"),
    ("fit --trainer.check_val_every_n_epoch 0", "--trainer.check_val_every_n_epoch is 0; it must be at least 1"),
    ("fit --trainer.gradient_clip_val -1", "--trainer.gradient_clip_val must not be below 0"),
    ("fit --checkpoint.every_n_steps 0", "--checkpoint.every_n_steps is 0; it must be at least 1"),
    ("fit --seed -1", "--seed is -1; it must be from 0 to"),
    ("fit --seed", "--seed"),
    ("fit --run a/b", "--run 'a/b' is no folder's name"),
    ("fit --run ..", "--run '..' is no folder's name"),
    ("fit --run", "--run takes a value"),
    ("fit --config", "--config takes a value"),
    ("fit --config nowhere/x.yaml", "--config: there is no file 'nowhere/x.yaml'"),
    (f"fit --config {RECIPES}/simple_mpl.yaml", "did you mean"),
    ("fit --trainer.callbacks EarlyStoping", "there is no 'EarlyStoping'; did you mean EarlyStopping?"),
    ("fit --trainer.accelerator abacus", "--trainer: "),
    ("fit --trainer.accumulate_grad_batches 2", "raise --data.batch_size instead"),
    ("fit --trainer.strategy ddp_fork --trainer.devices 2", "--trainer.strategy ddp_fork is for notebooks: use ddp"),
    ("test --foo 1", "there is no flag --foo"),
    ("convert", "--output is missing"),
    ("convert --output x --split both", "'both'"),
]


@pytest.mark.parametrize(("words", "expected"), WORDS, ids=[words for words, _ in WORDS])
def test_wrong_words(cli, fit, request: pytest.FixtureRequest, words: str, expected: str):
    if words.startswith("test"):
        fit("--run", "a")
    result = cli(*words.split())
    assert result.status == 2
    assert expected in one_line(result)
    assert not RUNS.exists() or [run.name for run in RUNS.iterdir()] == ["a"]


FILES = [
    ("model:\n  class_path: MPL\n", "--model: there is no 'MPL'; did you mean MLP?"),
    ("model:\n  class_path: MLP\n  init_args:\n    hiden: [3]\n", "no setting 'hiden'; did you mean hidden?"),
    ("model:\n  class_path: MLP\n  init_args:\n    lr: x\n", "--model.lr: 'x' is not what it takes: float"),
    ("modle:\n  class_path: MLP\n", "there is no group of flags --modle; did you mean --model?"),
    ("data:\n  sorce: mnist\n", "there is no flag --data.sorce; did you mean --data.source?"),
    ("data:\n  batch_size: many\n", "--data.batch_size: 'many' is not what it takes: int"),
    ("data:\n  batch_size: 0\n", "--data.batch_size is 0; it must be at least 1"),
    ("trainer: 3\n", "trainer holds no settings"),
    ("model:\n", "model holds no settings"),
    ("3\n", "holds no settings"),
    ("", "holds no settings"),
    ("model: [\n", "line 2 is not YAML"),
    ("\xff", "is not YAML"),
    ("trainer:\n  callbacks:\n    - class_path: EarlyStopping\n", "--trainer.callbacks: monitor is missing"),
]


@pytest.mark.parametrize(("content", "expected"), FILES, ids=[repr(content) for content, _ in FILES])
def test_wrong_configuration_files(cli, content: str, expected: str):
    Path("wrong.yaml").write_bytes(content.encode("latin1"))
    result = cli("fit", "--config", "wrong.yaml")
    assert result.status == 2
    assert expected in one_line(result)
    assert not RUNS.exists()


FAILS = [
    ("fit --data.source mnist --data.root {empty}", "put the four files into"),
    ("fit --data.root {three}", "holds 3 of 4 files: add t10k-labels-idx1-ubyte (plain or .gz)"),
    ("fit --data.root {truncated}", "truncated or damaged gzip file"),
    ("fit --data.source text --data.train_file no.txt --data.test_file no.txt", "no.txt cannot be read"),
    ("fit --data.source text --data.train_file {letter} --data.test_file {letter}", "line 2"),
    ("fit --ckpt_path last", "there is no run in checkpoints: start one with fit"),
    ("fit --ckpt_path last --run nope", "there is no run 'nope' in checkpoints; there are: none"),
    ("test", "there is no run in checkpoints: start one with fit"),
    ("validate --run nope", "there is no run 'nope'"),
    ("predict --ckpt_path nope.ckpt", "nope.ckpt cannot be read: No such file or directory"),
    ("test --ckpt_path .", "cannot be read: Is a directory"),
    ("fit --trainer.max_epochs 0 --data.val_size 50 --data.root {tiny}", "there was no step to train"),
    (
        "fit --trainer.default_root_dir /proc/x --data.val_size 50 --data.root {tiny}",
        "no run folder can be made",
    ),
    ("convert --data.root {tiny} --output no/where.txt", "no/where.txt cannot be written"),
]


@pytest.mark.parametrize(("words", "expected"), FAILS, ids=[words for words, _ in FAILS])
@pytest.mark.filterwarnings("ignore:Total length of")
def test_failures(cli, tiny_mnist: Path, tmp_path: Path, words: str, expected: str):
    places = {name: tmp_path / "data" / name for name in ("empty", "three", "truncated", "letter")}
    for name in ("empty", "three", "truncated"):
        places[name].mkdir(parents=True)
    for file in tiny_mnist.iterdir():
        if "t10k-labels" not in file.name:
            (places["three"] / file.name).symlink_to(file)
        (places["truncated"] / file.name).write_bytes(file.read_bytes()[:-30])
    places["letter"].write_text("\t".join(["0"] * 785) + "\n" + "\t".join(["0"] * 784) + "\tx\n")
    left = sorted(path.name for path in tmp_path.iterdir())
    result = cli(*words.format(tiny=tiny_mnist, **places).split())
    assert result.status == 1
    assert expected in one_line(result)
    assert not list(RUNS.glob("*"))
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "checkpoints") == left


def test_a_run_of_that_name_is_there(fit, cli, tiny: list[str]):
    fit("--run", "a")
    result = cli("fit", *tiny, "--run", "a")
    assert result.status == 1
    assert "is there already: continue it with --ckpt_path last, or choose another --run" in one_line(result)


def test_damaged_checkpoints(fit, cli):
    fit("--run", "a", "--trainer.max_epochs", 2)
    last, best = RUNS / "a" / "last.ckpt", RUNS / "a" / "best.ckpt"
    whole = last.read_bytes()
    flipped = whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:]
    for content in (b"", b"PK", whole[:-300], flipped, b"no checkpoint"):
        replace(last, content)
        for command in ("test", "validate", "predict", "fit"):
            result = cli(command, "--ckpt_path", last)
            assert result.status == 1
            assert f"{last} is damaged" in one_line(result)
        result = cli("test", "--ckpt_path", "last")  # the newest that is whole
        assert result.status == 0
        assert f"{last} is damaged" in result.err
    replace(best, b"")
    result = cli("test", "--ckpt_path", "best")
    assert result.status == 1
    assert "is damaged" in one_line(result)
    best.unlink()
    result = cli("test", "--ckpt_path", "best")
    assert "has no best.ckpt" in one_line(result)


def test_a_checkpoint_of_another_architecture(fit, cli):
    fit("--run", "a")
    fit("--run", "b", "--model.hidden", "[9]")
    result = cli("fit", "--run", "b", "--ckpt_path", RUNS / "a" / "last.ckpt", "--config", RUNS / "b" / "config.yaml")
    assert result.status == 1
    assert "--model.hidden was [8], is [9]" in one_line(result)


def test_without_validation_images_there_is_nothing_to_validate(fit, cli):
    fit("--data.val_size", 0)
    result = cli("validate")
    assert result.status == 1
    assert "there are none to validate on; use test" in one_line(result)


def test_limits_that_leave_nothing(fit, cli):
    fit()
    before = (RUNS / "mlp" / "test.json").read_bytes()
    for command, flag in (("test", "test"), ("validate", "val"), ("predict", "predict")):
        result = cli(command, f"--trainer.limit_{flag}_batches", 0)
        assert result.status == 1
        assert f"see --trainer.limit_{flag}_batches" in one_line(result)
    assert (RUNS / "mlp" / "test.json").read_bytes() == before


def test_what_lightning_refuses_in_the_middle_is_one_line(cli, tiny: list[str]):
    Path("stop.yaml").write_text(EARLY_STOPPING.replace("val_loss", "val_los"))
    result = cli("fit", *tiny, "--config", "stop.yaml")
    assert result.status == 1
    assert "metric `val_los` which is not available" in one_line(result)
    result = cli("fit", *tiny, "--trainer.callbacks", "SpikeDetection")
    assert (result.status, one_line(result)) == (1, "mnist_lightning: --trainer: KeyError: 'loss'")


def test_a_run_that_cannot_begin_leaves_nothing(cli, tiny: list[str], monkeypatch: pytest.MonkeyPatch):
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "config.yaml")

    monkeypatch.setattr("mnist_lightning.fit._save_settings", full)
    result = cli("fit", *tiny)
    assert (result.status, one_line(result)) == (1, "mnist_lightning: config.yaml: No space left on device")
    assert not list(RUNS.iterdir())


def test_what_looks_like_markup_is_printed_as_it_is(fit):
    out = fit("--run", ":x: [b]").out
    assert out.count(f"{RUNS}/:x: [b]") == 3  # the run starts; its checkpoint and its folder


def test_a_loss_that_is_not_finite(cli, tiny: list[str]):
    result = cli("fit", *tiny, "--model.optimizer", "SGD", "--model.lr", "1e30", "--model.loss", "mse")
    assert result.status == 1
    line = one_line(result)
    assert "the loss is not finite in epoch 1 at step" in line
    assert "--model.lr" in line


def test_debug_shows_the_traceback(cli):
    with pytest.raises(Exception, match="batch_size"):
        cli("fit", "--data.batch_size", "0", "--debug")


# ---------------------------------------------------------------------- a process of its own


def process(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mnist_lightning", *map(str, words)],
        capture_output=True, text=True, timeout=120, check=False, env=os.environ | environment,
    )  # fmt: skip


def test_a_process(cli, tiny: list[str], tiny_mnist: Path):
    """MNIST_ROOT, exit statuses, and nothing on the screen that is not ours."""
    package = {"PYTHONPATH": str(RECIPES.parent)}
    without_root = [word for word in tiny if word not in ("--data.root", str(tiny_mnist))]
    result = process("fit", *without_root, MNIST_ROOT=str(tiny_mnist), **package)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("Run checkpoints/mlp starts: MLP, 250 training images of mnist\n")
    assert process("fti", **package).returncode == 2
    wrong = process("test", "--run", "nope", **package)
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert wrong.stderr == "mnist_lightning: there is no run 'nope' in checkpoints; there are: mlp\n"


# ---------------------------------------------------------------------- the real files


@pytest.mark.slow
def test_simple_mlp_on_mnist(cli, real_mnist: Path):
    result = cli("fit", "--config", RECIPES / "simple_mlp.yaml", "--data.root", real_mnist, "--trainer.max_epochs", 1)
    assert (result.status, result.err) == (0, "")
    assert outcome("simple_mlp")["images"] == 10_000
    assert outcome("simple_mlp")["accuracy"] >= 0.95


def test_a_short_training_on_mnist(cli, real_mnist: Path):
    words = ["--trainer.max_epochs", 1, "--data.train_size", 10_000]
    result = cli("fit", "--config", RECIPES / "simple_mlp.yaml", "--data.root", real_mnist, *words)
    assert (result.status, result.err) == (0, "")
    assert outcome("simple_mlp")["images"] == 10_000
    assert 0.88 <= outcome("simple_mlp")["accuracy"] <= 0.95


def test_text_and_idx_of_mnist_train_alike(cli, real_mnist: Path):
    for split, count in (("train", 1000), ("test", 200)):
        words = ["--split", split, "--rows", count, "--output", f"{split}.txt"]
        assert cli("convert", "--data.root", real_mnist, *words).status == 0
    recipe = ["--config", RECIPES / "mccaffrey_cnn.yaml", "--trainer.max_epochs", 1]
    assert cli("fit", *recipe, "--run", "idx", "--data.root", real_mnist).status == 0
    text = ["--data.source", "text", "--data.train_file", "train.txt", "--data.test_file", "test.txt"]
    assert cli("fit", *recipe, "--run", "text", *text).status == 0
    assert same(RUNS / "idx" / "last.ckpt", RUNS / "text" / "last.ckpt")
