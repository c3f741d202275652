"""`fit`: trains, or continues, one run, and tests the checkpoint that is chosen in the end."""

import shutil
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from traceback import walk_tb
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.model_helpers import is_overridden
from rich.markup import escape
from rich.panel import Panel

from mnist_lightning.commands import session
from mnist_lightning.commands import start as starts
from mnist_lightning.commands.evaluate import run_stage, tell
from mnist_lightning.commands.members import asked_for, train_members
from mnist_lightning.commands.start import Start, check_resumable, find_start, start_from_weights, weights_file
from mnist_lightning.config_yaml import resumable
from mnist_lightning.console import console, say
from mnist_lightning.data.module import MNISTDataModule
from mnist_lightning.errors import BadSetting, UserError, first_line
from mnist_lightning.files import give_name, sync
from mnist_lightning.processes import Interrupted, Signals, is_first_process, requeue_slurm_job
from mnist_lightning.run import Run
from mnist_lightning.settings import parsed, several
from mnist_lightning.temperature import keep_temperature
from mnist_lightning.training.averaging import AveragedStatistics
from mnist_lightning.training.causes import limit_in_force, told
from mnist_lightning.training.compiled import NotCompiledError
from mnist_lightning.training.freeze import FrozenStatistics, freeze
from mnist_lightning.training.keeper import RunKeeper
from mnist_lightning.training.loggers import run_loggers, tell_result
from mnist_lightning.training.sessions import Sessions
from mnist_lightning.training.trainer import SignalsAgain, make_trainer
from mnist_lightning.words import Pairs, merged, pairs_of, pairs_of_words

# How Lightning refuses a setting, or a callback finds that what it looks for is not there
REFUSED = (MisconfigurationException, RuntimeError, ValueError, LookupError, ImportError, AttributeError)
# What a checkpoint whose content does not fit comes to
DOES_NOT_FIT = (*REFUSED, ArithmeticError, TypeError, MemoryError)


@dataclass
class Result:
    """What a training came to: the last metrics, the test's among them; its run folder and checkpoints.

    Of several networks the metrics are those of the mean of their probabilities, and each has its own run inside.
    """

    metrics: dict[str, float]
    run: Path | None = None  # none of a trial with fast_dev_run
    best: Path | None = None
    last: Path | None = None


def fit(settings: Mapping[str, Any] | None = None, **more: Any) -> Result:
    """Trains with settings nested as in a YAML file; those of `more` win.

    fit({"config": "simple_mlp"}, trainer={"max_epochs": 1}).metrics["test_acc"]

    Raises UserError, in one line, for what the user can put right; KeyboardInterrupt after Ctrl-C, with a checkpoint
    whose path it tells. Of what it changes in the process (signals, random generators, …) nothing is left. In a thread
    it trains as well; there a callback that sets `trainer.should_stop` stops it.
    """
    with session() as signals:
        return train(pairs_of(settings or {}) + pairs_of(more), signals)


def command(name: str, words: list[str], signals: Signals) -> None:
    """Trains with the settings of the command line."""
    train(pairs_of_words(words), signals)


def train(pairs: Pairs, signals: Signals) -> Result:
    """Trains, or continues, one run, or several networks of one; tests what is chosen in the end."""
    if several := asked_for(pairs):
        return Result(*train_members(several, lambda own: train_one(own, signals).metrics))
    return train_one(pairs, signals)


