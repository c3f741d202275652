"""What `fit` does."""

import json
import shutil
import signal
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from rich.markup import escape
from rich.panel import Panel

from mnist_lightning import runs
from mnist_lightning.console import console, say
from mnist_lightning.data.module import MNISTDataModule
from mnist_lightning.errors import BadSetting, UserError, of_another_process
from mnist_lightning.settings import PLAIN_FIT, given, instantiate, option, parse, parser_of, settings_file
from mnist_lightning.tools.evaluate import run_stage, tell
from mnist_lightning.training.callbacks import RunKeeper
from mnist_lightning.training.checkpoints import STATE, also_known_as, check_model, read_checkpoint
from mnist_lightning.training.metrics_csv import MetricsCSV
from mnist_lightning.training.signals import Interrupted, Signals, requeue_slurm_job
from mnist_lightning.training.trainer import make_trainer

# How Lightning refuses a setting, or a callback finds that what it looks for is not there
REFUSED = (MisconfigurationException, RuntimeError, ValueError, LookupError)
# What a checkpoint whose content does not fit comes to
DOES_NOT_FIT = (*REFUSED, ArithmeticError, AttributeError, TypeError)


@dataclass
class _Start:
    """The run that is trained, and where it stands: a new one has neither folder nor file."""

    folder: Path | None
    file: Path | None
    checkpoint: dict[str, Any]  # what the file holds

    @property
    def step(self) -> int:
        return self.checkpoint[STATE]["step"] if self.file else -1


def fit(words: list[str], signals: Signals) -> None:
    """Trains, or continues, one run; tests the checkpoint that is chosen in the end."""
    parser = parser_of("fit")
    run_name = given(words, "--run")
    _check_run_name(run_name)
    base = runs.base_name(option(words, "--config"), option(words, "--model"))
    root = Path(given(words, "--trainer.default_root_dir") or "checkpoints")
    ckpt_path = given(words, "--ckpt_path")
    if ckpt_path is None:
        folder, file = _cut_off(root, words)
    else:
        folder, file = runs.checkpoint_file(root, run_name, base, ckpt_path)
    start = _Start(folder, file, read_checkpoint(file) if file else {})
    config = parse(parser, _with_defaults(parser, words, root, start))
    _check(config)
    seed_everything(config.seed, verbose=False)
    settings = instantiate(parser, config)
    data, model, trainer_settings = settings.data, settings.model, dict(settings.trainer)
    _pass_on(trainer_settings, model, data)
    keeper = RunKeeper(Path(), signals, config.checkpoint.every_n_seconds, config.checkpoint.every_n_steps)
    trainer = make_trainer(trainer_settings, [keeper], fit=True)
    if start.file is not None:
        _check_resumable(start.file, start.checkpoint, model, data, trainer)
    data.prepare_data()
    data.setup("fit")

    trainer.loggers = []
    made = None  # a folder that goes again if nothing comes of the run
    try:
        if runs.is_first_process():
            keeper.folder = start.folder or runs.new_run(root, run_name or base or "cnn", exact=bool(run_name))
            made = None if start.folder else keeper.folder
            runs.hold(keeper.folder)
            _save_settings(parser, config, data, keeper.folder)
            if made or not (keeper.folder / runs.JOB).exists():
                (keeper.folder / runs.JOB).write_text(json.dumps(runs.job_of(words)))
            trainer.loggers = _loggers(keeper.folder, start)
            _announce(data, model, keeper.folder, file)
        _train(trainer, model, data, keeper, start)
    finally:
        if made and not (made / "last.ckpt").exists():
            shutil.rmtree(made, ignore_errors=True)
    if start.file is not None and trainer.global_step == start.step:
        _nothing_left(trainer, start.file, keeper.last, named=ckpt_path not in (None, "last"))
    trainer.loggers = []  # the result has its own file
    best = keeper.folder / "best.ckpt"
    result = run_stage(trainer, model, data, best if best.exists() else keeper.last, "test")
    if trainer.is_global_zero:
        tell(result, keeper.folder)


def _with_defaults(parser: Any, words: list[str], root: Path, start: _Start) -> list[str]:
    """The words, after those that stand for what they leave unsaid: the run's own settings, or the default model."""
    if start.file is not None and option(words, "--config") is None:
        words = [*_settings_of_run(start.file, root, start.checkpoint), *words]
    config_file = option(words, "--config")
    if option(words, "--model") is not None or (config_file is not None and "model" in settings_file(config_file)):
        return words
    if config_file is not None:
        return ["--model", "CNN", *words]
    slow = not _computes_in_bf16(option(words, "--trainer.accelerator"))
    parser.set_defaults(PLAIN_FIT | ({"trainer.precision": "32-true"} if slow else {}))
    return words


