"""What `fit` and `convert` do."""

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from rich.panel import Panel

from mnist_lightning import runs
from mnist_lightning.data.module import MNISTDataModule
from mnist_lightning.data.sources import write_text
from mnist_lightning.errors import BadSetting, UserError, of_another_process
from mnist_lightning.settings import PLAIN_FIT, given, instantiate, option, parse, parser_of, settings_file
from mnist_lightning.tools.evaluate import run_stage, tell
from mnist_lightning.training.callbacks import RunKeeper
from mnist_lightning.training.checkpoints import STATE, also_known_as, check_model, read_checkpoint
from mnist_lightning.training.metrics_csv import MetricsCSV
from mnist_lightning.training.signals import Interrupted, Signals, requeue_slurm_job
from mnist_lightning.training.trainer import console, make_trainer


def fit(words: list[str], signals: Signals) -> None:
    """Trains, or continues, one run; tests the checkpoint that is chosen in the end."""
    parser = parser_of("fit")
    config_file, model, run_name = option(words, "--config"), option(words, "--model"), given(words, "--run")
    _check_run_name(run_name)
    base = runs.base_name(config_file, model)
    root = Path(given(words, "--trainer.default_root_dir") or "checkpoints")
    ckpt_path = given(words, "--ckpt_path")
    job = runs.job_of(words)
    if ckpt_path is None:
        folder, file = _cut_off(root, words)
    else:
        folder, file = runs.checkpoint_file(root, run_name, base, ckpt_path)
    checkpoint = read_checkpoint(file) if file is not None else None
    if file is not None and checkpoint is not None and config_file is None:
        words = [*_settings_of_run(file, root, checkpoint), *words]
    if option(words, "--model") is None and not _names_model(words):
        if option(words, "--config") is None:
            slow = not _computes_in_bf16(option(words, "--trainer.accelerator"))
            parser.set_defaults(PLAIN_FIT | ({"trainer.precision": "32-true"} if slow else {}))
        else:
            words = ["--model", "CNN", *words]
    config = parse(parser, words)
    if not 0 <= config.seed < 2**32:
        raise BadSetting(f"--seed is {config.seed}; it must be from 0 to {2**32 - 1}")
    for name, value, least in (
        ("seconds", config.checkpoint.every_n_seconds, 0),
        ("steps", config.checkpoint.every_n_steps, 1),
    ):
        if value is not None and value < least:
            raise BadSetting(f"--checkpoint.every_n_{name} is {value}; it must be at least {least}")
    seed_everything(config.seed, verbose=False)
    settings = instantiate(parser, config)
    data, model = settings.data, settings.model

    trainer_settings = dict(settings.trainer)
    _pass_on(trainer_settings, model, data)
    keeper = RunKeeper(Path(), signals, config.checkpoint.every_n_seconds, config.checkpoint.every_n_steps)
    table = MetricsCSV(Path())
    trainer = make_trainer(trainer_settings, [keeper], fit=True)
    if checkpoint is not None and file is not None:
        _check_resumable(file, checkpoint, model, data, trainer)
    data.prepare_data()
    data.setup("fit")

    fresh = folder is None
    if runs.is_first_process():
        folder = folder or runs.new_run(root, run_name or base or "cnn", exact=bool(run_name))
        runs.hold(folder)
        keeper.folder, table.path = folder, folder / "metrics.csv"
        _save_settings(parser, config, data, folder)
        if fresh or not (folder / runs.JOB).exists():
            (folder / runs.JOB).write_text(json.dumps(job))
        if checkpoint is None:
            table.path.unlink(missing_ok=True)  # a start that was cut off before its first checkpoint
        elif file is not None and checkpoint[STATE]["metrics_csv"]:
            table.rewind(checkpoint[STATE]["metrics_csv"], file.parent / "metrics.csv")
        purge = None if checkpoint is None else checkpoint[STATE]["step"] + 1
        events = TensorBoardLogger(folder, name="", version="tensorboard", purge_step=purge)
        trainer.loggers = [table, events]
        _announce(data, model, folder, file)
    else:
        trainer.loggers = []
    try:
        trainer.fit(model, datamodule=data, ckpt_path=file)
    except Interrupted as interrupted:
        if keeper.last.exists():
            interrupted.told = f"stopped; {keeper.last} has everything: continue with --ckpt_path last"
        if interrupted.signum == signal.SIGUSR1 and trainer.is_global_zero:
            console.print(requeue_slurm_job(), highlight=False, soft_wrap=True)
        raise
    except (MisconfigurationException, RuntimeError, ValueError) as error:
        if (
            checkpoint is not None
            and trainer.global_step <= checkpoint[STATE]["step"]
            and not of_another_process(error)
        ):
            raise UserError(f"{file} cannot be continued: {str(error).splitlines()[0]}") from error
        if not _is_lightnings(error):
            raise
        raise UserError(f"--trainer: {str(error).splitlines()[0]}") from error
    except (ArithmeticError, AttributeError, LookupError, TypeError) as error:
        if checkpoint is None or trainer.global_step > checkpoint[STATE]["step"]:
            raise
        raise UserError(f"{file} cannot be continued: {type(error).__name__}: {error}") from error
    finally:
        if fresh and folder is not None and not (folder / "last.ckpt").exists():
            shutil.rmtree(folder, ignore_errors=True)  # a run that never got to its first checkpoint leaves nothing
    if not keeper.last.exists():
        raise UserError(
            "there was no step to train: see --trainer.max_epochs, --trainer.max_steps, --trainer.max_time and "
            "--trainer.limit_train_batches"
        )
    nothing_left = checkpoint is not None and trainer.global_step == checkpoint[STATE]["step"]
    if file is not None and nothing_left and trainer.is_global_zero:
        limit = "max_steps" if trainer.max_steps != -1 else "max_epochs"
        console.print(
            f"{file} has all its steps: to train on, raise --trainer.{limit}", highlight=False, soft_wrap=True
        )
        if ckpt_path in (None, "last") and file != keeper.last:  # a kill came when only best.ckpt was the new one
            also_known_as(file, keeper.last)
    best = keeper.folder / "best.ckpt"
    trainer.loggers = []  # the result has its own file
    result = run_stage(trainer, model, data, best if best.exists() else keeper.last, "test")
    if trainer.is_global_zero:
        tell(result, keeper.folder)


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


