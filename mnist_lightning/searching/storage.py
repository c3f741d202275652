"""Where a study is kept: a journal in its folder, or a PostgreSQL; and what a person is told when that fails."""

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend

from mnist_lightning.errors import UserError, first_line, needs
from mnist_lightning.searching.locks import CONNECTION, PATIENCE, DatabaseLocks, FileLocks, Locks

JOURNAL = "journal.log"


class JournalLock:
    """Optuna's own lock files outlive a killed process, for half a minute."""

    def __init__(self, locks: FileLocks, journal: Path) -> None:
        self.locks, self.journal = locks, journal

    def acquire(self) -> bool:
        if not self.locks.hold("journal", PATIENCE):
            raise UserError(
                f"{self.journal} has been locked by another process for {PATIENCE:.0f} seconds: look whether one is "
                "stopped, and end it"
            )
        return True

    def release(self) -> None:
        self.locks.release("journal")


def open_journal(folder: Path) -> tuple[BaseStorage, Locks]:
    """The journal in the study's folder; raises UserError if it is damaged."""
    locks, journal = FileLocks(folder / "locks"), folder / JOURNAL
    try:
        locks.folder.mkdir(parents=True, exist_ok=True)
        lock: Any = JournalLock(locks, journal)
        lock.acquire()
        try:
            _mend(journal)
        finally:
            lock.release()
    except OSError as error:
        raise UserError(f"{error.filename or folder} cannot be written: {error.strerror or error}") from error
    return _read_journal(folder, lock), locks


def _read_journal(folder: Path, lock: Any = None) -> BaseStorage:
    journal = folder / JOURNAL
    try:
        return JournalStorage(JournalFileBackend(str(journal), lock))
    except OSError as error:
        raise UserError(f"{journal} cannot be read: {error.strerror or error}") from error
    except (
        ValueError,
        LookupError,
        AttributeError,
        TypeError,
        AssertionError,
    ) as error:  # whatever stands there instead
        line = _damaged_line(journal)
        raise UserError(
            f"{journal} is damaged{f' in line {line}' if line else ''}: keep the lines before it, or begin another "
            "with --study NAME"
        ) from error


def _mend(journal: Path) -> None:
    """Takes away a last line that was cut off: what it told was not done."""
    if not journal.exists():
        return
    with journal.open("rb+") as file:
        size = file.seek(0, 2)
        tail = file.read() if not size else (file.seek(max(0, size - 2**20)), file.read())[1]
        if tail and not tail.endswith(b"\n"):
            file.truncate(size - len(tail) + tail.rfind(b"\n") + 1)


def _damaged_line(journal: Path) -> int | None:
    with suppress(OSError), journal.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                if not isinstance(json.loads(line), dict):
                    return number
            except ValueError:
                return number
    return None


def open_database(url: str, name: str) -> tuple[BaseStorage, Locks]:
    """A PostgreSQL that several machines reach; raises UserError if it cannot be had."""
    place = _without_password(url)
    with needs("postgres", "--storage postgresql://"):
        import psycopg
        import sqlalchemy
    try:
        locks = DatabaseLocks(url, name)
        if not locks.hold("tables", PATIENCE):  # Optuna's would be made twice
            raise UserError(f"--storage {place}: another process has been making its tables for {PATIENCE:.0f} seconds")
        engine = {"pool_pre_ping": True, "connect_args": CONNECTION}
        storage = RDBStorage("postgresql+psycopg" + url[url.index("://") :], engine_kwargs=engine)
        locks.release("tables")
        locks.beside = storage.engine.dispose
        return storage, locks
    except (psycopg.Error, sqlalchemy.exc.SQLAlchemyError, RuntimeError) as error:
        raise UserError(f"--storage {place}: no database: {first_line(error)}") from error


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    return url.replace(f":{parts.password}@", ":…@") if parts.password else url


def load(folder: Path, url: str | None, name: str) -> optuna.Study | None:
    """A study to look at, of which nothing is changed; None if it is not there."""
    storage: BaseStorage
    if url:
        distant, locks = open_database(url, folder.name)
        try:
            storage = optuna.storages.InMemoryStorage()
            optuna.copy_study(from_study_name=name, from_storage=distant, to_storage=storage)
        except KeyError:
            return None
        finally:
            locks.close()
    elif (folder / JOURNAL).exists():
        storage = _read_journal(folder)
    else:
        raise UserError(f"the study {folder} is not kept in its folder: give --storage postgresql://… as search was")
    try:
        return optuna.load_study(study_name=name, storage=storage)
    except KeyError:
        return None


@contextmanager
def quiet() -> Iterator[None]:
    """Optuna's own lines on every trial, and its warnings of what may change, are for its developers."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        try:
            yield
        finally:
            optuna.logging.set_verbosity(level)


@contextmanager
def study_errors(folder: Path, url: str | None) -> Iterator[None]:
    """What a journal or a database comes to while a study goes on, in a line."""
    try:
        yield
    except Exception as error:
        if url and type(error).__module__.partition(".")[0] in ("optuna", "sqlalchemy", "psycopg"):
            why = first_line(error.__cause__ or error)
            raise UserError(f"--storage {_without_password(url)} does not answer: {why}") from error
        if not url and not isinstance(error, UserError) and (line := _damaged_line(folder / JOURNAL)):
            raise UserError(f"{folder / JOURNAL} was damaged meanwhile, in line {line}") from error
        raise
