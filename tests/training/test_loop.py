"""QuickLoop does what Lightning's loop does: the same bits, counters, logged rows, calls and files."""

import itertools
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from both_loops import (
    CLASSES,
    POINTS,
    Blurred,
    Case,
    Endless,
    Net,
    Stateful,
    by_both,
    loader,
    net,
    raises_at,
    scheduled,
    steps,
)
from lightning.pytorch import LightningDataModule, LightningModule, Trainer, callbacks
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.loops import _FitLoop, _TrainingEpochLoop
from lightning.pytorch.loops.optimization.automatic import _AutomaticOptimization
from lightning.pytorch.profilers import SimpleProfiler
from lightning.pytorch.trainer.connectors.logger_connector import logger_connector, result
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader, Dataset, TensorDataset

from mnist_lightning.data.module import MNISTDataModule
from mnist_lightning.models import CNN, MLP
from mnist_lightning.training.loop import QuickLoop
from mnist_lightning.training.trainer import make_trainer, quick

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's, of few workers and much else


# ---------------------------------------------------------------------- the Trainer's settings

PRECISIONS = ("32-true", "64-true", "bf16-mixed", "bf16-true", "16-true", "16-mixed")  # on CPUs the last is bf16-mixed


@pytest.mark.parametrize("precision", PRECISIONS)
def test_precision(precision: Any, tmp_path: Path):
    by_both(Case(settings={"precision": precision}, bare=precision[-4:] != "true" or precision == "32-true"), tmp_path)


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "clip by norm": {"gradient_clip_val": 0.1},
    "clip by value": {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
    "clip bf16-mixed": {"gradient_clip_val": 0.1, "precision": "bf16-mixed"},
    "accumulate 3": {"accumulate_grad_batches": 3},
    "accumulate 3, clip": {"accumulate_grad_batches": 3, "gradient_clip_val": 0.1},
    "max_steps inside an epoch": {"max_epochs": -1, "max_steps": 11},
    "max_steps at an epoch's end": {"max_epochs": -1, "max_steps": 14},
    "max_steps and epochs": {"max_steps": 11},
    "max_steps with accumulation": {"max_epochs": -1, "max_steps": 5, "accumulate_grad_batches": 3},
    "min_steps": {"max_epochs": 2, "min_steps": 9},
    "limit 4": {"limit_train_batches": 4},
    "limit 0.5": {"limit_train_batches": 0.5},
    "limit 0": {"limit_train_batches": 0},
    "limit_val 0.5": {"limit_val_batches": 0.5},
    "limit_val 0": {"limit_val_batches": 0},
    "overfit 2": {"overfit_batches": 2},
    "overfit 0.5": {"overfit_batches": 0.5},
    "validation every 3": {"val_check_interval": 3},
    "validation every 0.3": {"val_check_interval": 0.3, "accumulate_grad_batches": 2},
    "validation across epochs": {"val_check_interval": 5, "check_val_every_n_epoch": None},
    "validation every 2 epochs": {"check_val_every_n_epoch": 2},
    "sanity check": {"num_sanity_val_steps": 2},
    "log each step": {"log_every_n_steps": 1},
    "log never": {"log_every_n_steps": 0},
    "log less than once an epoch": {"log_every_n_steps": 10},
    "fast_dev_run": {"fast_dev_run": True},
    "fast_dev_run 3": {"fast_dev_run": 3},
    "anomalies": {"detect_anomaly": True},
    "no time left": {"max_time": {"seconds": 0}},
    "deterministic": {"deterministic": True},
    "no inference mode": {"inference_mode": False},
    "reload loaders": {"reload_dataloaders_every_n_epochs": 1},
    "checkpointing": {"enable_checkpointing": True},
}


