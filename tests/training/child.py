"""What the forked training processes of the tests run: the command line, with a signal to itself at a chosen moment."""

import functools
import itertools
import os
import resource
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

import mnist_lightning.commands.fit  # noqa: F401  what is imported here no test waits for
from mnist_lightning.cli import main
from mnist_lightning.data.module import MNISTDataModule
from mnist_lightning.models import DigitClassifier
from mnist_lightning.training.keeper import RunKeeper
from mnist_lightning.training.metrics_csv import MetricsCSV

# Moments that can be counted: a function, and which of its calls count.
MOMENTS: dict[str, tuple[Any, str, Callable[..., bool]]] = {
    "set-up": (MNISTDataModule, "setup", lambda *_: True),
    "step": (DigitClassifier, "training_step", lambda *_: True),
    "batch end": (RunKeeper, "between_batches", lambda *_: True),
    "validation": (DigitClassifier, "validation_step", lambda *_: True),
    "row": (MetricsCSV, "log_metrics", lambda *_: True),
    "epoch end": (RunKeeper, "between_epochs", lambda *_: True),
    "sync": (os, "fsync", lambda *_: True),
    "name": (os, "replace", lambda old, new: Path(new).suffix == ".ckpt"),
    "fit end": (RunKeeper, "on_fit_end", lambda *_: True),
    "test": (DigitClassifier, "test_step", lambda *_: True),
}


def run(words: list[str], log: Path, moment: str, number: int, signals: tuple[int, ...], env: dict[str, str]) -> None:
    """Runs a command and exits with its status; at the `number`-th `moment` the signals come, one after the other."""
    os.environ.update(env)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    torch.set_num_threads(1)
    if limit := int(env.get("FILE_LIMIT", 0)):  # bytes
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    if "NO_LINKS" in env:
        os.link = no_links
    if moment:
        arm(moment, number, signals)
    sys.exit(main(words))


def no_links(*args: Any) -> None:
    raise OSError("a file system without hard links")


def arm(moment: str, number: int, signals: tuple[int, ...]) -> None:
    owner, name, counts = MOMENTS[moment]
    original, calls = getattr(owner, name), itertools.count(1)

    @functools.wraps(original)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if counts(*args) and next(calls) == number:
            if moment == "sync" and signal.SIGKILL in signals:
                with suppress(OSError):  # of a folder
                    os.ftruncate(args[0], os.fstat(args[0]).st_size // 2)  # half of it had been written
            for signum in signals:
                os.kill(os.getpid(), signum)
        return original(*args, **kwargs)

    setattr(owner, name, wrapped)