def train_one(pairs: Pairs, signals: Signals, test: bool = True) -> Result:
    """Trains, or continues, one network; with `test`, tests the checkpoint that is chosen in the end."""
    start = find_start(pairs)
    settings = merged(start.settings)
    config = parsed("fit", settings)
    seed_everything(config.seed, verbose=False)
    asked = config.trainer.arguments()
    if start.checkpoint:
        asked["callbacks"] = _without_finders(asked["callbacks"], config, start.checkpoint)
    data, model = config.data.make(), config.model.make()  # what is wrong with them is said before a download
    loggers, trial = asked["logger"], bool(asked["fast_dev_run"])
    patterns = several(config.freeze)
    run = start.run or Run(start.root / start.name)
    keeper = RunKeeper(run, signals, **vars(config.checkpoint), seed=config.seed, freeze=patterns)
    ours = [SignalsAgain(signals), AveragedStatistics(), FrozenStatistics(patterns)]
    ours += [] if trial else [keeper, Sessions(keeper)]
    trainer = make_trainer(asked | {"logger": False}, ours, fit=True, step=config.loop.step)
    if start.file:
        check_resumable(start, model, data, trainer, patterns)
    elif trainer.is_global_zero:
        starts.tell_of_precision(pairs, trainer.precision, on_cpu=trainer.strategy.root_device.type == "cpu")
    if isinstance(data, MNISTDataModule):
        data.prepare_data()
        data.setup("fit")
        model = _of_these_classes(model, config, settings, data)
    if config.init_from and not start.file:
        start_from_weights(model, weights_file(start.root, config.init_from))
    if patterns:
        frozen = freeze(model, patterns)
        if is_first_process():
            say(f"Frozen are {', '.join(frozen)}")
    if trial:  # a few batches of everything, which leave nothing
        _fit(trainer, model, data, start)
        metrics = _metrics(trainer)
        if _has_test(model, data):
            trainer.test(model, datamodule=data, verbose=False)
        return Result(metrics | _metrics(trainer))

    new = None  # a folder that goes again if nothing comes of the run
    try:
        if is_first_process():
            if start.run is None:
                keeper.run = new = Run.new(start.root, start.name, start.exact)
            else:
                start.hold()
            _write_settings(config, data, keeper.run, start.file)
            keeper.run.note_job(start.job)
            _announce(data, model, keeper.run, start.file)
        with run_loggers(trainer, loggers, keeper.run.folder, start.file, start.checkpoint) as all_loggers:
            _fit(trainer, model, data, start, keeper)
            run, metrics = keeper.run, _metrics(trainer)
            _calibrate(trainer, run, model, data)
            if test and _has_test(model, data):
                trainer.loggers = []  # they are told what came of it
                result = run_stage(trainer, model, data, run.best if run.best.exists() else run.last, "test")
                metrics |= _metrics(trainer)
                if trainer.is_global_zero:
                    tell(result, run.folder)
                    chosen = {group: config[group].settings for group in ("model", "data")}
                    tell_result(all_loggers, chosen, _metrics(trainer), result["step"])
    finally:
        if new and not new.last.exists():
            shutil.rmtree(new.folder, ignore_errors=True)
        keeper.run.release()
    return Result(metrics, run.folder, run.best if run.best.exists() else None, run.last)


def _fit(trainer: Trainer, model: Any, data: Any, start: Start, keeper: RunKeeper | None = None) -> None:
    """`Trainer.fit`, and what a person is told when it ends otherwise."""
    try:
        try:
            trainer.fit(model, datamodule=data, ckpt_path=start.file)
        except NotCompiledError as error:
            if keeper and keeper.signals.received:  # Ctrl-C reaches a compiler that is at work, too
                raise Interrupted(keeper.signals.received) from error
            raise
    except Interrupted as interrupted:
        if keeper and keeper.run.last.exists():
            kept = (
                "everything"
                if keeper.saved_step in (-1, trainer.global_step)
                else f"the first {keeper.saved_step:,} steps"
            )
            interrupted.told = f"stopped; {keeper.run.last} has {kept}: continue with {keeper.run.words('last')}"
        if interrupted.signum not in (signal.SIGINT, signal.SIGTERM) and trainer.is_global_zero:
            say(requeue_slurm_job())
        raise
    except DOES_NOT_FIT as error:
        if cause := told(error, trainer, model, keeper.run if keeper else None):
            raise cause from error
        if start.file and trainer.global_step <= start.step:
            raise UserError(f"{start.file} cannot be continued: {type(error).__name__}: {first_line(error)}") from error
        if not isinstance(error, REFUSED) or not _is_lightnings(error):
            raise
        kind = f"{type(error).__name__}: " if isinstance(error, LookupError | AttributeError) else ""
        raise UserError(f"--trainer: {kind}{first_line(error)}") from error
    if keeper and not keeper.run.last.exists():
        raise UserError(f"there was no step to train: {limit_in_force(trainer) or 'the data has no mini-batch'}")
    if keeper and trainer.is_global_zero:
        _tell_limit(trainer, keeper, start)


def _calibrate(trainer: Trainer, run: Run, model: Any, data: Any) -> None:
    """Puts the temperature that validation images ask for into the checkpoints; the other processes wait."""
    if trainer.is_global_zero and isinstance(data, MNISTDataModule) and (told := keep_temperature(run, model, data)):
        say(told)
    trainer.strategy.barrier()


def _tell_limit(trainer: Trainer, keeper: RunKeeper, start: Start) -> None:
    """What kept the training from going on, where it is not simply its last epoch."""
    limit = limit_in_force(trainer)
    if not start.file or trainer.global_step != start.step:
        if limit and "max_epochs" not in limit:
            say(f"The training ends at step {trainer.global_step:,}: {limit}")
        return
    raised = "" if "Early" in str(limit) else "; to train on, raise it"
    say(f"{start.file} has all its steps: {limit or 'there are no more'}{raised}")
    if start.goes_on and start.file != keeper.run.last:  # a kill came when only best.ckpt was the new one
        give_name(start.file, keeper.run.last)
        sync(keeper.run.folder)


