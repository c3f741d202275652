"""What users of Lightning do, done with our models and data: each as with Lightning alone."""

import copy
import csv
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    DeviceStatsMonitor,
    EarlyStopping,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    LearningRateFinder,
    LearningRateMonitor,
    ModelCheckpoint,
    StochasticWeightAveraging,
)  # fmt: skip
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from mnist_lightning import CNN, MLP, MNISTDataModule, load_model, quick
from mnist_lightning.commands import report
from mnist_lightning.processes import Signals
from mnist_lightning.training.metrics_csv import MetricsCSV
from mnist_lightning.training.trainer import make_trainer

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's, of few workers and much else
QUIET = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}


@pytest.fixture(autouse=True)
def _seed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    monkeypatch.chdir(tmp_path)  # where Lightning puts what nobody asked for


@pytest.fixture(params=["Lightning's loop", "ours"])
def trainer(request: pytest.FixtureRequest, tmp_path: Path):
    """`trainer(max_epochs=1)` is a Trainer as a user makes it, with Lightning's loop and with ours."""

    def make(**settings: Any) -> Trainer:
        plain = {"max_epochs": 2, "logger": False, "enable_checkpointing": False, "default_root_dir": tmp_path}
        made = Trainer(**QUIET | plain | settings)
        return quick(made) if request.param == "ours" else made

    return make


@pytest.fixture
def data(tiny_mnist: Path) -> MNISTDataModule:
    """250 images to train on, in 10 batches, 50 to validate with."""
    return MNISTDataModule(str(tiny_mnist), "mnist", val_size=50, batch_size=25)


def loader(digits: tuple[Tensor, Tensor], batch_size: int = 25, **options: Any) -> DataLoader:
    return DataLoader(TensorDataset(*digits), batch_size=batch_size, **options)


def mlp(**options: Any) -> MLP:
    torch.manual_seed(3)
    return MLP(**{"hidden": [16], "lr": 0.01} | options)


def weights(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()]).clone()


class Count(Callback):
    """How many batches were trained and validated, and after which steps."""

    def __init__(self) -> None:
        self.trained, self.validated, self.after = 0, 0, []

    def on_train_batch_end(self, *args: Any) -> None:
        self.trained += 1

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.after.append(trainer.global_step)

    def on_validation_batch_end(self, *args: Any) -> None:
        self.validated += 1


# ---------------------------------------------------------------------- our models, anybody's data


@pytest.mark.parametrize("form", ["float", "float without channel", "whole numbers"])
@pytest.mark.parametrize("kind", [MLP, CNN])
def test_our_models_train_with_any_loader(kind: Any, form: str, trainer, tiny_digits):
    images, labels = tiny_digits[0]
    images = images if form == "whole numbers" else images.float() / 255
    images = images.unsqueeze(1) if form != "float without channel" else images
    torch.manual_seed(1)
    model, train = kind(lr=0.003), trainer(max_epochs=5)
    before = F.cross_entropy(model.eval()(images), labels.long()).item()
    train.fit(model.train(), loader((images, labels)))
    assert train.global_step == 60
    assert F.cross_entropy(model.eval()(images), labels.long()).item() < before / 2
    with torch.no_grad():
        read = (model(images).argmax(1) == labels).float().mean()
    train.validate(model, loader((images, labels)), verbose=False)
    assert train.callback_metrics["val_acc"] == pytest.approx(read.item())


def test_labels_of_any_integer_type(trainer, tiny_digits):
    images, labels = tiny_digits[0]
    found = []
    for kind in (torch.uint8, torch.int32, torch.int64):
        model = mlp()
        trainer().fit(model, loader((images, labels.to(kind))))
        found.append(weights(model))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_a_head_of_three_classes(trainer, tiny_digits):
    images, labels = tiny_digits[0]
    few = labels < 3
    model, train = mlp(classes=3, lr=0.01), trainer(max_epochs=20)
    train.fit(model, loader((images[few], labels[few])), loader((images[few], labels[few])))
    assert model(images[:7]).shape == (7, 3)
    assert train.callback_metrics["val_acc"] > 0.8


