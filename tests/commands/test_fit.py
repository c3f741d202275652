"""`fit`: what a run leaves, its name, its settings; a training of anybody's; trials; fit(settings) in Python."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Callback
from outcome import RUNS, column, one_line, outcome, rows, same, settings_of, weights

import mnist_lightning
from mnist_lightning.data.module import MNISTDataModule
from mnist_lightning.training.checkpoints import read_checkpoint

# ---------------------------------------------------------------------- the run folder


def test_what_a_run_leaves(fit):
    out = fit("--trainer.max_epochs", 2).out
    assert {path.name for path in (RUNS / "mlp").iterdir()} >= {
        "config.yaml", "best.ckpt", "last.ckpt", "metrics.csv", "test.json", "tensorboard",
    }  # fmt: skip
    assert list((RUNS / "mlp" / "tensorboard").glob("events*"))
    assert not list((RUNS / "mlp").glob("*.tmp"))
    result = outcome("mlp")
    assert list(result) == [
        "accuracy", "loss", "images", "correct", "source", "checkpoint", "temperature", "precision", "epoch", "step",
        "seed", "versions",
    ]  # fmt: skip
    assert result["versions"].keys() == {"mnist_lightning", "torch", "lightning"}
    assert (result["images"], result["source"], result["seed"]) == (100, "mnist", 0)
    assert result["accuracy"] == result["correct"] / 100
    assert result["checkpoint"] == "checkpoints/mlp/best.ckpt"
    assert f"{result['accuracy']:.2%}" in out
    assert f"({result['correct']} of 100 images)" in out
    assert "checkpoints/mlp" in out


def test_output_into_a_pipe_is_plain_lines(fit):
    out = fit("--trainer.max_epochs", 2).out
    assert not {"\x1b", "\r"} & set(out)
    lines = [line for line in out.splitlines() if line.startswith("epoch ")]
    assert [line.split()[1] for line in lines] == ["1/2", "2/2"]


def test_metrics_csv(fit):
    fit("--trainer.max_epochs", 2, "--trainer.log_every_n_steps", 3, "--run", "a")
    table = rows("a")
    assert [(row["epoch"], row["step"], row["images"]) for row in table] == [
        ("0", "2", "96.0"), ("0", "5", "192.0"), ("0", "7", "250.0"),
        ("1", "8", "282.0"), ("1", "11", "378.0"), ("1", "14", "474.0"), ("1", "15", "500.0"),
    ]  # fmt: skip
    for row in table:
        at_end = row["step"] in ("7", "15")
        for name in ("train_loss", "train_acc", "val_loss", "val_acc"):
            assert bool(row[name]) == at_end, name


def test_best_is_the_epoch_with_the_best_validation(fit):
    fit("--trainer.max_epochs", 4, "--model.lr", 0.03)
    accuracies = list(zip(column("mlp", "val_acc"), [-loss for loss in column("mlp", "val_loss")], strict=True))
    assert outcome("mlp")["epoch"] == accuracies.index(max(accuracies)) + 1


def test_watching_the_test_images_chooses_nothing(fit):
    fit("--trainer.max_epochs", 4, "--model.lr", 0.03, "--run", "plain")
    fit("--trainer.max_epochs", 4, "--model.lr", 0.03, "--run", "watched", "--data.test_each_epoch", "true")
    assert len(column("watched", "test_acc")) == 4
    assert outcome("watched")["epoch"] == outcome("plain")["epoch"]
    assert same(RUNS / "watched" / "best.ckpt", RUNS / "plain" / "best.ckpt")


def test_the_evaluation_before_any_training_is_a_row(fit):
    fit("--trainer.num_sanity_val_steps", -1)
    first, *_ = rows("mlp")
    assert (first["step"], float(first["images"]), first["train_loss"]) == ("0", 0, "")
    assert float(first["val_acc"]) < 0.4


@pytest.mark.slow
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


@pytest.mark.slow
def test_files_say_where_a_run_lies_like_any_setting(tiny, cli, tmp_path: Path):
    (tmp_path / "mine.yaml").write_text("run: chosen\nmodel: MLP\ntrainer: {default_root_dir: elsewhere/deep}\n")
    (tmp_path / "over.yaml").write_text("run: other\n")
    assert cli("fit", "--config", "mine.yaml", *tiny).status == 0
    assert cli("fit", "--config", "mine.yaml", "--config", "over.yaml", *tiny).status == 0
    assert cli("fit", "--config", "over.yaml", *tiny, "--config", "mine.yaml", "--run", "third").status == 0
    assert {run.parent.name for run in Path("elsewhere/deep").glob("*/best.ckpt")} == {"chosen", "other", "third"}
    assert "elsewhere/deep/chosen" in cli("test", "--config", "mine.yaml").out
    assert not RUNS.exists()


def test_plain_fit_is_the_recipe_cnn(cli, tiny_mnist: Path, monkeypatch: pytest.MonkeyPatch):
    data = ["--data.root", tiny_mnist, "--data.val_size", 50, "--trainer.max_steps", 1]
    monkeypatch.setattr("mnist_lightning.commands.start.computes_in_bf16", lambda accelerator: True)
    assert cli("fit", *data).status == 0
    assert cli("fit", "--config", "cnn", *data).status == 0
    plain = settings_of("cnn")
    assert plain == settings_of("cnn-2")
    monkeypatch.setattr("mnist_lightning.commands.start.computes_in_bf16", lambda accelerator: False)
    assert cli("fit", *data).status == 0
    assert settings_of("cnn-3") == plain.replace("precision: bf16-mixed", "precision: 32-true")


def test_bf16_of_a_recipe_is_for_processors_that_have_it(cli, tiny_mnist: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("mnist_lightning.commands.start.computes_in_bf16", lambda accelerator: False)
    Path("mine.yaml").write_text("trainer: {precision: bf16-mixed}\n")
    fit = ["fit", "--data.root", tiny_mnist, "--data.val_size", 50, "--trainer.max_steps", 1, "--config", "fast"]

    def precision_of(*words: object) -> tuple[str, bool, bool]:
        ran = cli(*fit, *words)
        assert ran.status == 0
        run = sorted(RUNS.iterdir(), key=lambda folder: folder.stat().st_mtime)[-1].name
        precision = yaml.safe_load(settings_of(run))["trainer"]["precision"]
        return precision, "In float32: the recipe's bf16-mixed is slow" in ran.out, "bf16-mixed is slow on" in ran.out

    assert precision_of("--run", "a") == ("32-true", True, True)
    by_path = [*fit[:-1], Path(__file__).parents[2] / "configs" / "fast.yaml"]
    assert "In float32" in cli(*by_path, "--run", "by path").out
    assert precision_of("--run", "b", "--trainer.precision", "bf16-mixed") == ("bf16-mixed", False, True)
    assert precision_of("--run", "c", "--config", "mine.yaml") == ("bf16-mixed", False, True)
    assert precision_of("--run", "d", "--trainer.precision", "64-true") == ("64-true", False, False)
    assert cli("test", "--run", "a").status == 0
    for run in "abcd":  # a run goes on as it began
        assert cli(*fit, "--run", run, "--ckpt_path", "last").status == 0
    Path("mine.yaml").write_text("trainer: {accelerator: [cpu]}\n")
    wrong = cli(*fit, "--config", "mine.yaml")
    assert "--trainer.accelerator: ['cpu'] is not what it takes" in wrong.err


def test_bf16_goes_on_where_a_processor_emulates_it(cli, tiny_mnist: Path, monkeypatch: pytest.MonkeyPatch):
    fit = ["fit", "--data.root", tiny_mnist, "--data.train_size", 100, "--config", "tiny", "--trainer.max_epochs", 1]
    fit += ["--data.drawn", 0, "--data.val_size", 20]
    for words in (["--run", "one"], ["--run", "two", "--seeds", 1]):
        monkeypatch.setattr("mnist_lightning.commands.start.computes_in_bf16", lambda accelerator: True)
        assert cli(*fit, *words).status == 0
        monkeypatch.setattr("mnist_lightning.commands.start.computes_in_bf16", lambda accelerator: False)
        again = cli(*fit, *words, "--ckpt_path", "last")
        assert (again.status, again.err, "slow on" in again.out) == (0, "", False)


def test_config_yaml_makes_the_same_run_again(fit, cli):
    fit("--model.dropout", "[0.5]", "--seed", 3, "--model.optimizer_args", "{betas: [0.8, 0.9]}")
    assert cli("fit", "--config", "checkpoints/mlp/config.yaml").status == 0
    assert settings_of("mlp-2") == settings_of("mlp")
    assert same(RUNS / "mlp" / "last.ckpt", RUNS / "mlp-2" / "last.ckpt")
    settings = yaml.safe_load((RUNS / "mlp" / "config.yaml").read_text())
    assert settings["seed"] == 3
    assert settings["model"]["init_args"]["dropout"] == [0.5]
    assert settings["data"]["init_args"]["source"] == "mnist"


@pytest.mark.slow
def test_seeds(fit):
    for run, words in (("a", []), ("b", []), ("c", ["--seed", 1]), ("d", ["--data.seed", 5])):
        fit("--run", run, *words)
    assert same(RUNS / "a" / "last.ckpt", RUNS / "b" / "last.ckpt")
    assert not same(RUNS / "a" / "last.ckpt", RUNS / "c" / "last.ckpt")
    assert not same(RUNS / "a" / "last.ckpt", RUNS / "d" / "last.ckpt")
    assert [outcome(run)["seed"] for run in "abc"] == [0, 0, 1]


def test_synthetic_digits_are_said_loudly(cli, monkeypatch: pytest.MonkeyPatch):
    from mnist_lightning.data.synthetic import synthetic_digits

    monkeypatch.setattr("mnist_lightning.data.module.synthetic_digits", lambda count, seed: synthetic_digits(300, seed))
    result = cli("fit", "--model", "MLP", "--data.val_size", 50, "--trainer.max_steps", 2, "--data.root", "no[/b]")
    assert result.status == 0
    for told in ("no[/b]", "Training on SYNTHETIC digits, not on MNIST.", "no network", "MNIST_ROOT"):
        assert told in result.out
    assert "SYNTHETIC digits, not MNIST" in result.out.partition("Test result")[2]
    assert outcome("mlp")["source"] == "synthetic"
    assert (RUNS / "mlp" / "config.yaml").read_text().startswith("# synthetic digits (no MNIST could be had)\n")
    assert "SYNTHETIC digits, not MNIST" in cli("test").out


def test_a_run_that_cannot_begin_leaves_nothing(cli, tiny: list[str], monkeypatch: pytest.MonkeyPatch):
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "config.yaml")

    monkeypatch.setattr("mnist_lightning.commands.fit._write_settings", full)
    result = cli("fit", *tiny)
    assert (result.status, one_line(result)) == (1, "config.yaml: No space left on device")
    assert not list(RUNS.iterdir())


def test_what_looks_like_markup_is_printed_as_it_is(fit):
    out = fit("--run", ":x: [b]").out
    assert out.count(f"{RUNS}/:x: [b]") == 3  # the run starts; its checkpoint and its folder


# ---------------------------------------------------------------------- Lightning's settings


@pytest.mark.filterwarnings("ignore:Running in `fast_dev_run` mode")
def test_a_trial_leaves_nothing(fit, tmp_path: Path):
    before = sorted(tmp_path.rglob("*"))
    assert "Test result" not in fit("--trainer.fast_dev_run", "true").out
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.filterwarnings("ignore:You requested to overfit")
@pytest.mark.parametrize(
    ("words", "steps"),
    [
        ("--trainer.limit_train_batches 3", [2, 5]),
        ("--trainer.limit_train_batches 0.5", [3, 7]),
        ("--trainer.limit_train_batches 1", [0, 1]),
        ("--trainer.overfit_batches 2", [1, 3]),
        ("--trainer.val_check_interval 4", [3, 7, 11, 15]),
        ("--trainer.val_check_interval 0.25", [1, 3, 5, 7, 9, 11, 13, 15]),
        ("--trainer.check_val_every_n_epoch 2", [15]),
        ("--trainer.accumulate_grad_batches 2", [3, 7]),
    ],
)
def test_settings_count_mini_batches(fit, words: str, steps: list[int]):
    fit("--trainer.max_epochs", 2, "--run", "a", *words.split())
    assert [int(row["step"]) for row in rows("a") if row["val_acc"]] == steps


def test_max_steps(fit):
    fit("--trainer.max_steps", 11, "--trainer.max_epochs", -1)
    state = read_checkpoint(RUNS / "mlp" / "last.ckpt")["mnist_lightning"]
    assert (state["step"], state["epoch"], state["batch"]) == (11, 1, 3)
    assert outcome("mlp")["step"] == 8  # the best is that of the one epoch that came to its end


STOPPING = """
trainer:
  callbacks:
    - class_path: EarlyStopping
      init_args: {monitor: val_loss, min_delta: 10, patience: 2}
    - class_path: ModelCheckpoint
      init_args: {save_top_k: -1}
    - LearningRateMonitor
