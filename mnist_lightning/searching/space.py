"""The space of a search: which settings, and what each may be; from a YAML file, or by rule from the start's values."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mnist_lightning.errors import BadSetting
from mnist_lightning.settings import parsed, yaml_value
from mnist_lightning.words import Pairs, merged

KINDS = ("log", "uniform", "int")
NUMBER = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")  # which YAML takes for a word
SAME_IMAGES = "trials are compared on the same validation images"
ONE_PROCESS = "a trial is one process"
NOT_SEARCHED = {
    **dict.fromkeys(("data.val_size", "data.root", "data.source", "data.subset", "data.label"), SAME_IMAGES),
    **dict.fromkeys(("data.folds", "data.fold"), SAME_IMAGES),
    **dict.fromkeys(("data.classes", "data.train_file", "data.test_file", "data"), SAME_IMAGES),
    **dict.fromkeys(("trainer.limit_val_batches", "trainer.overfit_batches"), SAME_IMAGES),
    **dict.fromkeys(("trainer.devices", "trainer.num_nodes", "trainer.strategy", "trainer.accelerator"), ONE_PROCESS),
    "data.seed": "the end tries several seeds",
    "data.test_each_epoch": "nothing is chosen on test images",
    "trainer.default_root_dir": "each trial has a folder of its own",
    "trainer.logger": "each trial has metrics.csv",
    "trainer.fast_dev_run": "it leaves nothing to compare",
}
FACTOR = 5  # from the start's learning rate to either end


@dataclass(frozen=True)
class Dimension:
    """A setting and what it may be: some values, or a range from `low` to `high`, of whole numbers if `whole`."""

    name: str
    values: tuple[Any, ...] = ()
    low: float = 0
    high: float = 0
    log: bool = False
    whole: bool = False
    step: float | None = None

    def suggest(self, trial: Any) -> None:
        """Draws its value for an Optuna trial; one that the trial has already stays."""
        if self.values:
            trial.suggest_categorical(self.name, [_label(value) for value in self.values])
        elif self.whole:
            trial.suggest_int(self.name, int(self.low), int(self.high), step=int(self.step or 1), log=self.log)
        else:
            trial.suggest_float(self.name, self.low, self.high, step=self.step, log=self.log)

    def setting(self, drawn: Any) -> Any:
        """What Optuna drew, as a setting."""
        return next((value for value in self.values if _label(value) == drawn), drawn)

    def drawn(self, setting: Any) -> Any:
        """A setting, as Optuna would draw it; None if it lies outside."""
        if self.values:
            return next((_label(value) for value in self.values if value == setting), None)
        number = isinstance(setting, int | float) and not isinstance(setting, bool)
        return setting if number and self.low <= setting <= self.high and not self.step else None

    def ends(self) -> Sequence[Any]:
        """The values that are checked before anything starts."""
        return self.values or (self.low, self.high)

    def told(self) -> str:
        """What it may be, in words that tell it from every other."""
        if self.values:
            return json.dumps(self.values)
        form = "log" if self.log else "uniform"
        return f"{form} [{self.low:g}, {self.high:g}]" + (f" step {self.step:g}" if self.step else "")


def _label(value: Any) -> Any:
    """A value as a choice of Optuna's, which are numbers and words."""
    return value if value is None or isinstance(value, bool | int | float | str) else json.dumps(value)


# ---------------------------------------------------------------------- from a file