@pytest.mark.parametrize("looks", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_settings(settings: dict[str, Any], looks: bool, tmp_path: Path):
    by_both(Case(settings=settings, looks=looks), tmp_path)


def test_a_profiler_hears_the_same(tmp_path: Path):
    assert by_both(Case(profiler=SimpleProfiler), tmp_path)["profile"]["run_training_batch"] == 21


def test_two_fits_of_one_trainer(tmp_path: Path):
    by_both(Case(fits=2), tmp_path)


def test_fits_of_a_trainer_without_a_logger(tmp_path: Path):
    by_both(Case(settings={"logger": False, "max_epochs": 2}), tmp_path)


def test_barebones(tmp_path: Path):
    none = {"barebones": True, "log_every_n_steps": None, "num_sanity_val_steps": None, "logger": None}
    none |= dict.fromkeys(("enable_checkpointing", "enable_progress_bar", "enable_model_summary"))
    by_both(Case(settings=none), tmp_path)


# ---------------------------------------------------------------------- data


class Dicts(Dataset):
    def __len__(self) -> int:
        return 68

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"x": POINTS[index], "y": CLASSES[index], "name": f"point {index}"}


class Module(LightningDataModule):
    """With hooks of its own."""

    def train_dataloader(self) -> Any:
        return loader()

    def val_dataloader(self) -> Any:
        return [loader(batch_size=20, shuffle=False)]

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch[0] * 2, batch[1]

    def state_dict(self) -> dict[str, Any]:
        return {"kept": 1}


class Short(list):
    """Says that it has more batches than it has."""

    def __len__(self) -> int:
        return super().__len__() + 2


def of_dicts(self: Net, batch: Any, batch_idx: int) -> Tensor:
    loss = self.loss((batch["x"], batch["y"]))
    self.log("loss", loss, on_epoch=True)
    return loss


def of_two(self: Net, batch: Any, batch_idx: int) -> Tensor:
    loss = sum(self.loss(part) for part in (batch.values() if isinstance(batch, dict) else batch) if part is not None)
    self.log("loss", loss, on_epoch=True, batch_size=10)
    return loss  # type: ignore[return-value]


def combined(mode: Any) -> CombinedLoader:
    return CombinedLoader({"a": loader(), "b": loader(TensorDataset(POINTS[:40], CLASSES[:40]))}, mode)


BATCHES = [(POINTS[i : i + 10], CLASSES[i : i + 10]) for i in range(0, 68, 10)]
DATA: dict[str, tuple[Any, Callable[[], Any]]] = {
    "in order": (Net, lambda: loader(shuffle=False)),
    "the last dropped": (Net, lambda: loader(drop_last=True)),
    "a list": (Net, lambda: BATCHES),
    "one batch": (Net, lambda: BATCHES[:1]),
    "empty": (Net, lambda: loader(TensorDataset(POINTS[:0], CLASSES[:0]), shuffle=False)),
    "random points": (Net, lambda: loader(Blurred())),
    "dicts": (net(training_step=of_dicts), lambda: loader(Dicts())),
    "an iterable without a length": (Net, lambda: loader(Endless(), shuffle=False)),
    "stateful": (Net, lambda: Stateful(True)),
    "stateful without a length": (Net, lambda: Stateful(False)),
    "short": (Net, lambda: Short(BATCHES)),
    "None among them": (Net, lambda: [*BATCHES[:3], None, *BATCHES[3:]]),
    "two loaders": (net(training_step=of_two), lambda: [loader(), loader(shuffle=False)]),
    "a dict of two": (net(training_step=of_two), lambda: {"a": loader(), "b": loader(batch_size=20)}),
    **{
        mode: (net(training_step=of_two), partial(combined, mode))
        for mode in ("min_size", "max_size", "max_size_cycle")
    },
    "sequential": (net(training_step=of_two), partial(combined, "sequential")),
    "a data module": (Net, Module),
    "a generator": (Net, lambda: (batch for batch in BATCHES)),
}


@pytest.mark.parametrize("settings", [{}, {"limit_train_batches": 5, "val_check_interval": 2}], ids=["all", "limited"])
@pytest.mark.parametrize(("module", "data"), DATA.values(), ids=DATA)
def test_data(module: Any, data: Callable[[], Any], settings: dict[str, Any], tmp_path: Path):
    by_both(Case(module, data, lambda folder: [SaveAt(folder, 4)], settings=settings), tmp_path)


