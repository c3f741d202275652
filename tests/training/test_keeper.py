"""RunKeeper: a training that goes on from any of its checkpoints ends as if nobody had stopped it."""

import random
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import numpy
import pytest
import torch
from both_loops import (
    CLASSES,
    POINTS,
    Blurred,
    Endless,
    Net,
    Stateful,
    differences,
    loader,
    logs,
    net,
    noted,
    scheduled,
    steps,
)  # fmt: skip
from lightning.pytorch import LightningDataModule, LightningModule, Trainer, callbacks
from torch import Tensor
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau, StepLR
from torch.utils.data import Dataset
from torchmetrics import SumMetric

from mnist_lightning.data.module import MNISTDataModule
from mnist_lightning.errors import UserError
from mnist_lightning.models import CNN, MLP
from mnist_lightning.processes import Interrupted, Signals
from mnist_lightning.run import Run
from mnist_lightning.training.checkpoints import STATE, read_checkpoint
from mnist_lightning.training.keeper import RunKeeper
from mnist_lightning.training.metrics_csv import MetricsCSV
from mnist_lightning.training.trainer import make_trainer

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's, of few workers and much else


class Hoarder(RunKeeper):
    """Keeps each checkpoint, and the table as it was."""

    def _save(self, trainer: Trainer, best: bool = False) -> None:
        super()._save(trainer, best)
        self._wait(trainer)
        folder = self.run.folder / "kept" / f"{len(self.kept()):02}"
        folder.mkdir(parents=True)
        for file in (self.run.last, self.run.best, self.run.table):
            if file.exists():
                shutil.copy(file, folder)

    def kept(self) -> list[Path]:
        return sorted(self.run.folder.glob("kept/*"))


class Training:
    """One tiny training, which can be done again from any of its checkpoints."""

    def __init__(
        self,
        folder: Path,
        module: Callable[[], LightningModule] = Net,
        data: Callable[[], Any] = loader,
        calls: Callable[[], list[Any]] = list,
        **settings: Any,
    ) -> None:
        self.folder, self.module, self.data, self.calls, self.settings = folder, module, data, calls, settings

    def run(self, name: str, origin: Path | None = None, every_n_steps: int | None = 1, **more: Any) -> Hoarder:
        """From the checkpoint in the folder `origin`, if that is given."""
        run, signals = Run(self.folder / name), Signals()
        run.folder.mkdir(parents=True, exist_ok=True)
        keeper, table = Hoarder(run, signals, None, every_n_steps), MetricsCSV(run.table)
        settings = {"max_epochs": 3, "log_every_n_steps": 2, "accelerator": "cpu", "enable_progress_bar": False}
        settings |= {"num_sanity_val_steps": 0, "enable_model_summary": False} | self.settings | more
        torch.manual_seed(1)
        self.model, data = self.module(), self.data()
        torch.manual_seed(time.time_ns())  # what is random must not come from here
        random.seed(time.time_ns())
        numpy.random.seed(time.time_ns() % 2**32)
        self.trainer = trainer = make_trainer(
            {"logger": table, **settings, "callbacks": self.calls()}, [keeper], fit=True
        )
        path = origin / "last.ckpt" if origin else None
        if origin and (origin / "best.ckpt").exists():
            shutil.copy(origin / "best.ckpt", run.best)
        if path:
            table.rewind(read_checkpoint(path)[STATE]["metrics_csv"], path.parent / "metrics.csv")
        try:
            if isinstance(data, LightningDataModule):
                trainer.fit(self.model, datamodule=data, ckpt_path=path)
            else:
                trainer.fit(self.model, data, loader(batch_size=20, shuffle=False), ckpt_path=path)
        finally:
            signals.restore()
        return keeper

    def left(self, keeper: Hoarder) -> dict[str, Any]:
        """Everything that it came to."""
        checkpoint, folder = read_checkpoint(keeper.run.last), keeper.run.folder
        metrics = {name: getattr(self.trainer, f"{name}_metrics") for name in ("callback", "logged", "progress_bar")}
        return noted({
            "checkpoint": checkpoint, "table": keeper.run.table.read_text(), "metrics": metrics, "best": keeper.best,
            "weights": self.model.state_dict(), "step": self.trainer.global_step, "epoch": self.trainer.current_epoch,
        }, folder)  # fmt: skip

    def goes_on_alike(self, part: slice | None = None) -> list[Path]:
        """From its checkpoints, which are returned."""
        whole = self.run("whole")
        expected, kept = self.left(whole), whole.kept()
        for number, origin in enumerate(kept[:-1][part] if part else kept[:-1]):
            again = self.left(self.run(f"again {number}", origin))
            where = {key: read_checkpoint(origin / "last.ckpt")[STATE][key] for key in ("epoch", "batch", "step")}
            found = list(differences(expected, again))
            assert not found, "\n".join([f"from {where}", *found[:10]])
        return kept


