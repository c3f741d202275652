"""Tiny IDX files, the real ones where they are, the command line without a new process, and a small training."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from samples import write_mnist
from torch import Tensor

from mnist_lightning.cli import main
from mnist_lightning.data.synthetic import synthetic_digits
from mnist_lightning.errors import UserError

REAL_MNIST = Path(os.environ.get("MNIST_ROOT") or Path(__file__).parents[2] / "shared" / "mnist")


class Result(NamedTuple):
    """What a command left behind."""

    status: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def only_the_processor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU is for the tests that are marked so: the others find none, here and in the processes that they start."""
    if "gpu" not in request.keywords:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)


@pytest.fixture(scope="session")
def tiny_digits() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Images and labels of 300 digits to train on, and of 100 to test on."""
    return synthetic_digits(300, seed=10), synthetic_digits(100, seed=11)


@pytest.fixture(scope="session")
def tiny_mnist(tiny_digits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the four .gz files of `tiny_digits`; not to be changed."""
    return write_mnist(tmp_path_factory.mktemp("tiny") / "mnist", *tiny_digits)


@pytest.fixture(scope="session")
def tiny_mnist_plain(tiny_digits, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, not packed."""
    return write_mnist(tmp_path_factory.mktemp("tiny") / "plain", *tiny_digits, gz=False)


@pytest.fixture(scope="session")
def real_mnist() -> Path:
    """The folder with MNIST's own four files."""
    if not any(REAL_MNIST.glob("t10k-images-idx3-ubyte*")):
        pytest.skip(f"MNIST is not in {REAL_MNIST}: set MNIST_ROOT to the folder with its four files")
    return REAL_MNIST


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A download fails at once."""

    def fail(folder: Path) -> None:
        raise UserError(f"MNIST could not be downloaded (no network): put the four files into {folder}")

    monkeypatch.setattr("mnist_lightning.data.module.download", fail)


@pytest.fixture
def cli(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    no_network: None,
) -> Iterator[Callable[..., Result]]:
    """`cli("fit", "--run", "a")` runs a command in this process, in `tmp_path`, without a network."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")  # tables are not wrapped
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # so that it is undone
    monkeypatch.setenv("PL_SEED_WORKERS", "0")
    monkeypatch.delenv("MNIST_ROOT", raising=False)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}

    def run(*words: object) -> Result:
        capsys.readouterr()
        try:
            status = main([str(word) for word in words])
        except SystemExit as exit_:  # --help
            status = exit_.code if isinstance(exit_.code, int) else 1
        return Result(status, *capsys.readouterr())

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def tiny(tiny_mnist: Path) -> list[str]:
    """Settings of a small MLP on 250 images: 8 steps an epoch."""
    words = "--model MLP --model.hidden [8] --data.source mnist --data.val_size 50 --data.batch_size 32"
    return [*words.split(), "--data.root", str(tiny_mnist), "--trainer.max_epochs", "1"]


@pytest.fixture
def fit(cli, tiny: list[str]):
    """`fit("--run", "a")` trains a small MLP for an epoch; it must do."""

    def run(*words: object):
        result = cli("fit", *tiny, *words)
        assert (result.status, result.err) == (0, "")
        return result

    return run
