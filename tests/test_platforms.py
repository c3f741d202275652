"""Windows, Macs and consoles of other encodings, as far as they can be pretended here; see pretend_system.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from outcome import same

from mnist_lightning.data.loader import seed_generators

HERE = Path(__file__).parent
SYSTEMS = ["windows", "mac"]


@pytest.fixture
def pretend(tmp_path: Path, tiny_mnist: Path):
    """`pretend("windows", "fit and test")` runs commands in a process that finds itself there."""

    def run(system: str, words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        python = [sys.executable, "-X", "warn_default_encoding", "-W", "ignore::EncodingWarning"]  # others'
        command = [*python, str(HERE / "pretend_system.py"), system, *words.split()]
        variables = {"PYTHONPATH": str(HERE.parent), "MNIST_ROOT": str(tiny_mnist), "COLUMNS": "200"}
        return subprocess.run(
            command, cwd=tmp_path, env=os.environ | variables | environment,
            capture_output=True, text=True, encoding=environment.get("PYTHONIOENCODING", "utf-8"), timeout=300,
            check=False,
        )  # fmt: skip

    return run


TINY = "--model {} --data.source mnist --data.val_size 50 --data.batch_size 32 --trainer.max_epochs 2"
MLP = TINY.format("MLP --model.hidden [8]")


@pytest.mark.slow
@pytest.mark.parametrize("system", SYSTEMS)
def test_a_whole_run(pretend, tmp_path, system):
    """Ctrl-C, on from there, and everything that comes after a training: nothing is missed, the bits are the same."""
    stopped = pretend(system, f"--stop fit {MLP} --run a")
    assert stopped.stdout.endswith("status 130\n"), stopped
    assert f"{Path('checkpoints/a/last.ckpt')} has everything" in stopped.stderr
    rest = "fit --run a --ckpt_path last and test and validate and predict and report --run a and report"
    done = pretend(system, f"{rest} and fit {MLP} --run b")
    assert (done.stdout.count("status 0"), done.stderr) == (7, ""), done
    assert same(tmp_path / "checkpoints/a/last.ckpt", tmp_path / "checkpoints/b/last.ckpt")
    assert not list((tmp_path / "checkpoints").rglob("*.tmp"))


@pytest.mark.slow
def test_names_that_windows_does_not_have(pretend):
    done = pretend("windows", f"fit {MLP} --run a:b and fit {MLP} --run NUL")
    assert done.stdout.count("status 1") == 2, done
    lines = done.stderr.splitlines()
    assert len(lines) == 2
    assert all("no run folder can be made in checkpoints: The directory name" in line for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_a_console_of_another_encoding(pretend, encoding):
    """Ours and others' characters are there in another way; none is an error."""
    done = pretend("windows", f"fit {MLP} --run zähl-手 and report and fit --help", PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stdout.count("status 0"), done.stderr) == (0, 2, ""), done
    assert r"-\u624b starts" in done.stdout
    assert "+---" in done.stdout  # a table without box characters


# ---------------------------------------------------------------------- Metal


class Unlike64(torch.utils._python_dispatch.TorchDispatchMode):
    """Fails where something is computed in 64-bit floats, which Metal does not have."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else [result]:
            assert not (isinstance(value, torch.Tensor) and value.dtype == torch.float64), function
        return result


@pytest.mark.parametrize("model", ["MLP", "CNN"])
def test_a_step_has_no_64_bit_floats(cli, tiny_mnist, monkeypatch, model):
    """Training, validation and test steps with their metrics and optimizer."""
    from lightning.pytorch.strategies import SingleDeviceStrategy

    for name in ("training_step", "validation_step", "test_step", "optimizer_step"):
        original = getattr(SingleDeviceStrategy, name)

        def step(self, *args, original=original, **kwargs):
            with Unlike64():
                return original(self, *args, **kwargs)

        monkeypatch.setattr(SingleDeviceStrategy, name, step)
    more = "" if model == "MLP" else "--model.channels [4] --model.hidden [8]"
    assert cli("fit", *TINY.format(model).split(), *more.split(), "--data.root", tiny_mnist).status == 0


def test_metal_is_taken_where_it_is(monkeypatch):
    """`accelerator auto`, without asking for bf16 there."""
    from lightning.fabric.accelerators import MPSAccelerator as Fabrics
    from lightning.pytorch import Trainer
    from lightning.pytorch.accelerators import MPSAccelerator

    from mnist_lightning.training.trainer import make_trainer

    for accelerator in (MPSAccelerator, Fabrics):
        monkeypatch.setattr(accelerator, "is_available", staticmethod(lambda: True))
    trainer = make_trainer({"max_epochs": 1, "enable_model_summary": False}, [], fit=True)
    assert isinstance(trainer, Trainer)
    assert trainer.strategy.root_device.type == "mps"
    assert trainer.precision == "32-true"


def test_what_a_step_draws_on_metal_is_a_function_of_the_seed(monkeypatch):
    seeds: list[int] = []
    monkeypatch.setattr(torch.mps, "manual_seed", seeds.append)
    seed_generators(torch.device("mps"), 5)
    assert seeds == [5]
    assert torch.initial_seed() == 5
