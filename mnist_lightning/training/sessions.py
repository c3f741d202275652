"""sessions.jsonl: when, on what machine and how long a run was trained; a line a start, a line an epoch."""

import json
import os
import platform
import time
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from mnist_lightning import __version__
from mnist_lightning.console import say
from mnist_lightning.training.keeper import RunKeeper

FILE = "sessions.jsonl"


class Sessions(Callback):
    """Notes each start and each epoch's end in the run's folder; never keeps a training from going on."""

    def __init__(self, keeper: RunKeeper) -> None:
        self.keeper = keeper  # knows the folder
        self._started = 0.0

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._started = time.monotonic()
        names = ("torch", "lightning", "torchmetrics", "numpy")
        versions = {"mnist_lightning": __version__, "python": platform.python_version()}
        self._note(trainer, {
            "step": trainer.global_step,
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": machine(trainer),
            "versions": versions | {name: version(name) for name in names},
        })  # fmt: skip

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._tell_seconds(trainer)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._tell_seconds(trainer)

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        if self._started:
            self._tell_seconds(trainer)

    def _tell_seconds(self, trainer: Trainer) -> None:
        self._note(trainer, {"step": trainer.global_step, "seconds": round(time.monotonic() - self._started, 3)})

    def _note(self, trainer: Trainer, event: dict[str, Any]) -> None:
        if not trainer.is_global_zero:
            return
        path = self.keeper.run.folder / FILE
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(event) + "\n")
        except OSError as error:
            say(f"{path} cannot be written ({error.strerror or error}); the training goes on without it")


def machine(trainer: Trainer) -> dict[str, Any]:
    """Processor or GPU, threads and processes that train."""
    device = trainer.strategy.root_device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {
        "device": name,
        "kind": device.type,
        "processes": trainer.world_size,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "precision": str(trainer.precision),
    }


def _processor() -> str:
    """The processor's name, as Linux has it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
