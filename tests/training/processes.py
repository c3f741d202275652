"""Real training processes, forked from one that has imported everything: a start costs a tenth of a second."""

import multiprocessing
import shlex
import time
from pathlib import Path

import child
import kill
import pytest

HERE = Path(__file__).parent

# A network with dropout, a scheduler and validation images: 24 steps in 8 blocks an epoch on tiny_mnist.
NET = shlex.split(
    "--model CNN --model.channels=[4] --model.conv_dropout=0.2 --model.dropout2d=true --model.hidden=[16] "
    "--model.dropout=0.3 --model.lr=0.01 "
    '--model.scheduler=StepLR --model.scheduler_args=\'{"step_size":20,"gamma":0.8}\' '
    "--data.source mnist --data.val_size 60 --data.batch_size 10 --data.steps_per_block 3 "
    "--trainer.max_epochs 3 --trainer.log_every_n_steps 5 --checkpoint.every_n_steps 5"
)
PATIENCE = 60  # seconds until a process counts as hanging


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

    def wait_for(self, text: str, patience: float = PATIENCE) -> None:
        """Waits until its output holds this."""
        deadline = time.monotonic() + patience
        while text not in self.text():
            assert self.process.is_alive(), self.text()
            assert time.monotonic() < deadline, self.text()
            time.sleep(0.01)

    def text(self) -> str:
        return self.log.read_text() if self.log.exists() else ""


def same_run(run: Path, undisturbed: Path) -> None:
    """The two run folders hold the same bytes, and the same test result."""
    assert kill.differences(run, undisturbed) == []


def no_traceback(*processes: Process) -> None:
    for process in processes:
        assert "Traceback" not in process.text(), process.text()