@pytest.mark.slow
def test_data_of_worker_processes(tmp_path: Path):
    by_both(Case(data=lambda: loader(Blurred(), num_workers=2)), tmp_path)


# ---------------------------------------------------------------------- callbacks


class SaveAt(callbacks.Callback):
    def __init__(self, folder: Path, *batches: int) -> None:
        self.folder, self.batches = folder, batches

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, out: Any, batch: Any, index: int) -> None:
        if trainer.fit_loop.total_batch_idx + 1 in self.batches:
            trainer.save_checkpoint(self.folder / f"{trainer.global_step}.ckpt")


class Unfreeze(callbacks.BaseFinetuning):
    def freeze_before_training(self, pl_module: Any) -> None:
        self.freeze(pl_module.backbone)

    def finetune_function(self, pl_module: Any, epoch: int, optimizer: Any) -> None:
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.backbone, optimizer)


class Bar(callbacks.ProgressBar):
    """Shows what it shows at each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[Any] = []

    def disable(self) -> None: ...
    def enable(self) -> None: ...

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        pl_module.notes.append((self.get_metrics(trainer, pl_module), self.total_train_batches))


class Everything(callbacks.Callback):
    """Hears every hook and notes where the training stands."""

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("on_") and name not in ("setup", "teardown"):
            return super().__getattribute__(name)

        def hook(trainer: Trainer, module: Net, *args: Any) -> None:
            loop = trainer.fit_loop
            module.notes.append((name, trainer.global_step, loop.epoch_progress.state_dict(),
                                 loop.epoch_loop.batch_progress.state_dict(), loop.epoch_loop._batches_that_stepped,
                                 loop.epoch_loop.automatic_optimization.optim_progress.state_dict(),
                                 [arg for arg in args if isinstance(arg, int)], module.head.bias))  # fmt: skip

        return hook


class Logs(callbacks.Callback):
    """Logs in its own hooks."""

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.log("callback/start", float(batch_idx), on_step=True, on_epoch=True)

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *args: Any) -> None:
        self.log("callback/end", trainer.callback_metrics.get("loss", torch.tensor(0.0)), on_step=True, on_epoch=True)

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        self.log("callback/epoch", trainer.callback_metrics["loss_epoch"])


class Joins(callbacks.Callback):
    """Adds a callback in the middle of an epoch, and takes it away in the next."""

    def on_train_batch_end(self, trainer: Trainer, module: Any, out: Any, batch: Any, index: int) -> None:
        if (trainer.current_epoch, index) == (0, 3):
            self.other = callbacks.LambdaCallback(on_train_batch_start=lambda *args: module.notes.append(args[-1]))
            trainer.callbacks.append(self.other)
        if (trainer.current_epoch, index) == (1, 3):
            trainer.callbacks.remove(self.other)


class Stops(callbacks.Callback):
    def on_train_batch_end(self, trainer: Trainer, module: Any, out: Any, batch: Any, index: int) -> None:
        trainer.should_stop |= trainer.global_step == 9


def heard(hook: str) -> Callable[[Path], list[Any]]:
    def hear(trainer: Trainer, module: Net, *args: Any) -> None:
        plain = [arg for arg in args if isinstance(arg, int)]
        module.notes.append((hook, plain, trainer.global_step, module.head.weight.grad is None, module.head.bias))

    return lambda folder: [callbacks.LambdaCallback(**{hook: hear})]


class Tuned(LightningDataModule):
    def __init__(self) -> None:
        super().__init__()
        self.batch_size = 2

    def train_dataloader(self) -> DataLoader:
        return loader(batch_size=self.batch_size)

    def val_dataloader(self) -> DataLoader:
        return loader(batch_size=20, shuffle=False)


def checkpoints(**options: Any) -> Callable[[Path], list[Any]]:
    return lambda folder: [callbacks.ModelCheckpoint(folder / "saved", save_top_k=-1, **options)]


Make = Callable[[Path], list[Any]]
CALLBACKS: dict[str, Make | tuple[Make, dict[str, Any]]] = {
    "BackboneFinetuning": (
        lambda folder: [callbacks.BackboneFinetuning(1, backbone_initial_lr=0.01)],
        {"module": net(configure_optimizers=lambda self: SGD(self.head.parameters(), 0.1))},
    ),
    "BaseFinetuning": (
        lambda folder: [Unfreeze()],
        {"module": net(configure_optimizers=lambda self: Adam(self.head.parameters(), 0.1))},
    ),
    "BasePredictionWriter": lambda folder: [callbacks.BasePredictionWriter()],
    "BatchSizeFinder": (lambda folder: [callbacks.BatchSizeFinder("power", 2, max_trials=3)], {"data": Tuned}),
    "BatchSizeFinder binary": (lambda folder: [callbacks.BatchSizeFinder("binsearch", 2, 2, 3)], {"data": Tuned}),
    "Callback": lambda folder: [callbacks.Callback()],
    "Checkpoint": lambda folder: [callbacks.Checkpoint()],
    "DeviceStatsMonitor": lambda folder: [callbacks.DeviceStatsMonitor()],
    "EarlyStopping": lambda folder: [callbacks.EarlyStopping("val_loss", min_delta=9, patience=1)],
    "EarlyStopping on training": lambda folder: [
        callbacks.EarlyStopping("loss_epoch", min_delta=9, patience=1, check_on_train_epoch_end=True)],
    "GradientAccumulationScheduler": lambda folder: [callbacks.GradientAccumulationScheduler({0: 1, 1: 3, 2: 2})],
    "LambdaCallback": lambda folder: [
        callbacks.LambdaCallback(on_train_batch_end=lambda *args: args[1].notes.append(1))],
    "LearningRateFinder": lambda folder: [callbacks.LearningRateFinder(num_training_steps=12)],
    "LearningRateFinder short": lambda folder: [callbacks.LearningRateFinder(1e-3, 1.0, 5, "linear")],
    "LearningRateMonitor": lambda folder: [callbacks.LearningRateMonitor()],
    "LearningRateMonitor by step": lambda folder: [
        callbacks.LearningRateMonitor("step", log_momentum=True, log_weight_decay=True)],
    "ModelCheckpoint": checkpoints(),
    "ModelCheckpoint every 7 steps": checkpoints(every_n_train_steps=7),
    "ModelCheckpoint every 2 steps, best": lambda folder: [callbacks.ModelCheckpoint(
        folder / "saved", "{epoch}-{step}-{loss:.3f}", "loss", every_n_train_steps=2, save_top_k=2, save_last=True)],
    "ModelCheckpoint best": lambda folder: [
        callbacks.ModelCheckpoint(folder / "saved", "{epoch}-{val_loss:.3f}", "val_loss", save_last="link")],
    "ModelCheckpoint of weights": checkpoints(save_weights_only=True, every_n_epochs=2),
    "ModelCheckpoint at the training's end of epoch": checkpoints(save_on_train_epoch_end=True),
    "ModelPruning": lambda folder: [callbacks.ModelPruning("l1_unstructured", amount=0.3, verbose=1)],
    "ModelSummary": lambda folder: [callbacks.ModelSummary(2)],
    "OnExceptionCheckpoint": (
        lambda folder: [callbacks.OnExceptionCheckpoint(folder), KeepsWhatIsSaved()],
        {"module": net(training_step=raises_at(9, ValueError("x")))},
    ),
    "ProgressBar": lambda folder: [Bar()],
    "RichModelSummary": lambda folder: [callbacks.RichModelSummary()],
    "RichProgressBar": lambda folder: [callbacks.RichProgressBar()],
    "StochasticWeightAveraging": (
        lambda folder: [callbacks.StochasticWeightAveraging(0.02, 1, 2), *checkpoints()(folder)],
        {"module": scheduled(lambda o: StepLR(o, 1))},
    ),
    "SpikeDetection": lambda folder: [Spikes(window=3, warmup=2, rtol=0.5)],
    "SpikeDetection finds one": (
        lambda folder: [Spikes(window=3, warmup=2, exclude_batches_path=str(folder / "skip.json"))],
        {"module": steps(lambda self, batch, index: self.loss(batch) * (1000 if index == 5 else 1))},
    ),
    "ThroughputMonitor": (
        lambda folder: [callbacks.ThroughputMonitor(lambda batch: len(batch[0]), window_size=3)], {"validates": False}),
    "Timer": lambda folder: [callbacks.Timer({"hours": 1}, interval="step")],
    "Timer is up": lambda folder: [callbacks.Timer({"seconds": 0}, interval="step")],
    "TQDMProgressBar": lambda folder: [callbacks.TQDMProgressBar(2)],
    "EMAWeightAveraging": lambda folder: [callbacks.EMAWeightAveraging(decay=0.9), SaveAt(folder, 5)],
    "EMAWeightAveraging later": lambda folder: [
        callbacks.EMAWeightAveraging(decay=0.9, update_every_n_steps=2, update_starting_at_step=8)],
    "EMAWeightAveraging best": lambda folder: [
        callbacks.EMAWeightAveraging(decay=0.9), callbacks.ModelCheckpoint(folder / "saved", monitor="val_loss")],
    "WeightAveraging": lambda folder: [callbacks.WeightAveraging(), SaveAt(folder, 5)],
    # others than Lightning's
    "every hook": lambda folder: [Everything()],
    "logs": lambda folder: [Logs()],
    "joins": lambda folder: [Joins()],
    "stops": lambda folder: [Stops()],
    "saves": lambda folder: [SaveAt(folder, *range(1, 22))],
    "several": lambda folder: [Logs(), callbacks.EMAWeightAveraging(decay=0.5), callbacks.LearningRateMonitor("step"),
                               *checkpoints(every_n_train_steps=5)(folder), Logs()],
}  # fmt: skip


class KeepsWhatIsSaved(callbacks.Callback):
    """OnExceptionCheckpoint takes its file away again."""

    def on_exception(self, trainer: Trainer, module: Any, exception: BaseException) -> None:
        trainer.save_checkpoint(Path(trainer.default_root_dir) / "kept.ckpt")


class Spikes(callbacks.SpikeDetection):
    """Its class in Lightning is abstract: it has no base with a state."""


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is always the same, and a clock whose every look is a second."""
    stats = {"cpu_percent": 1.0, "cpu_vm_percent": 2.0}
    monkeypatch.setattr(CPUAccelerator, "get_device_stats", lambda self, device: stats)
    monkeypatch.setattr("lightning.pytorch.callbacks.device_stats_monitor._PSUTIL_AVAILABLE", True)
    monkeypatch.setattr("lightning.pytorch.callbacks.throughput_monitor.time.perf_counter", itertools.count().__next__)


