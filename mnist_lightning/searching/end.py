"""The end of a search: the best settings trained anew, with several seeds, beside the start's; then one test."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from optuna.trial import FrozenTrial, TrialState
from scipy.stats import ttest_rel

from mnist_lightning.searching.space import Dimension
from mnist_lightning.searching.study import Study
from mnist_lightning.searching.team import Team
from mnist_lightning.settings import CLASSES, yaml_value
from mnist_lightning.words import Pairs, merged

START = -1  # in the place of a trial's number: the settings that the search started from
TEST = "test"  # an attribute of the study of the end: test accuracies, by the number of the settings


@dataclass
class Finalist:
    """Settings that were trained anew: the search's trial, what differs from the start, values and losses by seed."""

    number: int
    params: dict[str, Any]
    values: dict[int, float]
    losses: dict[int, float]

    @property
    def name(self) -> str:
        return name_of(self.number)

    @property
    def mean(self) -> float:
        return statistics.mean(self.values.values())

    @property
    def std(self) -> float | None:
        """Standard deviation over seeds, of a sample; None of one."""
        return statistics.stdev(self.values.values()) if len(self.values) > 1 else None

    def beside(self, other: "Finalist") -> tuple[float, float | None, float | None] | None:
        """Mean and std of the differences to another at the same seeds, and p of a paired t-test where there is one."""
        seeds = sorted(self.values.keys() & other.values.keys())
        if not seeds or other is self:
            return None
        mine, others = ([one.values[seed] for seed in seeds] for one in (self, other))
        differences = [a - b for a, b in zip(mine, others, strict=True)]
        std = statistics.stdev(differences) if len(seeds) > 1 else None
        return statistics.mean(differences), std, float(ttest_rel(mine, others).pvalue) if std else None


def name_of(number: int) -> str:
    """What settings are called."""
    return "start" if number == START else f"trial {number}"


def run_of(number: int, seed: int) -> str:
    """The run of a training of the end."""
    return f"{name_of(number).replace(' ', '')}-seed{seed}"


def by_rank(trials: Iterable[FrozenTrial], maximize: bool) -> list[FrozenTrial]:
    """Trials that came to their end, the best first; of equals that with the lower loss, then the earlier one."""
    sign = -1 if maximize else 1
    done = [trial for trial in trials if trial.state == TrialState.COMPLETE and trial.value is not None]
    return sorted(done, key=lambda one: (sign * (one.value or 0), one.user_attrs.get("loss") or 0, one.number))


def best_numbers(search: Study, maximize: bool, most: int, first: Mapping[str, Any] | None) -> list[int]:
    """The start, and so many of the best trials, each of other settings."""
    seen, numbers = [dict(first)] if first else [], [START]
    for trial in by_rank(search.trials(), maximize):
        if len(numbers) <= most and trial.params not in seen:
            seen.append(trial.params)
            numbers.append(trial.number)
    return numbers


def of_final(search: Iterable[FrozenTrial], final: Iterable[FrozenTrial]) -> list[Finalist]:
    """What came of all trainings of the end."""
    params = {trial.number: trial.params for trial in search}
    found: dict[int, Finalist] = {}
    for trial in final:
        if trial.state != TrialState.COMPLETE or trial.value is None:
            continue
        number, seed = trial.user_attrs["of"], trial.user_attrs["seed"]
        one = found.setdefault(number, Finalist(number, params.get(number, {}), {}, {}))
        one.values[seed], one.losses[seed] = trial.value, trial.user_attrs.get("loss") or 0.0
    return list(found.values())


def winner_of(those: Sequence[Finalist], maximize: bool) -> Finalist:
    """The best mean; of equals the lower loss, then the start."""
    sign = -1 if maximize else 1
    return min(those, key=lambda one: (sign * one.mean, statistics.mean(one.losses.values()), one.number))


def mean_std(values: Sequence[float]) -> tuple[float, float | None, int]:
    """Mean, standard deviation of a sample, and of how many."""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None, len(values)


def test_accuracies(team: Team, folder: Path, names: Sequence[str]) -> list[dict[str, Any]]:
    """What the best checkpoints of these runs read of the test images; those that lie on another machine are not."""
    left = [name for name in names if (folder / name / "best.ckpt").exists()]
    team.fill()
    count, found, asked = len(left), list[dict[str, Any]](), 0
    while asked < count or len(found) < count:
        for worker in team.idle() if asked < count else []:
            if asked < count:
                worker.tell(test=left[asked], root=str(folder), settings=[])
                asked += 1
        for worker, message in team.answers(0.25):
            if message is None:
                found.append({"failed": worker.last_words()})
                team.replace(worker)
            elif "ready" not in message:
                found.append(message)
    return [message["tested"] for message in found if "tested" in message]


# ---------------------------------------------------------------------- the recipe


def recipe(start: Pairs, space: Sequence[Dimension], params: Mapping[str, Any], told: Iterable[str]) -> str:
    """YAML that `fit --config` takes: the start's settings and a trial's values, with some lines about them."""
    drawn = [(one.name, one.setting(params[one.name])) for one in space if one.name in params]
    content: dict[str, Any] = {}
    settings = {name: value for name, value in merged([*start, *drawn]).items() if name not in ("run", "debug")}
    for name, value in settings.items():
        group, _, inside = name.partition(".")
        if name in CLASSES and isinstance(value, type):
            content.setdefault(group, {})["class_path"] = path_of(value)
            continue
        classy = group in CLASSES and group in settings
        place = content.setdefault(group, {}) if inside else content
        place = place.setdefault("init_args", {}) if classy and inside else place
        place[inside or group] = _plain(value)
    notes = "".join(f"# {line}\n" for line in told)
    return notes + yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=120)


def path_of(kind: type) -> str:
    return kind.__name__ if kind.__module__.startswith("mnist_lightning.") else f"{kind.__module__}.{kind.__qualname__}"


def _plain(value: Any) -> Any:
    """A word of the command line as what it means."""
    if isinstance(value, str):
        try:
            return yaml_value(value)
        except ValueError:
            return value
    return value