def _without_finders(callbacks: Any, config: Any, checkpoint: dict[str, Any]) -> list[Any]:
    """The callbacks that go on with a training: what Lightning's tuner was asked to find has been found."""
    kept = [
        callback for callback in several(callbacks) if not isinstance(callback, LearningRateFinder | BatchSizeFinder)
    ]
    if len(kept) < len(several(callbacks)):
        config.model.settings |= {"lr": checkpoint.get("hyper_parameters", {}).get("lr")}
        config.data.settings |= {"batch_size": checkpoint.get("datamodule_hyper_parameters", {}).get("batch_size")}
    return kept


def _of_these_classes(model: Any, config: Any, settings: Mapping[str, Any], data: MNISTDataModule) -> Any:
    """The model, or another where the data ask for other classes, names or weights of them and the user did not."""
    own = config.model.settings
    given = settings.get("model.classes")
    if isinstance(given, int) and given < data.classes:
        raise BadSetting(
            f"--model.classes is {given}, but there are {data.classes} classes: {', '.join(data.names[:70])}"
        )
    asked = data.for_model() | ({} if given in (None, data.classes) else {"classes": given, "class_names": None})
    new = {name: value for name, value in asked.items() if name in own and f"model.{name}" not in settings}
    if asked["class_weights"] and "class_weights" not in own:
        raise BadSetting(
            f"--data.balance loss is for MLP, CNN and what is made of them: {type(model).__name__} may draw"
        )
    if all(own[name] == value for name, value in new.items()):
        return model
    own |= new
    seed_everything(config.seed, verbose=False)
    return config.model.make()


def _is_lightnings(error: BaseException) -> bool:
    """Whether Lightning itself refused something, such as a callback that watches a metric that is not there."""
    modules = [frame.f_globals.get("__name__", "") for frame, _ in walk_tb(error.__traceback__)]
    return modules[-1].startswith("lightning.") or any(
        name.startswith("lightning.pytorch.callbacks.") for name in modules
    )


def _has_test(model: Any, data: Any) -> bool:
    """Whether there is something to test: a module of the user's need not have it."""
    has_data = is_overridden("test_dataloader", data, LightningDataModule)
    return has_data and is_overridden("test_step", model, LightningModule)


def _metrics(trainer: Trainer) -> dict[str, float]:
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def _write_settings(config: Any, data: Any, run: Run, file: Path | None) -> None:
    """config.yaml: all settings of the run, the source of its digits as it turned out to be."""
    note = ""
    if isinstance(data, MNISTDataModule):
        config.data.settings |= {"source": data.source, "val_size": data.hparams["val_size"]}
        note = f"# {data.source} digits" + (" (no MNIST could be had)\n" if data.download_problem else "\n")
    text, lost = resumable(config)
    try:
        run.write_settings(note + text)
    except UserError as error:
        elsewhere = f"; or go on elsewhere, with --ckpt_path {file} --trainer.default_root_dir FOLDER" if file else ""
        raise UserError(f"{error}{elsewhere}") from error
    if lost:
        say(f"{run.config} cannot hold all settings ({', '.join(lost)}): to continue the run, give them again")


def _announce(data: Any, model: Any, run: Run, file: Path | None) -> None:
    does = f"continues from {file}" if file else "starts"
    if not isinstance(data, MNISTDataModule):
        say(f"Run {run} {does}: {type(model).__name__} on {type(data).__name__}")
        return
    if data.source == "synthetic" and data.hparams["source"] == "auto":
        reason = data.download_problem or f"there is no MNIST in {data.root}"
        console.print(
            Panel(
                f"[bold]Training on SYNTHETIC digits, not on MNIST.[/]\n{escape(reason)}.\n"
                "For MNIST, give its folder with --data.root DIR or the variable MNIST_ROOT.",
                style="red",
            )
        )
    if told := data.told():
        say(told)
    counts = data.counts()
    if min(counts.values()) * 5 < max(counts.values()):
        each = ", ".join(f"{name} {count:,}" for name, count in counts.items())
        evened = "" if data.hparams["balance"] != "none" else "; --data.balance loss or draw evens them out"
        say(f"Training images of each class: {each}{evened}")
    source = "SYNTHETIC digits" if data.source == "synthetic" else data.source
    say(f"Run {run} {does}: {type(model).__name__}, {len(data.labels('train')):,} training images of {source}")