def _check(config: Any) -> None:
    if not 0 <= config.seed < 2**32:
        raise BadSetting(f"--seed is {config.seed}; it must be from 0 to {2**32 - 1}")
    for name, least in (("every_n_seconds", 0), ("every_n_steps", 1)):
        value = config.checkpoint[name]
        if value is not None and value < least:
            raise BadSetting(f"--checkpoint.{name} is {value}; it must be at least {least}")


def _loggers(folder: Path, start: _Start) -> list[Logger]:
    """metrics.csv and TensorBoard's events, both without what a checkpoint does not know of."""
    table = MetricsCSV(folder / "metrics.csv")
    if start.file is None:
        table.path.unlink(missing_ok=True)  # a start that was cut off before its first checkpoint
    elif start.checkpoint[STATE]["metrics_csv"]:
        table.rewind(start.checkpoint[STATE]["metrics_csv"], start.file.parent / "metrics.csv")
    purge = start.step + 1 if start.file else None
    return [table, TensorBoardLogger(folder, name="", version="tensorboard", purge_step=purge)]


def _train(trainer: Trainer, model: Any, data: MNISTDataModule, keeper: RunKeeper, start: _Start) -> None:
    """`Trainer.fit`, and what a person is told when it ends otherwise."""
    try:
        trainer.fit(model, datamodule=data, ckpt_path=start.file)
    except Interrupted as interrupted:
        if keeper.last.exists():
            interrupted.told = f"stopped; {keeper.last} has everything: continue with --ckpt_path last"
        if interrupted.signum == signal.SIGUSR1 and trainer.is_global_zero:
            say(requeue_slurm_job())
        raise
    except DOES_NOT_FIT as error:
        first_line, *_ = str(error).splitlines() or [""]
        if start.file is not None and trainer.global_step <= start.step and not of_another_process(error):
            raise UserError(f"{start.file} cannot be continued: {type(error).__name__}: {first_line}") from error
        if not isinstance(error, REFUSED) or not _is_lightnings(error):
            raise
        kind = f"{type(error).__name__}: " if isinstance(error, LookupError) else ""  # its text is but a name
        raise UserError(f"--trainer: {kind}{first_line}") from error
    if not keeper.last.exists():
        raise UserError(
            "there was no step to train: see --trainer.max_epochs, --trainer.max_steps, --trainer.max_time and "
            "--trainer.limit_train_batches"
        )


def _nothing_left(trainer: Trainer, file: Path, last: Path, named: bool) -> None:
    """Says that a checkpoint has all the steps that it was asked for."""
    if not trainer.is_global_zero:
        return
    limit = "max_steps" if trainer.max_steps != -1 else "max_epochs"
    say(f"{file} has all its steps: to train on, raise --trainer.{limit}")
    if file != last and not named:  # a kill came when only best.ckpt was the new one
        also_known_as(file, last)


def _cut_off(root: Path, words: list[str]) -> tuple[Path | None, Path | None]:
    """The run that torchrun or Slurm restarts, and where it stood; nothing if it had not got to its first step."""
    folder = runs.cut_off_run(root, words)
    if folder is None or not any(folder.glob("*.ckpt")):
        return folder, None
    return folder, runs.good_checkpoint(folder, "last")


def _settings_of_run(file: Path, root: Path, checkpoint: dict[str, Any]) -> list[str]:
    """Words that repeat the settings of the run that a checkpoint belongs to, for others to come after."""
    own = file.parent / "config.yaml"
    if own.exists() and file.resolve().parent.parent == root.resolve():
        return ["--config", str(own)]
    # A file from elsewhere: its model and data, as plain values; nothing that could name code.
    check_model(checkpoint, file)
    words = ["--model", checkpoint[STATE]["model"], "--trainer.precision", str(checkpoint[STATE]["precision"])]
    for group, values in (
        ("model", checkpoint["hyper_parameters"]),
        ("data", checkpoint["datamodule_hyper_parameters"]),
    ):
        for key, value in values.items():
            if value is not None:
                words.append(f"--{group}.{key}={value if isinstance(value, str) else json.dumps(value)}")
    return words


