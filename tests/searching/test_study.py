"""A study: each trial once, whoever is killed."""

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
from sharing import Process

from mnist_lightning.errors import UserError
from mnist_lightning.searching.storage import JOURNAL, open_journal, quiet
from mnist_lightning.searching.study import Study


@pytest.fixture(autouse=True)
def _quiet():
    with quiet():
        yield


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


# ---------------------------------------------------------------------- many processes

TRAINS = """
import random, sys, time
from pathlib import Path
from optuna.trial import TrialState
sys.path.insert(0, sys.argv[1])
from sharing import Process
from mnist_lightning.searching.storage import quiet
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
