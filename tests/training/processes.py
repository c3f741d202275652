"""Real training processes, forked from one that has imported everything: a start costs a tenth of a second."""

import json
import multiprocessing
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import child
import pytest

# A network with dropout, a scheduler and validation images: 24 steps an epoch on tiny_mnist.
NET = shlex.split(
    "--model CNN --model.channels=[4] --model.conv_dropout=0.2 --model.dropout2d=true --model.hidden=[16] "
    "--model.dropout=0.3 --model.lr=0.01 "
    '--model.scheduler=StepLR --model.scheduler_args=\'{"step_size":20,"gamma":0.8}\' '
    "--data.source mnist --data.val_size 60 --data.batch_size 10 "
    "--trainer.max_epochs 3 --trainer.log_every_n_steps 5 --checkpoint.every_n_steps 5"
)
# No dropout: its random numbers are drawn for the images of a rank.
PLAIN = [word for word in NET if "dropout" not in word]
LAST = ("--ckpt_path", "last")
PATIENCE = 120  # seconds until a process counts as hanging


class Process:
    """One forked `mnist_lightning` process; its output is in `log`."""

    def __init__(
        self,
        words: list[str],
        log: Path,
        moment: str,
        number: int,
        signals: tuple[int, ...],
        env: dict[str, str],
    ) -> None:
        self.log = log
        context = multiprocessing.get_context("forkserver")
        self.process = context.Process(target=child.run, args=(words, log, moment, number, signals, env))
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

    def wait_for(self, text: str) -> None:
        """Waits until its output holds this."""
        wait_until(lambda: text in self.text() or not self.process.is_alive())
        assert text in self.text(), self.text()

    def text(self) -> str:
        return self.log.read_text() if self.log.exists() else ""


def ended(*processes: Process, status: Any = 0) -> None:
    """All have ended with this status, or each with its own, and none with a traceback."""
    statuses = [process.wait() for process in processes]
    texts = "\n".join(process.text() for process in processes)
    assert statuses == (status if isinstance(status, list) else [status] * len(processes)), texts
    assert "Traceback" not in texts, texts


def told(process: Process) -> str:
    """The one line on the error stream of a command that failed."""
    lines = [line for line in process.text().splitlines() if line.startswith("mnist_lightning:")]
    assert len(lines) == 1, process.text()
    return lines[0]


def wait_until(condition: Callable[[], Any], patience: float = PATIENCE) -> None:
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, "that took too long"
        time.sleep(0.02)


def state(pid: int) -> str:
    """R, S, T (stopped), Z (ended, not yet waited for) …; "" if there is none such."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def children(pid: int) -> list[int]:
    """The processes that it has started."""
    file = Path(f"/proc/{pid}/task/{pid}/children")
    return list(map(int, file.read_text().split())) if file.exists() else []


def same_run(run: Path, undisturbed: Path) -> None:
    """The two run folders hold the same bytes, and the same test result."""
    names = ("last.ckpt", "best.ckpt", "metrics.csv")
    assert [name for name in names if (run / name).read_bytes() != (undisturbed / name).read_bytes()] == []
    results = [json.loads((folder / "test.json").read_text()) | {"checkpoint": ""} for folder in (run, undisturbed)]
    assert results[0] == results[1]
