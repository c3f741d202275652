"""One tiny training by Lightning's loop and by QuickLoop, and everything that it left, to be compared."""

import itertools
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule, LightningModule, Trainer, callbacks, core, utilities
from lightning.pytorch.callbacks import Checkpoint, ModelSummary, ProgressBar
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loops.optimization.automatic import Closure
from lightning.pytorch.trainer.connectors import data_connector
from lightning.pytorch.trainer.connectors.logger_connector import logger_connector, result
from torch import Tensor, nn
from torch.optim import SGD, Adam
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score, MulticlassPrecision

from mnist_lightning.training.trainer import quick

# What Lightning has warned of once in this process.
WARNED = [Closure.warning_cache, *(module.warning_cache for module in (  # type: ignore[attr-defined]
    data_connector, logger_connector, result, utilities.data, core.module
))]  # fmt: skip
POINTS = torch.randn(68, 6, generator=torch.Generator().manual_seed(0))
CLASSES = POINTS[:, :3].argmax(1)


class Net(LightningModule):
    """As a user writes it, knowing nothing of this project."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.2))
        self.head = nn.Linear(8, 3)
        self.lr, self.batch_size = 0.05, 10
        self.accuracy, self.mean = MulticlassAccuracy(3), MeanMetric()
        scores = {"f1": MulticlassF1Score(3), "precision": MulticlassPrecision(3), "acc": MulticlassAccuracy(3)}
        self.scores = MetricCollection(scores)  # type: ignore[arg-type]
        self.notes: list[Any] = []  # of whatever a test wants to know

    def forward(self, points: Tensor) -> Tensor:
        return self.head(self.backbone(points))

    def loss(self, batch: Any) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.loss(batch)
        self.log("loss", loss, on_step=True, on_epoch=True, prog_bar=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self) -> Any:
        return Adam(self.parameters(), self.lr)


def net(base: type[Net] = Net, **methods: Any) -> type[Net]:
    """Net with some methods of one's own."""
    return type("Net", (base,), methods)


def logs(log: Callable[[Net, Tensor, Any, int], Any], base: type[Net] = Net) -> type[Net]:
    """Net with a training_step that logs so, after another value."""

    def training_step(self: Net, batch: Any, batch_idx: int) -> Tensor:
        loss = Net.training_step(self, batch, batch_idx)
        log(self, loss, batch, batch_idx)
        return loss

    return net(base, training_step=training_step)


def steps(step: Callable[[Net, Any, int], Any]) -> type[Net]:
    return net(training_step=lambda self, batch, batch_idx: step(self, batch, batch_idx))


def raises_at(batch: int, error: BaseException) -> Callable[..., Any]:
    def step(self: Net, data: Any, batch_idx: int) -> Tensor:
        if self.trainer.fit_loop.total_batch_idx == batch:
            raise error
        return Net.training_step(self, data, batch_idx)

    return step


def scheduled(make: Callable[[Any], Any], **more: Any) -> type[Net]:
    def configure_optimizers(self: Net) -> Any:
        made = SGD(self.parameters(), lr=0.1, momentum=0.9)
        return {"optimizer": made, "lr_scheduler": {"scheduler": make(made), **more}}

    return net(configure_optimizers=configure_optimizers)


def loader(data: Dataset | None = None, **options: Any) -> DataLoader:
    return DataLoader(data or TensorDataset(POINTS, CLASSES), **{"batch_size": 10, "shuffle": True} | options)


class Endless(IterableDataset):
    """Without a length; 7 batches of 10, the last of 8."""

    def __iter__(self) -> Any:
        return iter(zip(POINTS, CLASSES, strict=True))


class Blurred(Dataset):
    """Its points are random."""

    def __len__(self) -> int:
        return 68

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return POINTS[index] + torch.randn(6) / 10, CLASSES[index]


class Stateful:
    """A loader that knows its position."""

    def __init__(self, length: bool) -> None:
        self.batch = self.start = 0
        if length:
            self.__class__ = type("WithLength", (Stateful,), {"__len__": lambda self: 7})

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        start, self.start = self.start, 0
        for batch in range(start, 7):
            self.batch = batch + 1
            yield POINTS[batch * 10 :][:10], CLASSES[batch * 10 :][:10]

    def state_dict(self) -> dict[str, int]:
        return {"batch": self.batch % 7}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.start = self.batch = state["batch"]


def noted(thing: Any, folder: Path) -> Any:
    """As plain values that can be compared and shown, to the last bit; of a file its content."""
    if isinstance(thing, Tensor):
        return [str(thing.dtype), str(thing.tolist())]  # nan is nan
    if isinstance(thing, dict):
        return {str(key).replace(str(folder), ""): noted(value, folder) for key, value in thing.items()}
    if isinstance(thing, list | tuple):
        return [noted(value, folder) for value in thing]
    if isinstance(thing, Path):
        if thing.suffix == ".ckpt":
            return noted(torch.load(thing, weights_only=False), folder)
        return thing.read_text()
    if thing is None or isinstance(thing, int):
        return thing
    text = thing if isinstance(thing, str) else repr(thing)
    return re.sub(" at 0x\\w+", "", text).replace(str(folder), "").replace("QuickFit", "_FitLoop")


