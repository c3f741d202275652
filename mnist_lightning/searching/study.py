"""A study: trials that many processes draw, train and finish, each exactly once, whoever of them is killed."""

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from mnist_lightning.data.loader import derived_seed
from mnist_lightning.errors import UserError, first_line, needs
from mnist_lightning.searching.locks import CONNECTION, PATIENCE, DatabaseLocks, FileLocks, Locks
from mnist_lightning.searching.space import Dimension

JOURNAL = "journal.log"
TERMS = "terms"  # a study's attribute: what it compares
DONE = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


class Study:
    """Trials of one kind: those of a search, or of its end.

    A trial that is RUNNING and whose lock nobody holds was of a process that has ended; who sees it takes it back.
    """

    def __init__(
        self,
        name: str,
        storage: BaseStorage,
        locks: Locks,
        *,
        maximize: bool,
        space: Sequence[Dimension] = (),
        pruner: optuna.pruners.BasePruner | None = None,
        seed: int = 0,
    ) -> None:
        self.name, self.locks, self.space, self.seed = name, locks, space, seed
        self._own: set[int] = set()  # numbers of trials that this process trains
        with self._alone():
            self.optuna = optuna.create_study(
                study_name=name,
                storage=storage,
                pruner=pruner or optuna.pruners.NopPruner(),
                direction="maximize" if maximize else "minimize",
                load_if_exists=True,
            )

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One process at a time draws trials."""
        if not self.locks.hold(f"{self.name} study", PATIENCE):
            raise UserError(
                f"the study {self.name} has been locked by another process for {PATIENCE:.0f} seconds: look whether "
                "one is stopped, and end it"
            )
        try:
            yield
        finally:
            self.locks.release(f"{self.name} study")

    def agree(self, terms: Mapping[str, Any], first: Mapping[str, Any] | None) -> None:
        """Begins the study, its first trial with the values `first`, or refuses to go on with one of other terms."""
        with self._alone():
            known = self.optuna.user_attrs.get(TERMS)
            if known is None:
                if first is not None and not self.trials():
                    self.optuna.enqueue_trial(dict(first), skip_if_exists=True)
                return self.optuna.set_user_attr(TERMS, dict(terms))
        for name in [*terms, *known]:
            if known.get(name) != terms.get(name):
                was, now = known.get(name, "not there"), terms.get(name, "not there")
                raise UserError(
                    f"the study {self.name} was begun with {name} {was}, now it is {now}: give the same, or begin "
                    "another with --study NAME"
                )

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        """Those in one of the states, else all, in their order."""
        return self.optuna.get_trials(deepcopy=False, states=states or None)

    def wish_for(self, tasks: Sequence[Mapping[str, Any]]) -> None:
        """Trials with these notes are to be trained, those that are not there yet."""
        with self._alone():
            there = [trial.user_attrs for trial in self.trials()]
            for task in tasks:
                if not any(task.items() <= notes.items() for notes in there):
                    self.optuna.enqueue_trial({}, user_attrs=dict(task))

    def note(self, name: str, make: Callable[[Any], Any]) -> Any:
        """An attribute of the study, which one process makes of what it was."""
        with self._alone():
            value = make(self.optuna.user_attrs.get(name))
            self.optuna.set_user_attr(name, value)
            return value

    # ------------------------------------------------------------------ one trial

    def next(self, most: int) -> Trial | None:
        """A trial to train, which others then leave alone: one taken back, else a new one while there are under `most`.

        It draws by random numbers of its own, so that a study repeated by one process gives the same trials however
        often it was interrupted.
        """
        with self._alone():
            running = self.trials(TrialState.RUNNING)
            for frozen in running:
                if frozen.number not in self._own and self.locks.hold(self._lock(frozen.number)):
                    if frozen.number in {trial.number for trial in self.trials(TrialState.RUNNING)}:
                        return self._drawn(partial(Trial, self.optuna, frozen._trial_id), frozen.number)
                    self.locks.release(self._lock(frozen.number))  # it was finished meanwhile
            waiting = self.trials(TrialState.WAITING)
            count = len(self.trials())
            if not waiting and count >= most:
                return None
            trial = self._drawn(self.optuna.ask, waiting[0].number if waiting else count)
            self.locks.hold(self._lock(trial.number), PATIENCE)
            return trial

    def _drawn(self, make: Callable[[], Trial], number: int) -> Trial:
        seed = derived_seed(self.seed, "trial", number) % 2**32
        self.optuna.sampler = optuna.samplers.TPESampler(seed=seed)
        trial = make()
        for dimension in self.space:
            dimension.suggest(trial)
        self._own.add(trial.number)
        return trial

    def _lock(self, number: int) -> str:
        return f"{self.name} {number}"

    def report(self, trial: Trial, epoch: int, value: float, notes: Mapping[str, Any] | None = None) -> bool:
        """Notes what the trial came to after an epoch; whether it goes on. One that does not is finished."""
        if epoch in self.frozen(trial).intermediate_values:  # one taken back tells some again
            return True
        try:
            trial.report(value, epoch)
            pruned = trial.should_prune()
        except optuna.exceptions.UpdateFinishedTrialError:  # by another process, while this one was thought to be gone
            self.leave(trial)
            return False
        if pruned:
            self.finish(trial, TrialState.PRUNED, notes=notes)
        return not pruned

    def frozen(self, trial: Trial) -> FrozenTrial:
        return self.optuna._storage.get_trial(trial._trial_id)

    def finish(
        self, trial: Trial, state: TrialState, value: float | None = None, notes: Mapping[str, Any] | None = None
    ) -> None:
        """The end of a trial. One that another process has finished stays as it is."""
        with suppress(optuna.exceptions.UpdateFinishedTrialError, ValueError):
            for name, note in (notes or {}).items():
                trial.set_user_attr(name, note)
            self.optuna.tell(trial, value, state=state)
        self.leave(trial)

    def leave(self, trial: Trial) -> None:
        """Lets another process take the trial, if it is not finished."""
        if trial.number in self._own:
            self._own.discard(trial.number)
            self.locks.release(self._lock(trial.number))

    def of_others(self) -> int:
        """How many trials other processes are training."""
        count = 0
        for trial in self.trials(TrialState.RUNNING):
            if trial.number in self._own:
                continue
            if self.locks.hold(self._lock(trial.number)):
                self.locks.release(self._lock(trial.number))
            else:
                count += 1
        return count


# ---------------------------------------------------------------------- where it is kept


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
    import json

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


def final_name(study: str) -> str:
    """The study of a search's end, beside its trials."""
    return f"{study} final"


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
