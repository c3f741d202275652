"""`fit --seeds` and `fit --folds`: several networks, one after the other, in one run: a folder of runs."""

import copy
import json
import os
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from mnist_lightning.commands.average import average_of
from mnist_lightning.commands.evaluate import keep_result
from mnist_lightning.commands.start import plain_settings, settled
from mnist_lightning.config_yaml import resumable
from mnist_lightning.console import console, say
from mnist_lightning.errors import BadSetting, UserError
from mnist_lightning.predictor import Predictor
from mnist_lightning.processes import Interrupted, is_first_process
from mnist_lightning.run import Run, base_name
from mnist_lightning.settings import parsed
from mnist_lightning.training.checkpoints import STATE, read_checkpoint
from mnist_lightning.words import Pairs, file_pairs, merged, root_and_name, with_files

KINDS = {"seeds": "seed", "folds": "fold"}  # the setting that says how many, and what each is called
OF_ALL = ("run", "ckpt_path", "trainer.default_root_dir", *KINDS)  # what is said of all of them together
NAME = "MNIST_LIGHTNING_RUN"  # an environment variable: the run, for processes that Lightning starts for other ranks


@dataclass
class Several:
    """Networks that are trained one after the other, and what was asked for all of them."""

    kind: str  # seeds or folds
    config: Any  # all settings, parsed
    pairs: Pairs  # those that each new one is trained with
    given: Pairs  # those of them that are given now, beside what one that goes on is trained with
    job: Any  # what was asked, as JSON has it
    root: Path
    name: str  # of a new run
    exact: bool  # that name and no other
    run: Run | None  # the one that goes on

    @property
    def count(self) -> int:
        return int(self.config[self.kind])

    def member(self, number: int) -> tuple[str, Pairs]:
        """Name and own settings of one of them."""
        if self.kind == "folds":
            return f"fold-{number}", [("data.folds", self.count), ("data.fold", number), ("data.val_size", None)]
        return f"seed-{self.config.seed + number}", [("seed", self.config.seed + number)]


def asked_for(pairs: Pairs) -> Several | None:
    """What `--seeds` or `--folds` asks for, of a new run or of one that goes on; None where it is one network."""
    asked, recipe = merged(with_files(pairs)), next((str(file) for name, file in pairs if name == "config"), None)
    if "help" in asked:
        return None
    (root, name), known = root_and_name(asked), []
    base = base_name(recipe, asked["model"].__name__ if "model" in asked else None)
    job = json.loads(json.dumps(pairs, default=str))
    run = _goes_on(root, name, base, asked, job)
    if run and run.config.exists() and (run.members() or _kinds(merged(file_pairs(run.config)))):
        known = file_pairs(run.config)
    settings = merged(settled(known or plain_settings(asked, recipe), pairs, goes_on=bool(known)))
    kinds = _kinds(settings)
    if not kinds:
        return None
    _refuse(kinds, settings, {name for name, _ in pairs})
    given = [(name, value) for name, value in pairs if name not in OF_ALL]
    fresh = [pair for pair in settled(known, given, True) if pair[0] not in OF_ALL] if known else given
    return Several(kinds[0], parsed("fit", settings), fresh, given, job, root, name or base or "cnn", bool(name), run)


def _goes_on(root: Path, name: str | None, base: str | None, asked: dict[str, Any], job: Any) -> Run | None:
    """The run that may go on: that which is named, the newest, or that of a job that was started again."""
    if asked.get("ckpt_path") == "last":
        return Run.named(root, name) if name else Run.newest(root, base)
    if "ckpt_path" in asked:
        return None
    run = Run.cut_off(root, job) or (Run(root / name) if name else None)
    return run if run and run.members() and _kinds(asked) else None


def _kinds(settings: Mapping[str, Any]) -> list[str]:
    return [kind for kind in KINDS if settings.get(kind) is not None]


def _refuse(kinds: list[str], settings: Mapping[str, Any], given: set[str]) -> None:
    """Raises BadSetting for what does not go with several networks."""
    kind = kinds[0]
    if len(kinds) > 1:
        raise BadSetting("--seeds and --folds: a run is of one or the other")
    if settings.get("ckpt_path") not in (None, "last"):
        raise BadSetting(f"--ckpt_path: --{kind} goes on with all networks of a run: give last, or leave --{kind} out")
    for flag in given & {"data.val_size", "data.folds", "data.fold"} if kind == "folds" else ():
        raise BadSetting(f"--{flag}: --folds says which images are held out: leave it out")
    if settings.get("trainer.fast_dev_run"):
        raise BadSetting(f"--trainer.fast_dev_run tries one network: leave --{kind} out")


