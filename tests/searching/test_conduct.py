"""Trials are given out, told and finished, by workers that are played here; one that dies is replaced."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from optuna.trial import TrialState

from mnist_lightning.errors import UserError
from mnist_lightning.processes import Interrupted, Signals
from mnist_lightning.searching import conduct
from mnist_lightning.searching.conduct import Conductor, Ended
from mnist_lightning.searching.space import Dimension
from mnist_lightning.searching.storage import open_journal, quiet
from mnist_lightning.searching.study import Study

EPOCH = {"epoch": 1, "acc": 0.5, "loss": 1.0}


class Worker:
    """Says that it is ready, as a real one does when it has started; answers a task by a script: messages, or None for
    its death."""

    def __init__(self, team: "Team") -> None:
        self.team, self.idle, self.spoke = team, False, False
        team.queue.append((self, None if team.still_births else {"ready": True}))
        team.still_births = max(0, team.still_births - 1)

    def tell(self, **message) -> None:
        if "train" in message:
            self.idle = False
            script = self.team.scripts.get(message["train"]) or [[EPOCH, {"done": EPOCH}]]
            self.team.queue += [(self, one) for one in (script.pop(0) if len(script) > 1 else script[0])]
            self.team.told.append(message["train"])

    def stop(self) -> None:
        self.team.queue.append((self, {"stopped": True}))

    def end(self) -> None:
        pass

    def last_words(self) -> str:
        return "the process ended with status -9"


class Team:
    def __init__(self, jobs: int, scripts: dict[str, list]) -> None:
        self.jobs, self.scripts, self.queue, self.told = jobs, scripts, [], []
        self.still_births = 0  # of the next workers, which die before they say a word
        self.workers: list[Worker] = []

    def fill(self) -> None:
        while len(self.workers) < self.jobs:
            self.workers.append(Worker(self))

    def idle(self) -> list[Worker]:
        return [worker for worker in self.workers if worker.idle]

    def answers(self, patience: float) -> Iterator[tuple[Worker, dict | None]]:
        waiting, self.queue = self.queue, []
        for worker, message in waiting:
            worker.spoke = worker.spoke or message is not None
            worker.idle = message is not None and "epoch" not in message
            yield worker, message

    def replace(self, worker: Worker, again: bool = True) -> None:
        self.workers.remove(worker)
        self.queue = [(one, message) for one, message in self.queue if one is not worker]
        if again:
            self.fill()


@pytest.fixture
def conducted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`conducted(scripts)`: a conductor of a study of two workers, and what was said of trials that ended."""
    monkeypatch.setattr(conduct, "ASK", 0.0)
    with quiet():
        storage, locks = open_journal(tmp_path)

        def make(scripts: dict[str, list] | None = None, jobs: int = 2) -> tuple[Conductor, list[str]]:
            space = [Dimension("model.lr", (), 0.1, 1.0)]
            study, lines = Study("s", storage, locks, maximize=True, space=space), []

            def plan(trial):
                return [("model.lr", trial.params["model.lr"])], f"trial{trial.number}"

            def seen(conductor, line) -> None:
                lines.extend([line] if line else [])

            team = Team(jobs, scripts or {})
            return Conductor(study, team, tmp_path / "trials", plan, True, Signals(), seen), lines  # type: ignore[arg-type]

        yield make


def states(conductor: Conductor) -> list[str]:
    return [trial.state.name for trial in conductor.study.trials()]


def test_all_trials(conducted):
    conductor, lines = conducted()
    assert conductor.carry_out(5) is Ended.DONE
    assert states(conductor) == ["COMPLETE"] * 5
    assert sorted(lines) == [f"trial{number}: done" for number in range(5)]
    assert conductor.study.trials()[0].user_attrs["loss"] == 1.0
    assert conductor.carry_out(5) is Ended.DONE  # nothing is left
    assert len(conductor.team.told) == 5


def test_a_trial_that_fails_leaves_the_study_going(conducted):
    conductor, lines = conducted({"trial1": [[{"failed": "--model MLP: too large"}]],
                                  "trial2": [[{"done": {"epoch": 1, "acc": None, "loss": 0.5}}]]})  # fmt: skip
    conductor.carry_out(4)
    assert states(conductor) == ["COMPLETE", "FAIL", "FAIL", "COMPLETE"]
    assert conductor.study.trials()[1].user_attrs["failed"] == "failed: --model MLP: too large"
    assert "trial2: failed: there was no validation accuracy; see --objective" in lines


def test_what_fails_every_trial_ends_the_search(conducted):
    scripts = {f"trial{number}": [[{"failed": "the disk is full"}]] for number in range(9)}
    conductor, _ = conducted(scripts)
    with pytest.raises(UserError, match="5 trials in a row failed: the disk is full: mend it"):
        conductor.carry_out(9)
    assert states(conductor).count("FAIL") <= 6


def test_a_worker_that_dies_is_replaced_and_its_trial_goes_on(conducted):
    once = [[{"epoch": 1, "acc": 0.4, "loss": 1.0}, None], [{"done": {"epoch": 2, "acc": 0.6, "loss": 0.9}}]]
    conductor, _ = conducted({"trial0": once, "trial1": [[None]]})
    conductor.carry_out(3)
    assert states(conductor) == ["COMPLETE", "FAIL", "COMPLETE"]
    assert conductor.study.trials()[0].value == 0.6
    assert conductor.team.told.count("trial0") == 2
    assert conductor.study.trials()[1].user_attrs["failed"] == "failed: 3 times the process ended with status -9"


def test_a_worker_that_dies_before_it_says_a_word_is_replaced_too(conducted):
    conductor, _ = conducted()
    conductor.team.still_births = 2
    conductor.carry_out(3)
    assert states(conductor) == ["COMPLETE"] * 3
    conductor, _ = conducted()
    conductor.team.still_births = 9
    with pytest.raises(UserError, match="no process for trials can be started: the process ended with status -9"):
        conductor.carry_out(6)


def test_checkpoints_of_finished_trials_go(conducted, tmp_path: Path):
    conductor, _ = conducted()
    conductor.keep = ("best.ckpt",)
    folder = tmp_path / "trials" / "trial0"
    folder.mkdir(parents=True)
    for name in ("best.ckpt", "last.ckpt", "metrics.csv"):
        (folder / name).touch()
    conductor.carry_out(1)
    assert sorted(file.name for file in folder.iterdir()) == ["best.ckpt", "metrics.csv"]


@pytest.mark.parametrize("way", ["signal", "time"])
def test_what_is_stopped_can_go_on(conducted, way: str):
    endless = {f"trial{number}": [[{"epoch": 1, "acc": 0.5, "loss": 1.0}]] for number in range(2)}
    conductor, _ = conducted(endless)
    if way == "time":
        assert conductor.carry_out(4, time.monotonic() + 0.5) is Ended.TIME
    else:
        conductor.signals.received = 0

        def seen(conductor, line) -> None:
            conductor.signals.received = signal.SIGTERM if conductor.running else 0

        conductor.seen = seen
        with pytest.raises(Interrupted):
            conductor.carry_out(4)
    assert states(conductor) == ["RUNNING", "RUNNING"]
    assert conductor.study.of_others() == 0
    other, _ = conducted()
    assert other.carry_out(4) is Ended.DONE
    assert states(other) == ["COMPLETE"] * 4
    assert all(trial.state is TrialState.COMPLETE for trial in other.study.trials())