# ---------------------------------------------------------------------- what is random, and in which order


class OtherRandom(Dataset):
    """Draws from Python's and NumPy's generators."""

    def __len__(self) -> int:
        return 68

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return POINTS[index] + random.random() + float(numpy.random.rand()), CLASSES[index]


class Spied(LightningDataModule):
    """A data module of a user's, with a state."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def train_dataloader(self) -> Any:
        return loader()

    def val_dataloader(self) -> Any:
        return loader(batch_size=20, shuffle=True)  # draws, too

    def state_dict(self) -> dict[str, Any]:
        return {"asked": 3}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.asked = state["asked"]


def of_two(self: Net, batch: Any, batch_idx: int) -> Tensor:
    loss: Any = sum(self.loss(part) for part in batch)
    self.log("loss", loss, on_epoch=True, batch_size=10)
    return loss


DATA: dict[str, tuple[Any, Callable[[], Any]]] = {
    "shuffled": (Net, loader),
    "in order": (Net, lambda: loader(shuffle=False)),
    "random points": (Net, lambda: loader(Blurred())),
    "Python's and NumPy's random numbers": (Net, lambda: loader(OtherRandom())),
    "stateful": (Net, partial(Stateful, True)),
    "two loaders": (net(training_step=of_two), lambda: [loader(), loader(Blurred(), batch_size=5)]),
    "one with a state, one without": (net(training_step=of_two), lambda: [Stateful(True), loader()]),
    "a data module": (Net, Spied),
    "random validation": (
        net(validation_step=lambda self, batch, index: self.log("val_loss", torch.rand(())) or torch.rand(3)), loader
    ),
}  # fmt: skip


@pytest.mark.parametrize(("module", "data"), DATA.values(), ids=DATA)
def test_data(module: Any, data: Any, tmp_path: Path):
    kept = Training(tmp_path, module, data).goes_on_alike(slice(None, None, 3))
    assert len(kept) >= 1 + 21  # before the first batch, after each batch


@pytest.mark.slow
@pytest.mark.parametrize("persistent", [False, True])
def test_data_of_worker_processes(persistent: bool, tmp_path: Path):
    data = partial(loader, Blurred(), num_workers=2, persistent_workers=persistent)
    Training(tmp_path, data=data).goes_on_alike(slice(None, None, 4))


@pytest.mark.parametrize("kind", [MLP, CNN])
def test_our_own_models_and_data(kind: Any, tiny_mnist: Path, tmp_path: Path):
    small = {"hidden": [16], "dropout": 0.2} if kind is MLP else {"channels": [4], "hidden": [16], "conv_dropout": 0.2}
    data = partial(MNISTDataModule, str(tiny_mnist), "mnist", val_size=50, batch_size=40)
    kept = Training(tmp_path, partial(kind, **small, scheduler="OneCycleLR"), data).goes_on_alike(slice(None, None, 3))
    assert len(kept) == 1 + 21
    assert not any((kept[-1] / "last.ckpt").read_bytes() == (file / "last.ckpt").read_bytes() for file in kept[:-1])


def test_an_iterable_without_a_state_is_saved_between_epochs_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    kept = Training(tmp_path, data=lambda: loader(Endless(), shuffle=False)).goes_on_alike()
    assert [read_checkpoint(file / "last.ckpt")[STATE]["epoch"] for file in kept] == [0, 1, 2, 3]
    assert "checkpoints are taken at epochs' ends" in capsys.readouterr().out


# ---------------------------------------------------------------------- settings, optimizers, callbacks

SETTINGS: dict[str, dict[str, Any]] = {
    "accumulate 3": {"accumulate_grad_batches": 3},
    "clip": {"gradient_clip_val": 0.1},
    "bf16-mixed": {"precision": "bf16-mixed"},
    "64-true": {"precision": "64-true"},
    "limit 4": {"limit_train_batches": 4},
    "overfit 3": {"overfit_batches": 3},
    "validation every 3": {"val_check_interval": 3},
    "validation every 0.5, accumulate 2": {"val_check_interval": 0.5, "accumulate_grad_batches": 2},
    "validation across epochs": {"val_check_interval": 5, "check_val_every_n_epoch": None},
    "validation every 2 epochs": {"check_val_every_n_epoch": 2},
    "no validation": {"limit_val_batches": 0},
    "log each step": {"log_every_n_steps": 1},
    "log every 3 steps": {"log_every_n_steps": 3},
    "sanity check": {"num_sanity_val_steps": 2},
    "max_steps": {"max_epochs": -1, "max_steps": 18},
    "a profiler": {"profiler": "simple"},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_settings(settings: dict[str, Any], tmp_path: Path):
    Training(tmp_path, **settings).goes_on_alike(slice(None, None, 3))


def by_hand(self: Net, batch: Any, batch_idx: int) -> None:
    for optimizer, schedule in zip(self.optimizers(), self.lr_schedulers(), strict=True):  # type: ignore[call-overload]
        loss = self.loss(batch)
        self.log("loss", loss, on_epoch=True)
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        schedule.step()


def two_optimizers(self: Net) -> Any:
    first, second = SGD(self.backbone.parameters(), lr=0.1, momentum=0.9), Adam(self.head.parameters())
    return [first, second], [StepLR(first, 5), StepLR(second, 5)]


OPTIMIZERS: dict[str, Any] = {
    "StepLR by step": scheduled(lambda o: StepLR(o, 4), interval="step"),
    "StepLR by 2 steps": scheduled(lambda o: StepLR(o, 2), interval="step", frequency=2),
    "StepLR by epoch": scheduled(lambda o: StepLR(o, 1)),
    "OneCycle": scheduled(lambda o: OneCycleLR(o, 0.1, 21), interval="step"),
    "plateau by epoch": scheduled(lambda o: ReduceLROnPlateau(o, patience=0, threshold=9), monitor="val_loss"),
    "plateau by step": scheduled(lambda o: ReduceLROnPlateau(o, patience=1), monitor="loss", interval="step"),
    "by hand": net(configure_optimizers=two_optimizers, training_step=by_hand, automatic_optimization=False),
    "no training": net(configure_optimizers=lambda self: None),
}


@pytest.mark.parametrize("module", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_optimizers(module: Any, tmp_path: Path):
    Training(tmp_path, module).goes_on_alike(slice(None, None, 3))


def test_a_plateau_of_what_is_not_seen_in_each_epoch(tmp_path: Path):
    module = scheduled(lambda o: ReduceLROnPlateau(o, patience=0, threshold=9), monitor="val_loss", strict=False)
    Training(tmp_path, module, check_val_every_n_epoch=2, num_sanity_val_steps=2).goes_on_alike(slice(15, None, 2))


class Logs(callbacks.Callback):
    """Has sums of its own in each hook that may log."""

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.log("callback/start", float(batch_idx), on_step=True, on_epoch=True, reduce_fx="sum")

    def on_before_zero_grad(self, trainer: Trainer, module: LightningModule, optimizer: Any) -> None:
        self.log("callback/inside", float(trainer.global_step), on_step=False, on_epoch=True)

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, out: Any, batch: Any, index: int) -> None:
        self.log("callback/end", out["loss"] * 2, on_step=True, on_epoch=True)


class Counts(callbacks.Callback):
    """Has a state of many kinds."""

    def __init__(self) -> None:
        self.seen: dict[str, Any] = {"batches": 0, "losses": [], "pair": (0, 0.0), "mean": numpy.float64(0)}

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, out: Any, batch: Any, index: int) -> None:
        loss = out["loss"].cpu()
        self.seen["batches"] += 1
        self.seen |= {"pair": (index, float(loss)), "losses": [*self.seen["losses"], loss]}
        self.seen["mean"] = numpy.float64(self.seen["mean"] * 0.9 + float(loss) * 0.1)
        self.log("mean", float(self.seen["mean"]))

    def state_dict(self) -> dict[str, Any]:
        return self.seen

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = state


# Not here: what Lightning itself does not go on with as it was. BackboneFinetuning freezes again, ModelPruning has no
# masks in a checkpoint, SpikeDetection cannot read its own state, Timer has the time.
CALLBACKS: dict[str, Callable[[], list[Any]]] = {
    "EMA": lambda: [callbacks.EMAWeightAveraging(decay=0.9)],
    "EMA later": lambda: [callbacks.EMAWeightAveraging(decay=0.9, update_every_n_steps=2, update_starting_at_step=5)],
    "WeightAveraging": lambda: [callbacks.WeightAveraging()],
    "SWA": lambda: [callbacks.StochasticWeightAveraging(0.02, 1, 2)],
    "EarlyStopping": lambda: [callbacks.EarlyStopping("val_loss", min_delta=9, patience=1)],
    "GradientAccumulationScheduler": lambda: [callbacks.GradientAccumulationScheduler({0: 1, 1: 3, 2: 2})],
    "LearningRateMonitor": lambda: [callbacks.LearningRateMonitor("step")],
    "its own logs": lambda: [Logs()],
    "a state of its own": lambda: [Counts()],
}


@pytest.mark.parametrize("calls", CALLBACKS.values(), ids=CALLBACKS)
def test_callbacks(calls: Any, tmp_path: Path):
    module = net(configure_optimizers=lambda self: SGD(self.head.parameters(), 0.1, momentum=0.9))
    Training(tmp_path, module, calls=calls).goes_on_alike(slice(None, None, 3))


def test_model_checkpoint_beside_it(tmp_path: Path):
    """Its files after a resume are those that it would have left, in whatever order the two save."""

    def calls() -> list[Any]:
        folder = tmp_path / "saved"
        return [callbacks.ModelCheckpoint(folder, every_n_train_steps=5, save_top_k=-1, filename="{step}")]

    training = Training(tmp_path, calls=calls)
    whole = training.run("whole")
    files = {file.name: noted(file, tmp_path) for file in (tmp_path / "saved").glob("*.ckpt")}
    assert sorted(files) == ["step=10.ckpt", "step=15.ckpt", "step=20.ckpt", "step=5.ckpt"]
    for origin in whole.kept()[4:14:3]:
        shutil.rmtree(tmp_path / "saved")
        training.run(f"again {origin.name}", origin)
        for file in (tmp_path / "saved").glob("*.ckpt"):
            assert not list(differences(files[file.name], noted(file, tmp_path)))
        shutil.rmtree(tmp_path / "again", ignore_errors=True)


def test_the_files_of_model_checkpoint_can_be_gone_on_from(tmp_path: Path):
    """They are taken while other callbacks have not had their turn, so they hold the place, and no sums."""
    calls = lambda: [callbacks.ModelCheckpoint(tmp_path / "saved", every_n_train_steps=5, save_top_k=-1)]  # noqa: E731
    training = Training(tmp_path, calls=calls)
    training.run("whole")
    weights = noted(training.model.state_dict(), tmp_path)
    for file in sorted((tmp_path / "saved").glob("*.ckpt")):
        folder = tmp_path / file.stem
        folder.mkdir()
        shutil.copy(file, folder / "last.ckpt")
        shutil.copy(tmp_path / "whole" / "metrics.csv", folder)
        training.run(f"again {file.stem}", folder)
        assert not list(differences(weights, noted(training.model.state_dict(), tmp_path)))


# ---------------------------------------------------------------------- what an epoch has summed up


def sums(self: Net, loss: Tensor, batch: Any, index: int) -> None:
    for how in ("mean", "sum", "max", "min"):
        self.log(how, loss, on_step=True, on_epoch=True, reduce_fx=how, prog_bar=True)
    self.log("float", index / 7, on_step=False, on_epoch=True)
    self.log("double", loss.double(), on_step=False, on_epoch=True)
    self.log("sized", loss, on_step=False, on_epoch=True, batch_size=index + 1)


def metrics(self: Net, loss: Tensor, batch: Any, index: int, **when: Any) -> None:
    output = self(batch[0]).detach()
    self.accuracy(output, batch[1])
    self.mean(loss.detach())
    self.scores(output, batch[1])
    self.log("accuracy", self.accuracy, **when)
    self.log("mean", self.mean, **when)
    self.log_dict(self.scores, **when)


class Every(SumMetric):
    """The sum of values that it has kept, each."""

    def __init__(self) -> None:
        super().__init__()
        self.add_state("kept", [], dist_reduce_fx="cat")

    def update(self, value: Tensor) -> None:
        self.kept.append(value)

    def compute(self) -> Tensor:
        return torch.stack(self.kept).sum() if isinstance(self.kept, list) else self.kept.sum()


class WithEvery(Net):
    def __init__(self) -> None:
        super().__init__()
        self.every = Every()


def with_list(self: Net, loss: Tensor, batch: Any, index: int) -> None:
    self.mean.update(loss.detach())
    self.every.update(loss.detach())
    self.log("all", self.every, on_step=False, on_epoch=True)


def not_logged(self: Net, loss: Tensor, batch: Any, index: int) -> None:
    self.mean.update(loss.detach())
    self.log("mean so far", self.mean.compute(), on_step=True, on_epoch=False)
    if self.trainer.is_last_batch:
        self.mean.reset()


LOGS: dict[str, Callable[..., Any]] = {
    "sums": sums,
    "metrics on_epoch": partial(metrics, on_step=False, on_epoch=True),
    "metrics on both": partial(metrics, on_step=True, on_epoch=True),
    "a metric of lists": with_list,
    "a metric that is not logged": not_logged,
    "at some steps": lambda self, loss, batch, i: i % 3 or self.log("a", loss, on_epoch=True),
    "from the fourth step on": lambda self, loss, batch, i: i > 3 and self.log("a", loss, on_epoch=True),
    "not a number": lambda self, loss, batch, i: self.log("a", loss * float("nan" if i == 2 else 1), on_epoch=True),
    "infinite": lambda self, loss, batch, i: self.log("a", loss * float("inf" if i == 2 else 1), on_epoch=True),
}


@pytest.mark.parametrize("settings", [{}, {"val_check_interval": 3}, {"accumulate_grad_batches": 2}], ids=str)
@pytest.mark.parametrize("log", LOGS.values(), ids=LOGS)
def test_sums(log: Any, settings: dict[str, Any], tmp_path: Path):
    Training(tmp_path, logs(log, WithEvery), **settings).goes_on_alike(slice(2, 13, 3))


# ---------------------------------------------------------------------- trainings that end early and go on


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("at", [1, 3, 7, 9, 14])
def test_max_steps_then_more(at: int, accumulate: int, tmp_path: Path):
    at = at if accumulate == 1 else -(-at // 2)
    training = Training(tmp_path, accumulate_grad_batches=accumulate)
    expected = training.left(training.run("whole"))
    first = training.run("first", max_steps=at)
    assert training.trainer.global_step == at
    again = training.run("again", first.run.folder)
    assert not list(differences(expected, training.left(again)))


def test_max_epochs_then_more(tmp_path: Path):
    training = Training(tmp_path)
    expected = training.left(training.run("whole"))
    first = training.run("first", max_epochs=1)
    assert not list(differences(expected, training.left(training.run("again", first.run.folder))))


class Stops(callbacks.Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Trainer, module: Any, out: Any, batch: Any, index: int) -> None:
        if trainer.global_step == self.step:
            trainer.should_stop = True


@pytest.mark.parametrize("at", [3, 7, 10])
def test_should_stop_then_more(at: int, tmp_path: Path):
    training = Training(tmp_path)
    expected = training.left(training.run("whole"))
    stopped = Training(tmp_path, calls=lambda: [Stops(at)]).run("first")
    again = training.left(training.run("again", stopped.run.folder))
    for part in ("weights", "step", "epoch", "metrics"):  # the table has rows of the stop besides
        assert not list(differences(expected[part], again[part]))


def test_an_epoch_that_a_hook_ends(tmp_path: Path):
    module = net(on_train_batch_start=lambda self, batch, index: -1 if (self.current_epoch, index) == (1, 4) else None)
    Training(tmp_path, module).goes_on_alike(slice(None, None, 3))


class Signal(callbacks.Callback):
    """A signal comes in the middle of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_before_zero_grad(self, trainer: Trainer, module: LightningModule, optimizer: Any) -> None:
        if trainer.global_step == self.step:
            signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_signal_then_more(accumulate: int, tmp_path: Path):
    training = Training(tmp_path, accumulate_grad_batches=accumulate)
    expected = training.left(training.run("whole", every_n_steps=None))
    with pytest.raises(Interrupted):
        Training(tmp_path, calls=lambda: [Signal(4)], accumulate_grad_batches=accumulate).run("a", every_n_steps=None)
    state = read_checkpoint(tmp_path / "a" / "last.ckpt")[STATE]
    assert state["step"] == 5
    again = training.run("again", tmp_path / "a", every_n_steps=None)
    assert not list(differences(expected, training.left(again)))