def train_members(several: Several, train: Callable[[Pairs], dict[str, float]]) -> tuple[dict[str, float], Path]:
    """Trains those that are not done, each in a run of its own; the metrics of all, and the folder that they lie in.

    `train` takes a network's settings and returns its metrics.
    """
    run, metrics = _held(several), []
    try:
        if is_first_process():
            text, lost = resumable(several.config)
            run.write_settings(f"{several.kind}: {several.count}\n{text}")
            run.note_job(several.job)
            if lost:
                say(f"{run.config} cannot hold all settings ({', '.join(lost)}): to continue the run, give them again")
        for number in range(several.count):
            metrics.append(_trained(several, run, number, train))
        members = [Run(run.folder / several.member(number)[0]) for number in range(several.count)]
        found = _summary(members, metrics)
        if is_first_process():
            found |= _tell(several, run, members, metrics, found)
        return found, run.folder
    finally:
        run.release()


def _held(several: Several) -> Run:
    """The run's folder, which this process alone writes to, or the first of those that train together."""
    if is_first_process():
        run = several.run or Run.new(several.root, several.name, several.exact)
        if several.run:
            run.hold()
        os.environ[NAME] = run.name
        return run
    if not (several.exact or NAME in os.environ):
        raise BadSetting(
            f"--{several.kind}: processes that train together have to know the run's name: give --run NAME"
        )
    return several.run or Run(several.root / os.environ.get(NAME, several.name))


def _trained(several: Several, run: Run, number: int, train: Callable[[Pairs], dict[str, float]]) -> dict[str, float]:
    """Trains one, or goes on with it; its metrics."""
    name, own = several.member(number)
    own += [("run", name), ("trainer.default_root_dir", str(run.folder)), *((kind, None) for kind in KINDS)]
    member, pairs = Run(run.folder / name), several.pairs
    if any(member.folder.glob("*.ckpt")):
        pairs, own = several.given, [*own, ("ckpt_path", "last")]
        if several.kind == "folds" and member.config.exists():
            own.append(("data.val_size", merged(file_pairs(member.config)).get("data.val_size")))
    if is_first_process():
        say(f"{number + 1} of {several.count}: {member}")
    try:
        # objects that were given in Python, such as callbacks, remember what they have seen
        return train([*copy.deepcopy(pairs), *own])
    except Interrupted as interrupted:
        told = str(interrupted).partition(": continue with ")[0]
        interrupted.told = f"{told}: continue with {run.words('last')}"
        raise


# ---------------------------------------------------------------------- what came of them


def _summary(members: list[Run], metrics: list[dict[str, float]]) -> dict[str, float]:
    """Mean and standard deviation over the networks, of validation and test accuracy."""
    tested = [one["test_acc"] for one in metrics if "test_acc" in one]
    validated = [best[0] for member in members if (best := _chosen(member)["best"])]
    found = {}
    for name, values in (("val_acc", validated), ("test_acc", tested)):
        if values:
            found[f"{name}_mean"] = statistics.mean(values)
            found[f"{name}_std"] = statistics.stdev(values) if len(values) > 1 else 0.0
    return found


def _chosen(member: Run) -> dict[str, Any]:
    """What the checkpoint that was chosen says of itself."""
    state = read_checkpoint(member.best if member.best.exists() else member.last)[STATE]
    return {"best": None, "epoch": None} | state


def _tell(
    several: Several, run: Run, members: list[Run], metrics: list[dict[str, float]], found: dict[str, float]
) -> dict[str, float]:
    """The table of the networks, and the mean of their probabilities on the test images, whose metrics it returns."""
    table = Table("network", "epoch", "validation", "test", title=escape(str(run)))
    for member, one in zip(members, metrics, strict=True):
        state = _chosen(member)
        validated, tested = state["best"] and state["best"][0], one.get("test_acc")
        table.add_row(member.name, str(state["epoch"]), *("" if v is None else f"{v:.2%}" for v in (validated, tested)))
    table.add_section()
    spread = [
        f"{found[f'{name}_mean']:.2%} ± {100 * found[f'{name}_std']:.2f}" if f"{name}_mean" in found else ""
        for name in ("val_acc", "test_acc")
    ]
    table.add_row("mean ± standard deviation", "", *spread)
    averaged: dict[str, Any] = {}
    if "test_acc_mean" in found:
        try:
            averaged = average_of(Predictor(run.folder).members, {})[0]
            table.add_row("mean of their probabilities", "", "", f"{averaged['accuracy']:.2%}", style="bold")
        except UserError as error:
            say(f"the networks are not averaged: {error}")
    console.print(table)
    if several.kind == "folds":
        say("Validation: of the chosen epoch, on the fold that it was chosen by.")
    if not averaged:
        return {}
    tests = {member.name: one.get("test_acc") for member, one in zip(members, metrics, strict=True)}
    keep_result(averaged | {"checkpoint": str(run), "networks": tests} | found, run.result)
    return {"test_acc": averaged["accuracy"], "test_loss": averaged["loss"]}
