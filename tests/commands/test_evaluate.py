"""`validate`, `test` and `predict`: the checkpoint that is meant, as it was trained, each image once."""

import csv
import json
import re
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from outcome import RUNS, column, one_line, outcome
from samples import trained

from mnist_lightning import CNN, MLP, MNISTDataModule, Predictor, load_model
from mnist_lightning.training.checkpoint_content import FOUND
from mnist_lightning.training.checkpoints import read_checkpoint, write_checkpoint


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
    assert validated["accuracy"] == pytest.approx(column("a", "val_acc")[-1])
    assert validated["loss"] == pytest.approx(column("a", "val_loss")[-1])


def test_the_newest_run_is_meant(fit, cli):
    fit("--run", "a")
    fit("--run", "b")
    assert "checkpoints/b" in cli("test").out
    assert "checkpoints/a" in cli("test", "--run", "a").out


def test_test_computes_as_fit_did(fit, cli):
    fit("--trainer.precision", "bf16-mixed", "--run", "a")
    told = outcome("a")
    assert cli("test", "--run", "a").status == 0
    assert (outcome("a"), told["precision"]) == (told, "bf16-mixed")
    assert cli("test", "--run", "a", "--trainer.precision", "32-true").status == 0
    assert outcome("a")["loss"] != told["loss"]


@pytest.mark.slow
def test_validate_keeps_to_the_images_that_were_held_out(fit, cli):
    fit("--run", "a")
    result = cli("validate", "--run", "a", "--data.val_size", 200)
    assert (result.status, "held out 50 images" in one_line(result)) == (2, True)
    fit("--data.val_size", 0)
    result = cli("validate")
    assert (result.status, "there are none to validate on; use test" in one_line(result)) == (1, True)


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
        logits = load_model(RUNS / "mlp" / "best.ckpt")(images) / checkpoint[FOUND]["temperature"]
    probabilities = logits.softmax(1).amax(1)
    assert [float(row["probability"]) for row in table] == pytest.approx(probabilities.tolist(), abs=1e-5)


def test_a_checkpoint_carries_its_normalisation(fit, cli, tmp_path: Path):
    fit("--data.normalize", "[0.3, 0.2]", "--run", "a")
    moved = tmp_path / "moved.ckpt"
    moved.write_bytes((RUNS / "a" / "best.ckpt").read_bytes())
    assert cli("test", "--ckpt_path", moved).status == 0
    there = json.loads((tmp_path / "test.json").read_text())
    assert there == outcome("a") | {"checkpoint": str(moved)}


def test_what_a_plain_trainer_wrote_is_tested(cli, tiny_mnist: Path):
    """Its data is not known: it is given, or what there is."""
    data = MNISTDataModule(root=str(tiny_mnist), val_size=50)
    trainer = Trainer(
        max_epochs=1, logger=False, enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False
    )
    trainer.fit(MLP(hidden=[8]), data)
    trainer.save_checkpoint("plain.ckpt")
    result = cli("test", "--ckpt_path", "plain.ckpt", "--data.root", tiny_mnist)
    assert (result.status, result.err) == (0, "")
    assert json.loads(Path("test.json").read_text())["images"] == 100


def test_limits_are_told_in_the_result(fit, cli):
    """They count batches of the training's size."""
    fit()
    assert outcome("mlp")["images"] == 100
    for limit, images in ((2, 64), (1, 32), ("1.0", 100)):
        assert cli("test", "--trainer.limit_test_batches", limit).status == 0
        assert outcome("mlp")["images"] == images
    assert cli("predict", "--trainer.limit_predict_batches", 2).status == 0
    assert len((RUNS / "mlp" / "predictions.csv").read_text().splitlines()) == 65


def test_limits_that_leave_nothing(fit, cli):
    fit()
    before = (RUNS / "mlp" / "test.json").read_bytes()
    for command, flag in (("test", "test"), ("validate", "val"), ("predict", "predict")):
        result = cli(command, f"--trainer.limit_{flag}_batches", 0)
        assert result.status == 1
        assert f"see --trainer.limit_{flag}_batches" in one_line(result)
    assert (RUNS / "mlp" / "test.json").read_bytes() == before


