"""Real training processes, forked from one that has imported everything: a start costs a tenth of a second."""

import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "benchmarks")]  # child.py, kill.py

# A network with dropout, a scheduler and validation images: 24 steps in 8 blocks an epoch on tiny_mnist.
NET = (
    "--model CNN --model.channels=[4] --model.conv_dropout=0.2 --model.dropout2d=true --model.hidden=[16] "
    "--model.dropout=0.3 --model.lr=0.01 "
    '--model.scheduler=StepLR --model.scheduler_args={"step_size":20,"gamma":0.8} '
    "--data.source mnist --data.val_size 60 --data.batch_size 10 --data.steps_per_block 3 "
    "--trainer.max_epochs 3 --trainer.log_every_n_steps 5 --checkpoint.every_n_steps 5"
).split()
PATIENCE = 60  # seconds until a process counts as hanging


class Process:
    """One forked `mnist_lightning` process; its output is in `log`."""

    def __init__(
        self, words: list[str], log: Path, moment: str, number: int, signals: tuple[int, ...], env: dict[str, str]
    ) -> None:
        self.log = log
        context = multiprocessing.get_context("forkserver")
        self.process = context.Process(target=_run, args=(words, log, moment, number, signals, env))
        self.process.start()

    @property
    def pid(self) -> int:
        return self.process.pid

    def wait(self, patience: float = PATIENCE) -> int:
        """The exit status, minus the signal for one that was killed, as subprocess gives it; fails if it hangs."""
        self.process.join(patience)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
            pytest.fail(f"no end after {patience} s: {self.text()}")
        return self.process.exitcode

    def wait_for(self, text: str, patience: float = PATIENCE) -> None:
        """Waits until its output holds this."""
        deadline = time.monotonic() + patience
        while text not in self.text():
            assert self.process.is_alive(), self.text()
            assert time.monotonic() < deadline, self.text()
            time.sleep(0.01)

    def text(self) -> str:
        return self.log.read_text() if self.log.exists() else ""


def _run(*args: Any) -> None:
    from child import run

    run(*args)


@pytest.fixture(scope="session", autouse=True)
def fork_server() -> None:
    # the server takes its path from here only
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
    os.environ["OMP_NUM_THREADS"] = "1"
    multiprocessing.get_context("forkserver").set_forkserver_preload(["child"])


@pytest.fixture
def start(tmp_path: Path, tiny_mnist: Path) -> Iterator[Callable[..., Process]]:
    """`start("fit", …)` starts a command on tiny_mnist, with runs in `tmp_path`/runs; killed when the test ends.

    `moment`, `number` and `signals`: see child.py. `env`: variables of its own.
    """
    started: list[Process] = []

    def begin(
        *words: object, moment: str = "", number: int = 1, signals: tuple[int, ...] = (signal.SIGKILL,), **env: str
    ) -> Process:
        given = [*map(str, words), "--trainer.default_root_dir", str(tmp_path / "runs")]
        env = {"MNIST_ROOT": str(tiny_mnist), "COLUMNS": "300", **env}
        started.append(Process(given, tmp_path / f"log{len(started)}", moment, number, signals, env))
        return started[-1]

    yield begin
    for process in started:
        process.process.kill()
        process.process.join()


@pytest.fixture
def fit(start: Callable[..., Process]) -> Callable[..., Process]:
    """`fit(*words, …)` is `start("fit", *NET, *words, …)`."""

    def begin(*words: object, **settings: Any) -> Process:
        return start("fit", *NET, *words, **settings)

    return begin


@pytest.fixture
def ranks(start: Callable[..., Process]) -> Callable[..., list[Process]]:
    """`ranks(2, …)` starts as many processes as torchrun would; settings that end in _0, _1 are for that rank."""

    def begin(world: int, *words: object, **settings: Any) -> list[Process]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        common = {
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world),
            "LOCAL_WORLD_SIZE": str(world), "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "none",
        }  # fmt: skip
        ddp = ("--trainer.accelerator", "cpu", "--trainer.devices", world, "--trainer.strategy", "ddp")
        started = []
        for rank in range(world):
            own = {k[:-2]: v for k, v in settings.items() if k.endswith(f"_{rank}")}
            others = {k: v for k, v in settings.items() if not k[-1].isdigit()}
            env = {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            started.append(start(*words, *ddp, **env, **others, **own))
        return started

    return begin


def same_run(run: Path, undisturbed: Path) -> None:
    """The two run folders hold the same bytes, and the same test result."""
    from kill import differences

    assert differences(run, undisturbed) == []


def no_traceback(*processes: Process) -> None:
    for process in processes:
        assert "Traceback" not in process.text(), process.text()


@pytest.fixture
def root_only() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: mounts a file system or makes network namespaces")
