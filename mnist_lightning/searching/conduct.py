"""Trials given to workers, their reports to the study, until nothing is left, the time is up or a signal comes."""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, Trial, TrialState

from mnist_lightning.errors import UserError
from mnist_lightning.processes import Interrupted, Signals
from mnist_lightning.searching.study import Study
from mnist_lightning.searching.team import STOPPING, Team, Worker
from mnist_lightning.words import Pairs

ALIKE = 5  # trials in a row that failed by the same words: it is not their settings
DEATHS = 3  # of its process, then a trial has failed
POLL = 0.25  # seconds between looks at the clock and at signals
ASK = 1.0  # seconds after which a study that had nothing to do is asked again


class Ended(Enum):
    """Why trials are no longer given out."""

    DONE = "all are done"
    TIME = "the time is up"


@dataclass
class Running:
    """A trial that a worker trains."""

    trial: Trial
    name: str  # of its run
    settings: Pairs
    started: float
    epoch: int = 0
    value: float | None = None

    def seconds(self) -> float:
        return round(time.monotonic() - self.started, 1)


@dataclass
class Conductor:
    """Gives the trials of a study to a team.

    `plan`: the settings that a trial trains with and its run's name; `folder`: where the runs are; `accuracy`: whether
    that is what counts, else the loss; `seen`: called on each change, with a line where a trial has ended.
    """

    study: Study
    team: Team
    folder: Path
    plan: Callable[[Trial], tuple[Pairs, str]]
    accuracy: bool
    signals: Signals
    seen: Callable[["Conductor", str | None], None]
    keep: Iterable[str] = ()  # checkpoints of a finished trial that stay
    running: dict[Worker, Running] = field(default_factory=dict)
    ended: FrozenTrial | None = None  # the last one
    _left: list[Running] = field(default_factory=list)  # whose process has died; the next one goes on with them
    _deaths: Counter[int] = field(default_factory=Counter)  # by trial
    _silent: int = 0  # processes in a row that died before they said a word
    _failures: list[str] = field(default_factory=list)  # since the last trial that came to something
    _asked: float = -math.inf
    _over: bool = False  # nothing is left to begin, here or elsewhere
    _stopping: bool = False

    def carry_out(self, most: int, deadline: float = math.inf) -> Ended:
        """Trains until there are `most` trials and none runs anywhere, or until `deadline` of the monotonic clock."""
        self._over = False
        self.team.fill()
        try:
            while not self._over or self.running or self._left:
                if self.signals.received:
                    raise Interrupted(self.signals.received)
                if time.monotonic() >= deadline:
                    return Ended.TIME
                self._give(most)
                self._hear(POLL)
                self.seen(self, None)
            return Ended.DONE
        finally:
            self._stop()

    def _give(self, most: int) -> None:
        """A trial to each worker that has none; where there is none to begin, it looks again a little later."""
        for worker, running in zip(self.team.idle(), list(self._left), strict=False):
            self._left.remove(running)
            self._train(worker, running)
        while (idle := self.team.idle()) and time.monotonic() - self._asked >= ASK:
            trial = self.study.next(most)
            if trial is None:
                self._asked = time.monotonic()
                self._over = not self.study.of_others()
                return
            self._over = False
            settings, name = self.plan(trial)
            self._train(idle[0], Running(trial, name, settings, time.monotonic()))

    def _train(self, worker: Worker, running: Running) -> None:
        worker.tell(train=running.name, root=str(self.folder), settings=running.settings)
        self.running[worker] = running

    def _hear(self, patience: float) -> None:
        """What the workers have to say, waiting so many seconds for the first."""
        for worker, message in self.team.answers(patience):
            running = self.running.get(worker)
            if message is None:
                self._died(worker)
            elif "epoch" in message:
                worker.tell(goes_on=running is None or self._goes_on(running, message))
            elif running:
                del self.running[worker]
                if "stopped" in message:
                    self.study.leave(running.trial)
                else:
                    self._finished(running, message)

    def _value(self, message: dict[str, Any]) -> float | None:
        """What counts of it, if it is a number."""
        value = message.get("acc" if self.accuracy else "loss")
        return value if value is not None and math.isfinite(value) else None

    def _goes_on(self, running: Running, message: dict[str, Any]) -> bool:
        value = self._value(message)
        if value is None:
            return True
        running.epoch, running.value = message["epoch"], value
        notes = {"epoch": running.epoch, "seconds": running.seconds()}
        return self.study.report(running.trial, running.epoch, value, notes)

    def _finished(self, running: Running, message: dict[str, Any]) -> None:
        trial, done = running.trial, message.get("done")
        notes: dict[str, Any] = {"seconds": running.seconds()}
        if "pruned" in message:  # which the study knows
            line = f"pruned after epoch {running.epoch}"
        elif done and (value := self._value(done)) is not None:
            self.study.finish(trial, TrialState.COMPLETE, value, notes | done)
            line = "done"
        else:
            what = "accuracy" if self.accuracy else "loss"
            line = "failed: " + (message.get("failed") or f"there was no validation {what}; see --objective")
            self.study.finish(trial, TrialState.FAIL, notes=notes | {"failed": line})
        self._failures = [*self._failures, line] if line.startswith("failed") else []
        self._clear(running.name)
        self.ended = self.study.frozen(trial)
        self.seen(self, f"{running.name}: {line}")
        if len(self._failures) >= ALIKE and len(set(self._failures[-ALIKE:])) == 1:
            raise UserError(f"{ALIKE} trials in a row {line}: mend it, then the same command goes on")

    def _clear(self, name: str) -> None:
        """Takes away the checkpoints of a finished trial that nobody needs."""
        for file in (self.folder / name).glob("*.ckpt"):
            if file.name not in self.keep:
                file.unlink(missing_ok=True)

    def _died(self, worker: Worker) -> None:
        """Another process goes on from the trial's last checkpoint, unless it keeps dying."""
        running = self.running.pop(worker, None)
        if worker not in self.team.workers:
            return
        words = worker.last_words()
        self._silent = 0 if worker.spoke else self._silent + 1
        if self._silent >= DEATHS:
            raise UserError(f"no process for trials can be started: {words}")
        self.team.replace(worker, again=not self._stopping)
        if running is None:
            return
        self._deaths[running.trial.number] += 1
        if self._stopping:
            self.study.leave(running.trial)
        elif self._deaths[running.trial.number] >= DEATHS:
            self._finished(running, {"failed": f"{DEATHS} times {words}"})
        else:
            self._left.append(running)

    def _stop(self) -> None:
        """Lets the workers write their checkpoints, and others have their trials."""
        self._stopping, deadline = True, time.monotonic() + STOPPING
        for worker in self.running:
            worker.stop()
        while self.running and time.monotonic() < deadline:
            self._hear(POLL)
        for worker, running in self.running.items():
            worker.end()
            self.study.leave(running.trial)
        for running in self._left:
            self.study.leave(running.trial)
        self.running.clear()
        self._left.clear()
        self._stopping = False