class Own(CNN):
    """A subclass with a training_step of its own."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, labels = batch
        loss = F.cross_entropy(self(images), labels, label_smoothing=0.1)
        self.log("own_loss", loss, prog_bar=True)
        return loss


def test_a_subclass_with_its_own_training_step(trainer, data):
    model, train = Own(channels=[4], hidden=[8]), trainer()
    before = weights(model)
    train.fit(model, datamodule=data)
    assert train.global_step == 20
    assert not torch.equal(weights(model), before)
    assert {"own_loss", "val_loss", "val_acc"} <= set(train.callback_metrics)
    assert "train_loss" not in train.callback_metrics


# ---------------------------------------------------------------------- anybody's model, our data


class Mine(LightningModule):
    """As Lightning's manual has it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(784, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 10))
        self.accuracy = MulticlassAccuracy(10)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, labels = batch
        logits = self.net(images)
        loss = F.cross_entropy(logits, labels)
        self.accuracy(logits, labels)
        self.log("loss", loss)
        self.log("accuracy", self.accuracy, on_epoch=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", F.cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), 0.01)


def test_anybodys_module_trains_with_our_data_alike_by_both_loops(data, tmp_path: Path):
    found, tables = [], []
    for quickly in (False, True):
        settings = {"max_epochs": 2, "log_every_n_steps": 3, "logger": MetricsCSV(tmp_path / f"{quickly}.csv"), **QUIET}
        train = make_trainer(settings | {"enable_checkpointing": False}, []) if quickly else Trainer(**settings)
        model = Mine()
        torch.manual_seed(4)
        train.fit(model, datamodule=copy.deepcopy(data))
        found.append(weights(model))
        tables.append((tmp_path / f"{quickly}.csv").read_text())
    assert torch.equal(*found)
    assert tables[0] == tables[1]
    loop: Any = train.fit_loop.epoch_loop
    assert loop._quick
    assert loop.automatic_optimization._bare  # at QuickLoop's speed


def test_our_batches_in_plain_pytorch(data, tiny_digits):
    images = tiny_digits[0][0]
    mean, std = (images.float() / 255).mean(), (images.float() / 255).std()
    seen = []
    for batch, targets in data.train_dataloader():
        assert (batch.dtype, batch.shape[1:], targets.dtype) == (torch.float32, (1, 28, 28), torch.int64)
        seen.append(batch)
    assert len(torch.cat(seen)) == 250
    assert torch.cat(seen).mean() == pytest.approx(0, abs=0.02)
    assert torch.cat(seen).std() == pytest.approx(1, abs=0.02)
    [(batch, targets)] = data.test_dataloader()
    exact = (tiny_digits[1][0].float() / 255 - mean) / std
    assert (batch[:, 0] - exact).abs().max() < 1e-3
    assert targets.tolist() == tiny_digits[1][1].tolist()


def test_several_passes_in_plain_pytorch_are_several_orders(data):
    loader = data.train_dataloader()
    passes = [torch.cat([labels for _, labels in loader]) for _ in range(2)]
    assert not torch.equal(*passes)
    assert torch.equal(passes[0].sort().values, passes[1].sort().values)


# ---------------------------------------------------------------------- settings of the Trainer


@pytest.mark.parametrize("algorithm", ["norm", "value"])
@pytest.mark.parametrize("precision", ["32-true", "16-mixed"])  # the latter is bf16-mixed on a CPU
def test_clipping(algorithm: Any, precision: Any, trainer, data):
    norms: list[float] = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer: Trainer, module: Any, *args: Any) -> None:
            flat = torch.cat([parameter.grad.flatten() for parameter in module.parameters()])
            norms.append((flat.norm() if algorithm == "norm" else flat.abs().max()).item())

    clip = {"gradient_clip_val": 0.01, "gradient_clip_algorithm": algorithm, "precision": precision}
    trainer(**clip, callbacks=[Watch()]).fit(mlp(), datamodule=data)
    assert norms == pytest.approx([0.01] * 20, rel=1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="a GPU is where 16-mixed scales gradients")