def _is_lightnings(error: BaseException) -> bool:
    """Whether Lightning itself refused something, such as a callback that watches a metric that is not there."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_globals.get("__name__", "").startswith("lightning.")


def _computes_in_bf16(accelerator: str | None) -> bool:
    """Whether the processor that Lightning will take has bf16 arithmetic; without it, autocast makes a CPU slower."""
    if torch.cuda.is_available() and accelerator != "cpu":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    abilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # since torch 2.12 or so
    return bool(abilities.get("avx512_bf16") or abilities.get("amx_bf16"))


def _check_run_name(name: str | None) -> None:
    if name is not None and (Path(name).name != name or name in ("", "..")):
        raise BadSetting(f"--run {name!r} is no folder's name; where runs lie says --trainer.default_root_dir")


def _check_resumable(file: Path, checkpoint: dict[str, Any], model: Any, data: Any, trainer: Trainer) -> None:
    state = checkpoint[STATE]
    if state["model"] != type(model).__name__:
        raise UserError(
            f"{file} holds a {state['model']}, this is a {type(model).__name__}: give the recipe that it was trained "
            "with, or start a new run without --ckpt_path"
        )
    if found := runs.differences(checkpoint, model, data, trainer.world_size, str(trainer.precision)):
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
    data.expected_fingerprint = checkpoint["MNISTDataModule"].get("fingerprint")


def _pass_on(settings: dict[str, Any], model: Any, data: Any) -> None:
    """Hands on the settings that Lightning itself cannot apply under manual optimization, or would count in blocks."""
    if clip := settings.pop("gradient_clip_val", None):
        model.hparams["gradient_clip_val"] = float(clip)
    if (model.hparams["gradient_clip_val"] or 0) < 0:
        raise BadSetting("--trainer.gradient_clip_val must not be below 0")
    for name in ("val_check_interval", "check_val_every_n_epoch", "log_every_n_steps"):
        least = 0 if name == "log_every_n_steps" else 1
        if isinstance(settings.get(name), int | float) and settings[name] < least and not 0 < settings[name] < 1:
            raise BadSetting(f"--trainer.{name} is {settings[name]}; it must be at least {least}")
    if settings.pop("gradient_clip_algorithm", None) not in (None, "norm"):
        raise BadSetting("--trainer.gradient_clip_algorithm: only norm is there")
    if settings.pop("accumulate_grad_batches", 1) != 1:
        raise BadSetting("--trainer.accumulate_grad_batches is not there: raise --data.batch_size instead")
    interval = settings.get("val_check_interval")
    if isinstance(interval, int):
        if interval % data.steps_per_block:
            raise BadSetting(
                f"--trainer.val_check_interval {interval} must be a multiple of the {data.steps_per_block} steps of a "
                "block: see --data.steps_per_block"
            )
        settings["val_check_interval"] = interval // data.steps_per_block


def _save_settings(parser: Any, config: Any, data: MNISTDataModule, folder: Path) -> None:
    """config.yaml: all settings of the run, the source of its digits as it turned out to be."""
    kept = config.clone()
    for key in ("config", "run", "ckpt_path", "debug"):
        kept.pop(key, None)
    kept.data.source = data.source
    # Timer's interval is an Enum
    yaml.SafeDumper.add_multi_representer(Enum, lambda dumper, member: dumper.represent_data(member.value))
    text = parser.dump(kept, skip_validation=True)
    note = f"# {data.source} digits" + (" (no MNIST could be had)" if data.download_problem else "")
    runs.write_whole(f"{note}\n{text}", folder / "config.yaml")


def _announce(data: MNISTDataModule, model: Any, folder: Path, file: Path | None) -> None:
    if data.source == "synthetic" and data.hparams["source"] == "auto":
        reason = data.download_problem or f"there is no MNIST in {data.root}"
        console.print(
            Panel(
                f"[bold]Training on SYNTHETIC digits, not on MNIST.[/]\n{escape(reason)}.\n"
                "For MNIST, give its folder with --data.root DIR or the variable MNIST_ROOT.",
                style="red",
            )
        )
    start = f"continues from {file}" if file else "starts"
    source = "SYNTHETIC digits" if data.source == "synthetic" else data.source
    sizes = f"{len(data.labels('train')):,} training images of {source}"
    say(f"Run {folder} {start}: {type(model).__name__}, {sizes}")
