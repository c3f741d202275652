"""A study: each trial once, whoever is killed; what is kept where."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from mnist_lightning.errors import UserError
from mnist_lightning.searching import study as study_module
from mnist_lightning.searching.space import Dimension
from mnist_lightning.searching.study import JOURNAL, Study, load, open_database, open_journal, quiet

SPACE = [Dimension("model.lr", (), 1e-4, 1e-1, log=True), Dimension("model.hidden", ([32], [64], [128]))]


@pytest.fixture(autouse=True)
def _quiet():
    with quiet():
        yield


class Process:
    """A study as one process sees it."""

    def __init__(self, folder: Path, **options) -> None:
        storage, self.locks = open_journal(folder)
        self.study = Study("s", storage, self.locks, maximize=True, space=SPACE, **options)

    def dies(self) -> None:
        self.locks.close()  # as the system does


def value(trial: optuna.trial.Trial) -> float:
    return -abs(trial.params["model.lr"] - 0.01) - len(trial.params["model.hidden"]) / 100


def test_as_many_trials_as_were_asked_for(tmp_path: Path):
    study = Process(tmp_path).study
    while trial := study.next(5):
        study.finish(trial, TrialState.COMPLETE, value(trial))
    assert [trial.number for trial in study.trials(TrialState.COMPLETE)] == [0, 1, 2, 3, 4]
    assert study.next(5) is None
    assert study.next(6).number == 5


def test_a_killed_processes_trial_is_taken_back_with_its_settings(tmp_path: Path):
    first, second = Process(tmp_path), Process(tmp_path)
    lost = first.study.next(3)
    assert first.study.report(lost, 1, 0.5)
    assert second.study.next(3).number == 1
    assert second.study.of_others() == 1
    first.dies()
    assert second.study.of_others() == 0
    back = second.study.next(3)
    assert (back.number, back.params) == (lost.number, lost.params)
    assert second.study.report(back, 1, 0.9)  # told before the kill: it stays
    assert second.study.frozen(back).intermediate_values == {1: 0.5}
    assert [second.study.next(3).number, second.study.next(3)] == [2, None]


def test_a_trial_that_was_begun_and_not_drawn(tmp_path: Path):
    first = Process(tmp_path)
    drawn = Process(tmp_path / "other").study.next(1).params
    first.study.optuna.ask()  # the process dies here
    first.dies()
    back = Process(tmp_path).study.next(1)
    assert (back.number, back.params) == (0, drawn)


def test_a_trial_is_not_finished_twice(tmp_path: Path):
    first, second = Process(tmp_path), Process(tmp_path)
    trial = first.study.next(1)
    first.dies()  # or was only thought to be
    back = second.study.next(1)
    second.study.finish(back, TrialState.COMPLETE, 0.7, {"by": "second"})
    first.study._own.clear()
    first.study.finish(trial, TrialState.COMPLETE, 0.1, {"by": "first"})
    assert not first.study.report(trial, 2, 0.1)
    (only,) = second.study.trials()
    assert (only.value, only.user_attrs) == (0.7, {"by": "second"})


def test_a_study_repeated_gives_the_same_trials_however_often_it_was_interrupted(tmp_path: Path):
    def params(folder: Path, dies_after: int, seed: int = 0) -> list[dict]:
        process = Process(folder, seed=seed)
        for number in range(16):
            trial = process.study.next(16)
            process.study.finish(trial, TrialState.COMPLETE, value(trial))
            if number % dies_after == dies_after - 1:
                process.dies()
                process = Process(folder, seed=seed)
        return [trial.params for trial in process.study.trials()]

    once = params(tmp_path / "once", 100)
    assert params(tmp_path / "often", 3) == once
    assert params(tmp_path / "other", 100, seed=1) != once
    assert len({one["model.lr"] for one in once}) == 16


def test_a_bad_trial_is_pruned_and_finished(tmp_path: Path):
    study = Process(tmp_path, pruner=optuna.pruners.MedianPruner(n_startup_trials=2, n_warmup_steps=0)).study
    for _ in range(3):
        trial = study.next(9)
        assert study.report(trial, 1, 0.9)
        study.finish(trial, TrialState.COMPLETE, 0.9)
    trial = study.next(9)
    assert not study.report(trial, 1, 0.1, {"epoch": 1})
    last = study.trials()[-1]
    assert (last.state, last.value, last.user_attrs) == (TrialState.PRUNED, 0.1, {"epoch": 1})


def test_another_search_is_refused(tmp_path: Path):
    study = Process(tmp_path).study
    study.agree({"--pruner": "median", "space of model.lr": "log [1, 2]"}, {"model.lr": 0.01, "model.hidden": "[64]"})
    study.agree({"--pruner": "median", "space of model.lr": "log [1, 2]"}, None)
    with pytest.raises(UserError, match=r"begun with space of model\.lr log \[1, 2\], now it is log \[1, 3\]: give"):
        study.agree({"--pruner": "median", "space of model.lr": "log [1, 3]"}, None)
    with pytest.raises(UserError, match="was begun with --pruner median, now it is not there"):
        study.agree({"space of model.lr": "log [1, 2]"}, None)
    assert study.next(1).params == {"model.lr": 0.01, "model.hidden": "[64]"}


def test_wishes_are_trained_once(tmp_path: Path):
    storage, locks = open_journal(tmp_path)
    study = Study("s final", storage, locks, maximize=True)
    for _ in range(2):
        study.wish_for([{"of": 3, "seed": 1}, {"of": 3, "seed": 2}])
    seen = []
    while trial := study.next(0):
        seen.append(trial.user_attrs)
        study.finish(trial, TrialState.COMPLETE, 0.5)
    assert seen == [{"of": 3, "seed": 1}, {"of": 3, "seed": 2}]


# ---------------------------------------------------------------------- the journal


def journal(folder: Path) -> Path:
    process = Process(folder)
    process.study.finish(process.study.next(1), TrialState.COMPLETE, 0.5)
    process.dies()
    return folder / JOURNAL


def test_a_line_that_was_cut_off_is_taken_away(tmp_path: Path):
    file = journal(tmp_path)
    whole = file.read_bytes()
    file.write_bytes(whole + b'{"op_code":4,"study')
    process = Process(tmp_path)
    assert process.study.next(2).number == 1
    assert file.read_bytes().startswith(whole)
    assert b'"study{' not in file.read_bytes()


@pytest.mark.parametrize("damage", [b"\0\0\0\n", b"[]\n", b'{"op_code":99}\n', b'{"op_code":4}\n'])
def test_a_damaged_journal_is_told_in_a_line(tmp_path: Path, damage: bytes):
    file = journal(tmp_path)
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([*lines[:2], damage, *lines[2:]]))
    for open_ in (lambda: Process(tmp_path), lambda: load(tmp_path, None, "s")):
        with pytest.raises(UserError) as error:
            open_()
        assert str(error.value).startswith(f"{file} is damaged")
        assert "\n" not in str(error.value)


def test_a_locked_journal_is_told_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    journal(tmp_path)
    monkeypatch.setattr(study_module, "PATIENCE", 0.1)
    _, locks = open_journal(tmp_path)
    assert locks.hold("journal")
    with pytest.raises(UserError, match=r"journal\.log has been locked by another process for 0 seconds"):
        Process(tmp_path)
    locks.release("journal")
    assert locks.hold("s study")
    with pytest.raises(UserError, match="the study s has been locked by another process"):
        Process(tmp_path)


def test_looking_changes_nothing(tmp_path: Path):
    file = journal(tmp_path)
    before = file.read_bytes()
    assert load(tmp_path, None, "s").trials[0].value == 0.5
    assert load(tmp_path, None, "another") is None
    assert file.read_bytes() == before
    with pytest.raises(UserError, match="is not kept in its folder: give --storage"):
        load(tmp_path / "locks", None, "s")


# ---------------------------------------------------------------------- many processes

TRAINS = """
import random, sys, time
from pathlib import Path
from optuna.trial import TrialState
sys.path.insert(0, sys.argv[1])
from test_study import Process, quiet
random.seed()
with quiet():
    study = Process(Path(sys.argv[2])).study
    while True:
        trial = study.next(40)
        if trial is None and not study.of_others():
            break
        if trial is None:
            time.sleep(0.05)
            continue
        for epoch in (1, 2, 3):
            time.sleep(random.random() / 10)
            study.report(trial, epoch, epoch / 10)
        with open(Path(sys.argv[2]) / "finished", "a") as file:
            file.write(f"{trial.number}\\n")
        study.finish(trial, TrialState.COMPLETE, trial.params["model.lr"])
