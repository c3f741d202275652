"""This process among others: its rank, its signals, the job that it is part of. What it takes, it gives back."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, Literal

FIRST_PROCESS = "MNIST_LIGHTNING_FIRST_PROCESS"  # an environment variable: its process ID


def is_first_process() -> bool:
    """Whether this is the one process that makes folders, before Lightning can tell (torchrun, Slurm, Lightning)."""
    ranks = ("RANK", "SLURM_PROCID", "LOCAL_RANK", "NODE_RANK")
    return all(os.environ.get(rank, "0") == "0" for rank in ranks)


def computes_in_bf16(accelerator: Any = None) -> bool:
    """Whether the processor that Lightning will take has bf16 arithmetic; emulated, it takes ten times as long."""
    import torch

    if torch.cuda.is_available() and accelerator != "cpu":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if not hasattr(torch.cpu, "get_capabilities"):  # before torch 2.12 or so
        return bool(torch.cpu._is_avx512_bf16_supported())
    abilities = torch.cpu.get_capabilities()
    return bool(abilities.get("avx512_bf16") or abilities.get("amx_bf16"))


class Interrupted(BaseException):
    """Training or a tool was asked to stop; `signum` says by what."""

    told = "stopped"

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum

    def __str__(self) -> str:
        return self.told

    def for_session(self) -> BaseException:
        """What a Python session has of it, once it has its signals back: Ctrl-C as ever, others as it handles them."""
        if self.signum == signal.SIGINT:
            interrupt: Any = KeyboardInterrupt(self.told)
            interrupt._render_traceback_ = lambda: [f"KeyboardInterrupt: {self.told}"]  # so IPython shows a line
            return interrupt
        signal.raise_signal(self.signum)  # by default the process ends here
        return self


class Signals:
    """Ctrl-C, SIGTERM and Slurm's SIGUSR1, lent. While `deferred`, the first is only noted in `received`.

    An exception in the middle of importing torch can reach C++ code that aborts. While `importing`, when there is
    nothing to lose yet, they end the process at once if it is ours (`program`), and else wait for `imported`. In a
    thread they stay with whom they were: Python hands signals to the main thread only.
    """

    def __init__(self, program: bool = False) -> None:
        self.program = program
        self.importing = "torch" not in sys.modules
        self.received = 0
        self.deferred = False
        self._before: dict[int, Any] = {}  # whose they were

    def install(self) -> None:
        """Takes the signals (back: Lightning puts its own handler in, which can hang several processes)."""
        if threading.current_thread() is not threading.main_thread():
            return
        slurm = [signal.SIGUSR1] if "SLURM_JOB_ID" in os.environ and sys.platform != "win32" else []
        for signum in (signal.SIGINT, signal.SIGTERM, *slurm):
            before = signal.signal(signum, self._handle)
            self._before.setdefault(signum, before)

    def restore(self) -> None:
        """Gives the signals back to whom they were before the first `install`."""
        while self._before:
            signum, before = self._before.popitem()
            signal.signal(signum, signal.SIG_DFL if before is None else before)  # None: not set by Python

    def imported(self) -> None:
        """From now on they are exceptions; the first of them may have come already."""
        self.importing = False
        if self.received:
            raise Interrupted(self.received)

    def _handle(self, signum: int, frame: FrameType | None) -> Any:
        if self.importing and self.program:
            if is_first_process():
                os.write(2, b"mnist_lightning: stopped\n")
            os._exit(128 + signum)
        if not (self.deferred or self.importing) or (self.deferred and self.received and signum == signal.SIGINT):
            self.received = signum
            raise Interrupted(signum)
        self.received = self.received or signum


def end_with_the_first() -> Callable[[], None]:
    """A process that Lightning started for another rank ends when the first does, until what is returned is called.

    It could otherwise wait for the first for half an hour. (torchrun and Slurm look after their processes themselves.)
    """
    if os.environ.get("LOCAL_RANK", "0") == "0":
        os.environ[FIRST_PROCESS] = str(os.getpid())  # those that it starts inherit it
        return lambda: None
    others = {"TORCHELASTIC_RUN_ID", "SLURM_PROCID"} & set(os.environ)
    if sys.platform != "linux" or FIRST_PROCESS not in os.environ or others:
        return lambda: None
    PR_SET_PDEATHSIG, PR_GET_PDEATHSIG = 1, 2  # noqa: N806
    prctl, before = ctypes.CDLL(None).prctl, ctypes.c_int(0)
    prctl(PR_GET_PDEATHSIG, ctypes.byref(before))
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if _has_ended(os.environ[FIRST_PROCESS]):  # before the call: no signal will come
        sys.exit("mnist_lightning: the process that started this one has ended")
    return lambda: prctl(PR_SET_PDEATHSIG, before.value) and None


def _has_ended(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def job_of(words: Any) -> dict[str, Any]:
    """What tells a job that torchrun or Slurm starts again from every other; `words`: what it was asked, from JSON."""
    slurm = [os.environ[name] for name in ("SLURM_JOB_ID", "SLURM_ARRAY_TASK_ID") if name in os.environ]
    return {"words": words, "slurm": slurm or None, "torchrun": os.environ.get("TORCHELASTIC_RUN_ID")}


def restarted_by() -> Literal["slurm", "torchrun"] | None:
    """Who started this job again, or may have; None: this is its first start."""
    if os.environ.get("SLURM_RESTART_COUNT", "0") != "0":
        return "slurm"
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0":
        return "torchrun"
    # torchrun replaces a lost node without counting that as a restart
    return "torchrun" if os.environ.get("TORCHELASTIC_RUN_ID", "none") != "none" else None


def requeue_slurm_job() -> str:
    """Asks Slurm to run this job again, as Lightning does on SIGUSR1; says what came of it."""
    job = os.environ.get("SLURM_ARRAY_JOB_ID")
    job = f"{job}_{os.environ['SLURM_ARRAY_TASK_ID']}" if job else os.environ["SLURM_JOB_ID"]
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
    except OSError as error:
        return f"Slurm job {job} could not be requeued: {error}"
    if done.returncode:
        return f"Slurm did not requeue job {job}: {done.stderr.strip()}"
    return f"Slurm job {job} requeued"


# ---------------------------------------------------------------------- memory

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
LARGEST_KEPT = 32 << 20  # bytes; the largest M_MMAP_THRESHOLD that glibc takes; data sets are larger
_kept: list[Any] = []  # the C library, while it keeps


def keep_freed_memory() -> None:
    """Tells glibc to keep what a step frees for the next step.

    By default it gives blocks of some MB back to the kernel, which clears them page by page when they are wanted
    again: up to a quarter of an epoch (benchmarks/tricks.py).
    """
    if sys.platform != "linux":
        return
    with suppress(AttributeError, OSError):  # another C library than glibc
        library = ctypes.CDLL(None)
        library.mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT)
        library.mallopt(M_TRIM_THRESHOLD, 1 << 30)
        _kept[:] = [library]


def give_memory_back() -> None:
    """Has glibc keep no more than it would by now, having adapted itself to a process of large blocks."""
    if _kept:
        library = _kept.pop()
        library.mallopt(M_TRIM_THRESHOLD, 2 * LARGEST_KEPT)
        with suppress(AttributeError):
            library.malloc_trim(0)
