"""`search`: better settings for a recipe, by many short trainings."""

import math
import os
import shlex
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from mnist_lightning.errors import BadSetting, needs
from mnist_lightning.processes import Interrupted, Signals
from mnist_lightning.words import Pairs, merged, pairs_of_words, with_files

USAGE = """usage: python -m mnist_lightning search [--config NAME|FILE …] [--SETTING VALUE …]

Trains a recipe many times with other settings, ends early what is no good, and keeps everything in
checkpoints/STUDY/. Trials are compared on validation images. In the end the best settings are trained anew with several
seeds beside the recipe's own; the winner is written to checkpoints/STUDY/best.yaml, for fit --config, and tested once.
The same command goes on after any interruption; in more terminals, or on machines that see the folder, it joins in.

  --trials N             how many trials the study is to have (50)
  --minutes M            give out no more after so long; trials that run then wait for the same command to go on
  --space FILE           what may be set to what, as YAML; without, what the recipe's own values suggest:
                           model.lr: {log: [1e-4, 1e-2]}
                           model.dropout: {uniform: [0.0, 0.6], step: 0.1}
                           model.hidden: [[64], [128], [256, 128]]
                           data.batch_size: {int: [32, 256]}
  --study NAME           the folder's name (that of the recipe with -search)
  --objective accuracy|loss        on the validation images (accuracy)
  --pruner hyperband|median|none   what ends a trial early (hyperband)
  --jobs N               trials beside each other (one a core; on a GPU one)
  --best K               how many of the best are trained anew (3); 0: none
  --seeds N              with how many seeds each (3)
  --storage postgresql://USER@HOST/DATABASE   for machines that share no folder

Besides, all settings of fit: --config, --model.…, --data.…, --trainer.…, --seed; see fit --help.
"""
NOT_HERE = {
    "run": "a study has a run for each trial: name the study with --study",
    "ckpt_path": "a study goes on by the same command",
}


@dataclass
class Asked:
    """The flags of the search itself."""

    trials: int = 50
    minutes: float = math.inf
    space: str | None = None
    study: str | None = None
    objective: str = "accuracy"
    pruner: str = "hyperband"
    jobs: int | None = None
    best: int = 3
    seeds: int = 3
    storage: str | None = None

    @property
    def accuracy(self) -> bool:
        return self.objective == "accuracy"


WORDS = {"objective": ("accuracy", "loss"), "pruner": ("hyperband", "median", "none")}
LEAST = {"trials": 1, "jobs": 1, "best": 0, "seeds": 1}


def command(name: str, words: list[str], signals: Signals) -> None:
    """Searches, alone or together with others, and tells what was found."""
    pairs = pairs_of_words(words)
    if any(flag == "help" for flag, _ in pairs):
        print(USAGE, end="")
        return
    asked, settings = _split(pairs)
    with needs("search", "search"):
        import optuna  # noqa: F401
    from mnist_lightning.searching.team import Team

    again = f"python -m mnist_lightning search {shlex.join(words)}".rstrip()
    with ExitStack() as stack:
        team = Team(asked.jobs or _jobs(settings))  # they import torch while this process does
        stack.callback(team.end)
        from mnist_lightning.searching.search import Search, make_plan

        signals.imported()
        plan = make_plan(settings, asked)
        stack.enter_context(_stoppable(signals, plan.folder, again))
        search = stack.enter_context(Search.opened(plan, team, signals))
        if search.trials() and plan.asked.best:
            search.finish()


@contextmanager
def _stoppable(signals: Signals, folder: Path, again: str) -> Iterator[None]:
    """A signal is noted and looked for, so that no trial is left half told; then it says how to go on."""
    signals.deferred = True
    try:
        yield
        if signals.received:
            raise Interrupted(signals.received)
    except Interrupted as interrupted:
        interrupted.told = f"stopped; the study {folder} is intact: go on with {again}"
        raise
    finally:
        signals.deferred = False


def _split(pairs: Pairs) -> tuple[Asked, Pairs]:
    """The flags of the search, checked, and the settings of fit."""
    asked, settings = Asked(), Pairs()
    for flag, value in pairs:
        if flag in NOT_HERE:
            raise BadSetting(f"--{flag}: {NOT_HERE[flag]}")
        if flag in {one.name for one in fields(Asked)}:
            setattr(asked, flag, _checked(flag, value))
        else:
            settings.append((flag, value))
    return asked, settings


def _checked(flag: str, text: str) -> Any:
    if flag in WORDS and text not in WORDS[flag]:
        raise BadSetting(f"--{flag}: {text!r} is not one of {', '.join(WORDS[flag])}")
    if flag == "study" and (Path(text).name != text or text in ("", "..")):
        raise BadSetting(f"--study {text!r} is no folder's name; where it lies says --trainer.default_root_dir")
    if flag == "storage" and not text.startswith(("postgresql://", "postgres://")):
        raise BadSetting(f"--storage {text}: it takes postgresql://USER@HOST/DATABASE; without it the study is a file")
    try:
        if flag in LEAST:
            number = int(text)
            if number < LEAST[flag]:
                raise BadSetting(f"--{flag} is {number}; it must be at least {LEAST[flag]}")
            return number
        if flag == "minutes":
            minutes = float(text)
            if not minutes > 0:
                raise BadSetting(f"--minutes is {text}; it must be above 0")
            return minutes
    except ValueError as error:
        raise BadSetting(f"--{flag}: {text!r} is no number") from error
    return text


def _jobs(settings: Pairs) -> int:
    """Trials beside each other: one a core; on a GPU one, which it has to itself."""
    accelerator = merged(with_files(settings)).get("trainer.accelerator", "auto")
    if accelerator != "cpu" and any(Path("/proc/driver/nvidia/gpus").glob("*")):
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
