"""RunKeeper: when it saves, and which weights it calls the best."""

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from mnist_lightning.models import MLP
from mnist_lightning.training.callbacks import RunKeeper
from mnist_lightning.training.signals import Signals


def test_a_save_is_due_after_seconds_or_steps():
    keeper = RunKeeper(Path(), Signals(), every_n_seconds=30, every_n_steps=100)
    keeper._saved_at, keeper._saved_step = time.monotonic() - 20, 50
    assert not keeper._due(149)
    assert keeper._due(150)
    keeper._saved_at -= 10
    assert keeper._due(51)
    never = RunKeeper(Path(), Signals(), every_n_seconds=None)
    assert not never._due(10**6)


def test_best_is_of_weights_that_have_been_validated():
    """With some --trainer.val_check_interval an epoch's end has the accuracy of earlier weights."""
    keeper = RunKeeper(Path(), Signals())
    metrics = {"val_acc": torch.tensor(0.5), "val_loss": torch.tensor(1.0)}
    trainer: Any = SimpleNamespace(
        callback_metrics=metrics,
        global_step=30,
        is_last_batch=True,
        sanity_checking=False,
        state=SimpleNamespace(fn="fit"),
    )
    keeper._position = lambda trainer: {"batch": 0}  # type: ignore[method-assign, assignment, return-value]
    keeper.on_validation_end(trainer, MLP())
    trainer.global_step = 32
    assert not keeper._is_best(trainer)
    keeper.on_validation_end(trainer, MLP())
    assert keeper._is_best(trainer)