def test_damaged_checkpoints(fit, cli):
    fit("--run", "a", "--trainer.max_epochs", 2)
    last, best = RUNS / "a" / "last.ckpt", RUNS / "a" / "best.ckpt"
    whole = last.read_bytes()
    flipped = whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:]
    for content in (b"", b"PK", whole[:-300], flipped, b"no checkpoint"):
        last.unlink()  # it can have two names
        last.write_bytes(content)
        for command in ("test", "validate", "predict", "fit"):
            result = cli(command, "--ckpt_path", last)
            assert result.status == 1
            assert f"{last} is damaged" in one_line(result)
        result = cli("test", "--ckpt_path", "last")  # the one that is furthest on of those that are whole
        assert result.status == 0
        assert f"{last} is damaged" in result.err
    best.unlink()
    best.touch()
    assert "is damaged" in one_line(cli("test", "--ckpt_path", "best"))
    best.unlink()
    assert "has no best.ckpt" in one_line(cli("test", "--ckpt_path", "best"))


FAILS = [
    ("test", "there is no run in checkpoints: start one with fit"),
    ("validate --run nope", "there is no run 'nope'"),
    ("predict --ckpt_path nope.ckpt", "nope.ckpt cannot be read: No such file or directory"),
    ("test --ckpt_path .", "cannot be read: Is a directory"),
]


@pytest.mark.parametrize(("words", "expected"), FAILS, ids=[words for words, _ in FAILS])
def test_failures(cli, words: str, expected: str):
    result = cli(*words.split())
    assert (result.status, expected in one_line(result)) == (1, True)


def test_wrong_words(fit, cli):
    fit()
    result = cli("test", "--foo", 1)
    assert (result.status, one_line(result)[:23]) == (2, "there is no flag --foo;")
    result = cli("test", "--model.hidden", "[3]")
    told = "there is no group of flags --model; there are --data, --trainer"
    assert (result.status, one_line(result)) == (2, told)


# ---------------------------------------------------------------------- the shipped weights; several checkpoints


def test_predict_where_there_is_no_run(cli, tiny_mnist: Path):
    result = cli("predict", "--data.root", tiny_mnist)
    assert (result.status, result.out.startswith("with the shipped weights (")) == (0, True)
    assert len(Path("predictions.csv").read_text().splitlines()) == 101


def test_the_shipped_weights_are_tested(cli, tiny_mnist: Path):
    assert cli("test", "--ckpt_path", "pretrained", "--data.root", tiny_mnist).status == 0
    assert json.loads(Path("test.json").read_text())["images"] == 100


def test_several_are_averaged(fit, cli, tiny_digits):
    fit("--run", "a")
    fit("--run", "b", "--model.hidden", "[12]", "--data.normalize", "[0.3, 0.2]")
    result = cli("test", "--ckpt_path", "a", "checkpoints/b/best.ckpt", "pretrained")
    assert (result.status, result.err) == (0, "")
    images, labels = tiny_digits[1]
    members = [Predictor("checkpoints/a"), Predictor("b"), Predictor()]
    rows = [member(images) for member in members]
    right = [int((row.argmax(1) == labels).sum()) for row in [*rows, torch.stack(rows).mean(0)]]
    told = [int(count) for count in re.findall(r"% +\((\d+)\)", result.out)]
    assert told == right
    for member in members:
        assert member.origin in result.out
    assert "100 test images of mnist" in result.out


def test_what_cannot_be_averaged(fit, cli):
    fit("--run", "a")
    checkpoint = trained()
    checkpoint["hyper_parameters"]["classes"] = 4
    checkpoint["state_dict"] = dict(CNN(channels=[4], hidden=[16], classes=4).state_dict())
    write_checkpoint(checkpoint, Path("four.ckpt"))
    result = cli("test", "--ckpt_path", "a", "four.ckpt")
    told = "four.ckpt has 4 classes (0, 1, 2, …): average networks of the same classes"
    assert (result.status, told in one_line(result)) == (1, True)
    assert "there is no run 'nope'" in one_line(cli("test", "--ckpt_path", "a", "nope"))
    result = cli("validate", "--ckpt_path", "a", "a")
    assert (result.status, one_line(result)) == (2, "--ckpt_path: validate takes one checkpoint; test averages several")
    result = cli("test", "--ckpt_path", "a", "a", "--run", "a")
    assert (result.status, one_line(result)) == (2, "--run goes with one checkpoint: --ckpt_path names 2")


def test_predictions_that_cannot_be_written_are_shown(fit, cli):
    fit("--run", "a")
    (RUNS / "a" / "predictions.csv").mkdir()
    result = cli("predict", "--run", "a")
    assert result.status == 1
    assert result.err.count("\n") == 1
    assert "a/predictions.csv cannot be written: " in result.err
    assert result.err.endswith("; the table is on standard output\n")
    rows = list(csv.DictReader(result.out.splitlines()))
    assert [row["image"] for row in rows] == [str(at) for at in range(100)]
