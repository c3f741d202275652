"""`fit --seeds` and `fit --folds`: several networks in one run, each exactly what it would be alone."""

import json
import re
import signal
from pathlib import Path

import pytest
import torch
from outcome import RUNS, one_line, outcome, same

from mnist_lightning import MNISTDataModule, Predictor
from mnist_lightning import fit as fit_in_python
from mnist_lightning.commands.average import shifted
from mnist_lightning.run import Run
from mnist_lightning.training import several
from mnist_lightning.training.checkpoints import read_checkpoint
from mnist_lightning.training.keeper import RunKeeper


def names(run: str = "a") -> list[str]:
    return [member.name for member in Run(RUNS / run).members()]


def test_each_is_what_it_would_be_alone(fit, cli, tiny_digits):
    result = fit("--run", "a", "--seeds", 2, "--seed", 3)
    assert names() == ["seed-3", "seed-4"]
    fit("--run", "alone", "--seed", 4)
    assert same(RUNS / "a" / "seed-4" / "best.ckpt", RUNS / "alone" / "best.ckpt")
    assert (RUNS / "a" / "seed-4" / "metrics.csv").read_bytes() == (RUNS / "alone" / "metrics.csv").read_bytes()
    assert not same(RUNS / "a" / "seed-3" / "best.ckpt", RUNS / "a" / "seed-4" / "best.ckpt")
    images, labels = tiny_digits[1]
    rows = [Predictor(RUNS / "a" / name)(images) for name in names()]
    each = [float((row.argmax(1) == labels).double().mean()) for row in rows]
    together = float((torch.stack(rows).mean(0).argmax(1) == labels).double().mean())
    assert re.search(rf"mean of their probabilities\W+{together:.2%}", result.out)
    assert f"{sum(each) / 2:.2%} ± {100 * abs(each[0] - each[1]) / 2**0.5:.2f}" in result.out
    told = outcome("a")
    assert (told["accuracy"], told["images"], told["source"]) == (together, 100, "mnist")
    assert told["networks"] == pytest.approx(dict(zip(names(), each, strict=True)))
    (RUNS / "a" / "test.json").unlink()
    assert cli("test", "--run", "a").status == 0
    assert outcome("a")["accuracy"] == together


@pytest.mark.slow
def test_the_mean_is_used_by_all_that_read(fit, cli, tiny_digits):
    fit("--run", "a", "--seeds", 2)
    images = tiny_digits[1][0]
    predictor = Predictor(RUNS / "a")
    expected = torch.stack([member(images) for member in predictor.members]).mean(0)
    torch.testing.assert_close(predictor(images), expected)
    assert predictor.origin == "checkpoints/a (the mean of 2 networks)"
    found = json.loads(cli("report", "a", "--json").out)
    right = int((expected.argmax(1) == tiny_digits[1][1]).sum())
    assert (found["origin"], found["evaluation"]["correct"]) == (predictor.origin, right)
    for words in (["validate"], ["predict"], ["fit", "--init_from", "a"]):
        told = one_line(cli(*words, *([] if words[0] == "fit" else ["--run", "a"])))
        assert told.startswith("checkpoints/a holds 2 networks: name one, as with --run seed-0 --trainer.default_root")
    result = cli("export", "--run", "a", "--output", "a.html")
    told = "is no one network: give the checkpoint of one, as checkpoints/a/seed-0/best.ckpt"
    assert (result.status, told in result.err) == (1, True)
    assert cli("validate", "--run", "seed-0", "--trainer.default_root_dir", "checkpoints/a").status == 0


@pytest.mark.slow
@pytest.mark.parametrize("again", [["--ckpt_path", "last"], ["--seeds", 3]])
def test_a_killed_one_goes_on(fit, cli, tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: list):
    fit("--run", "whole", "--seeds", 3)
    steps = iter(range(100))

    def stop_in_the_second(keeper: RunKeeper, trainer) -> None:
        if next(steps) == 11:  # 8 steps each
            keeper.signals.received = signal.SIGTERM
        between(keeper, trainer)

    between = RunKeeper.between_batches
    monkeypatch.setattr(RunKeeper, "between_batches", stop_in_the_second)
    monkeypatch.setattr(several, "PATIENCE", 0)  # batches are told of one by one
    result = cli("fit", *tiny, "--run", "a", "--seeds", 3)
    assert result.status == 143
    assert (
        one_line(result).endswith("the first 12 steps: continue with --run a --ckpt_path last")
        or "seed-1" in result.err
    )
    assert names() == ["seed-0", "seed-1"]
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    words = ["--run", "a", *again] if again[0] == "--ckpt_path" else [*tiny, "--run", "a", *again]
    result = cli("fit", *words)
    assert (result.status, result.err) == (0, "")
    assert "checkpoints/a/seed-0/last.ckpt has all its steps" in result.out  # not trained again
    assert "seed-1/last.ckpt has all" not in result.out
    for name in names("whole"):
        for file in ("last.ckpt", "best.ckpt", "metrics.csv"):
            assert (RUNS / "a" / name / file).read_bytes() == (RUNS / "whole" / name / file).read_bytes()


@pytest.mark.slow
def test_of_a_recipe_that_says_not_how_many_are_held_out(cli, tiny: list[str]):
    at = tiny.index("--data.val_size")
    words = tiny[:at] + tiny[at + 2 :]
    assert cli("fit", *words, "--seeds", 1, "--run", "a").status == 0
    for again in (["--ckpt_path", "last"], [*words, "--seeds", 2]):
        result = cli("fit", "--run", "a", *again)
        assert (result.status, result.err) == (0, "")
    assert [
        read_checkpoint(RUNS / "a" / name / "last.ckpt")["datamodule_hyper_parameters"]["val_size"] for name in names()
    ] == [50, 50]


