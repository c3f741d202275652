"""Who trains which trial: locks that the system takes from a process when it ends, however it does."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol
from zlib import crc32

from mnist_lightning.errors import UserError, first_line
from mnist_lightning.files import locked

PATIENCE = 60.0  # seconds that another process may take for a line of the journal, or to draw a trial
# A machine that says nothing for so many seconds is asked, so often, whether it is there: then its trials are free.
SILENCE, AGAIN, TIMES = 20, 5, 3
CONNECTION = {
    "connect_timeout": 10, "keepalives_idle": SILENCE, "keepalives_interval": AGAIN, "keepalives_count": TIMES,
    "tcp_user_timeout": 1000 * (SILENCE + AGAIN * TIMES),
    "options": f"-c tcp_keepalives_idle={SILENCE} -c tcp_keepalives_interval={AGAIN} -c tcp_keepalives_count={TIMES}",
}  # fmt: skip


class Locks(Protocol):
    """Named locks of a study; each is held by one process at most."""

    def hold(self, name: str, patience: float = 0.0) -> bool:
        """Takes the lock, waiting so many seconds for another process; False if it is held, by this process too."""

    def release(self, name: str) -> None:
        """Lets others take it."""

    def close(self) -> None:
        """Lets go of all."""


class FileLocks:
    """Locks for processes that see one folder, of this machine or on a file system that has locks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._held: dict[str, int] = {}  # open descriptors

    def hold(self, name: str, patience: float = 0.0) -> bool:
        deadline = time.monotonic() + patience
        while name in self._held or not self._take(name):
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.02)
        return True

    def _take(self, name: str) -> bool:
        file = self.folder / name
        try:
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise UserError(f"{file} cannot be written: {error.strerror}: make room or mend the folder") from error
        try:
            if locked(descriptor):
                self._held[name] = descriptor
                return True
        except OSError as error:
            os.close(descriptor)
            raise UserError(f"{self.folder} is on a file system without locks: use --storage postgresql://…") from error
        os.close(descriptor)
        return False

    def release(self, name: str) -> None:
        os.close(self._held.pop(name))

    def close(self) -> None:
        while self._held:
            os.close(self._held.popitem()[1])


class DatabaseLocks:
    """Locks for machines that share a PostgreSQL only: its advisory locks, which go with the connection."""

    def __init__(self, url: str, study: str) -> None:
        import psycopg

        self._of = crc32(study.encode()) - 2**31  # PostgreSQL's integers have a sign
        self._held: set[str] = set()
        self.beside: Callable[[], object] = lambda: None  # to close with them
        self._failed = psycopg.Error
        self._connection: Any = psycopg.connect(url, autocommit=True, **CONNECTION)  # type: ignore[arg-type]

    def hold(self, name: str, patience: float = 0.0) -> bool:
        deadline = time.monotonic() + patience
        while name in self._held or not self._ask("pg_try_advisory_lock", name):
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.05)
        self._held.add(name)
        return True

    def release(self, name: str) -> None:
        self._held.discard(name)
        self._ask("pg_advisory_unlock", name)

    def close(self) -> None:
        self._connection.close()
        self.beside()

    def _ask(self, function: str, name: str) -> bool:
        try:
            row = self._connection.execute(f"SELECT {function}(%s, %s)", (self._of, crc32(name.encode()) - 2**31))
            return bool(row.fetchone()[0])
        except self._failed as error:
            raise UserError(f"the database of the study does not answer: {first_line(error)}") from error