def test_clipping_of_scaled_gradients(data):
    steps = {}
    for clip in (None, 1e-3):
        model = mlp(optimizer="SGD", lr=1.0)
        before = weights(model)
        settings = QUIET | {"accelerator": "gpu", "precision": "16-mixed", "max_steps": 1, "max_epochs": -1}
        make_trainer(settings | {"gradient_clip_val": clip}, []).fit(model, datamodule=copy.deepcopy(data))
        steps[clip] = (weights(model.cpu()) - before).norm().item()
    assert steps[1e-3] == pytest.approx(1e-3, rel=0.01)
    assert steps[None] > 0.01


def test_accumulated_batches_are_one_large_batch(trainer, tiny_digits):
    images, labels = tiny_digits[0]
    digits = (images.unsqueeze(1).float() / 255, labels)
    found = []
    for size, accumulate in ((50, 1), (25, 2)):
        model, train = mlp(optimizer="SGD"), trainer(accumulate_grad_batches=accumulate)
        train.fit(model, loader(digits, size))
        assert train.global_step == 12
        found.append(weights(model))
    torch.testing.assert_close(*found, rtol=0, atol=1e-6)


def test_a_scheduled_accumulation(trainer, data):
    train = trainer(callbacks=[GradientAccumulationScheduler({0: 1, 1: 4})])
    train.fit(mlp(), datamodule=data)
    assert train.global_step == 10 + 3  # of ten batches four, four, and the two that are left


@pytest.mark.parametrize(
    ("settings", "trained", "validated", "after"),
    [
        ({}, 20, 2, [10, 20]),  # the 50 images are one batch
        ({"limit_train_batches": 3}, 6, 2, [3, 6]),
        ({"limit_train_batches": 0.5}, 10, 2, [5, 10]),
        ({"limit_val_batches": 1}, 20, 2, [10, 20]),
        ({"limit_val_batches": 0.5}, 20, 2, [10, 20]),  # of two batches of 25
        ({"limit_val_batches": 0}, 20, 0, []),
        ({"overfit_batches": 0.5}, 10, 2, [5, 10]),
        ({"overfit_batches": 4}, 8, 4, [4, 8]),
        ({"val_check_interval": 0.5}, 20, 4, [5, 10, 15, 20]),
        ({"val_check_interval": 4}, 20, 4, [4, 8, 14, 18]),
        ({"val_check_interval": 7, "check_val_every_n_epoch": None}, 20, 2, [7, 14]),
        ({"check_val_every_n_epoch": 2}, 20, 1, [20]),
        ({"max_epochs": -1, "max_steps": 13}, 13, 1, [10]),
        ({"fast_dev_run": 3}, 3, 2, [3]),
    ],
    ids=str,
)
def test_limits_count_mini_batches(settings: Any, trained: int, validated: int, after: list[int], trainer, data):
    count = Count()
    trainer(callbacks=[count], **settings).fit(mlp(), datamodule=data)
    assert (count.trained, count.validated, count.after) == (trained, validated, after)


def test_overfitting_sees_the_same_batches_in_each_epoch(trainer, data):
    seen: list[Tensor] = []

    class Watch(Callback):
        def on_train_batch_start(self, trainer: Trainer, module: Any, batch: Any, batch_idx: int) -> None:
            seen.append(batch[0])

    trainer(callbacks=[Watch()], overfit_batches=2).fit(mlp(), datamodule=data)
    assert torch.equal(seen[0], seen[2])
    assert torch.equal(seen[1], seen[3])
    assert not torch.equal(seen[0], seen[1])


def test_fast_dev_run_leaves_nothing(trainer, data, tmp_path: Path):
    trainer(fast_dev_run=True, logger=True, enable_checkpointing=True).fit(mlp(), datamodule=data)
    assert [*tmp_path.iterdir()] == []