"""


@pytest.mark.slow
def test_ten_processes_killed_at_random(tmp_path: Path):
    """All trials come to their end, each once."""

    def start() -> subprocess.Popen:
        words = [sys.executable, "-c", TRAINS, str(Path(__file__).parent), str(tmp_path)]
        return subprocess.Popen(words, env=os.environ | {"OMP_NUM_THREADS": "1"})

    rng, processes, kills = random.Random(0), [start() for _ in range(10)], 0
    deadline = time.monotonic() + 300
    while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
        time.sleep(rng.random())
        alive = [process for process in processes if process.poll() is None]
        if (tmp_path / JOURNAL).exists() and alive and kills < 12:
            rng.choice(alive).send_signal(signal.SIGKILL)
            processes.append(start())
            kills += 1
    assert [process.wait(1) for process in processes].count(0) >= 10
    assert kills == 12
    trials = Process(tmp_path).study.trials()
    assert [(trial.number, trial.state) for trial in trials] == [(n, TrialState.COMPLETE) for n in range(40)]
    assert all(trial.value == trial.params["model.lr"] for trial in trials)
    assert all(trial.intermediate_values == {1: 0.1, 2: 0.2, 3: 0.3} for trial in trials)


# ---------------------------------------------------------------------- a database


def test_no_database():
    with pytest.raises(UserError) as error:
        open_database("postgresql://me:secret@127.0.0.1:1/digits", "s")
    assert str(error.value).startswith("--storage postgresql://me:…@127.0.0.1:1/digits: no database: ")
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_the_same_in_postgresql(postgres: str, tmp_path: Path):
    """Taken back when the connection of a process is gone; names and locks of studies are their own."""

    def process() -> tuple[Study, study_module.Locks]:
        storage, locks = open_database(postgres, "s")
        return Study("s", storage, locks, maximize=True, space=SPACE), locks

    (first, its), (second, others) = process(), process()
    lost = first.next(2)
    assert second.next(2).number == 1
    assert (second.next(2), second.of_others()) == (None, 1)
    its.close()
    back = second.next(2)
    assert (back.number, back.params) == (lost.number, lost.params)
    second.finish(back, TrialState.COMPLETE, 0.5)
    first._own.clear()  # it was only thought to be gone
    first.finish(lost, TrialState.COMPLETE, 0.1)
    others.close()
    assert load(tmp_path / "s", postgres, "s").trials[0].value == 0.5
    assert load(tmp_path / "s", postgres, "another") is None
