"""Runs commands as on Windows or a Mac, as far as that can be pretended: `python pretend_system.py windows fit …`.

What only Linux has is gone when the package is imported; files behave as they do there.
"""

import ctypes
import multiprocessing
import os
import signal
import sys
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

ONLY_UNIX = {
    "os": (
        "fork", "forkpty", "getuid", "geteuid", "getgid", "getegid", "getpgid", "getpgrp", "setsid", "killpg", "nice",
        "getpriority", "setpriority", "uname", "statvfs", "mkfifo", "sysconf", "O_DIRECTORY", "O_NONBLOCK",
        "O_NOFOLLOW", "O_CLOEXEC", "pread", "pwrite", "posix_fadvise", "posix_fallocate", "register_at_fork",
        "getloadavg", "chown", "fchmod", "sched_getaffinity", "sched_setaffinity", "wait", "waitid",
    ),
    "signal": (
        "SIGUSR1", "SIGUSR2", "SIGHUP", "SIGKILL", "SIGQUIT", "SIGALRM", "SIGCHLD", "SIGSTOP", "SIGCONT", "SIGXFSZ",
        "pthread_sigmask", "setitimer", "alarm", "siginterrupt",
    ),
}  # fmt: skip
ONLY_LINUX = {
    "os": ("sched_getaffinity", "sched_setaffinity", "posix_fadvise", "O_DIRECT", "memfd_create"),
    "signal": (),
}
MODULES = ("fcntl", "resource", "termios", "tty", "pty", "pwd", "grp", "syslog", "readline")


class Library(ctypes.CDLL):
    """None names no library on Windows."""

    def __init__(self, name: Any, *args: Any, **kwargs: Any) -> None:
        if name is None:
            raise TypeError("there is no such library here")
        super().__init__(name, *args, **kwargs)


def is_open(path: Any) -> bool:
    """Whether this process has the file open, or mapped into its memory."""
    file = Path(path)
    if not file.exists() or file.is_dir():
        return False
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            if os.path.samestat(os.stat(f"/proc/self/fd/{descriptor}"), file.stat()):
                return True
        except OSError:
            continue
    return f"{file.resolve()}\n" in Path("/proc/self/maps").read_text(encoding="utf-8")


def windows_files() -> None:
    """Folders cannot be opened; what is open cannot be replaced or removed; only what can be written can be synced."""
    os_open, os_replace, os_unlink, os_fsync, os_mkdir = os.open, os.replace, os.unlink, os.fsync, os.mkdir

    def open_(path: Any, *args: Any, **kwargs: Any) -> int:
        if os.path.isdir(path):
            raise PermissionError(13, "Permission denied", str(path))
        return os_open(path, *args, **kwargs)

    def replace(old: Any, new: Any, **kwargs: Any) -> None:
        if is_open(old) or is_open(new):
            raise PermissionError(13, "Access is denied", str(new))
        os_replace(old, new, **kwargs)

    def unlink(path: Any, **kwargs: Any) -> None:
        if is_open(path):
            raise PermissionError(13, "The process cannot access the file", str(path))
        os_unlink(path, **kwargs)

    def fsync(descriptor: int) -> None:
        flags = Path(f"/proc/self/fdinfo/{descriptor}").read_text(encoding="utf-8").split("flags:\t")[1].split()[0]
        if not int(flags, 8) & (os.O_WRONLY | os.O_RDWR):
            raise OSError(9, "Bad file descriptor")
        os_fsync(descriptor)

    def mkdir(path: Any, *args: Any, **kwargs: Any) -> None:
        name = Path(path).name
        if set(name) & set('<>:"|?*') or name.upper().partition(".")[0] in ("CON", "NUL", "PRN", "AUX", "COM1"):
            raise OSError(22, "The directory name is invalid", str(path))
        os_mkdir(path, *args, **kwargs)

    os.open, os.replace, os.unlink, os.remove, os.fsync = open_, replace, unlink, unlink, fsync
    os.mkdir = mkdir


def pretend(system: str) -> None:
    # how these tell systems apart is not tried here
    import lightning.pytorch.trainer.connectors.signal_connector as connector
    import PIL.Image  # noqa: F401
    import rich.progress  # noqa: F401
    import scipy.ndimage  # noqa: F401
    import tensorboard.summary.writer.event_file_writer  # noqa: F401
    import torch.utils.tensorboard  # noqa: F401
    import torchmetrics  # noqa: F401
    import torchvision.datasets  # noqa: F401
    from jsonargparse import ArgumentParser  # noqa: F401
    from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger, WandbLogger  # noqa: F401

    multiprocessing.set_start_method("spawn", force=True)
    for module, names in (ONLY_UNIX if system == "windows" else ONLY_LINUX).items():
        for name in names:
            if hasattr(sys.modules[module], name):
                delattr(sys.modules[module], name)
    if system == "windows":
        windows_files()
        connector._IS_WINDOWS = True
        connector._SignalConnector._valid_signals = staticmethod(lambda: {signal.SIGINT, signal.SIGTERM})
        for module in MODULES:
            sys.modules[module] = None  # type: ignore[assignment]
    ctypes.CDLL = Library  # type: ignore[misc]
    sys.platform = {"windows": "win32", "mac": "darwin"}[system]
    # what is read as text without saying how would be read as cp1252 there
    warnings.filterwarnings("error", category=EncodingWarning, module=r"mnist_lightning\b")


def stop_soon() -> None:
    """Ctrl-C at the sixth step."""
    from mnist_lightning.models import DigitClassifier

    original, steps = DigitClassifier.training_step, iter(range(1, 10**9))

    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        if next(steps) == 6:
            signal.raise_signal(signal.SIGINT)
        return original(self, *args, **kwargs)

    DigitClassifier.training_step = step  # type: ignore[method-assign]


if __name__ == "__main__":
    pretend(sys.argv[1])
    from mnist_lightning.cli import main

    if "--stop" in sys.argv:
        sys.argv.remove("--stop")
        stop_soon()
    for line in " ".join(sys.argv[2:]).split(" and "):
        with suppress(SystemExit):  # of --help
            print("status", main(line.split()))