@pytest.mark.slow
def test_more_seeds_and_more_epochs(fit, cli):
    fit("--run", "a", "--seeds", 1)
    assert cli("fit", "--run", "a", "--ckpt_path", "last", "--seeds", 2, "--trainer.max_epochs", 2).status == 0
    assert names() == ["seed-0", "seed-1"]
    assert [read_checkpoint(RUNS / "a" / name / "last.ckpt")["epoch"] for name in names()] == [2, 2]
    assert json.loads((RUNS / "a" / "test.json").read_text())["networks"].keys() == {"seed-0", "seed-1"}


@pytest.mark.slow
def test_folds(cli, tiny: list[str], tiny_mnist: Path):
    at = tiny.index("--data.val_size")
    words = tiny[:at] + tiny[at + 2 :]
    result = cli("fit", *words, "--folds", 3, "--run", "a")
    assert (result.status, result.err) == (0, "")
    assert names() == ["fold-0", "fold-1", "fold-2"]
    held_out = []
    for number, name in enumerate(names()):
        known = read_checkpoint(RUNS / "a" / name / "best.ckpt")["datamodule_hyper_parameters"]
        assert (known["folds"], known["fold"], known["val_size"]) == (3, number, 100)
        data = MNISTDataModule(str(tiny_mnist), "mnist", folds=3, fold=number)
        data.setup("fit")
        held_out += data._subsets["val"].tolist()
    assert sorted(held_out) == list(range(300))
    best = [read_checkpoint(RUNS / "a" / name / "best.ckpt")["mnist_lightning"]["best"][0] for name in names()]
    assert f"{sum(best) / 3:.2%} ±" in result.out
    for again in (["--ckpt_path", "last"], ["--folds", 3, *words]):
        result = cli("fit", "--run", "a", *again)
        assert (result.status, result.err) == (0, "")
    told = one_line(cli("fit", *tiny, "--folds", 3))
    assert told == "--data.val_size: --folds says which images are held out: leave it out"


def test_in_python_objects_are_fresh_for_each(tiny_mnist: Path, cli):
    from lightning.pytorch.callbacks import EarlyStopping

    found = fit_in_python(
        model={"class_path": "MLP", "hidden": [8]}, seeds=2, run="a",
        data={"root": str(tiny_mnist), "source": "mnist", "val_size": 50},
        trainer={"max_epochs": 3, "callbacks": [EarlyStopping("val_acc", min_delta=2.0, patience=1, mode="max")]},
    )  # fmt: skip
    assert found.run == RUNS / "a"
    assert found.metrics.keys() >= {"test_acc", "test_acc_mean", "test_acc_std", "val_acc_mean"}
    assert [read_checkpoint(RUNS / "a" / name / "last.ckpt")["epoch"] for name in names()] == [2, 2]


REFUSED = [
    ("--seeds 2 --folds 2", 2, "--seeds and --folds: a run is of one or the other"),
    ("--seeds 0", 2, "--seeds is 0; it must be at least 1"),
    ("--folds 1", 2, "--folds is 1; it must be at least 2"),
    ("--seeds 2 --ckpt_path best", 2, "goes on with all networks of a run: give last"),
    ("--seeds 2 --trainer.fast_dev_run true", 2, "--trainer.fast_dev_run tries one network: leave --seeds out"),
    ("--seeds 2 --run one", 1, "the run checkpoints/one is there already"),
    ("--run several", 1, "checkpoints/several is there already: continue it with --run several --ckpt_path last"),
]


def test_what_does_not_go_together(fit, cli, tiny):
    fit("--run", "one")
    fit("--run", "several", "--seeds", 1)
    at = tiny.index("--data.val_size")
    for words, status, told in REFUSED:
        given = tiny[:at] + tiny[at + 2 :] if "folds" in words else tiny
        result = cli("fit", *given, *words.split())
        assert (words, result.status) == (words, status), result.err
        assert told in one_line(result)


# ---------------------------------------------------------------------- test-time augmentation


def test_shifted_images():
    images = torch.arange(784, dtype=torch.int64).remainder(251).to(torch.uint8).view(1, 28, 28)
    same_place, down, up, right, left = shifted(images)
    assert torch.equal(same_place, images)
    assert torch.equal(down[:, 1:], images[:, :-1])
    assert torch.equal(up[:, :-1], images[:, 1:])
    assert torch.equal(right[:, :, 1:], images[:, :, :-1])
    assert torch.equal(left[:, :, :-1], images[:, :, 1:])
    for edge in (down[:, 0], up[:, -1], right[:, :, 0], left[:, :, -1]):
        assert not edge.any()


@pytest.mark.slow
def test_test_time_augmentation(fit, cli, tiny_digits):
    fit("--run", "a")
    before = outcome("a")
    images, labels = tiny_digits[1]
    predictor = Predictor(RUNS / "a")
    rows = torch.stack([predictor(part) for part in shifted(images)]).mean(0)
    result = cli("test", "--run", "a", "--tta", "shifts")
    assert (result.status, result.err) == (0, "")
    right = int((rows.argmax(1) == labels).sum())
    assert re.search(
        rf"mean over 5 places of the image, in [\d.]+ times the time\W+{right}.00%  \({right}\)", result.out
    )
    assert f"{before['correct']}.00%" in result.out
    assert outcome("a") == before
    fit("--run", "b", "--seeds", 2)
    assert "mean of the 2 probabilities" in cli("test", "--run", "b", "--tta", "shifts").out
    assert "shifts" in one_line(cli("test", "--run", "a", "--tta", "all"))
