"""Signals wait for the end of a block, so that what is written when they come is whole."""

import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from mnist_lightning.runs import is_first_process

FIRST_PROCESS = "MNIST_LIGHTNING_FIRST_PROCESS"  # an environment variable: its process ID


class Interrupted(BaseException):
    """Training or a tool was asked to stop; `signum` says by what."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum
        self.told = "stopped"

    def __str__(self) -> str:
        return self.told


class Signals:
    """Ctrl-C, SIGTERM and Slurm's SIGUSR1. While `deferred`, the first is only noted in `received`.

    While `importing`, when there is nothing to lose yet, they end the process at once: an exception in the middle of
    importing torch can reach C++ code that aborts.
    """

    def __init__(self) -> None:
        self.importing = True
        self.received = 0
        self.deferred = False

    def install(self) -> None:
        """Takes the signals (back: Lightning puts its own handler in, which can hang several processes)."""
        signal.signal(signal.SIGINT, self._handle)
        signal.signal(signal.SIGTERM, self._handle)
        if "SLURM_JOB_ID" in os.environ:
            signal.signal(signal.SIGUSR1, self._handle)

    def _handle(self, signum: int, frame: FrameType | None) -> Any:
        if self.importing:
            if is_first_process():
                os.write(2, b"mnist_lightning: stopped\n")
            os._exit(128 + signum)
        if not self.deferred or (self.received and signum == signal.SIGINT):
            self.received = signum
            raise Interrupted(signum)
        self.received = self.received or signum


def end_with_the_first() -> None:
    """A process that Lightning started for another rank ends when the first does, however that ended.

    It could otherwise wait for the first for half an hour. (torchrun and Slurm look after their processes themselves.)
    """
    if os.environ.get("LOCAL_RANK", "0") == "0":
        os.environ[FIRST_PROCESS] = str(os.getpid())  # those that it starts inherit it
        return
    others = {"TORCHELASTIC_RUN_ID", "SLURM_PROCID"} & set(os.environ)
    if sys.platform == "linux" and FIRST_PROCESS in os.environ and not others:
        PR_SET_PDEATHSIG = 1  # noqa: N806
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if _has_ended(os.environ[FIRST_PROCESS]):  # before the call: no signal will come
            sys.exit("mnist_lightning: the process that started this one has ended")


def _has_ended(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def requeue_slurm_job() -> str:
    """Asks Slurm to run this job again, as Lightning does on SIGUSR1; says what came of it."""
    job = os.environ.get("SLURM_ARRAY_JOB_ID")
    job = f"{job}_{os.environ['SLURM_ARRAY_TASK_ID']}" if job else os.environ["SLURM_JOB_ID"]
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
    except OSError as error:
        return f"Slurm job {job} could not be requeued: {error}"
    return f"Slurm job {job} requeued" if done.returncode == 0 else f"Slurm did not requeue job {job}: {done.stderr}"
