"""The Trainer as this project sets it up: its loop, what it says, what watches it, how it writes."""

import logging
import multiprocessing
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelSummary, ProgressBar
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from mnist_lightning.errors import BadSetting, first_line
from mnist_lightning.launchers import as_launched
from mnist_lightning.processes import Signals, keep_freed_memory
from mnist_lightning.training.checkpoints import DurableCheckpointIO
from mnist_lightning.training.progress import NetworkSummary, RunProgress

KNOWN = ("2.6.6",)  # versions of Lightning whose loops the tests compare with ours
NO_OTHERS = (
    "several processes cannot be started from a notebook, a prompt or a pool: give --trainer.devices 1, or train in a "
    "program of its own, as python -m mnist_lightning fit is"
)
STEPS = ("eager", "graph", "compiled", "auto")
SMALL_STEP = 2_000_000  # multiplications of a forward through fully connected layers


def quick(trainer: Trainer, step: str | None = None) -> Trainer:
    """The same Trainer with QuickLoop in the place of Lightning's loop over the batches of an epoch.

    step: eager; graph: steps are recorded and replayed, on a GPU, where that can be; compiled: several steps are one
    compiled call, on a CPU, where that can be; auto: graph or, where it saves time, compiled; by default graph on a
    GPU, eager on a CPU.
    """
    if step is None:
        step = "graph" if trainer.strategy.root_device.type == "cuda" else "eager"
    if step not in STEPS:
        raise BadSetting(f"step is {step!r}; it is {', '.join(STEPS)}")
    if lightning.__version__ in KNOWN:
        from mnist_lightning.training.loop import put_in_place

        put_in_place(trainer, step)
    elif trainer.is_global_zero:
        warnings.warn(
            f"Lightning {lightning.__version__} is not one whose loop is known here ({', '.join(KNOWN)}): its own loop "
            "trains, slower, and checkpoints are taken at the ends of epochs only",
            stacklevel=2,
        )
    return trainer


def _quiet() -> None:
    """Silences what Lightning says of itself on every start."""
    for part in ("pytorch", "fabric"):
        logging.getLogger(f"lightning.{part}").setLevel(logging.WARNING)
    logging.getLogger("lightning.pytorch.profilers.profiler").setLevel(logging.INFO)  # reports that were asked for
    for message in (
        ".*turning off the (train|val) dataloader shuffling.*",  # --trainer.overfit_batches: so does the data module
        ".*sync_dist=True.*",  # torchmetrics synchronise themselves
        ".*smaller than the logging interval.*",
        ".*does not have many workers.*",  # nor does TensorLoader
        ".*GPU available but not used.*",  # it was told so
        "max_pool2d_with_indices_backward.* does not have a deterministic implementation.*",  # see _be_deterministic
        ".*litlogger.*", ".*litmodels.*",
        ".*Total length of `\\w+` across ranks is zero.*",  # no validation images, as asked for
        ".*is not supported by the model summary.*",
        ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*",
    ):  # fmt: skip
        warnings.filterwarnings("ignore", message)


def _ask_once_for_a_gpu() -> None:
    """Takes back a switch of Lightning's that costs 0.1 ms a step where there is no GPU.

    It has torch ask NVIDIA's library whether there is one, without remembering the answer; each `optimizer.step` asks.
    """
    if not torch.cuda.is_available():
        os.environ.pop("PYTORCH_NVML_BASED_CUDA_CHECK", None)


def make_trainer(settings: dict[str, Any], ours: list[Any], fit: bool = False, step: str | None = None) -> Trainer:
    """The Trainer, quick, its steps taken so, with the callbacks that the settings ask for, then ours."""
    _quiet()
    keep_freed_memory()
    _ask_once_for_a_gpu()
    settings = {"logger": False, **settings}
    asked = settings.pop("callbacks", None) or []
    callbacks = [*(asked if isinstance(asked, list) else [asked]), *ours]
    # one of the same kind that was asked for takes the place of ours
    for flag, kind, own in (
        ("enable_progress_bar", ProgressBar, RunProgress()),
        ("enable_model_summary", ModelSummary, NetworkSummary(max_depth=2)),
    ):
        others = [callback for callback in callbacks if not isinstance(callback, kind)]
        wanted = fit and settings.get(flag) is not False
        settings[flag] = wanted and len(others) < len(callbacks)  # else Lightning adds its own
        if not settings[flag]:
            callbacks = others + [own] * wanted
    if fit:
        callbacks.append(FewThreads())
    else:
        settings["enable_checkpointing"] = False
    settings = as_launched(settings | {"plugins": [DurableCheckpointIO()]})
    if hasattr(sys, "ps1") and settings.get("devices", "auto") == "auto":
        settings["devices"] = 1  # a notebook or a prompt, see _refuse_to_start_others
    strategy = str(settings.get("strategy"))
    if any(way in strategy for way in ("spawn", "fork", "notebook")):
        raise BadSetting(f"--trainer.strategy {strategy} is for notebooks: use ddp, which starts whole processes")
    try:
        trainer = Trainer(**settings, callbacks=callbacks)
    except (MisconfigurationException, ValueError, TypeError, ImportError) as error:
        if "interactive" in str(error):
            raise BadSetting(NO_OTHERS) from error
        raise BadSetting(f"--trainer: {first_line(error)}") from error
    _refuse_to_start_others(trainer.strategy)
    if settings.get("deterministic") is None and trainer.strategy.root_device.type == "cuda":
        _be_deterministic()
    return quick(trainer, step)


def _be_deterministic() -> None:
    """Has torch take kernels on the GPU that give the same bits each time: --trainer.deterministic warn, without what
    the switch costs elsewhere.

    Max-pooling backward says that it has none; windows that do not overlap give it nothing to add up.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False


def _refuse_to_start_others(strategy: Any) -> None:
    """Lightning starts other processes by running this program again: there has to be one that can be."""
    script = Path(sys.argv[0] if sys.argv else "")
    again = (sys.modules["__main__"].__spec__ or script.is_file()) and multiprocessing.parent_process() is None
    launcher, environment = strategy.launcher, getattr(strategy, "cluster_environment", None)
    if environment is not None and environment.creates_processes_externally:
        return  # they are there
    if launcher is not None and (launcher.is_interactive_compatible or not again):
        raise BadSetting(NO_OTHERS)


class FewThreads(Callback):
    """One CPU thread for training steps so small that to wake a second costs more than it helps."""

    def __init__(self) -> None:
        self.all = self.few = torch.get_num_threads()

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        size = getattr(trainer.train_dataloader, "global_batch_size", 0) // trainer.world_size
        small = 0 < size * sum(parameter.numel() for parameter in module.parameters()) < SMALL_STEP
        convolves = any(isinstance(layer, nn.Conv2d) for layer in module.modules())  # it reuses its weights
        self.few = 1 if small and not convolves and module.device.type == "cpu" else self.all
        torch.set_num_threads(self.few)

    def on_validation_start(self, *args: Any, **kwargs: Any) -> None:
        torch.set_num_threads(self.all)

    def on_validation_end(self, *args: Any, **kwargs: Any) -> None:
        torch.set_num_threads(self.few)

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        self.few = self.all
        torch.set_num_threads(self.all)

    on_exception = on_train_end


class SignalsAgain(Callback):
    """Takes the signals back from Lightning, whose SIGTERM handler can hang several processes."""

    def __init__(self, signals: Signals) -> None:
        self.signals = signals

    def on_validation_start(self, *args: Any, **kwargs: Any) -> None:
        self.signals.install()

    on_train_start = on_test_start = on_predict_start = on_validation_start
