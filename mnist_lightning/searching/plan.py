"""What a search compares: the settings that it starts from, its space, what it calls better; checked at once."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna

from mnist_lightning.commands.start import find_start, tell_of_precision
from mnist_lightning.console import say
from mnist_lightning.data.module import MNISTDataModule
from mnist_lightning.errors import BadSetting, UserError
from mnist_lightning.run import Run
from mnist_lightning.searching.flags import Asked
from mnist_lightning.searching.space import Dimension, checked, default_space, read_space, start_values
from mnist_lightning.settings import parsed
from mnist_lightning.words import Pairs, merged

REDUCTION = 3  # of Hyperband: one in so many trials goes on to so many times the epochs
# Settings that are a machine's: they may differ between those that share a study.
OF_A_MACHINE = {
    "data.root",
    "data.cache",
    "trainer.default_root_dir",
    "trainer.accelerator",
    "trainer.devices",
    "debug",
}


@dataclass
class Plan:
    """A search before it begins.

    `start`: the settings as they were given; `trial`: those that a trial has besides its own; `first`: the start's
    values as the first trial, if they lie in the space; `seed`: the trials'; those of the end count on from it.
    """

    asked: Asked
    folder: Path
    start: Pairs
    trial: Pairs
    space: list[Dimension]
    first: dict[str, Any] | None
    data: Any
    seed: int
    epochs: int | None

    @property
    def seeds(self) -> range:
        """Of the end: others than that of the trials, whose luck was chosen with them."""
        return range(self.seed + 1, self.seed + 1 + self.asked.seeds)

    def settings(self, params: Mapping[str, Any]) -> Pairs:
        """What a trial with these values trains with."""
        return self.trial + [(one.name, one.setting(params[one.name])) for one in self.space if one.name in params]

    def pruner(self) -> optuna.pruners.BasePruner:
        """What ends a trial early, by its value after each epoch."""
        if self.asked.pruner == "none" or not self.epochs or self.epochs < 2:
            return optuna.pruners.NopPruner()
        if self.asked.pruner == "median" or self.epochs < REDUCTION:
            return optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=1)
        first = -(-self.epochs // REDUCTION)  # a schedule warms up: the first epoch says little
        return optuna.pruners.HyperbandPruner(first, self.epochs, REDUCTION)

    def terms(self) -> dict[str, Any]:
        """What all who share a study agree on."""
        terms = {f"--{name}": getattr(self.asked, name) for name in ("objective", "pruner")}
        terms |= {f"space of {one.name}": one.told() for one in self.space}
        for name, value in merged(self.start).items():
            if name not in OF_A_MACHINE:
                terms[f"--{name}"] = value.__name__ if isinstance(value, type) else value
        return json.loads(json.dumps(terms, default=str))


def make_plan(settings: Pairs, asked: Asked) -> Plan:
    """The plan of a command; raises BadSetting in one line for what cannot be."""
    start = find_start(settings)
    given = [pair for pair in start.settings if pair[0] != "config"]
    values = merged(given)
    tell_of_precision(settings, values.get("trainer.precision"), on_cpu=False)  # where trials train is not known yet
    config = parsed("fit", values)
    _refuse_several(config, values)
    folder = start.root / (asked.study or f"{start.name}-search")
    if Run(folder).is_there():
        raise UserError(f"{folder} is a run: choose another name with --study")
    config.model.make()
    data = config.data.make()
    ours = isinstance(data, MNISTDataModule)
    trial: Pairs = [*given, ("trainer.enable_model_summary", False), ("trainer.enable_progress_bar", False)]
    if "trainer.logger" not in values:
        trial.append(("trainer.logger", False))
    if ours and data.hparams["val_size"] == 0:
        trial.append(("data.val_size", None))
    if ours and data.hparams["test_each_epoch"]:
        trial.append(("data.test_each_epoch", False))
    groups = {group: config[group].settings for group in ("model", "data", "trainer")}
    where = f"--space {asked.space}" if asked.space else "the space"
    space = (
        read_space(Path(asked.space))
        if asked.space
        else default_space(groups["model"], groups["data"], asked.objective)
    )
    if not space:
        raise BadSetting(
            f"--space: {config.model.kind.__name__} has no setting that is searched by default: give a file"
        )
    space = checked(space, given, where)
    first = start_values(space, groups)
    data = parsed("fit", merged(trial)).data.make()
    return Plan(asked, folder, given, trial, space, first, data, config.seed, _epochs(space, groups["trainer"]))


def _refuse_several(config: Any, values: Mapping[str, Any]) -> None:
    trainer = config.trainer.settings
    if several := next((name for name in ("seeds", "folds") if name in values), None):
        raise BadSetting(f"{several} in a recipe trains several networks: a trial is one; leave it out")
    if trainer.get("devices") not in ("auto", None, 1, "1") or trainer.get("num_nodes") not in (None, 1):
        raise BadSetting("--trainer.devices: a trial is one process; --jobs trains several of them beside each other")
    if trainer.get("fast_dev_run"):
        raise BadSetting("--trainer.fast_dev_run leaves nothing to compare: take --trainer.max_epochs 1")


def _epochs(space: list[Dimension], trainer: Mapping[str, Any]) -> int | None:
    """The most epochs that a trial may have, if they are known."""
    for one in space:
        if one.name == "trainer.max_epochs":
            return int(max(one.ends()))
    epochs = trainer.get("max_epochs")
    return epochs if epochs and epochs > 0 else None


def prepare(data: Any) -> Pairs:
    """Has the digits read, and says which; the settings that follow from it."""
    if not isinstance(data, MNISTDataModule):
        return []
    data.prepare_data()
    data.setup("fit")
    if told := data.told():
        say(told)
    if data.source == "synthetic" and data.hparams["source"] == "auto":
        reason = data.download_problem or f"there is no MNIST in {data.root}"
        say(f"Searching on SYNTHETIC digits, not on MNIST: {reason}; give its folder with --data.root or MNIST_ROOT")
    held_out, rest = len(data.labels("val")), len(data.labels("train"))
    if not held_out:
        raise BadSetting("--data.val_size is 0: trials are compared on images that are held out")
    say(f"{held_out:,} training images of {data.source} are held out to compare trials on, {rest:,} are trained on")
    return [("data.source", data.source)]
