"""Files that survive: written whole or not at all, and on the disk before anybody counts on them."""

import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from mnist_lightning.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]
try:
    import msvcrt
except ImportError:  # all but Windows
    msvcrt = None  # type: ignore[assignment]


def write_whole(
    content: str | bytes | memoryview, path: Path, also: Path | None = None, previous: Path | None = None
) -> None:
    """Writes the file whole or not at all, durably.

    `also` is a second name for it, given first; under `previous` goes on what was called `path` before. Raises
    UserError if it cannot be written; then everything is as it was, but that it may have its second name.
    """
    with whole_file(path, also, previous) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def whole_file(path: Path, also: Path | None = None, previous: Path | None = None) -> Iterator[IO[bytes]]:
    """A binary file to write into, for what is not in memory at once; see `write_whole`."""
    with _in_place_of(path) as temporary:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if also is not None:
            give_name(temporary, also)
        if previous is not None and path.exists():
            give_name(path, previous)
    sync(path.parent)


def give_name(file: Path, name: Path) -> None:
    """Lets `name` mean this file too, at once or not at all; `sync(name.parent)` makes it durable."""
    with _in_place_of(name) as temporary:
        try:
            os.link(file, temporary)  # no second copy, nothing to sync
        except OSError:  # a file system without hard links
            shutil.copyfile(file, temporary)
            sync(temporary)


@contextmanager
def _in_place_of(path: Path) -> Iterator[Path]:
    """A name for what then takes the place of `path`; nothing is left of it if that fails."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.unlink(missing_ok=True)  # one left by a killed process can be a second name of another file
        yield temporary
        _replace(temporary, path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _replace(file: Path, path: Path, patience: float = 2.0) -> None:
    """`os.replace`; on Windows somebody who reads the file at `path` is waited for, so many seconds."""
    deadline = time.monotonic() + patience
    while True:
        try:
            return os.replace(file, path)
        except PermissionError:
            if sys.platform != "win32" or time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def sync(path: Path) -> None:
    """Waits until a file's or a folder's content is on the disk."""
    if sys.platform == "win32" and path.is_dir():
        return  # folders cannot be opened there
    try:
        descriptor = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise unwritable(path, error) from error


def is_device(path: Path) -> bool:
    """Whether this is a pipe, which would be waited for, or a device, which may have no end."""
    return path.exists() and not path.is_file() and not path.is_dir()


def unwritable(path: Path, error: OSError) -> UserError:
    """What a person is told when a file cannot be written."""
    return UserError(f"{path} cannot be written: {error.strerror or error}: make room or mend the folder")


# ---------------------------------------------------------------------- held by one process


def locked(descriptor: int) -> bool:
    """Whether this process now has the lock of an open file, which the system takes back when it ends, however.

    False: another has it. Raises OSError on a file system without locks.
    """
    try:
        if fcntl:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        elif msvcrt:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        return True
    except (BlockingIOError, PermissionError):
        return False
