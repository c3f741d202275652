"""A good guest: whatever calls `main` or `fit` finds its process as it was, however they end."""

import contextlib
import ctypes
import logging
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from lightning.pytorch import Callback

import mnist_lightning
from mnist_lightning import processes
from mnist_lightning.cli import main
from mnist_lightning.commands import guest
from mnist_lightning.errors import UserError
from mnist_lightning.processes import Interrupted
from mnist_lightning.run import Run

LINUX = sys.platform == "linux"


def state() -> dict[str, Any]:
    """What a command could leave changed in a process."""
    cudnn, pdeathsig = torch.backends.cudnn, ctypes.c_int()
    ctypes.CDLL(None).prctl(2, ctypes.byref(pdeathsig))
    loggers = {name: logging.getLogger(name) for name in (None, "lightning.pytorch", "lightning.fabric", "torch", "a")}
    numbers = numpy.random.get_state()
    return {
        "signals": {signum: signal.getsignal(signum) for signum in signal.valid_signals()},
        "blocked signals": signal.pthread_sigmask(signal.SIG_BLOCK, ()),
        "environment": dict(os.environ),
        "paths": (sys.path[:], os.getcwd(), sys.argv[:]),
        "hooks": (sys.excepthook, threading.excepthook, sys.exit, sys.displayhook, sys.stdout, sys.stderr),
        "text": (sys.__stdout__.errors, sys.__stderr__.errors),
        "random": random.getstate(),
        "numpy": (numbers[0], numbers[1].tolist(), *numbers[2:]),
        "torch": (torch.default_generator.get_state().tolist(), torch.initial_seed()),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "switches": (
            torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(), cudnn.benchmark, cudnn.deterministic,
            torch.get_default_dtype(), torch.is_grad_enabled(), torch.is_inference_mode_enabled(),
            torch.is_anomaly_enabled(), torch.is_autocast_enabled("cpu"), torch.get_default_device(),
            torch.backends.mkldnn.enabled, torch.multiprocessing.get_start_method(allow_none=True),
        ),
        "limits": [resource.getrlimit(getattr(resource, name)) for name in dir(resource) if name.startswith("RLIMIT")],
        "kernel": (
            Path("/proc/self/oom_score_adj").read_text(), pdeathsig.value, os.getpriority(os.PRIO_PROCESS, 0),
            os.sched_getaffinity(0),
        ),
        "logging": {
            name: (logger.level, logger.handlers[:], logger.propagate, logger.disabled)
            for name, logger in loggers.items()
        },
        "warnings": (warnings.filters[:], warnings.showwarning, warnings.formatwarning),
        "processes": Path(f"/proc/self/task/{os.getpid()}/children").read_text(),
    }  # fmt: skip


@pytest.fixture
def odd() -> Iterator[None]:
    """A process that has other settings than those of a fresh one."""
    before = random.getstate(), numpy.random.get_state(), torch.get_rng_state(), torch.get_num_threads()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    loggers = {name: logging.getLogger(name) for name in ("lightning.pytorch", "a")}
    levels = {name: logger.level for name, logger in loggers.items()}
    random.seed(5)
    numpy.random.seed(6)
    torch.manual_seed(7)
    torch.set_num_threads(3)
    torch.set_float32_matmul_precision("high")
    torch.use_deterministic_algorithms(True, warn_only=True)
    for number in handlers:
        signal.signal(number, lambda *_: None)
    for number, logger in enumerate(loggers.values()):
        logger.setLevel(31 + number)
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_float32_matmul_precision("highest")
    torch.set_num_threads(before[3])
    torch.set_rng_state(before[2])
    numpy.random.set_state(before[1])
    random.setstate(before[0])
    for number, handler in handlers.items():
        signal.signal(number, handler)
    for name, logger in loggers.items():
        logger.setLevel(levels[name])


@pytest.fixture
def unchanged(cli, odd) -> Callable[[], contextlib.AbstractContextManager[None]]:
    """`with unchanged():` everything is afterwards as it was."""

    @contextlib.contextmanager
    def check() -> Iterator[None]:
        before = state()
        yield
        after = state()
        assert {name: after[name] for name in after} == before

    return check


TINY = {"config": "simple_mlp", "data": {"val_size": 50}, "model": {"hidden": [8]}, "trainer": {"max_epochs": 1}}


@pytest.fixture
def settings(tiny_mnist: Path) -> dict[str, Any]:
    """Settings of a small training, as `fit` takes them."""
    return {**TINY, "data": {"root": str(tiny_mnist), "source": "mnist", "val_size": 50}}


def words(settings: dict[str, Any]) -> list[str]:
    """The same, as `main` takes them."""
    flat = [
        (f"{group}.{name}", value)
        for group, values in settings.items()
        for name, value in (values.items() if isinstance(values, dict) else [])
    ]
    return [str(word) for name, value in [("config", settings["config"]), *flat] for word in (f"--{name}", value)]