def read_space(path: Path) -> list[Dimension]:
    """The space in a YAML file; raises BadSetting in one line."""
    try:
        content = yaml_value(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadSetting(f"--space {path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        mark = getattr(error.__cause__, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise BadSetting(f"--space {path}{where} is not YAML: {getattr(error.__cause__, 'problem', error)}") from error
    if not isinstance(content, Mapping) or not content:
        raise BadSetting(f"--space {path} holds no settings: it takes lines such as model.lr: {{log: [1e-4, 1e-2]}}")
    found = _dimensions(content, "", f"--space {path}")
    names = [dimension.name for dimension in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise BadSetting(f"--space {path}: {twice} is there twice")
    return found


def _dimensions(content: Mapping[Any, Any], prefix: str, where: str) -> list[Dimension]:
    found = []
    for key, value in content.items():
        name = prefix if key == "init_args" else f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, Mapping) and value and not set(value) & {*KINDS, "step"}:
            found += _dimensions(value, name, where)
            continue
        _refuse(name, where)
        found.append(_dimension(name, value, where))
    return found


def _refuse(name: str, where: str) -> None:
    group = name.partition(".")[0]
    if group in ("checkpoint", "loop", "seed", "run", "config", "ckpt_path", "debug"):
        raise BadSetting(f"{where}: {name} is no setting to search for: it changes no network")
    if name in NOT_SEARCHED:
        raise BadSetting(f"{where}: {name} is no setting to search for: {NOT_SEARCHED[name]}")


def _dimension(name: str, value: Any, where: str) -> Dimension:
    if isinstance(value, list):
        if not value:
            raise BadSetting(f"{where}: {name} is an empty list: name the values that it may have")
        values = tuple(_number(one) for one in value)
        return Dimension(name, tuple(one for at, one in enumerate(values) if one not in values[:at]))
    kind = next((kind for kind in KINDS if isinstance(value, Mapping) and kind in value), None)
    ends = [_number(end) for end in several_of(value[kind])] if kind else []
    right = len(ends) == 2 and all(isinstance(end, int | float) and not isinstance(end, bool) for end in ends)
    if kind is None or not right or set(value) - {kind, "step"}:
        raise BadSetting(
            f"{where}: {name} takes a list of values, {{log: [low, high]}}, {{uniform: [low, high]}} or "
            f"{{int: [low, high]}}; this is {value}"
        )
    whole, step = all(isinstance(end, int) for end in ends), _number(value.get("step"))
    low, high = ends
    if low >= high or (kind == "log" and low <= 0):
        must = "the first must be above 0" if low < high else "the first must be the lower one"
        raise BadSetting(f"{where}: {name} goes from {low} to {high}: {must}")
    if kind == "int" and not whole:
        raise BadSetting(f"{where}: {name} is of whole numbers; it goes from {low} to {high}")
    if step is not None and (kind == "log" or not isinstance(step, int | float) or not 0 < step <= high - low):
        raise BadSetting(f"{where}: {name}: step is {step}; it lies within the range, which is not log")
    if step is not None and kind == "int" and not isinstance(step, int):
        raise BadSetting(f"{where}: {name} is of whole numbers; its step is {step}")
    return Dimension(name, (), low, high, kind == "log", kind == "int", step)


def several_of(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _number(value: Any) -> Any:
    """1e-4 is a word to YAML."""
    if isinstance(value, list):
        return [_number(one) for one in value]
    return float(value) if isinstance(value, str) and NUMBER.fullmatch(value) else value


def checked(space: Sequence[Dimension], start: Pairs, where: str) -> list[Dimension]:
    """The space, of whole numbers where a setting takes no others. Raises BadSetting where a value cannot be set.

    What a model makes of a value shows when it is made: that trial fails.
    """
    for turn in range(max(len(dimension.ends()) for dimension in space)):
        ends = [(dimension.name, dimension.ends()[min(turn, len(dimension.ends()) - 1)]) for dimension in space]
        try:
            parsed("fit", merged(start + ends))
        except BadSetting as error:
            raise BadSetting(f"{where}: {error}") from error
    found = []
    for dimension in space:
        if not dimension.values and isinstance(dimension.low, int) and isinstance(dimension.high, int):
            try:
                parsed("fit", merged([*start, (dimension.name, dimension.low + 0.5)]))
            except BadSetting:
                dimension = replace(dimension, whole=True)
        found.append(dimension)
    return found


# ---------------------------------------------------------------------- by rule


def default_space(model: Mapping[str, Any], data: Mapping[str, Any], objective: str) -> list[Dimension]:
    """What changes how well the start's network learns in its time; its size and its epochs stay as they are.

    A larger network that trains longer is nearly always better: that needs no search, but a decision.
    """
    space = []
    if isinstance(rate := model.get("lr"), float) and rate > 0:
        space.append(Dimension("model.lr", (), rate / FACTOR, rate * FACTOR, log=True))
    if isinstance(size := data.get("batch_size"), int):
        sizes = tuple(one for one in (size // 2, size, size * 2) if one)
        space.append(Dimension("data.batch_size", sizes))
    if isinstance(model.get("dropout"), int | float):
        space.append(Dimension("model.dropout", (), 0.0, 0.6))
    if objective == "accuracy" and model.get("loss") == "cross_entropy" and "label_smoothing" in model:
        space.append(Dimension("model.label_smoothing", (), 0.0, 0.2))  # its cost in loss is meant
    if "scheduler" in model and not model.get("scheduler_args") and model["scheduler"] in (None, "OneCycleLR"):
        space.append(Dimension("model.scheduler", (None, "OneCycleLR")))
    if model.get("optimizer") == "SGD":
        space.append(Dimension("model.optimizer_args.momentum", (), 0.0, 0.95))
    if "augment" in data:
        kinds = ("none", "affine", "all") if data["augment"] == "all" else ("none", "affine")
        space.append(Dimension("data.augment", kinds))
    return space


def start_values(space: Sequence[Dimension], groups: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """The start's own settings as Optuna would draw them; None where one of them is not in the space."""
    found = {}
    for dimension in space:
        group, _, inside = dimension.name.partition(".")
        value: Any = groups.get(group, {})
        for name in inside.split("."):
            if not isinstance(value, Mapping) or name not in value:
                return None
            value = value[name]
        drawn = dimension.drawn(value)
        if drawn is None and value is not None:
            return None
        found[dimension.name] = drawn
    return found
