"""The true cause is named, and what to do: a limit in force, a lone image, too little memory, a port in use."""

import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mnist_lightning.data.loader import TensorLoader
from mnist_lightning.errors import BadSetting, UserError
from mnist_lightning.models import CNN, MLP
from mnist_lightning.run import Run
from mnist_lightning.training.causes import refuse_lone_images, told

MINE = """
import torch
from mnist_lightning import MLP

class Greedy(MLP):
    def forward(self, images):
        if self.training and len(images) > 12:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return super().forward(images)

class Tests(MLP):
    def test_step(self, batch, index):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
"""


@pytest.fixture
def short(cli, tiny_mnist, tmp_path):
    """`short("--run", "a")` trains a small MLP for one epoch of 5 mini-batches."""
    (tmp_path / "causes_of_mine.py").write_text(MINE)
    words = ["--model", "MLP", "--model.hidden", "[4]", "--data.source", "mnist", "--data.root", str(tiny_mnist)]
    words += ["--data.val_size", "50", "--data.batch_size", "50", "--trainer.max_epochs", "1"]
    yield lambda *more: cli("fit", *words, *more)
    sys.modules.pop("causes_of_mine", None)


# ---------------------------------------------------------------------- batch normalisation


class Normalised(MLP):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(784, 4), nn.BatchNorm1d(4), nn.Linear(4, 10))


def of_one_pixel() -> CNN:
    return CNN(channels=[2, 2], pool=[2, 13], order=["conv", "norm", "pool"], padding=1, kernel_size=3)


def starts(images: int, batch_size: int, world: int = 1, module: nn.Module | None = None, batches: int | None = None):
    digits = torch.zeros(images, 28, 28, dtype=torch.uint8), torch.zeros(images, dtype=torch.uint8)
    loader = TensorLoader(*digits, batch_size=batch_size, world_size=world, prepare=lambda x: x[:, None].float())
    many = len(loader) if batches is None else batches
    trainer = SimpleNamespace(train_dataloader=loader, num_training_batches=many)
    refuse_lone_images(trainer, module or Normalised().train())


@pytest.mark.parametrize(
    ("images", "batch_size", "world", "better"),
    [(601, 50, 1, 49), (601, 1, 1, 7), (5, 2, 1, 3), (103, 50, 2, 49), (102, 50, 2, 49), (101, 50, 2, 48)],
)
def test_a_lone_image_is_refused_before_the_start(images, batch_size, world, better):
    on = " on a process" if world > 1 else ""
    with pytest.raises(BadSetting, match=rf"batch_size {batch_size} leaves a mini-batch of one image{on}, which batch"):
        starts(images, batch_size, world)
    starts(images, better, world)


def test_where_no_image_is_alone_or_alone_is_enough_it_starts():
    starts(600, 50), starts(602, 50), starts(104, 50, 2)
    starts(601, 50, batches=12)  # --trainer.limit_train_batches ends the epoch before
    starts(601, 50, module=MLP().train())
    starts(601, 50, module=CNN(order=["conv", "norm", "activation", "pool"]).train())  # many pixels a channel
    with pytest.raises(BadSetting, match=r"\(net\.\d\)"):
        starts(601, 50, module=CNN(channels=[2], kernel_size=28, pool=1, order=["conv", "norm"]).train())
    frozen = Normalised().train()
    frozen.net[2].eval()
    starts(601, 50, module=frozen)


def test_to_look_changes_nothing():
    module = Normalised().train()
    module.net[1].eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    state = torch.get_rng_state()
    with pytest.raises(BadSetting):
        starts(601, 50, module=module)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert [layer.training for layer in module.net] == [True, False, True, True]


# ---------------------------------------------------------------------- limits


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--trainer.max_time", "00:00:00:00"], "--trainer.max_time is used up"),
        (["--trainer.limit_train_batches", 0], "--trainer.limit_train_batches is 0"),
        (["--trainer.max_epochs", 0], "--trainer.max_epochs is 0"),
        (["--trainer.max_steps", 0], "--trainer.max_steps is 0"),
    ],
)
def test_no_step_to_train_for_one_reason(short, tmp_path, words, why):
    result = short(*words, "--run", "a")
    assert (result.status, result.err) == (1, f"mnist_lightning: there was no step to train: {why}\n")
    assert not (tmp_path / "checkpoints" / "a").exists()


def test_the_limit_that_ended_it_is_named_then_and_when_it_is_to_go_on(short, cli):
    result = short("--run", "a", "--trainer.max_steps", 3)
    assert "The training ends at step 3: --trainer.max_steps is 3\n" in result.out
    result = cli("fit", "--run", "a", "--ckpt_path", "last")
    assert "last.ckpt has all its steps: --trainer.max_steps is 3; to train on, raise it\n" in result.out
    short("--run", "b", "--trainer.limit_train_batches", 2)
    result = cli("fit", "--run", "b", "--ckpt_path", "last")
    assert "all its steps: --trainer.max_epochs is 1, of 2 batches each; to train on, raise it\n" in result.out


# ---------------------------------------------------------------------- memory, ports, processes


def test_too_little_memory_names_what_fits(short, tmp_path):
    result = short("--model", "causes_of_mine.Greedy", "--run", "a")
    assert result.status == 1
    assert result.err == (
        "mnist_lightning: the machine's memory does not suffice for --data.batch_size 50: free some of it and continue "
        "with --run a --ckpt_path last; or start anew with --data.batch_size 10 --trainer.accumulate_grad_batches 5, "
        "which fits and trains alike\n"
    )
    result = short("--model", "causes_of_mine.Greedy", "--run", "b", "--data.batch_size", "10")
    assert (result.status, result.err) == (0, "")


def test_too_little_memory_to_test(short):
    result = short("--model", "causes_of_mine.Tests")
    assert (result.status, result.err.count("\n")) == (1, 1)
    assert "the machine's memory does not suffice in evaluating" in result.err


def test_a_port_in_use(short, monkeypatch, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("MASTER_PORT", port)
        result = short("--trainer.accelerator", "cpu")
    assert result.status == 1
    assert f"the port {port} is in use, by another training or program: set the variable MASTER_PORT" in result.err
    assert not list((tmp_path / "checkpoints").glob("*"))


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (RuntimeError("[../gloo/transport/tcp] Connection closed by peer"), "another process of this run has ended"),
        (RuntimeError("Timed out after 9 seconds waiting for clients. 1/2 clients joined."), "only 1 of 2 processes"),
        (ValueError("Expected more than 1 value per channel when training, got"), "a mini-batch has one image, which"),
    ],
)
def test_advice_names_the_run_in_question(tmp_path: Path, error, line):
    run = Run(tmp_path / "my run")
    run.folder.mkdir()
    run.last.touch()
    cause = told(error, SimpleNamespace(), None, run)
    assert isinstance(cause, UserError)
    assert str(cause).startswith(line)
    assert "only" in line or f"--run 'my run' --trainer.default_root_dir {tmp_path} --ckpt_path last" in str(cause)


def test_an_error_of_the_users_own_is_none_of_these():
    assert told(RuntimeError("shapes do not match"), SimpleNamespace(), None, None) is None