EVERYTHING = ["--trainer.deterministic", "true", "--trainer.benchmark", "true", "--trainer.detect_anomaly", "true"]
EVERYTHING += ["--trainer.precision", "64-true", "--seed", "3"]


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore:.*deterministic")
@pytest.mark.slow
def test_all_commands_leave_everything_as_it_was(unchanged, settings):
    for command in (
        ["fit", *words(settings), *EVERYTHING],
        ["fit", "--run", "simple_mlp", "--ckpt_path", "last"],
        ["test"], ["validate"], ["predict"], ["report"], ["report", "--run", "simple_mlp"], ["fit", "--help"],
    ):  # fmt: skip
        with unchanged(), contextlib.suppress(SystemExit):  # of --help
            assert main(command) == 0


class Failing(Callback):
    """Ends a training in the middle of its validation, otherwise than it should."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def on_validation_batch_end(self, *args: Any, **kwargs: Any) -> None:
        raise self.error


class Signalled(Callback):
    """Sends a signal to its own process at a training step."""

    def __init__(self, signum: int, step: int = 1) -> None:
        self.signum, self.step = signum, step

    def on_train_batch_end(self, trainer: Any, *args: Any, **kwargs: Any) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), self.signum)


def with_callback(settings: dict[str, Any], callback: Callback) -> dict[str, Any]:
    return {**settings, "trainer": {**settings["trainer"], "callbacks": [callback]}}


@pytest.mark.parametrize("error", [ZeroDivisionError("mine"), RecursionError(), GeneratorExit(), SystemExit(3)])
def test_fit_that_fails_leaves_everything_as_it_was(unchanged, settings, error):
    with unchanged(), pytest.raises(type(error)):
        mnist_lightning.fit(with_callback(settings, Failing(error)))
    with unchanged(), pytest.raises(UserError):
        mnist_lightning.fit(settings, data={"batch_size": 0})
    with unchanged():
        assert mnist_lightning.fit(settings).run == Path("checkpoints/simple_mlp-2")


def test_ctrl_c_in_fit_is_a_keyboard_interrupt_with_a_checkpoint(unchanged, settings):
    with unchanged(), pytest.raises(KeyboardInterrupt) as stopped:
        mnist_lightning.fit(with_callback(settings, Signalled(signal.SIGINT)))
    last = Path("checkpoints/simple_mlp/last.ckpt")
    assert str(stopped.value) == f"stopped; {last} has everything: continue with --run simple_mlp --ckpt_path last"
    assert stopped.value.__suppress_context__  # a notebook shows these few lines
    assert not isinstance(stopped.value, Interrupted)
    with unchanged():
        assert mnist_lightning.fit(run="simple_mlp", ckpt_path="last").last == last


def test_ctrl_c_in_main_is_130_and_then_the_sessions_own(unchanged, settings, tmp_path, monkeypatch):
    (tmp_path / "ctrl_c.py").write_text(
        "import os, signal\nfrom lightning.pytorch import Callback\n"
        "class CtrlC(Callback):\n    def on_train_batch_end(self, *args): os.kill(os.getpid(), signal.SIGINT)\n"
    )
    with unchanged():
        assert main(["fit", *words(settings), "--trainer.callbacks", "ctrl_c.CtrlC"]) == 130
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_sigterm_in_fit_is_the_sessions_own_after_a_checkpoint(unchanged, settings):
    had = []
    signal.signal(signal.SIGTERM, lambda *_: had.append(Path("checkpoints/simple_mlp/last.ckpt").exists()))
    with unchanged(), pytest.raises(Interrupted, match="has everything"):
        mnist_lightning.fit(with_callback(settings, Signalled(signal.SIGTERM)))
    assert had == [True]


# ---------------------------------------------------------------------- threads


def in_threads(*calls: Callable[[], Any]) -> list[Any]:
    """What each returned, or the exception it ended with."""
    results: list[Any] = [None] * len(calls)

    def run(number: int) -> None:
        try:
            results[number] = calls[number]()
        except BaseException as error:
            results[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_in_a_thread(unchanged, settings):
    with unchanged():
        assert in_threads(lambda: main(["fit", *words(settings)])) == [0]
    with unchanged():
        (result,) = in_threads(lambda: mnist_lightning.fit(settings))
        assert result.run == Path("checkpoints/simple_mlp-2")


def test_two_threads_train_one_after_the_other(unchanged, settings, capsys):
    alone = mnist_lightning.fit(settings)
    capsys.readouterr()
    with unchanged():
        both = in_threads(*[lambda: mnist_lightning.fit(settings)] * 2)
    assert "Waits for what another thread of this process is doing" in capsys.readouterr().out
    assert {result.metrics["test_loss"] for result in both} == {alone.metrics["test_loss"]}
    assert {str(result.run) for result in both} == {"checkpoints/simple_mlp-2", "checkpoints/simple_mlp-3"}


@pytest.mark.slow
def test_a_command_inside_another_does_not_wait(cli, settings):
    class Reports(Callback):
        def on_train_end(self, *args: Any) -> None:
            statuses.append(main(["report"]))

    statuses: list[int] = []
    mnist_lightning.fit(with_callback(settings, Reports()))
    assert statuses == [0]


def test_another_thread_stops_a_training(cli, settings):
    """As the docstring of `fit` says; it goes on later."""
    asked, begun = threading.Event(), threading.Event()

    class Stop(Callback):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            begun.set()
            trainer.should_stop = trainer.should_stop or asked.is_set()

    def stop() -> None:
        assert begun.wait(60)
        asked.set()

    more = {**with_callback(settings, Stop()), "run": "a"}
    more["trainer"] |= {"max_epochs": 100_000}
    result, _ = in_threads(lambda: mnist_lightning.fit(more), stop)
    assert result.last == Path("checkpoints/a/last.ckpt")
    assert "test_acc" in result.metrics
    from mnist_lightning.training.checkpoints import STATE, read_checkpoint

    step = read_checkpoint(result.last)[STATE]["step"]
    again = mnist_lightning.fit(run="a", ckpt_path="last", trainer={"max_steps": step + 3, "callbacks": None})
    assert read_checkpoint(again.last)[STATE]["step"] == step + 3


POOL = """
import multiprocessing, sys
from concurrent.futures import ProcessPoolExecutor
from mnist_lightning import fit

