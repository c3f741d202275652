"""The flags of `search` itself, beside fit's settings; checked without torch."""

import difflib
import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from mnist_lightning.errors import BadSetting
from mnist_lightning.words import Pairs

NOT_HERE = {
    "run": "a study has a run for each trial: name the study with --study",
    "folds": "trials are compared on the same validation images",
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


def split(pairs: Pairs) -> tuple[Asked, Pairs]:
    """The flags of the search, checked, and the settings of fit."""
    asked, settings, known = Asked(), Pairs(), [one.name for one in fields(Asked)]
    for flag, value in pairs:
        if flag in NOT_HERE:
            raise BadSetting(f"--{flag}: {NOT_HERE[flag]}")
        if flag in known:
            setattr(asked, flag, _checked(flag, value))
        elif flag != "seed" and (meant := difflib.get_close_matches(flag, known, n=1, cutoff=0.75)):  # that is fit's
            raise BadSetting(f"there is no flag --{flag}; did you mean --{meant[0]}?")
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