class Witness(callbacks.Callback):
    """What a callback sees at the end of each batch, if it looks."""

    def __init__(self, looks: bool) -> None:
        self.looks, self.seen = looks, []

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        loop = trainer.fit_loop.epoch_loop
        self.seen.append([
            index, outputs, trainer.global_step, trainer.current_epoch, trainer.is_last_batch, loop.state_dict(),
            [group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups],
        ])  # fmt: skip
        if self.looks:
            self.seen.append([trainer.callback_metrics, trainer.logged_metrics, trainer.progress_bar_metrics])
        self.seen[-1] = noted(self.seen[-1], Path("?"))


@dataclass
class Case:
    module: Callable[[], LightningModule] = Net
    data: Callable[[], Any] = loader
    callbacks: Callable[[Path], list[Any]] = lambda folder: []
    settings: dict[str, Any] = field(default_factory=dict)
    validates: bool = True
    looks: bool = True
    watched: bool = True  # whether a callback is told of each batch
    bare: bool | None = None  # whether QuickLoop does the steps itself; None: whatever
    profiler: Callable[[], Any] = lambda: None
    fits: int = 1
    ckpt_path: str | None = None

    def run(self, quickly: bool, folder: Path) -> dict[str, Any]:
        folder.mkdir()
        torch.manual_seed(3)
        module, data, witness, profiler = self.module(), self.data(), Witness(self.looks), self.profiler()
        own = isinstance(data, LightningDataModule)
        calls = [*self.callbacks(folder), *[witness] * self.watched]
        kinds = {"checkpointing": Checkpoint, "progress_bar": ProgressBar, "model_summary": ModelSummary}
        enabled = {f"enable_{name}": any(isinstance(call, kind) for call in calls) for name, kind in kinds.items()}
        defaults = {"max_epochs": 3, "log_every_n_steps": 3, "num_sanity_val_steps": 0, **enabled}
        logger = CSVLogger(folder, name="", version="0")
        settings = {"accelerator": "cpu", "default_root_dir": folder, "logger": logger} | defaults | self.settings
        trainer = Trainer(callbacks=calls, profiler=profiler, **settings)
        if quickly:
            quick(trainer)
        torch.manual_seed(5)
        for cache in WARNED:
            cache.clear()
        error = None
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                for more in range(self.fits):
                    trainer.fit_loop.max_epochs = (trainer.fit_loop.max_epochs or 0) + more
                    val = None if own or not self.validates else loader(batch_size=20, shuffle=False)
                    path = self.ckpt_path and folder.parent / self.ckpt_path
                    trainer.fit(module, None if own else data, val, datamodule=data if own else None, ckpt_path=path)
            except (Exception, SystemExit) as raised:
                error = f"{type(raised).__name__}: {raised}"
        if quickly and self.bare is not None:
            loop: Any = trainer.fit_loop.epoch_loop
            assert (loop._quick and loop.automatic_optimization._bare) == self.bare
        metrics = {name: getattr(trainer, f"{name}_metrics") for name in ("callback", "logged", "progress_bar")}
        return noted({
            "error": error, "global step": trainer.global_step, "epoch": trainer.current_epoch,
            "weights": module.state_dict(), "optimizers": [optimizer.state_dict() for optimizer in trainer.optimizers],
            "counters": trainer.fit_loop.state_dict(), "notes": getattr(module, "notes", []),
            "metrics": metrics if error is None else {},  # those of a batch that failed may be there or not
            "random": torch.get_rng_state().sum(), "batches": witness.seen,
            "warnings": sorted({f"{warning.category.__name__}: {warning.message}" for warning in caught}),
            "files": {str(f.relative_to(folder)): f for f in sorted(folder.rglob("*")) if f.is_file()},
            "profile": {name: len(times) for name, times in getattr(profiler, "recorded_durations", {}).items()},
        }, folder)  # fmt: skip


def by_both(case: Case, folder: Path) -> dict[str, Any]:
    """What QuickLoop leaves, which is what Lightning's loop does."""
    theirs, ours = case.run(False, folder / "lightning"), case.run(True, folder / "quick")
    found = "\n".join(itertools.islice(differences(theirs, ours), 10))
    assert not found, found
    return ours


def differences(theirs: Any, ours: Any, where: str = "") -> Iterator[str]:
    """Where two notes differ, in a line each."""
    if isinstance(theirs, dict) and isinstance(ours, dict) and theirs.keys() == ours.keys():
        for key in theirs:
            yield from differences(theirs[key], ours[key], f"{where}/{key}")
    elif isinstance(theirs, list) and isinstance(ours, list) and len(theirs) == len(ours):
        for index, pair in enumerate(zip(theirs, ours, strict=True)):
            yield from differences(*pair, f"{where}/{index}")
    elif theirs != ours:
        yield f"{where}: expected {theirs!r:.70}, found {ours!r:.70}"
