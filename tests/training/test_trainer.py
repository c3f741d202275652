"""make_trainer: what it sets up in the process, for speed, what watches the training, and what it refuses."""

import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelSummary, ProgressBar, RichModelSummary, RichProgressBar, TQDMProgressBar
from lightning.pytorch.utilities.warnings import PossibleUserWarning
from pretend_gpu import Found

from mnist_lightning.data.loader import TensorLoader
from mnist_lightning.errors import BadSetting
from mnist_lightning.models import CNN, MLP
from mnist_lightning.training.progress import NetworkSummary, RunProgress
from mnist_lightning.training.trainer import make_trainer

CPU = {"accelerator": "cpu"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU the switch costs nothing")
def test_optimizers_do_not_look_for_a_gpu_at_each_step(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # as Lightning's import leaves it
    make_trainer(CPU, [])
    assert "PYTORCH_NVML_BASED_CUDA_CHECK" not in os.environ


FAULTS = """
import resource
import torch
from mnist_lightning.training.trainer import make_trainer

make_trainer({"accelerator": "cpu"}, [])
for _ in range(10):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    [torch.ones(20 << 18) for _ in range(3)]  # of 20 MB
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_freed_memory_is_kept():
    """In a process of its own: what glibc does by itself depends on what was freed before."""
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    assert sum(map(int, done.stdout.split()[5:])) < 1000  # of 4 kB each: 15,000 the first time


# ---------------------------------------------------------------------- threads


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


class Threads(Callback):
    """Notes how many there are, and fails when it is told to."""

    def __init__(self, fails_in: str | None = None) -> None:
        self.fails_in = fails_in
        self.seen: dict[str, int] = {}

    def note(self, moment: str) -> None:
        self.seen[moment] = torch.get_num_threads()
        if moment == self.fails_in:
            raise RuntimeError(f"in {moment}")

    def on_train_batch_start(self, *args: Any) -> None:
        self.note("training")

    def on_validation_batch_start(self, *args: Any) -> None:
        self.note("validation")


def train(model: Any, digits: Any, threads: Threads, batch_size: int = 10) -> dict[str, int]:
    loader = TensorLoader(*digits[1], batch_size=batch_size)
    settings = {"max_epochs": 2, "num_sanity_val_steps": 2, "enable_progress_bar": False, "logger": False}
    settings |= {"enable_model_summary": False, "enable_checkpointing": False, "limit_train_batches": 3}
    trainer = make_trainer(CPU | settings | {"limit_val_batches": 1}, [threads], fit=True)
    trainer.fit(model, loader, loader)
    return threads.seen


@pytest.mark.usefixtures("three_threads")
@pytest.mark.parametrize(
    ("model", "batch_size", "fewer"),
    [
        (MLP(hidden=[16]), 10, 1),  # a step of 127,000 multiplications
        (MLP(hidden=[1000]), 10, 3),  # of 8 million
        (MLP(hidden=[500]), 100, 3),
        (CNN(channels=[2], hidden=[]), 10, 3),  # a convolution uses each of its weights many times
    ],
)
def test_a_small_step_has_one_thread_and_gives_the_others_back(tiny_digits, model, batch_size, fewer):
    assert train(model, tiny_digits, Threads(), batch_size) == {"validation": 3, "training": fewer}
    assert torch.get_num_threads() == 3


@pytest.mark.usefixtures("three_threads")
@pytest.mark.parametrize("moment", ["training", "validation"])
def test_the_threads_are_given_back_by_what_fails(tiny_digits, moment):
    with pytest.raises(RuntimeError, match=f"in {moment}"):
        train(MLP(hidden=[16]), tiny_digits, Threads(moment))
    assert torch.get_num_threads() == 3


# ---------------------------------------------------------------------- what watches it


def of_kind(trainer: Trainer, kind: type) -> list[type]:
    return [type(callback) for callback in trainer.callbacks if isinstance(callback, kind)]


@pytest.mark.parametrize("bar", [RichProgressBar, TQDMProgressBar])
@pytest.mark.parametrize("as_list", [False, True])
def test_what_is_asked_for_takes_the_place_of_ours(bar, as_list):
    asked = bar()
    trainer = make_trainer(CPU | {"callbacks": [asked] if as_list else asked}, [], fit=True)
    assert of_kind(trainer, ProgressBar) == [bar]
    assert trainer.progress_bar_callback is asked
    assert of_kind(trainer, ModelSummary) == [NetworkSummary]


def test_another_summary_takes_the_place_of_ours():
    trainer = make_trainer(CPU | {"callbacks": [RichModelSummary(max_depth=3)]}, [], fit=True)
    assert of_kind(trainer, ModelSummary) == [RichModelSummary]
    assert of_kind(trainer, RunProgress) == [RunProgress]


def test_switched_off_there_is_none():
    off = {"enable_progress_bar": False, "enable_model_summary": False, "callbacks": [TQDMProgressBar()]}
    trainer = make_trainer(CPU | off, [], fit=True)
    assert of_kind(trainer, ProgressBar | RunProgress) == of_kind(trainer, ModelSummary) == []


def test_nothing_is_watched_but_a_training():
    trainer = make_trainer(CPU, [])
    assert of_kind(trainer, ProgressBar) == of_kind(trainer, ModelSummary) == trainer.loggers == []


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"strategy": "ddp_spawn"}, "--trainer.strategy ddp_spawn is for notebooks: use ddp"),
        ({"strategy": "ddp_notebook"}, "is for notebooks"),
        ({"strategy": "no such"}, "--trainer: You selected an invalid strategy name"),
        ({"max_epochs": -2}, "--trainer: `max_epochs` must be"),
        ({"devices": "one"}, "--trainer: "),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(settings, told):
    with pytest.raises(BadSetting) as refused:
        make_trainer(CPU | settings, [], fit=True)
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


# ---------------------------------------------------------------------- warnings


def test_only_what_is_said_of_the_machine_fails_no_test(monkeypatch: pytest.MonkeyPatch):
    """The list is in pyproject.toml."""
    monkeypatch.setattr("lightning.pytorch.trainer.setup.CUDAAccelerator", Found)
    Trainer(**CPU, logger=False, enable_checkpointing=False)
    for kind, text in ((UserWarning, "ours"), (PossibleUserWarning, "It is recommended to use sync_dist=True")):
        with pytest.raises(kind, match=text):
            warnings.warn(text, kind, stacklevel=1)
    warnings.simplefilter("always")
    with pytest.warns(PossibleUserWarning, match="GPU available but not used"):  # else the first was no proof
        Trainer(**CPU, logger=False, enable_checkpointing=False)


@pytest.mark.slow
def test_tests_pass_where_lightning_finds_a_gpu():
    tests = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "pretend_gpu", tests / "training" / "test_metrics_csv.py"],
        capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": str(tests)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
