"""The loggers of a run: those asked for, TensorBoard and metrics.csv. A resumed run goes on where they stood."""

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from mnist_lightning.console import say
from mnist_lightning.errors import BadSetting, first_line
from mnist_lightning.processes import is_first_process
from mnist_lightning.training.checkpoints import STATE
from mnist_lightning.training.metrics_csv import MetricsCSV

# How a run ended, in MLflow's words, and the exit status by which W&B is told (255: its own for Ctrl-C)
EXIT = {"FINISHED": 0, "FAILED": 1, "KILLED": 255}


@contextmanager
def run_loggers(
    trainer: Trainer,
    asked: bool | Logger | Iterable[Logger] | None,
    folder: Path,
    file: Path | None = None,
    checkpoint: dict[str, Any] | None = None,
) -> Iterator[list[Logger]]:
    """Gives the trainer the loggers of the run in `folder`; at the end of the block they are told how it went.

    `asked` is what the Trainer calls `logger`. These come first: `self.logger` in a module is the one asked for. False
    leaves metrics.csv alone. `file` is the checkpoint that is continued, `checkpoint` what it holds. All processes
    come here; the folder of the first one counts.
    """
    hooks, before = (sys.exit, sys.excepthook, threading.excepthook), getattr(sys.modules.get("wandb"), "run", None)
    state = checkpoint[STATE] if checkpoint else {}
    table = MetricsCSV(folder / "metrics.csv")
    loggers = [asked] if isinstance(asked, Logger) else list(asked) if isinstance(asked, Iterable) else []
    if asked is not False and not any(isinstance(logger, TensorBoardLogger) for logger in loggers):
        purge = state.get("step")  # steps count from 0, so it is the first that will be logged again
        board = TensorBoard(folder, name="", version="tensorboard", default_hp_metric=False, purge_step=purge)
        try:
            _ = is_first_process() and board.experiment  # which opens its file
            loggers.append(board)
        except OSError as error:
            say(f"TensorBoard cannot write to {board.log_dir} ({error.strerror}): the training goes on without it")
    loggers.append(table)
    runs = _with_runs(loggers)
    known = state.get("loggers", {}) if file and file.resolve().parent == folder.resolve() else {}  # else: another run
    status = "KILLED"
    try:
        if is_first_process():
            _put_files_into(folder, trainer, loggers)
            if file is None:
                table.path.unlink(missing_ok=True)  # of a start that was cut off before its first checkpoint
            elif state.get("metrics_csv"):
                table.rewind(state["metrics_csv"], file.parent / table.path.name)
            for name, logger in runs.items():
                _begin(logger, known.get(name))
        threading.excepthook = _quiet_for_tensorboard(threading.excepthook)
        for logger in loggers:
            _never_stop_for(logger)
        trainer.loggers = loggers
        yield loggers
        status = "FINISHED"
    except Exception:
        status = "FAILED"
        raise
    finally:
        if is_first_process():
            for logger in runs.values():
                _end(logger, status, before)
        sys.exit, sys.excepthook, threading.excepthook = hooks  # where W&B puts its own


class TensorBoard(TensorBoardLogger):
    """TensorBoard's files, written once a second at most: its thread and a training step get in each other's way."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._waiting: list[tuple[dict[str, float], int | None, float]] = []
        self._saved_at = 0.0

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        try:
            numbers = {name: float(value) for name, value in metrics.items()}
        except (TypeError, ValueError, OverflowError):
            super().log_metrics(metrics, step)
        else:
            self._waiting.append((numbers, step, time.time()))

    @rank_zero_only
    def save(self, now: bool = False) -> None:
        if now or time.monotonic() - self._saved_at >= 1:
            self._saved_at = time.monotonic()
            while self._waiting:
                numbers, step, when = self._waiting.pop(0)
                for name, number in numbers.items():
                    self.experiment.add_scalar(name, number, step, when)
            super().save()

    def finalize(self, status: str) -> None:
        self.save(now=True)
        super().finalize(status)


def places(loggers: list[Logger]) -> dict[str, Any]:
    """Where a checkpoint finds the loggers, in plain values: rows of metrics.csv, runs of W&B and MLflow."""
    for logger in loggers:
        if isinstance(logger, TensorBoard):
            logger.save(now=True)  # what comes before a checkpoint is not logged again
    tables = [logger.position() for logger in loggers if isinstance(logger, MetricsCSV)]
    return {"metrics_csv": tables[0] if tables else None, "loggers": _identities(loggers)}


def _identities(loggers: list[Logger]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, logger in _with_runs(loggers).items():
        if isinstance(logger, MLFlowLogger):
            found[name] = {"id": logger.run_id}
        elif (run := logger._experiment) is not None and not run.disabled:
            found[name] = {"id": run.id, "step": run.step}
    return found


def tell_result(loggers: list[Logger], settings: dict[str, Any], metrics: dict[str, float], step: int) -> None:
    """How the run did in the end; in TensorBoard with its settings, for the HPARAMS tab to compare runs by."""
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.log_hyperparams(settings, metrics, step)
            logger.finalize("success")
        elif not isinstance(logger, MetricsCSV):  # test.json has them
            logger.log_metrics(metrics, step)
            logger.save()


def _put_files_into(folder: Path, trainer: Trainer, loggers: list[Logger]) -> None:
    """What Lightning puts wherever the first logger says, which may be nowhere, goes into the run's folder."""
    trainer.profiler.dirpath = trainer.profiler.dirpath or folder
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
            callback.dirpath = str(folder.resolve() / "checkpoints")
    for logger in loggers:
        if isinstance(logger, WandbLogger) and logger.save_dir == ".":  # its default
            logger._save_dir = logger._wandb_init["dir"] = str(folder)