def train(number):
    settings = {"config": "simple_mlp", "data": {"source": "mnist", "root": sys.argv[1]}, "trainer": {"max_epochs": 1}}
    return fit(settings).metrics["test_loss"]

if __name__ == "__main__":
    losses = [train(0)]
    for method in ("fork", "spawn"):
        with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(method)) as pool:
            losses += pool.map(train, range(2))
    print("losses", len(losses), len(set(losses)))
"""


@pytest.mark.slow
def test_in_pools_of_processes(tmp_path, tiny_mnist):
    """After a training with several threads, too, of which forked processes have none."""
    (tmp_path / "pool.py").write_text(POOL)
    variables = {"PYTHONPATH": str(Path(mnist_lightning.__file__).parents[1]), "OMP_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "pool.py", str(tiny_mnist)], cwd=tmp_path, env=os.environ | variables,
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "losses 5 1", done
    assert len(list((tmp_path / "checkpoints").iterdir())) == 5


def test_memory_that_was_kept_is_given_back(cli, settings, monkeypatch):
    """Afterwards glibc keeps no more than it does by itself in a process of large blocks."""
    asked: list[tuple[int, int]] = []

    class Library:
        def mallopt(self, name: int, value: int) -> None:
            asked.append((name, value))

        def malloc_trim(self, pad: int) -> None:
            asked.append((0, pad))

    monkeypatch.setattr(processes, "_kept", [])
    monkeypatch.setattr("ctypes.CDLL", lambda name: Library())
    with guest():
        processes.keep_freed_memory()
        assert asked == [(-3, 32 << 20), (-1, 1 << 30)]
    assert asked[2:] == [(-1, 64 << 20), (0, 0)]
    with guest():
        pass
    assert len(asked) == 4


# ---------------------------------------------------------------------- what stays open


def test_nothing_stays_open(cli, settings):
    """Files and threads: a second training leaves no more than the first did."""

    def left() -> tuple[list[str], int]:
        links = [os.readlink(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd") if _is_open(name)]
        return sorted(link for link in links if "checkpoints" in link), threading.active_count()

    threads = threading.active_count()
    mnist_lightning.fit(settings)
    assert left() == ([], threads)


def _is_open(name: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{name}")


def test_the_run_is_free_again(cli, settings):
    """After an exception: nobody else is kept from it."""
    with pytest.raises(ZeroDivisionError):
        mnist_lightning.fit(with_callback(settings, Failing(ZeroDivisionError())), run="a")
    run = Run(Path("checkpoints/a"))
    run.hold(patience=0)
    run.release()


# ---------------------------------------------------------------------- text


def test_characters_that_an_encoding_does_not_have(monkeypatch, tmp_path):
    with (tmp_path / "out").open("w", encoding="cp1252") as file:
        monkeypatch.setattr(sys, "stdout", file)
        with guest():
            print("→ 手 …")
        assert file.errors == "strict"
    assert (tmp_path / "out").read_text(encoding="cp1252") == "\\u2192 \\u624b …\n"