def test_a_profiler_reports(trainer, data, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    from lightning.pytorch.profilers import SimpleProfiler

    train = trainer(profiler=SimpleProfiler(tmp_path, "report"))
    train.fit(mlp(), datamodule=data)
    text = (tmp_path / "fit-report.txt").read_text()
    assert "run_training_batch" in text
    assert "optimizer_step" in text


# ---------------------------------------------------------------------- callbacks


def test_model_checkpoint_counts_steps(trainer, data, tmp_path: Path):
    saves = ModelCheckpoint(tmp_path / "saved", every_n_train_steps=7, save_top_k=-1)
    trainer(callbacks=[saves], enable_checkpointing=True).fit(mlp(), datamodule=data)
    assert sorted(file.name for file in (tmp_path / "saved").iterdir()) == [
        "epoch=0-step=7.ckpt",
        "epoch=1-step=14.ckpt",
    ]


def test_model_checkpoint_keeps_the_best(trainer, data, tmp_path: Path):
    saves = ModelCheckpoint(tmp_path / "saved", "{epoch}", monitor="val_acc", mode="max")
    train, model = trainer(max_epochs=4, callbacks=[saves], enable_checkpointing=True), mlp()
    seen: list[float] = []
    train.callbacks.insert(0, watch := Callback())
    watch.on_validation_end = lambda trainer, module: seen.append(float(trainer.callback_metrics["val_acc"]))  # type: ignore[method-assign]
    train.fit(model, datamodule=data)
    assert saves.best_model_score == pytest.approx(max(seen))
    [result] = train.validate(model, datamodule=data, ckpt_path="best", verbose=False)
    assert result["val_acc"] == pytest.approx(max(seen))


def test_early_stopping(trainer, data):
    train = trainer(max_epochs=9, callbacks=[EarlyStopping("val_acc", min_delta=2.0, patience=2)])
    train.fit(mlp(), datamodule=data)
    assert train.current_epoch == 3


@pytest.mark.parametrize("kind", ["EMA", "SWA"])
def test_averaged_weights_are_validated_saved_and_tested(kind: str, trainer, data, tmp_path: Path):
    averages = EMAWeightAveraging(decay=0.9) if kind == "EMA" else StochasticWeightAveraging(0.01, 1)
    saves = ModelCheckpoint(tmp_path / "saved", monitor="val_loss")
    validated: list[Tensor] = []

    class Watch(Callback):
        def on_validation_batch_end(self, trainer: Trainer, module: Any, *args: Any) -> None:
            validated.append(weights(module))

    train, model = trainer(max_epochs=3, callbacks=[averages, saves, Watch()], enable_checkpointing=True), mlp()
    train.fit(model, datamodule=data)
    if kind == "EMA":
        assert torch.equal(validated[-1], weights(model))  # in the end the model has them
        best = load_model(saves.best_model_path)
        assert any(torch.equal(weights(best), seen) for seen in validated)
        [result] = train.validate(model, datamodule=data, ckpt_path="best", verbose=False)
        assert result["val_loss"] == pytest.approx(saves.best_model_score.item())
    [tested] = train.test(model, datamodule=data, verbose=False)
    [(images, labels)] = data.test_dataloader()
    model.eval()
    with torch.no_grad():
        assert tested["test_loss"] == pytest.approx(F.cross_entropy(model(images), labels).item(), abs=1e-6)


def ema_by_hand(data: MNISTDataModule, decay: float, epochs: int) -> Tensor:
    model = mlp(optimizer="SGD", lr=0.1)
    optimizer, batches, average, steps = torch.optim.SGD(model.parameters(), 0.1), data.train_dataloader(), None, 0
    for _ in range(epochs):
        for images, labels in batches:
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
            steps += 1
            average = weights(model) if average is None else average * decay + weights(model) * (1 - decay)
    assert average is not None
    return average


def test_averaged_weights_are_averages(trainer, data):
    model = mlp(optimizer="SGD", lr=0.1)
    trainer(callbacks=[EMAWeightAveraging(decay=0.9)]).fit(model, datamodule=copy.deepcopy(data))
    torch.testing.assert_close(weights(model), ema_by_hand(data, 0.9, 2), rtol=0, atol=1e-6)


def test_the_learning_rate_finder_sets_the_rate_that_is_trained_with(data, tmp_path: Path):
    found = []
    for quickly in (False, True):
        model, finds = mlp(), LearningRateFinder(num_training_steps=30)
        settings = QUIET | {"max_epochs": 4, "enable_checkpointing": False, "default_root_dir": tmp_path}
        train = Trainer(logger=False, callbacks=[finds], **settings)
        (quick(train) if quickly else train).fit(model, datamodule=copy.deepcopy(data))
        assert finds.optimal_lr is not None
        assert train.optimizers[0].param_groups[0]["lr"] == model.hparams["lr"] == finds.optimal_lr.suggestion()
        found.append((finds.optimal_lr.results, train.global_step, weights(model).tolist()))
    assert found[0] == found[1]
    assert found[0][1] == 40


def test_the_batch_size_finder_sets_the_size_that_is_trained_with(trainer, data):
    finds, count = BatchSizeFinder(max_trials=2, init_val=10, margin=0.0), Count()
    trainer(max_epochs=1, callbacks=[finds, count]).fit(mlp(), datamodule=data)
    assert data.hparams["batch_size"] == finds.optimal_batch_size
    assert finds.optimal_batch_size in (20, 40)
    assert count.trained == len(data.train_dataloader()) == -(-250 // finds.optimal_batch_size)


class Logs(Callback):
    """Logs in its own hooks."""

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *args: Any) -> None:
        self.log("double", trainer.callback_metrics["train_loss_step"] * 2)

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        self.log("epochs", float(trainer.current_epoch))


def test_monitors_and_what_a_callback_logs_have_columns_of_their_own(data, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr(CPUAccelerator, "get_device_stats", lambda self, device: {"cpu_percent": 5.0})
    monkeypatch.setattr("lightning.pytorch.callbacks.device_stats_monitor._PSUTIL_AVAILABLE", True)
    run = tmp_path / "runs" / "a"
    run.mkdir(parents=True)
    (run / "config.yaml").touch()
    table = MetricsCSV(run / "metrics.csv")
    settings = {"max_epochs": 2, "log_every_n_steps": 5, "logger": table, "enable_checkpointing": False}
    callbacks = [LearningRateMonitor("step"), DeviceStatsMonitor(), Logs()]
    train = make_trainer({**QUIET, **settings, "callbacks": callbacks}, [])
    train.fit(mlp(scheduler="StepLR", scheduler_args={"step_size": 10, "gamma": 0.5}), datamodule=data)
    rows = list(csv.DictReader(table.path.read_text().splitlines()))

    def column(name: str) -> list[tuple[int, float]]:
        return [(int(row["step"]), float(row[name])) for row in rows if row[name]]

    assert column("lr-Adam") == [(4, 0.01), (9, 0.01), (14, 0.005), (19, 0.005)]
    assert column("DeviceStatsMonitor.on_train_batch_end/cpu_percent") == [(step, 5.0) for step in (4, 9, 14, 19)]
    assert column("double") == [(step, value * 2) for step, value in column("train_loss_step")]
    assert column("epochs") == [(9, 0.0), (19, 1.0)]
    assert [step for step, _ in column("val_acc")] == [9, 19]
    assert all(row["epoch"] in ("0", "1", "") for row in rows)
    monkeypatch.setenv("COLUMNS", "300")
    report.command("report", ["--run", "a", "--trainer.default_root_dir", str(run.parent)], Signals())
    assert f"{column('val_acc')[-1][1]:.2%}" in capsys.readouterr().out


# ---------------------------------------------------------------------- models in and out


@pytest.mark.parametrize(
    "model", [MLP(hidden=[16], classes=7, dropout=0.3), CNN(channels=[4, 5], hidden=[8], classes=7)], ids=["MLP", "CNN"]
)
@pytest.mark.parametrize("way", ["deepcopy", "pickle", "torch.save", "export"])
def test_models_are_copied_and_exported(model: Any, way: str, tmp_path: Path):
    images = torch.rand(3, 1, 28, 28)
    model.eval()
    if way == "deepcopy":
        other = copy.deepcopy(model)
    elif way == "pickle":
        other = pickle.loads(pickle.dumps(model))
    elif way == "torch.save":
        torch.save(model, tmp_path / "model")
        other = torch.load(tmp_path / "model", weights_only=False)
    else:
        batch = torch.export.Dim("batch")
        other = torch.export.export(model, (images,), dynamic_shapes=((({0: batch}),))).module()
        assert other(torch.rand(5, 1, 28, 28)).shape == (5, 7)
    torch.testing.assert_close(other(images), model(images), rtol=0, atol=1e-6 if way == "export" else 0)


def test_models_are_copied_after_training(data):
    """Also while what they logged waits to be counted."""
    model, train = mlp(), make_trainer(QUIET | {"max_epochs": 1, "enable_checkpointing": False}, [])
    copies: list[Any] = []

    class Copies(Callback):
        def on_train_batch_end(self, trainer: Trainer, module: Any, *args: Any) -> None:
            copies.append(copy.deepcopy(module.net))

    train.callbacks.append(Copies())
    train.fit(model, datamodule=data)
    assert torch.equal(weights(copies[-1]), weights(pickle.loads(pickle.dumps(copy.deepcopy(model)))))


@pytest.mark.parametrize("kind", [MLP, CNN])
def test_load_from_checkpoint(kind: Any, trainer, data, tmp_path: Path):
    small = {"hidden": [16]} if kind is MLP else {"channels": [4], "hidden": [8]}
    model, train = kind(**small, lr=0.02, loss="mse"), trainer()
    train.fit(model, datamodule=data)
    train.save_checkpoint(tmp_path / "a.ckpt")
    other = kind.load_from_checkpoint(tmp_path / "a.ckpt", lr=0.5)
    assert torch.equal(weights(other), weights(model))
    assert dict(other.hparams) == dict(model.hparams) | {"lr": 0.5}


@pytest.mark.parametrize("kind", [MLP, CNN])
def test_load_model_of_what_a_plain_trainer_wrote(kind: Any, trainer, data, tmp_path: Path):
    small = {"hidden": [16], "dropout": 0.5} if kind is MLP else {"channels": [4], "hidden": [8], "dropout": 0.5}
    model, train = kind(**small, classes=11), trainer()
    train.fit(model, datamodule=data)
    train.save_checkpoint(tmp_path / "a.ckpt")
    loaded = load_model(tmp_path / "a.ckpt")
    assert type(loaded) is kind
    assert not any(module.training for module in loaded.modules())
    images = torch.rand(9, 1, 28, 28)
    assert torch.equal(loaded(images), model.eval()(images))


def test_a_loaded_model_trains_in_train_mode(trainer, data, tmp_path: Path):
    train = trainer()
    train.fit(mlp(dropout=0.5), datamodule=data)
    train.save_checkpoint(tmp_path / "a.ckpt")
    loaded, modes = load_model(tmp_path / "a.ckpt"), set()

    class Watch(Callback):
        def on_before_zero_grad(self, trainer: Trainer, module: Any, optimizer: Any) -> None:
            modes.update(part.training for part in module.modules())

    again = trainer(callbacks=[Watch()])
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*eval mode.*")
        again.fit(loaded, datamodule=data)
    assert modes == {True}


def test_a_training_goes_on_as_lightning_has_it(trainer, data, tmp_path: Path):
    """`Trainer.fit(ckpt_path=...)` of what a plain Trainer wrote, at an epoch's end."""
    whole, model = mlp(), mlp()
    trainer(max_epochs=4).fit(whole, datamodule=copy.deepcopy(data))
    first = trainer(max_epochs=2)
    first.fit(model, datamodule=copy.deepcopy(data))
    first.save_checkpoint(tmp_path / "a.ckpt")
    again = trainer(max_epochs=4)
    again.fit(other := mlp(), datamodule=data, ckpt_path=tmp_path / "a.ckpt")
    assert again.global_step == 40
    assert torch.equal(weights(other), weights(whole))