def _names_model(words: list[str]) -> bool:
    """Whether a configuration file among the words says which model to train."""
    file = option(words, "--config")
    return file is not None and "model" in settings_file(file)


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
        console.print(
            f"The checkpoint is of {state['world_size']} processes, this is {trainer.world_size} with as many images "
            "in a step: the order goes on unchanged; dropout draws anew.", highlight=False, soft_wrap=True,
        )  # fmt: skip
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
    text = parser.dump(kept, skip_validation=True)
    note = f"# {data.source} digits" + (" (no MNIST could be had)" if data.download_problem else "")
    runs.write_whole(f"{note}\n{text}", folder / "config.yaml")


def _announce(data: MNISTDataModule, model: Any, folder: Path, file: Path | None) -> None:
    if data.source == "synthetic" and data.hparams["source"] == "auto":
        reason = data.download_problem or f"there is no MNIST in {data.root}"
        console.print(
            Panel(
                f"[bold]Training on SYNTHETIC digits, not on MNIST.[/]\n{reason}.\n"
                "For MNIST, give its folder with --data.root DIR or the variable MNIST_ROOT.",
                style="red",
            )
        )
    start = f"continues from {file}" if file else "starts"
    source = "SYNTHETIC digits" if data.source == "synthetic" else data.source
    sizes = f"{len(data.labels('train')):,} training images of {source}"
    console.print(
        f"Run {folder} {start}: {type(model).__name__}, {sizes}", markup=False, highlight=False, soft_wrap=True
    )


def convert(words: list[str], signals: Signals) -> None:
    """Writes one split as tab-delimited text: 784 pixel values and the label on a line."""
    parser = parser_of("convert")
    config = parse(parser, words)
    data = instantiate(parser, config).data
    data.prepare_data()
    digits = data.read(config.split)
    if config.rows is not None and not 1 <= config.rows <= len(digits.labels):
        raise BadSetting(f"--rows is {config.rows}; there are {len(digits.labels)} images")
    rows = slice(config.rows)
    if runs.is_device(Path(config.output)):
        raise UserError(f"{config.output} is a pipe or a device, which would be replaced: give a file's name")
    write_text(type(digits)(digits.images[rows], digits.labels[rows]), Path(config.output))
    console.print(
        f"{len(digits.labels[rows]):,} images of {data.source} written to {config.output}",
        highlight=False,
        soft_wrap=True,
    )
