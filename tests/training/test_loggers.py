"""Loggers of a run, with the real W&B (offline) and the real MLflow (a sqlite file)."""

import shutil
import struct
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader, TensorDataset

from mnist_lightning.errors import BadSetting
from mnist_lightning.processes import Interrupted
from mnist_lightning.training import loggers as loggers_
from mnist_lightning.training.checkpoints import STATE
from mnist_lightning.training.loggers import TensorBoard, places, run_loggers, tell_result
from mnist_lightning.training.metrics_csv import MetricsCSV

with_wandb = pytest.mark.skipif(not find_spec("wandb"), reason="W&B is not installed: pip install -e '.[wandb]'")
with_mlflow = pytest.mark.skipif(not find_spec("mlflow"), reason="MLflow is not installed: pip install -e '.[mlflow]'")
pytestmark = pytest.mark.filterwarnings("ignore")  # W&B, MLflow and a plain Trainer have much to say


class Module(LightningModule):
    def __init__(self, lr: float = 0.1, width: int = 3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.layer(batch[0]).square().mean()
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), self.hparams["lr"])


class Keeper(Callback):
    """Takes a checkpoint after some step, and ends there if it is to."""

    def __init__(self, step: int, error: BaseException | None = None) -> None:
        self.step, self.error = step, error
        self.checkpoint: dict[str, Any] | None = None

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(trainer.loggers[-1].save_dir + "/last.ckpt")

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:  # now the row of that step is written
        if trainer.global_step == self.step:
            self.checkpoint = {STATE: {"step": self.step, **places(trainer.loggers)}}
        if trainer.global_step == self.step + 1 and self.error is not None:
            raise self.error


def train(
    folder: Path,
    asked: Any,
    keeper: Keeper | None = None,
    checkpoint: dict[str, Any] | None = None,
    module: LightningModule | None = None,
    **settings: Any,
) -> Trainer:
    """Eight steps, or those that are left of them; then a result is told."""
    folder.mkdir(exist_ok=True)
    callbacks = [*settings.pop("callbacks", []), *([keeper] if keeper else [])]
    trainer = Trainer(
        logger=False, max_epochs=2, log_every_n_steps=1, accelerator="cpu",
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        enable_progress_bar=False, enable_model_summary=False, callbacks=callbacks, default_root_dir=folder.parent,
        **settings,
    )  # fmt: skip
    loader = DataLoader(TensorDataset(torch.ones(8, 2)), batch_size=2)
    file = folder / "last.ckpt" if checkpoint else None
    torch.manual_seed(0)
    module = module or Module()
    with run_loggers(trainer, asked, folder, file, checkpoint) as loggers:
        trainer.fit(module, loader, ckpt_path=file)
        trainer.loggers = []
        tell_result(loggers, {"model": dict(module.hparams), "data": {"batch_size": 2}}, {"test_acc": 0.75}, 8)
    return trainer


def stop_and_go_on(folder: Path, make: Any, error: BaseException, **more: Any) -> Keeper:
    """A run that ends after its sixth step, and is continued from its fifth in what could be another process."""
    keeper = Keeper(5, error)
    with pytest.raises(type(error)):
        train(folder, make(), keeper)
    train(folder, make(), checkpoint=keeper.checkpoint, **more)
    return keeper


# ---------------------------------------------------------------------- ours


class Seen(Logger):
    """Any logger of Lightning's kind."""

    def __init__(self) -> None:
        self.rows: list[tuple[int | None, dict[str, float]]] = []
        self.ended: list[str] = []

    name = version = "seen"

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append((step, metrics))

    def finalize(self, status: str) -> None:
        self.ended.append(status)


@pytest.mark.parametrize(
    ("asked", "kinds"),
    [
        (None, [TensorBoard, MetricsCSV]),
        (True, [TensorBoard, MetricsCSV]),
        (False, [MetricsCSV]),
        (Seen, [Seen, TensorBoard, MetricsCSV]),
        (lambda: [Seen(), Seen()], [Seen, Seen, TensorBoard, MetricsCSV]),
        (lambda: TensorBoardLogger("elsewhere"), [TensorBoardLogger, MetricsCSV]),
    ],
)
def test_which_loggers(tmp_path, asked, kinds):
    with run_loggers(Trainer(logger=False), asked() if callable(asked) else asked, tmp_path) as loggers:
        assert [type(logger) for logger in loggers] == kinds


