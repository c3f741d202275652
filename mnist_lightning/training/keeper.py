"""RunKeeper: saves at the right moments, stops when asked to, and puts a resumed run exactly where it was."""

import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor
from torch.optim.lr_scheduler import OneCycleLR

from mnist_lightning.console import say
from mnist_lightning.data.loader import TensorLoader
from mnist_lightning.errors import UserError
from mnist_lightning.files import give_name, sync
from mnist_lightning.processes import Interrupted, Signals
from mnist_lightning.run import Run
from mnist_lightning.training.checkpoint_content import FORMAT, STATE, plain
from mnist_lightning.training.checkpoints import model_name
from mnist_lightning.training.loggers import identities
from mnist_lightning.training.loop_state import (
    Place,
    accumulates,
    ends_early,
    epoch_sums,
    go_on_from,
    merged,
    place_of,
    stops_anywhere,
)
from mnist_lightning.training.metrics_csv import MetricsCSV

UNSEEN = 64  # batches whose losses may wait on the device before somebody looks at them
AGREE = 8  # batches after which several processes tell each other what they have seen


class RunKeeper(Checkpoint):
    """Writes `last.ckpt` and `best.ckpt` of a run.

    A checkpoint is taken only between batches or between epochs, when every other callback has done its part; QuickLoop
    tells when. Without QuickLoop, which steps aside for a Lightning that it does not know, it is taken where Lightning
    itself would, at each epoch's end.

    `last.ckpt` is written at the start, at each epoch's end, after `every_n_seconds` or `every_n_steps`, and when a
    signal comes. `best.ckpt` is the epoch with the highest validation accuracy, then the lowest validation loss;
    without validation images it is the last epoch.
    """

    def __init__(
        self,
        run: Run,
        signals: Signals,
        every_n_seconds: float | None = 30.0,
        every_n_steps: int | None = None,
        seed: int = 0,
    ) -> None:
        self.run = run
        self.seed = seed  # what is random in a batch and its step is a function of it
        self.signals = signals
        self.every_n_seconds = every_n_seconds
        self.every_n_steps = every_n_steps
        self.best: tuple[float, float] | None = None  # validation accuracy, minus validation loss
        self.resumed: dict[str, Any] | None = None  # what the checkpoint says that the training goes on from
        self._saved_at = 0.0  # time.monotonic()
        self._saved_step = 0
        self._validated_step = -1
        self._unseen: list[Tensor] = []  # losses on the device that have not been looked at yet
        self._between_epochs = False

    # ------------------------------------------------------------------ when to save and when to stop

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        # only the first process has made the folder, or knows which it is
        folder = Path(trainer.strategy.broadcast(str(self.run.folder)))
        if folder != self.run.folder:
            self.run = Run(folder)
        trainer.fit_loop.epoch_loop.seed = self.seed

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.signals.install()
        self._anywhere = stops_anywhere(trainer)
        if not self._anywhere and trainer.is_global_zero:
            say("The training data has no state to go on from inside an epoch: checkpoints are taken at epochs' ends")
        if self.resumed is not None:
            self._refuse_another_length(trainer, self.resumed)
            self._saved_at, self._saved_step = time.monotonic(), trainer.global_step
        else:
            self._save(trainer)  # there is something to resume from the first step on
            self._wait(trainer)  # a full disk shows now
        self.signals.deferred = True

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.signals.install()

    on_test_start = on_predict_start = on_validation_start  # type: ignore[assignment]

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if isinstance(outputs, dict) and isinstance(outputs.get("loss"), Tensor):
            self._unseen.append(outputs["loss"])
        every = trainer.log_every_n_steps
        if every and trainer.loggers and (trainer.global_step % every == 0 or trainer.fast_dev_run):
            self._log_place(trainer, on_step=True, on_epoch=False)

    def between_batches(self, trainer: Trainer) -> None:
        step, received, bad = trainer.global_step, self.signals.received, 0
        by_steps = self.every_n_steps is not None and step - self._saved_step >= self.every_n_steps
        due = self.every_n_seconds is not None and time.monotonic() - self._saved_at >= self.every_n_seconds
        ends = ends_early(trainer)
        if trainer.world_size == 1:
            look = received or due or by_steps or ends or len(self._unseen) >= UNSEEN
        else:
            look = by_steps or ends or (trainer.fit_loop.batch_idx + 1) % AGREE == 0
        if not look or trainer.is_last_batch or accumulates(trainer):
            return
        received, bad, due = self._agree(trainer, received, self._bad_step(step), due)
        self._stop_if_bad(trainer, bad)
        if ends or (self._anywhere and (received or due or by_steps)):
            self._save(trainer)
        self._stop_if_asked(trainer, received)

    def between_epochs(self, trainer: Trainer) -> None:
        received, bad, _ = self._agree(trainer, self.signals.received, self._bad_step(trainer.global_step), False)
        self._stop_if_bad(trainer, bad)
        if trainer.is_last_batch:  # else the epoch was ended early, and its last batch has been saved
            self._between_epochs = True
            self._save(trainer, best=self._is_best(trainer))
            self._between_epochs = False
        self._stop_if_asked(trainer, received)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._validated_step = trainer.global_step

    def on_sanity_check_end(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.num_sanity_val_steps == float("inf"):  # all images: what an untrained network reads
            row = {name: float(value) for name, value in trainer.callback_metrics.items()}
            for logger in trainer.loggers:
                logger.log_metrics(row | {"epoch": 0, "images": 0}, 0)

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.loggers:
            self._log_place(trainer, on_step=False, on_epoch=True)
        if not hasattr(trainer.fit_loop.epoch_loop, "tell"):  # no QuickLoop
            self.between_epochs(trainer)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._wait(trainer)
        self.signals.deferred = False

    def on_fit_end(self, trainer: Trainer, module: LightningModule) -> None:
        # Called also when a resumed run had no step left, because it was cut off right here. Nothing was validated:
        # the last is the best there is.
        if self.best is None and trainer.is_global_zero and self.run.last.exists():
            give_name(self.run.last, self.run.best)
            sync(self.run.folder)

    def _log_place(self, trainer: Trainer, **when: Any) -> None:
        """Learning rate and images seen, as columns of their own."""
        values = {}
        if trainer.optimizers:
            values["lr"] = trainer.optimizers[0].param_groups[0]["lr"]
        if isinstance(trainer.train_dataloader, TensorLoader):
            batches = trainer.fit_loop.total_batch_idx + 1
            values["images"] = trainer.train_dataloader.images_after(batches, int(trainer.num_training_batches))
        for name, value in values.items():
            trainer.lightning_module.log(name, torch.tensor(value, dtype=torch.float64), **when)

    def _bad_step(self, step: int) -> int:
        """The first step, counted from 1, whose loss is not finite; 0 for none. `step` have been done."""
        if not self._unseen:
            return 0
        finite = torch.stack([loss.float() for loss in self._unseen]).isfinite()
        self._unseen = []
        return 0 if bool(finite.all()) else step - len(finite) + int(finite.logical_not().int().argmax()) + 1

    def _agree(self, trainer: Trainer, signum: int, bad: int, due: bool) -> tuple[int, int, bool]:
        """What any rank has seen, all ranks act on, at the same batch."""
        if trainer.world_size == 1:
            return signum, bad, due
        flags = torch.tensor([signum, bad, due], device=trainer.strategy.root_device)
        torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX)
        signum, bad, seen = flags.tolist()
        return signum, bad, bool(seen)

    def _is_best(self, trainer: Trainer) -> bool:
        metrics = trainer.callback_metrics
        if "val_acc" not in metrics or self._validated_step != trainer.global_step:  # of earlier weights
            return False
        score = (float(metrics["val_acc"]), -float(metrics.get("val_loss", 0)))
        if self.best is None or score > self.best:
            self.best = score
            return True
        return False

    def _stop_if_asked(self, trainer: Trainer, signum: int) -> None:
        if signum:
            self.signals.received = signum
            self._wait(trainer)
            self.signals.deferred = False
            raise Interrupted(signum)

    def _stop_if_bad(self, trainer: Trainer, step: int) -> None:
        if step:
            self._wait(trainer)
            raise UserError(
                f"the loss is not finite in epoch {trainer.current_epoch + 1} at step {step}: lower --model.lr, or "
                f"clip with --trainer.gradient_clip_val; the last finite checkpoint is {self.run.last}"
            )

    def _save(self, trainer: Trainer, best: bool = False) -> None:
        # the loss of a step is finite before its update makes the weights infinite
        bad = not all(bool(parameter.isfinite().all()) for parameter in trainer.lightning_module.parameters())
        self._stop_if_bad(trainer, self._agree(trainer, 0, bad, False)[1] and trainer.global_step)
        self._wait(trainer)
        names = {"also": self.run.best if best else None, "previous": self.run.previous, "table": self.run.table}
        trainer.save_checkpoint(self.run.last, storage_options=names)
        self._saved_at, self._saved_step = time.monotonic(), trainer.global_step

    def _wait(self, trainer: Trainer) -> None:
        """Until the last checkpoint is on the disk. All processes fail if the first could not write it."""
        failure = None
        try:
            trainer.strategy.checkpoint_io.wait()
        except UserError as error:
            failure = error
        if self._agree(trainer, 0, failure is not None, False)[1]:
            raise failure or UserError("the first process could not write a checkpoint")

    # ------------------------------------------------------------------ what a checkpoint holds

    def on_save_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        mine = plain(epoch_sums(trainer))  # all processes, before the first can fail alone
        sums = [mine] * trainer.world_size
        if trainer.world_size > 1:
            torch.distributed.all_gather_object(sums, mine)
        tables = [logger.position() for logger in trainer.loggers if isinstance(logger, MetricsCSV)]
        loader = trainer.train_dataloader
        place = place_of(trainer, self._between_epochs)
        checkpoint[STATE] = {
            **place,
            "format": FORMAT,
            "best": self.best,
            "model": model_name(module),
            "precision": trainer.precision,
            "global_batch_size": getattr(loader, "global_batch_size", None),
            "world_size": trainer.world_size,
            "accumulate": trainer.accumulate_grad_batches,
            "scheduled_steps": self._scheduled_steps(trainer),
            "clip": _clipping(trainer),
            "loaders": checkpoint["loops"]["fit_loop"]["state_dict"].get("combined_loader", []),
            "metrics": {"ranks": sums} if place["batch"] else {},
            "metrics_csv": tables[0] if tables else None,
            "loggers": identities(trainer.loggers),
        }
        checkpoint["epoch"] = place["epoch"]
        if hasattr(trainer.fit_loop.epoch_loop, "tell"):
            del checkpoint["loops"]

    def on_load_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        state = checkpoint.get(STATE)
        if trainer.state.fn != "fit" or state is None or trainer.ckpt_path is None:
            checkpoint.pop("loops", None) if state is not None else None
            return
        self.resumed = state
        trainer.num_sanity_val_steps = 0  # what comes before any training has been
        # in another run's folder the best so far is not there to be kept
        self.best = tuple(state["best"]) if state["best"] and self.run.best.exists() else None
        if "loops" not in checkpoint:
            sums = merged(state["metrics"].get("ranks", []), trainer.world_size, trainer.global_rank)
            checkpoint["loops"] = go_on_from(trainer, Place(state), sums, state["loaders"])

    def _scheduled_steps(self, trainer: Trainer) -> int | None:
        """Optimizer steps that a schedule is made for, where it matters."""
        cycles = any(isinstance(config.scheduler, OneCycleLR) for config in trainer.lr_scheduler_configs)
        return int(trainer.estimated_stepping_batches) if cycles else None

    def _refuse_another_length(self, trainer: Trainer, state: dict[str, Any]) -> None:
        """An epoch or a schedule of another length would put the run at another place than it was at."""
        batches = trainer.num_training_batches
        if state["batches"] not in (0, batches):
            raise UserError(
                f"an epoch had {state['batches']} batches and now has {batches}: give the same "
                "--trainer.limit_train_batches and data, or start a new run without --ckpt_path"
            )
        if state["clip"] != _clipping(trainer):
            raise UserError(
                f"gradients were clipped by {state['clip']}, now by {_clipping(trainer)}: give the same "
                "--trainer.gradient_clip_val, or start a new run without --ckpt_path"
            )
        if state["scheduled_steps"] != self._scheduled_steps(trainer):
            raise UserError(
                f"the schedule was made for {state['scheduled_steps']} steps and would now have "
                f"{self._scheduled_steps(trainer)}: give the same --trainer.max_epochs, or start a new run without "
                "--ckpt_path"
            )


def _clipping(trainer: Trainer) -> list[Any]:
    return [trainer.gradient_clip_val, str(getattr(trainer.gradient_clip_algorithm, "value", "norm"))]