"""


def test_callbacks_from_a_file(fit, cli):
    Path("stop.yaml").write_text(STOPPING)
    fit("--config", "stop.yaml", "--trainer.max_epochs", 9)
    assert len(column("stop", "val_acc")) == 3
    assert set(column("stop", "lr-Adam")) == {0.001}
    assert {path.name for path in RUNS.iterdir()} == {"stop"}  # everything of a run lies in its folder
    assert len(list((RUNS / "stop" / "checkpoints").glob("*.ckpt"))) == 3
    assert cli("fit", "--config", RUNS / "stop" / "config.yaml", "--run", "again").status == 0
    assert same(RUNS / "again" / "last.ckpt", RUNS / "stop" / "last.ckpt")


@pytest.mark.parametrize("bar", ["RichProgressBar", "TQDMProgressBar"])
def test_another_progress_bar_takes_the_place_of_ours(fit, cli, tiny: list[str], bar: str):
    result = cli("fit", *tiny, "--trainer.callbacks", bar)
    assert result.status == 0
    assert "images/s" not in result.out


def test_loggers(fit):
    fit("--run", "a", "--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", "logs")
    assert "val_acc" in Path("logs/lightning_logs/version_0/metrics.csv").read_text()
    assert (RUNS / "a" / "tensorboard").is_dir()
    fit("--run", "b", "--trainer.logger", "false")
    assert not (RUNS / "b" / "tensorboard").exists()
    assert column("b", "val_acc") == column("a", "val_acc")


def test_a_callback_whose_device_is_an_object(fit, cli):
    fit("--run", "a", "--trainer.callbacks", "EMAWeightAveraging", "--trainer.callbacks.device", "cpu")
    result = cli("fit", "--run", "a", "--ckpt_path", "last", "--trainer.max_epochs", 2)
    assert (result.status, result.err) == (0, "")


def test_a_callback_that_cannot_be_written_is_told(cli, tiny_mnist: Path, capsys: pytest.CaptureFixture[str]):
    trainer = {"max_epochs": 1, "callbacks": [Callback()]}
    settings = {"model": "MLP", "data": {"root": str(tiny_mnist), "val_size": 50}, "run": "a"}
    mnist_lightning.fit(settings, trainer=trainer)
    assert "checkpoints/a/config.yaml cannot hold all settings (Callback): " in capsys.readouterr().out
    result = cli("fit", "--run", "a", "--ckpt_path", "last")
    assert (result.status, "cannot hold" in result.out) == (0, False)
    result = mnist_lightning.fit(settings, trainer=trainer | {"max_epochs": 2}, ckpt_path="last")
    assert result.run == RUNS / "a"


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true", "bf16-true"])
def test_precision(fit, precision: str):
    fit("--trainer.precision", precision)
    assert (outcome("mlp")["images"], outcome("mlp")["precision"]) == (100, precision)


# ---------------------------------------------------------------------- anybody's model and data


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
def test_own_model_and_data(mine, cli):
    words = ["--model", "mine.Net", "--model.width", 8, "--data", "mine.Data", "--trainer.max_epochs", 2]
    result = cli("fit", *words, "--trainer.log_every_n_steps", 1)
    assert (result.status, result.err) == (0, "")
    assert result.out.startswith("Run checkpoints/net starts: Net on Data\n")
    told = outcome("net")
    assert told["ones"] == pytest.approx(0.1)
    assert (told["source"], told["step"], "accuracy" in told) == ("Data", 8, False)
    for command, file in (("test", "test.json"), ("validate", "val.json"), ("predict", "predictions.csv")):
        (RUNS / "net" / file).unlink(missing_ok=True)
        result = cli(command)
        assert (result.status, result.err) == (0, "")
        assert (RUNS / "net" / file).exists()
    assert outcome("net") == told
    assert len((RUNS / "net" / "predictions.csv").read_text().splitlines()) == 41
    assert cli("fit", "--ckpt_path", "last", "--trainer.max_epochs", 4).status == 0
    assert cli("fit", *words, "--trainer.max_epochs", 4, "--run", "whole", "--trainer.log_every_n_steps", 1).status == 0
    assert same(RUNS / "net" / "last.ckpt", RUNS / "whole" / "last.ckpt")
    assert "net" in cli("report").out


@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
def test_own_model_on_our_data(mine, cli, tiny: list[str]):
    words = [*tiny[4:], "--model", "mine.Net", "--model.width", 8]
    assert cli("fit", *words, "--run", "a").status == 0
    assert outcome("a")["source"] == "mnist"
    Path("moved.ckpt").write_bytes((RUNS / "a" / "last.ckpt").read_bytes())
    assert "give its class and settings with --model" in one_line(cli("test", "--ckpt_path", "moved.ckpt"))
    result = cli("test", "--ckpt_path", "moved.ckpt", "--model", "mine.Net", "--model.width", 8)
    assert (result.status, result.err) == (0, "")
    assert json.loads(Path("test.json").read_text())["loss"] == outcome("a")["loss"]
    result = cli("fit", *words, "--model", "mine.TrainsOnly", "--run", "b")  # it has no test_step
    assert (result.status, result.err) == (0, "")
    assert not (RUNS / "b" / "test.json").exists()


def test_the_number_of_classes_is_the_datas(fit, cli, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(MNISTDataModule, "classes", 12)
    fit("--run", "a")
    assert weights(RUNS / "a" / "last.ckpt")["net.3.weight"].shape == (12, 8)
    assert yaml.safe_load((RUNS / "a" / "config.yaml").read_text())["model"]["init_args"]["classes"] == 12
    assert cli("fit", "--run", "a", "--ckpt_path", "last", "--trainer.max_epochs", 2).status == 0
    fit("--run", "b", "--model.classes", 11)
    assert weights(RUNS / "b" / "last.ckpt")["net.3.weight"].shape == (11, 8)


def test_starting_from_weights(fit, cli, tiny: list[str]):
    fit("--run", "a")
    out = fit("--run", "b", "--init_from", RUNS / "a" / "last.ckpt", "--model.classes", 12, "--model.lr", 0).out
    assert "Starts from the weights of checkpoints/a/last.ckpt; fresh are net.3.weight, net.3.bias\n" in out
    old, new = weights(RUNS / "a" / "last.ckpt"), weights(RUNS / "b" / "last.ckpt")
    assert torch.equal(old["net.1.weight"], new["net.1.weight"])
    assert cli("fit", "--run", "b", "--ckpt_path", "last", "--trainer.max_epochs", 2).status == 0
    result = cli("fit", *tiny, "--run", "c", "--init_from", RUNS / "a" / "last.ckpt", "--model.hidden", "[9]")
    assert result.status == 0  # the last layer's bias fits
    words = ["--init_from", RUNS / "a" / "last.ckpt", "--run", "b", "--ckpt_path", "last"]
    assert "give one of them" in one_line(cli("fit", *words))


# ---------------------------------------------------------------------- in Python


def test_fit_in_python(cli, tiny_mnist: Path):
    settings = {"config": "simple_mlp", "model": {"hidden": [8]}, "data": {"root": str(tiny_mnist), "val_size": 50}}
    result = mnist_lightning.fit(settings, trainer={"max_epochs": 2}, seed=3)
    assert (result.run, result.best, result.last) == (
        RUNS / "simple_mlp", RUNS / "simple_mlp" / "best.ckpt", RUNS / "simple_mlp" / "last.ckpt",
    )  # fmt: skip
    assert result.metrics.keys() >= {"train_loss", "train_acc", "val_loss", "val_acc", "test_loss", "test_acc"}
    assert result.metrics["test_acc"] == pytest.approx(outcome("simple_mlp")["accuracy"])
    assert result.metrics["val_acc"] == pytest.approx(column("simple_mlp", "val_acc")[-1])
    words = ["--model.hidden", "[8]", "--data.root", tiny_mnist, "--data.val_size", 50, "--trainer.max_epochs", 2]
    assert cli("fit", "--config", "simple_mlp", *words, "--seed", 3).status == 0
    assert same(RUNS / "simple_mlp" / "last.ckpt", RUNS / "simple_mlp-2" / "last.ckpt")
    with pytest.raises(mnist_lightning.UserError, match=r"^there is no flag --model\.hiden; did you mean"):
        mnist_lightning.fit(settings, model={"hiden": [8]})


@pytest.mark.filterwarnings("ignore:Running in `fast_dev_run` mode")
def test_a_trial_in_python(cli, tiny_mnist: Path, tmp_path: Path):
    settings = {"model": "MLP", "data": {"root": str(tiny_mnist), "val_size": 50}}
    result = mnist_lightning.fit(settings, trainer={"fast_dev_run": 2})
    assert (result.run, result.best, result.last) == (None, None, None)
    assert {"train_loss", "test_acc"} <= result.metrics.keys()
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------- what goes wrong


def test_a_run_of_that_name_is_there(fit, cli, tiny: list[str]):
    fit("--run", "a")
    result = cli("fit", *tiny, "--run", "a")
    assert result.status == 1
    assert "is there already: continue it with --run a --ckpt_path last, or choose another --run" in one_line(result)


def test_what_lightning_refuses_in_the_middle_is_one_line(cli, tiny: list[str]):
    Path("stop.yaml").write_text(STOPPING.replace("val_loss", "val_los"))
    result = cli("fit", *tiny, "--config", "stop.yaml")
    assert result.status == 1
    assert "metric `val_los` which is not available" in one_line(result)


def test_a_loss_that_is_not_finite(cli, tiny: list[str]):
    result = cli("fit", *tiny, "--model.optimizer", "SGD", "--model.lr", "1e30", "--model.loss", "mse")
    assert result.status == 1
    assert "the loss is not finite in epoch" in one_line(result)
    assert "--model.lr" in one_line(result)


# ---------------------------------------------------------------------- the real files


@pytest.mark.slow
def test_simple_mlp_on_mnist(cli, real_mnist: Path):
    result = cli("fit", "--config", "simple_mlp", "--data.root", real_mnist, "--trainer.max_epochs", 1)
    assert (result.status, result.err) == (0, "")
    assert outcome("simple_mlp")["images"] == 10_000
    assert outcome("simple_mlp")["accuracy"] >= 0.95


def test_a_short_training_on_mnist(cli, real_mnist: Path):
    words = ["--trainer.max_epochs", 1, "--data.train_size", 10_000]
    assert cli("fit", "--config", "simple_mlp", "--data.root", real_mnist, *words).status == 0
    assert outcome("simple_mlp")["images"] == 10_000
    assert 0.88 <= outcome("simple_mlp")["accuracy"] <= 0.95