# ---------------------------------------------------------------------- when it saves, and what is the best


def places(keeper: Hoarder) -> list[tuple[int, int, int]]:
    states = [read_checkpoint(file / "last.ckpt")[STATE] for file in keeper.kept()]
    return [(state["epoch"], state["batch"], state["step"]) for state in states]


def test_it_saves_at_the_start_every_so_many_steps_and_between_epochs(tmp_path: Path):
    training = Training(tmp_path, max_epochs=2)
    between = [(0, 0, 0), (1, 0, 7), (2, 0, 14)]
    assert places(training.run("a", every_n_steps=None)) == between
    assert places(training.run("b", every_n_steps=3)) == sorted(
        [*between, (0, 3, 3), (0, 6, 6), (1, 3, 10), (1, 6, 13)]
    )


def test_it_saves_after_so_many_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    clock = [0.0]
    monkeypatch.setattr("mnist_lightning.training.keeper.time.monotonic", lambda: clock[0])

    class Ticks(callbacks.Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            clock[0] += 10

    keeper = Hoarder(Run(tmp_path), Signals(), every_n_seconds=30)
    trainer = make_trainer(
        {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False}, [Ticks(), keeper], fit=True
    )
    trainer.fit(Net(), loader())
    keeper.signals.restore()
    assert places(keeper) == [(0, 0, 0), (0, 3, 3), (0, 6, 6), (1, 0, 7)]


def test_between_steps_while_gradients_wait_it_does_not_save(tmp_path: Path):
    kept = places(Training(tmp_path, accumulate_grad_batches=3, max_epochs=1).run("a"))
    assert kept == [(0, 0, 0), (0, 3, 1), (0, 6, 2), (1, 0, 3)]


def accuracies(values: list[float], losses: list[float]) -> type[Net]:
    def validation_step(self: Net, batch: Any, index: int) -> None:
        self.log("val_acc", values[self.current_epoch])
        self.log("val_loss", losses[self.current_epoch])

    return net(validation_step=validation_step)


@pytest.mark.parametrize(
    ("values", "losses", "best"),
    [([0.5, 0.7, 0.6], [1, 1, 1], 2), ([0.5, 0.5, 0.5], [3, 1, 2], 2), ([0.5, 0.5, 0.5], [1, 1, 1], 1),
     ([0.1, 0.2, 0.3], [1, 2, 3], 3)],
)  # fmt: skip
def test_best_is_the_highest_accuracy_then_the_lowest_loss(values: Any, losses: Any, best: int, tmp_path: Path):
    training = Training(tmp_path, accuracies(values, losses))
    keeper = training.run("whole")
    assert read_checkpoint(keeper.run.best)[STATE]["epoch"] == best
    assert keeper.best == pytest.approx((values[best - 1], -losses[best - 1]))


def test_best_is_of_weights_that_have_been_validated(tmp_path: Path):
    """With validations inside an epoch, its end has the accuracy of earlier weights."""
    module = accuracies([0.5, 0.7, 0.6], [1, 1, 1])
    keeper = Training(tmp_path, module, val_check_interval=3).run("a")  # after batches 3 and 6 of 7
    assert keeper.best is None
    assert keeper.run.best.samefile(keeper.run.last)


def test_without_validation_best_is_the_last(tmp_path: Path):
    keeper = Training(tmp_path, limit_val_batches=0).run("a")
    assert keeper.run.best.samefile(keeper.run.last)
    assert read_checkpoint(keeper.run.best)[STATE]["epoch"] == 3


def test_best_are_averaged_weights_where_they_are_validated(tmp_path: Path):
    """EMA: the accuracy is that of the averaged weights, and those are what a checkpoint's `state_dict` holds."""
    module = net(validation_step=lambda self, batch, index: self.log("val_acc", -self.head.bias.sum()))
    training = Training(tmp_path, module, calls=lambda: [callbacks.EMAWeightAveraging(decay=0.9)])
    keeper = training.run("a")
    checkpoint = read_checkpoint(keeper.run.best)
    assert keeper.best is not None
    assert -checkpoint["state_dict"]["head.bias"].sum().item() == pytest.approx(keeper.best[0], abs=1e-6)
    assert not torch.equal(checkpoint["state_dict"]["head.bias"], checkpoint["current_model_state"]["head.bias"])


# ---------------------------------------------------------------------- what is refused


def test_a_loss_that_is_not_finite_ends_the_training(tmp_path: Path):
    module = steps(lambda self, batch, index: self.loss(batch) * (float("nan") if self.global_step == 9 else 1))
    with pytest.raises(UserError, match=r"not finite in epoch 2 at step 10: lower --model\.lr"):
        Training(tmp_path, module).run("a")
    assert read_checkpoint(tmp_path / "a" / "last.ckpt")[STATE]["step"] == 9


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path):
    module = net(
        on_train_batch_end=lambda self, *args: self.global_step == 9 and self.head.bias.data.fill_(float("inf"))
    )
    with pytest.raises(UserError, match="not finite"):
        Training(tmp_path, module).run("a")
    assert read_checkpoint(tmp_path / "a" / "last.ckpt")[STATE]["step"] == 8


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"limit_train_batches": 5}, "an epoch had 7 batches and now has 5"),
        ({"gradient_clip_val": 1.0}, "gradients were clipped"),
        ({"max_epochs": 4}, "the schedule was made for 21 steps and would now have 28"),
    ],
)
def test_another_length_is_refused(more: dict[str, Any], words: str, tmp_path: Path):
    module = scheduled(lambda o: OneCycleLR(o, 0.1, 28), interval="step")
    first = Training(tmp_path, module).run("a")
    with pytest.raises(UserError, match=words):
        Training(tmp_path, module).run("b", first.kept()[5], **more)


# ---------------------------------------------------------------------- a Lightning whose loop is not known


def test_with_lightnings_own_loop_it_saves_at_the_ends_of_epochs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lightning, "__version__", "9.9.9")
    no_dropout = net(forward=lambda self, points: self.head(self.backbone[0](points)))
    training = Training(tmp_path, no_dropout, lambda: loader(shuffle=False))
    whole = training.run("whole")
    expected = training.left(whole)
    assert places(whole) == [(0, 0, 0), (1, 0, 7), (2, 0, 14), (3, 0, 21)]
    for origin in whole.kept()[1:-1]:
        again = training.left(training.run(f"again {origin.name}", origin))
        for part in ("weights", "step", "epoch"):  # the table lacks a row, which Lightning writes later
            assert not list(differences(expected[part], again[part]))
