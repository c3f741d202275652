"""The Trainer as this project sets it up: what it says, what watches it, how it writes."""

import ctypes
import logging
import os
import sys
import warnings
from contextlib import suppress
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from mnist_lightning.errors import BadSetting
from mnist_lightning.training.checkpoints import DurableCheckpointIO
from mnist_lightning.training.progress import NetworkSummary, RunProgress
from mnist_lightning.training.signals import Signals


def _quiet() -> None:
    """Silences what Lightning says of itself on every start."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    for message in (
        ".*turning off the (train|val) dataloader shuffling.*",  # --trainer.overfit_batches: so does the data module
        ".*sync_dist=True.*",  # what is logged has been synchronised by torchmetrics
        ".*smaller than the logging interval.*",  # it counts blocks; rows are written by steps
        ".*litlogger.*", ".*litmodels.*",
        ".*Total length of `\\w+` across ranks is zero.*",  # no validation images, as asked for
        ".*is not supported by the model summary.*",
        ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*",
    ):  # fmt: skip
        warnings.filterwarnings("ignore", message)


def _keep_freed_memory() -> None:
    """Tells glibc to keep what a step frees for the next step.

    By default it gives blocks of some MB back to the kernel, which clears them page by page when they are wanted
    again: up to a quarter of an epoch (benchmarks/tricks.py).
    """
    if sys.platform != "linux":
        return
    M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # noqa: N806
    with suppress(AttributeError):  # another C library than glibc
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, 32 << 20)  # bytes; the largest that glibc takes; data sets are larger
        mallopt(M_TRIM_THRESHOLD, 1 << 30)


def _ask_once_for_a_gpu() -> None:
    """Takes back a switch of Lightning's that costs 0.1 ms a step where there is no GPU.

    It has torch ask NVIDIA's library whether there is one, without remembering the answer; each `optimizer.step` asks.
    """
    if not torch.cuda.is_available():
        os.environ.pop("PYTORCH_NVML_BASED_CUDA_CHECK", None)


def make_trainer(settings: dict[str, Any], ours: list[Any], fit: bool = False) -> Trainer:
    """The Trainer with the callbacks that the settings ask for, then ours."""
    _quiet()
    _keep_freed_memory()
    _ask_once_for_a_gpu()
    settings = dict(settings)
    asked = settings.pop("callbacks", None) or []
    callbacks = [*(asked if isinstance(asked, list) else [asked]), *ours]
    if settings.pop("enable_progress_bar", True) is not False and fit:
        callbacks.append(RunProgress())
    else:
        settings["enable_progress_bar"] = False
    if settings.pop("enable_model_summary", True) is not False and fit:
        callbacks.append(NetworkSummary(max_depth=2))
    else:
        settings["enable_model_summary"] = False
    if not fit:
        settings["enable_checkpointing"] = False
    strategy = str(settings.get("strategy"))
    if any(way in strategy for way in ("spawn", "fork", "notebook")):
        raise BadSetting(f"--trainer.strategy {strategy} is for notebooks: use ddp, which starts whole processes")
    try:
        return Trainer(**settings, callbacks=callbacks, logger=False, plugins=[DurableCheckpointIO()])
    except (MisconfigurationException, ValueError, TypeError, ImportError) as error:
        raise BadSetting(f"--trainer: {str(error).splitlines()[0]}") from error


class SignalsAgain(Callback):
    """Takes the signals back from Lightning, whose SIGTERM handler can hang several processes."""

    def __init__(self, signals: Signals) -> None:
        self.signals = signals

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.signals.install()

    on_test_start = on_predict_start = on_validation_start  # type: ignore[assignment]
