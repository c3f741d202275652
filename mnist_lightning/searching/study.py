"""A study: trials that many processes draw, train and finish, each exactly once, whoever of them is killed."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from mnist_lightning.data.loader import derived_seed
from mnist_lightning.errors import UserError
from mnist_lightning.searching.locks import PATIENCE, Locks
from mnist_lightning.searching.space import Dimension

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
                if self.locks.hold(self._lock(frozen.number)):  # not one of this process's own either
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


def final_name(study: str) -> str:
    """The study of a search's end, beside its trials."""
    return f"{study} final"