@pytest.mark.usefixtures("steady")
@pytest.mark.parametrize(("accumulate", "looks"), [(1, True), pytest.param(3, False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("made", CALLBACKS.values(), ids=CALLBACKS)
def test_callbacks(made: Any, accumulate: int, looks: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    make, more = made if isinstance(made, tuple) else (made, {})
    by_both(Case(callbacks=make, settings={"accumulate_grad_batches": accumulate}, looks=looks, **more), tmp_path)


@pytest.mark.parametrize("hook", [hook for hook in vars(callbacks.Callback) if hook.startswith("on_")])
def test_one_hook_of_a_callback(hook: str, tmp_path: Path):
    by_both(Case(callbacks=heard(hook), looks=False), tmp_path)


def test_each_callback_of_lightning_is_tried():
    assert set(callbacks.__all__) <= set(CALLBACKS)


# ---------------------------------------------------------------------- checkpoints as Lightning goes on from them


class SaveEverywhere(SaveAt):
    """Also where Lightning's own callbacks save."""

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        trainer.save_checkpoint(self.folder / f"val-{trainer.global_step}.ckpt")

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        trainer.save_checkpoint(self.folder / f"epoch-{trainer.global_step}.ckpt")


@pytest.mark.parametrize("validation", [1.0, 3])
@pytest.mark.parametrize("data", [loader, partial(Stateful, True)], ids=["plain", "stateful"])
def test_checkpoints_as_lightning_goes_on_from_them(data: Any, validation: float, tmp_path: Path):
    settings = {"val_check_interval": validation}
    saved = Case(data=data, callbacks=lambda folder: [SaveEverywhere(folder, 3, 4, 7, 10)], settings=settings)
    saved.run(True, tmp_path / "saved")
    for number, file in enumerate(sorted(tmp_path.glob("saved/*.ckpt"))):
        case = Case(data=data, settings=settings, ckpt_path=f"../saved/{file.name}")
        (tmp_path / str(number)).mkdir()
        by_both(case, tmp_path / str(number))


# ---------------------------------------------------------------------- which way is taken


def test_the_quick_way_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Neither Lightning's step nor its `log` run where ours do; but for a name's first value in each epoch."""
    calls: Counter[str] = Counter()

    def counted(owner: Any, name: str) -> None:
        original = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args, **more: (calls.update([name]), original(*args, **more))[1])

    counted(_AutomaticOptimization, "run")
    counted(_TrainingEpochLoop, "advance")
    counted(result._ResultCollection, "log")
    counted(logger_connector._LoggerConnector, "on_batch_end")
    data = loader(TensorDataset(POINTS, CLASSES), batch_size=4)  # 17 batches
    Case(Net, lambda: data, validates=False, looks=False, bare=True).run(True, tmp_path / "quick")
    assert calls == {"log": 3}
    Case(Net, lambda: data, validates=False, looks=False).run(False, tmp_path / "lightning")
    assert calls == {"log": 3 + 51, "run": 51, "advance": 51, "on_batch_end": 51}


@pytest.mark.parametrize("kind", [MLP, CNN])
def test_our_own_models_and_data_take_it(kind: Any, tmp_path: Path, tiny_mnist: Path):
    small = {"hidden": [16], "dropout": 0.2} if kind is MLP else {"channels": [4], "hidden": [16], "dropout": 0.2}
    data = partial(MNISTDataModule, str(tiny_mnist), "mnist", val_size=50, batch_size=20)
    by_both(Case(partial(kind, **small), data, bare=True), tmp_path)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_our_own_models_in_each_precision(precision: Any, tmp_path: Path, tiny_mnist: Path):
    data = partial(MNISTDataModule, str(tiny_mnist), "mnist", val_size=50, batch_size=50)
    case = Case(partial(MLP, hidden=[16]), data, settings={"precision": precision, "gradient_clip_val": 0.1})
    assert by_both(case, tmp_path)["error"] is None


@pytest.mark.parametrize(
    "settings", [{"profiler": "simple"}, {"accumulate_grad_batches": 2}, {"precision": "64-true"}], ids=str
)
def test_where_the_bare_way_is_not_taken(settings: dict[str, Any], tmp_path: Path):
    trainer = make_trainer({"max_epochs": 1, "accelerator": "cpu", "default_root_dir": tmp_path, **settings}, [])
    trainer.fit(Net(), loader())
    loop: Any = trainer.fit_loop.epoch_loop
    assert not (loop._quick and loop.automatic_optimization._bare)


def test_an_unknown_lightning_keeps_its_loop(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lightning, "__version__", "9.9.9")
    trainer = Trainer(accelerator="cpu", logger=False, max_epochs=1, enable_progress_bar=False)
    kinds = [type(trainer.fit_loop), type(trainer.fit_loop.epoch_loop)]
    with pytest.warns(UserWarning, match=r"9\.9\.9") as caught:
        assert quick(trainer) is trainer
    assert len(caught) == 1
    assert [type(trainer.fit_loop), type(trainer.fit_loop.epoch_loop)] == kinds == [_FitLoop, _TrainingEpochLoop]


def test_quick_again_changes_nothing():
    trainer = quick(Trainer(accelerator="cpu", logger=False, enable_progress_bar=False))
    loop = trainer.fit_loop.epoch_loop
    assert quick(trainer).fit_loop.epoch_loop is loop
    assert isinstance(loop, QuickLoop)