def test_any_logger_hears_everything(tmp_path):
    seen = Seen()
    train(tmp_path / "a", seen)
    assert [step for step, metrics in seen.rows if "train_loss" in metrics] == list(range(8))
    assert seen.rows[-1] == (8, {"test_acc": 0.75})
    assert seen.ended == ["success"]


def test_a_start_that_was_cut_off_leaves_no_row(tmp_path):
    (tmp_path / "metrics.csv").write_text("epoch,step\n0,0\n")
    with run_loggers(Trainer(logger=False), False, tmp_path):
        assert not (tmp_path / "metrics.csv").exists()


def test_files_of_others_lie_in_the_run(tmp_path):
    """Lightning would ask the first logger where, and this one does not know."""
    train(tmp_path / "a", Seen(), profiler="simple", callbacks=[ModelCheckpoint()])
    assert list((tmp_path / "a" / "checkpoints").glob("*.ckpt"))
    train(tmp_path / "b", CSVLogger(tmp_path / "csv"), callbacks=[ModelCheckpoint(dirpath=tmp_path / "mine")])
    assert list((tmp_path / "mine").glob("*.ckpt"))
    assert (tmp_path / "csv/lightning_logs/version_0/metrics.csv").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "csv", "mine"]


def scalars(folder: Path) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars("loss")] if "loss" in events.Tags()["scalars"] else []