def _quiet_for_tensorboard(others: Callable[[Any], object]) -> Callable[[Any], None]:
    """Its thread hands an OSError on to the next call, where it is said; that it ended needs no traceback."""

    def hook(args: Any) -> None:
        if not (isinstance(args.exc_value, OSError) and type(args.thread).__module__.startswith("tensorboard")):
            others(args)

    return hook


def _never_stop_for(logger: Any) -> None:
    """What a logger cannot write, for a full disk or a server that is gone, is said once; the training goes on."""
    told: list[OSError] = []

    def patient(method: Callable[..., None]) -> Callable[..., None]:
        def call(*args: Any, **kwargs: Any) -> None:
            try:
                method(*args, **kwargs)
            except OSError as error:
                if not told and is_first_process():
                    why = f"{error.filename}: {error.strerror}" if error.filename else error.strerror or error
                    say(f"{type(logger).__name__} cannot write ({why}): the training goes on without it")
                told.append(error)

        return call

    for name in ("log_hyperparams", "log_metrics", "save", "finalize"):
        setattr(logger, name, patient(getattr(logger, name)))


def _with_runs(loggers: list[Logger]) -> dict[str, Any]:
    """The loggers that begin a run somewhere, by names that are the same when it is resumed."""
    found: dict[str, Any] = {}
    for logger in loggers:
        if isinstance(logger, WandbLogger | MLFlowLogger):
            number = sum(type(logger) is type(other) for other in found.values())
            found[f"{type(logger).__name__}-{number}"] = logger
    return found


def _begin(logger: Any, known: dict[str, Any] | None) -> None:
    """Begins a run, or goes on with the one that is known; an ID that the logger was given comes first."""
    try:
        if isinstance(logger, MLFlowLogger):
            if known and logger._run_id in (None, known["id"]):
                _go_on_in_mlflow(logger, known["id"])
            _ = logger.experiment
            return
        if known and logger.version is None:
            logger._id = logger._wandb_init["id"] = known["id"]
        run = logger.experiment
        if known and run.id == known["id"] and run.offline:
            # Offline, W&B does not know how far it was. With its own step, rows that come twice are known to be one.
            run.log({}, step=known["step"])
    except Exception as error:  # no login, no server, no such database
        raise BadSetting(f"--trainer.logger {type(logger).__name__}: {first_line(error)}") from error


def _go_on_in_mlflow(logger: Any, run_id: str) -> None:
    try:
        logger._mlflow_client.update_run(run_id, status="RUNNING")  # after FAILED, say
    except Exception as error:
        return say(f"MLflow begins a new run: {first_line(error)}")
    logger._run_id = run_id
    # MLflow has the hyper-parameters, and refuses other values, such as another place of the data.
    logger.log_hyperparams = lambda *_, **__: None


def _end(logger: Any, status: str, before: Any) -> None:
    """Marks a run as ended. (Lightning leaves that of W&B open, for whatever the process does next.)"""
    try:
        if isinstance(logger, MLFlowLogger):
            if logger._run_id is not None:
                logger._mlflow_client.set_terminated(logger._run_id, status)
        elif logger._experiment is not None and logger._experiment is not before:  # which began it, ends it
            logger._experiment.finish(exit_code=EXIT[status])
    except Exception as error:  # a server that is gone keeps nobody from the result
        say(f"{type(logger).__name__} could not mark its run as {status}: {first_line(error)}")
