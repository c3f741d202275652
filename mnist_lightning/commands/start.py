"""Where a training starts: which run, which checkpoint, with which settings."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from mnist_lightning.console import say
from mnist_lightning.data.module import MNISTDataModule
from mnist_lightning.errors import BadSetting, UserError
from mnist_lightning.predictor import PRETRAINED, pretrained
from mnist_lightning.processes import computes_in_bf16, is_first_process
from mnist_lightning.run import Run, base_name, differences, run_and_file
from mnist_lightning.settings import taken_by
from mnist_lightning.training.checkpoints import (
    STATE,
    check_model,
    load_fitting_weights,
    model_name,
    read_checkpoint,
    read_weights,
)
from mnist_lightning.words import Pairs, file_pairs, is_recipe, merged, root_and_name, with_files


@dataclass
class Start:
    """Where a training starts: from nothing or from a checkpoint, in a run that is there or in a new one."""

    root: Path
    name: str  # of a new run
    exact: bool  # that name and no other
    job: Any  # what was asked
    settings: Pairs  # all: those of the run that goes on, or of plain `fit`, then files and words
    run: Run | None = None
    file: Path | None = None
    checkpoint: dict[str, Any] | None = None
    goes_on: bool = True  # where that run ended; else from a checkpoint that was named
    read_at: Any = None  # which state of that file the checkpoint is

    def hold(self) -> None:
        """Holds the run that goes on; refuses if another process has trained it since the checkpoint was read."""
        assert self.run is not None
        self.run.hold()
        if self.file and self.read_at != _state_of(self.file):
            raise UserError(f"{self.file} is another than a moment ago, by another training in {self.run}: start again")

    @property
    def step(self) -> int:
        return self.checkpoint[STATE]["step"] if self.checkpoint else -1


def find_start(pairs: Pairs) -> Start:
    """Finds the run and the checkpoint that are meant, and the settings that they bring."""
    asked, recipe = merged(with_files(pairs)), next((str(file) for name, file in pairs if name == "config"), None)
    root, name = root_and_name(asked)
    base = base_name(recipe, asked["model"].__name__ if "model" in asked else None)
    start = Start(root, name or base or "cnn", bool(name), json.loads(json.dumps(pairs, default=str)), [])
    if "help" not in asked and "ckpt_path" in asked:
        if "init_from" in asked:
            raise BadSetting("--init_from starts a new training, --ckpt_path goes on with one: give one of them")
        if asked["ckpt_path"] == PRETRAINED:
            raise BadSetting(f"--ckpt_path goes on with a training: --init_from {PRETRAINED} starts from those weights")
        start.run, start.file = run_and_file(root, name, base, str(asked["ckpt_path"]))
        start.goes_on = asked["ckpt_path"] == "last"
    elif "help" not in asked:
        start.run = Run.cut_off(root, start.job)
        if start.run and any(start.run.folder.glob("*.ckpt")):  # else it had not got to its first step
            start.file = start.run.checkpoint("last")
    if start.file:
        start.read_at = _state_of(start.file)
        start.checkpoint = read_checkpoint(start.file)
        if "format" not in start.checkpoint[STATE]:  # position and order meant something else
            raise UserError(
                f"{start.file} was written by an earlier version of mnist_lightning, which trained in another way: it "
                "can be tested and used, not continued; start a new run without --ckpt_path"
            )
        start.name = name or base or start.checkpoint[STATE]["model"].rpartition(".")[2].lower()
        own = _settings_of(start.checkpoint, start.file, root, asked)
    else:
        own = plain_settings(asked, recipe)
    start.settings = settled(own, pairs, goes_on=start.file is not None)
    return start


def plain_settings(asked: dict[str, Any], recipe: str | None) -> Pairs:
    """The settings of plain `fit`; none where a recipe or a model is asked for."""
    if recipe is not None or "model" in asked:
        return []
    slow = not computes_in_bf16(asked.get("trainer.accelerator"))
    return [*file_pairs(Path("cnn")), ("data.source", "auto"), *[("trainer.precision", "32-true")] * slow]


def settled(own: Pairs, pairs: Pairs, goes_on: bool) -> Pairs:
    """A run's own settings, then those of files and words.

    The bf16 of a recipe of ours gives way to what a run that goes on was trained in, and to float32 for a processor
    that only emulates bf16.
    """
    settings = own + with_files(pairs)
    if not bf16_of_a_recipe(pairs):
        return settings
    if goes_on:
        return settings + [pair for pair in own if pair[0] == "trainer.precision"]
    slow = not computes_in_bf16(merged(settings).get("trainer.accelerator"))
    return [*settings, *[("trainer.precision", "32-true")] * slow]


def bf16_of_a_recipe(pairs: Pairs) -> str | None:
    """The precision in bf16 that a recipe of ours asks for, and neither a word nor another file after it."""
    files = [Path(file) for name, file in pairs if name == "config"]
    asked = [(file, value) for file in files for name, value in file_pairs(file) if name == "trainer.precision"]
    asked += [(Path(), value) for name, value in pairs if name == "trainer.precision"]
    file, value = asked[-1] if asked else (Path(), None)
    return str(value) if "bf16" in str(value) and is_recipe(file) else None


def tell_of_precision(pairs: Pairs, precision: Any, on_cpu: bool) -> None:
    """Says what a new training comes to on a processor without bf16."""
    wish = bf16_of_a_recipe(pairs)
    if wish and precision == "32-true":
        say(f"In float32: the recipe's {wish} is slow on this processor; --trainer.precision {wish} insists on it")
    elif on_cpu and "bf16" in str(precision) and not computes_in_bf16("cpu"):
        say(f"{precision} is slow on this processor; --trainer.precision 32-true may take a tenth of the time")


def _state_of(file: Path) -> tuple[int, int] | None:
    return (file.stat().st_ino, file.stat().st_mtime_ns) if file.is_file() else None


def _settings_of(checkpoint: dict[str, Any], file: Path, root: Path, asked: dict[str, Any]) -> Pairs:
    """The settings of the run that a checkpoint belongs to."""
    own = Run(file.parent).config
    if own.exists() and file.resolve().parent.parent == root.resolve():
        return file_pairs(own)
    if Run(file.parent).is_there() and file.resolve().parent.parent == root.resolve() and is_first_process():
        say(f"{own} is not there: model and data are set as the checkpoint has them, the rest as by default or given")
    # A file from elsewhere: its model and data, as plain values; nothing that could name code.
    state, data = checkpoint[STATE], asked.get("data", MNISTDataModule)
    model: Any = asked.get("model") or check_model(checkpoint, file)
    values = {"trainer.precision": state["precision"], "trainer.accumulate_grad_batches": state["accumulate"]}
    values |= {"freeze": state.get("freeze") or None, "loop.step": state.get("step_by", "eager")}
    for group, kind, entry in (("model", model, "hyper_parameters"), ("data", data, "datamodule_hyper_parameters")):
        known, taken = checkpoint.get(entry, {}), taken_by(group, kind)
        values[group] = kind
        values |= {f"{group}.{name}": value for name, value in known.items() if f"{group}.{name}" in taken}
    return list(values.items())


def weights_file(root: Path, named: str) -> Path:
    """The file that `--init_from` means: a checkpoint, of a run or its folder the best, or the shipped weights."""
    if Path(named).is_file():
        return Path(named)
    if named == PRETRAINED:
        return pretrained()
    run = Run(Path(named)) if Run(Path(named)).is_there() else Run(root / named)
    if not run.is_there():
        there = ", ".join(other.name for other in Run.all(root)) or "none"
        raise UserError(
            f"--init_from {named} is no file and no run; there are these runs in {root}: {there}; {PRETRAINED} means "
            "the shipped weights"
        )
    return run.checkpoint("best" if run.best.exists() else "last")


def start_from_weights(model: Any, file: Path) -> None:
    """Gives a new model the weights that fit it, and says which layers are fresh."""
    fresh = load_fitting_weights(model, read_weights(file), file)
    if is_first_process():
        say(f"Starts from the weights of {file}" + (f"; fresh are {', '.join(fresh)}" if fresh else ""))


def check_resumable(start: Start, model: Any, data: Any, trainer: Trainer, freeze: list[str]) -> None:
    """Refuses to go on otherwise than the training did that wrote the checkpoint."""
    assert start.checkpoint is not None
    file, state, name = start.file, start.checkpoint[STATE], model_name(model)
    if state["model"] != name:
        raise UserError(
            f"{file} holds a {state['model']}, this is a {name}: give the recipe that it was trained with, or start a "
            "new run without --ckpt_path"
        )
    if found := differences(start.checkpoint, model, data, trainer, freeze):
        raise UserError(
            f"{file} was trained otherwise ({'; '.join(found)}): give the same, or start a new run without --ckpt_path"
        )
    if state["world_size"] != trainer.world_size and trainer.is_global_zero:
        say(
            f"The checkpoint is of {state['world_size']} processes, this is {trainer.world_size} with as many images "
            "in a step: the order goes on unchanged; dropout draws anew."
        )
    if trainer.max_epochs not in (None, -1) and state["epoch"] > trainer.max_epochs:
        raise UserError(
            f"{file} has {state['epoch']} epochs already, more than --trainer.max_epochs {trainer.max_epochs}: raise it"
        )
    if isinstance(data, MNISTDataModule):
        data.expected_fingerprint = start.checkpoint.get("MNISTDataModule", {}).get("fingerprint")