def test_tensorboard_has_its_rows_once_a_second_at_each_checkpoint_and_at_the_end(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    board = TensorBoard(tmp_path, name="", version="a")
    for step, seconds in enumerate((0, 0.4, 0.4, 0.4)):
        now[0] += seconds
        board.log_metrics({"loss": float(step), "epoch": 0}, step)
        board.save()
    written = [(0, 0.0), (1, 1.0), (2, 2.0), (3, 3.0)]
    assert scalars(tmp_path / "a") == written
    board.log_metrics({"loss": 4.0}, 4)
    board.save()
    assert scalars(tmp_path / "a") == written
    places([board])
    assert scalars(tmp_path / "a") == [*written, (4, 4.0)]
    board.log_metrics({"loss": 5.0}, 5)
    board.finalize("failed")
    assert scalars(tmp_path / "a") == [*written, (4, 4.0), (5, 5.0)]


def test_a_row_that_tensorboard_cannot_write_costs_no_other(tmp_path, monkeypatch):
    board = TensorBoard(tmp_path, name="", version="a")
    add = board.experiment.add_scalar

    def full(name, value, step, when):
        if step == 1:
            raise OSError(28, "No space left on device")
        add(name, value, step, when)

    monkeypatch.setattr(board.experiment, "add_scalar", full)
    for step in range(4):
        board.log_metrics({"loss": float(step)}, step)
    with pytest.raises(OSError, match="No space"):
        board.save(now=True)
    board.finalize("failed")
    assert scalars(tmp_path / "a") == [(0, 0.0), (2, 2.0), (3, 3.0)]


def test_only_the_first_process_keeps_rows(tmp_path, monkeypatch):
    board = TensorBoard(tmp_path, name="", version="a")
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    board.log_metrics({"loss": 1.0}, 1)
    assert board._waiting == []


def test_what_tensorboard_cannot_take_is_said_where_it_is_logged(tmp_path):
    board = TensorBoard(tmp_path, name="", version="a")
    with pytest.raises(ValueError, match="tried to log text"):
        board.log_metrics({"loss": "text"}, 0)
    board.finalize("failed")


def test_tensorboard_and_the_table_continue(tmp_path):
    stop_and_go_on(tmp_path / "a", lambda: None, Interrupted(15))
    train(tmp_path / "b", None)
    assert (tmp_path / "a/metrics.csv").read_bytes() == (tmp_path / "b/metrics.csv").read_bytes()
    for run in "ab":
        events = EventAccumulator(str(tmp_path / run / "tensorboard"))
        events.Reload()
        assert [event.step for event in events.Scalars("train_loss")] == list(range(8))
        assert [(event.step, event.value) for event in events.Scalars("test_acc")] == [(8, 0.75)]
        assert "hp_metric" not in events.Tags()["scalars"]
        # what the HPARAMS tab shows
        tags = events.summary_metadata
        start = tags["_hparams_/session_start_info"].plugin_data.content
        for name in (b"model/lr", b"model/width", b"data/batch_size"):
            assert name in start
        assert b"test_acc" in tags["_hparams_/experiment"].plugin_data.content


# ---------------------------------------------------------------------- W&B


def wandb_records(file: Path) -> list[Any]:
    """What is in a .wandb file: blocks of 32 KiB with pieces of records, each after checksum, length and kind."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, body, found = file.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        body += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or its last piece
            record = Record()
            record.ParseFromString(body)
            found.append(record)
            body = b""
    return found


def wandb_runs(folder: Path) -> list[tuple[str, int, list[int], list[int]]]:
    """Of each file, in order: the run's ID, its exit status, W&B's own steps and those of the training."""
    found = []
    for file in sorted(folder.glob("wandb/offline-run-*/*.wandb"), key=lambda file: file.parent.stat().st_mtime_ns):
        for _ in range(300):  # another process writes it
            records = wandb_records(file)
            if ended := [record.exit.exit_code for record in records if record.HasField("exit")]:
                break
            time.sleep(0.1)
        (run,) = (record.run.run_id for record in records if record.HasField("run"))
        rows = [record.history for record in records if record.HasField("history")]
        steps = [
            int(item.value_json) for row in rows for item in row.item
            if "trainer/global_step" in (item.key, *item.nested_key)
        ]  # fmt: skip
        found.append((run, ended[0], [row.step.num for row in rows], steps))
    return found


def offline() -> WandbLogger:
    return WandbLogger(offline=True)


@pytest.fixture
def quiet(monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")  # which Lightning would leave behind
    monkeypatch.setenv("WANDB_SILENT", "true")


@with_wandb
@pytest.mark.parametrize(("error", "status"), [(Interrupted(15), 255), (RuntimeError("mine"), 1)])
def test_wandb_goes_on_with_its_run(quiet, tmp_path, error, status):
    hooks = sys.exit, sys.excepthook
    stop_and_go_on(tmp_path / "a", offline, error)
    (run, ended, own, steps), *rest = wandb_runs(tmp_path / "a")
    assert (ended, own, steps) == (status, [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5])
    # W&B's own step is that of the checkpoint: rows that come twice are known to be one
    assert rest == [(run, 0, [5, 6, 7, 8], [5, 6, 7, 8])]
    assert (sys.exit, sys.excepthook) == hooks
    assert not (tmp_path / "wandb").exists()


@with_wandb
def test_wandb_begins_a_run_for_each_run(quiet, tmp_path):
    train(tmp_path / "a", offline())
    train(tmp_path / "b", offline())
    ((first, *_),), ((second, *_),) = wandb_runs(tmp_path / "a"), wandb_runs(tmp_path / "b")
    assert first != second


@with_wandb
def test_a_wandb_run_that_was_there_before_goes_on(quiet, tmp_path):
    import wandb

    with wandb.init(dir=tmp_path) as mine:
        train(tmp_path / "a", offline())
        assert wandb.run is mine
        mine.log({"more": 1})


# ---------------------------------------------------------------------- MLflow


def sqlite(folder: Path) -> MLFlowLogger:
    return MLFlowLogger(tracking_uri=f"sqlite:///{folder}/mlflow.db", experiment_name="digits")


def mlflow_runs(folder: Path) -> list[Any]:
    client = sqlite(folder)._mlflow_client
    return client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory) -> Path:
    """Making its tables takes MLflow longer than all the rest."""
    folder = tmp_path_factory.mktemp("mlflow")
    _ = sqlite(folder)._mlflow_client.search_experiments()
    return folder / "mlflow.db"


@pytest.fixture
def database(quiet, tmp_path, empty_database) -> Any:
    """Loggers that write to a sqlite file."""
    shutil.copy(empty_database, tmp_path)
    return lambda: sqlite(tmp_path)


@with_mlflow
@pytest.mark.parametrize(("error", "status"), [(Interrupted(2), "KILLED"), (RuntimeError("mine"), "FAILED")])
def test_mlflow_goes_on_with_its_run(database, tmp_path, error, status):
    keeper = Keeper(5, error)
    with pytest.raises(type(error)):
        train(tmp_path / "a", database(), keeper)
    (run,) = mlflow_runs(tmp_path)
    assert run.info.status == status

    class Look(Callback):
        def on_train_start(self, *args: Any) -> None:
            (again,) = mlflow_runs(tmp_path)
            assert again.info.status == "RUNNING"

    # a setting that may change, such as where the data lie, must not end it
    train(tmp_path / "a", database(), checkpoint=keeper.checkpoint, module=Module(lr=0.2), callbacks=[Look()])
    (again,) = mlflow_runs(tmp_path)
    assert (again.info.run_id, again.info.status) == (run.info.run_id, "FINISHED")
    assert again.data.params == {"lr": "0.1", "width": "3"}
    assert again.data.metrics["test_acc"] == 0.75
    history = database()._mlflow_client.get_metric_history(run.info.run_id, "train_loss")
    assert {metric.step for metric in history} == set(range(8))


@with_mlflow
def test_a_checkpoint_continued_elsewhere_is_another_run(database, tmp_path):
    keeper = Keeper(5)
    train(tmp_path / "a", database(), keeper)
    (tmp_path / "b").mkdir()
    with run_loggers(Trainer(logger=False), database(), tmp_path / "b", tmp_path / "a/last.ckpt", keeper.checkpoint):
        pass
    assert (tmp_path / "b" / "metrics.csv").read_bytes() in (tmp_path / "a" / "metrics.csv").read_bytes()
    assert [run.info.status for run in mlflow_runs(tmp_path)] == ["FINISHED", "FINISHED"]


@with_mlflow
def test_another_database(database, empty_database, tmp_path, capsys):
    keeper = Keeper(5)
    train(tmp_path / "a", database(), keeper)
    shutil.copy(empty_database, tmp_path / "a")
    train(tmp_path / "a", sqlite(tmp_path / "a"), checkpoint=keeper.checkpoint)
    assert "MLflow begins a new run: Run with id=" in " ".join(capsys.readouterr().out.split())
    (run,) = mlflow_runs(tmp_path / "a")
    assert run.info.status == "FINISHED"


@with_mlflow
def test_a_logger_that_cannot_begin(database, tmp_path):
    logger = database()
    logger._run_id = "mine"
    with pytest.raises(BadSetting, match=r"^--trainer\.logger MLFlowLogger: Run with id=mine not found$"):
        train(tmp_path / "a", logger)


@with_wandb
@with_mlflow
def test_several_at_once(database, tmp_path):
    keeper = stop_and_go_on(tmp_path / "a", lambda: [database(), offline()], Interrupted(15))
    train(tmp_path / "b", None)
    assert list(keeper.checkpoint[STATE]["loggers"]) == ["MLFlowLogger-0", "WandbLogger-0"]
    assert len(mlflow_runs(tmp_path)) == len({run for run, *_ in wandb_runs(tmp_path / "a")}) == 1
    assert (tmp_path / "a/metrics.csv").read_bytes() == (tmp_path / "b/metrics.csv").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b", "mlflow.db"}


@with_wandb
@with_mlflow
def test_a_process_that_is_not_the_first(database, tmp_path, monkeypatch):
    monkeypatch.setattr(loggers_, "is_first_process", lambda: False)
    with run_loggers(Trainer(logger=False), [offline(), database()], tmp_path) as loggers:
        assert len(loggers) == 4
    assert mlflow_runs(tmp_path) == []
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]
