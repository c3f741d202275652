"""Starts and ends the processes of processes.py."""

import multiprocessing
import os
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent

pytest.register_assert_rewrite("processes")
from processes import Process, ended  # noqa: E402

# of small trainings, hundreds of them; of processes, some seconds each
TABLES = (
    "test_loop.py", "test_evaluation_loop.py", "test_optimization.py", "test_keeper.py",
    "test_ddp.py", "test_disk_full.py", "test_fuzz_checkpoints.py", "test_resume.py", "test_signals.py",
)  # fmt: skip


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of the tables an eighth is tried by default, half with the long tests, the other half when asked for."""
    for number, item in enumerate(item for item in items if item.path.name in TABLES and "[" in item.name):
        if number % 8:
            item.add_marker(pytest.mark.rare if number % 2 else pytest.mark.slow)


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
        *words: object,
        moment: str = "",
        number: int = 1,
        signals: tuple[int, ...] = (signal.SIGKILL,),
        **env: str,
    ) -> Process:
        given = [*map(str, words), "--trainer.default_root_dir", str(tmp_path / "runs")]
        env = {"MNIST_ROOT": str(tiny_mnist), "COLUMNS": "300", **env}
        started.append(Process(given, tmp_path / f"log{len(started)}", moment, number, signals, env))
        return started[-1]

    yield begin
    for process in started:
        process.process.kill()
        process.process.join()


def a_free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


free_port = pytest.fixture(a_free_port)


@pytest.fixture
def ranks(start: Callable[..., Process]) -> Callable[..., list[Process]]:
    """`ranks(2, …)` starts as many processes as torchrun would; settings that end in _0, _1 are for that rank."""

    def begin(world: int, *words: object, **settings: Any) -> list[Process]:
        common = {
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": a_free_port(), "WORLD_SIZE": str(world),
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


@pytest.fixture(scope="session")
def undisturbed(tiny_mnist, tmp_path_factory):
    """Run folders that nobody disturbed, by the words of their command."""
    made = {}

    def get(start, *words: object) -> Path:
        if words not in made:
            process = start("fit", *words, "--run", "whole")
            ended(process)
            folder = tmp_path_factory.mktemp("undisturbed") / "whole"
            shutil.copytree(process.log.parent / "runs" / "whole", folder)
            made[words] = folder
        return made[words]

    return get
