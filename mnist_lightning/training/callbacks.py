"""RunKeeper: saves at the right moments, stops when asked to, and puts a resumed run exactly where it was."""

import math
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor

from mnist_lightning.errors import UserError
from mnist_lightning.training.checkpoints import STATE, also_known_as
from mnist_lightning.training.metrics_csv import MetricsCSV
from mnist_lightning.training.signals import Interrupted, Signals

UNSEEN = 256  # blocks whose losses may wait on the device before somebody looks at them


class RunKeeper(Checkpoint):
    """Writes `last.ckpt` and `best.ckpt` into `folder`.

    A checkpoint is taken only between blocks or between epochs. What it keeps of the progress is the loader's
    position and the number of steps: on resuming, the state of Lightning's loops is made from these, because the
    states that Lightning saves in the middle of a validation or an epoch's end lose work or repeat it.

    `last.ckpt` is written at the start, at each epoch's end, after `every_n_seconds` or `every_n_steps`, and when a
    signal comes. `best.ckpt` is the epoch with the highest validation accuracy, then the lowest validation loss;
    without validation images it is the last epoch.
    """

    def __init__(
        self,
        folder: Path,
        signals: Signals,
        every_n_seconds: float | None = 30.0,
        every_n_steps: int | None = None,
    ) -> None:
        self.folder = folder
        self.signals = signals
        self.every_n_seconds = every_n_seconds
        self.every_n_steps = every_n_steps
        self.best: tuple[float, float] | None = None  # validation accuracy, minus validation loss
        self.resumed = False
        self.stopped_by: str | None = None
        self._saved_at = 0.0  # time.monotonic()
        self._saved_step = 0
        self._validated_step = -1
        self._unseen: list[Tensor] = []  # losses on the device that have not been looked at yet
        self._train_metrics: dict[str, Any] | None = None

    @property
    def last(self) -> Path:
        return self.folder / "last.ckpt"

    # ------------------------------------------------------------------ when to save and when to stop

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        # only the first process has made the folder, or knows which it is
        self.folder = Path(trainer.strategy.broadcast(str(self.folder)))

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.signals.install()
        if self.resumed:
            self._restore_train_metrics(trainer, module)
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
        self._unseen.append(outputs["losses"])
        due = self._due(trainer.global_step)
        # reading the losses waits for the device, so a GPU is asked only when something else waits for it anyway
        look = due or self.signals.received or module.device.type == "cpu" or trainer.is_last_batch
        bad = self._bad_step(trainer.global_step) if look or len(self._unseen) >= UNSEEN else 0
        received, bad, due = self._agree(trainer, self.signals.received, bad, due)
        if bad:
            self._refuse(trainer, bad)
        self.signals.received = received
        # an epoch's end and a validation inside the epoch have their own hooks
        if not trainer.is_last_batch and (batch_idx + 1) % (trainer.val_check_batch or math.inf):
            self._save_and_stop(trainer, due, received)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._validated_step = trainer.global_step
        if trainer.state.fn == "fit" and not trainer.sanity_checking and not trainer.is_last_batch:
            due = self._due(trainer.global_step)
            received, _, due = self._agree(trainer, self.signals.received, 0, due)
            self._save_and_stop(trainer, due, received)

    def _due(self, step: int) -> bool:
        due = self.every_n_seconds is not None and time.monotonic() - self._saved_at >= self.every_n_seconds
        return due or (self.every_n_steps is not None and step - self._saved_step >= self.every_n_steps)

    def _bad_step(self, step: int) -> int:
        """The first step, counted from 1, whose loss is not finite; 0 for none. `step` have been done."""
        losses = torch.cat(self._unseen)
        self._unseen = []
        if bool(losses.isfinite().all()):
            return 0
        return step - len(losses) + int(losses.isfinite().logical_not().int().argmax()) + 1

    def _save_and_stop(self, trainer: Trainer, due: bool, received: int) -> None:
        if due or received:
            self._save(trainer)
        if received:
            self._stop(trainer, received)

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        received, _, _ = self._agree(trainer, self.signals.received, 0, False)
        self._save(trainer, best=self._is_best(trainer))
        if received:
            self._stop(trainer, received)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._wait(trainer)
        self.signals.deferred = False

    def on_fit_end(self, trainer: Trainer, module: LightningModule) -> None:
        # Called also when a resumed run had no step left, because it was cut off right here. Nothing was validated:
        # the last is the best there is.
        if self.best is None and trainer.is_global_zero and self.last.exists():
            also_known_as(self.last, self.folder / "best.ckpt")

    def _stop(self, trainer: Trainer, signum: int) -> None:
        self._wait(trainer)
        self.signals.deferred = False
        raise Interrupted(signum)

    def _agree(self, trainer: Trainer, signum: int, bad: int, due: bool) -> tuple[int, int, bool]:
        """What any rank has seen, all ranks act on, at the same block."""
        if trainer.world_size == 1:
            return signum, bad, due
        flags = torch.tensor([signum, bad, due], device=trainer.strategy.root_device)
        torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX)
        signum, bad, seen = flags.tolist()
        return signum, bad, bool(seen)

    def _is_best(self, trainer: Trainer) -> bool:
        metrics = trainer.callback_metrics
        if "val_acc" not in metrics or self._position(trainer)["batch"]:
            return False
        if self._validated_step != trainer.global_step:  # with some --trainer.val_check_interval: of earlier weights
            return False
        score = (float(metrics["val_acc"]), -float(metrics["val_loss"]))
        if self.best is None or score > self.best:
            self.best = score
            return True
        return False

    def _refuse(self, trainer: Trainer, step: int) -> None:
        self._wait(trainer)
        raise UserError(
            f"the loss is not finite in epoch {trainer.current_epoch + 1} at step {step}: lower --model.lr, or clip "
            f"with --model.gradient_clip_val; the last finite checkpoint is {self.last}"
        )

    def _save(self, trainer: Trainer, best: bool = False) -> None:
        # the loss of a step is finite before its update makes the weights infinite
        bad = not all(bool(parameter.isfinite().all()) for parameter in trainer.lightning_module.parameters())
        if self._agree(trainer, 0, bad, False)[1]:
            self._refuse(trainer, trainer.global_step)
        self._wait(trainer)
        names = {"also": self.folder / "best.ckpt" if best else None, "table": self.folder / "metrics.csv"}
        trainer.save_checkpoint(self.last, storage_options=names)
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

    def _position(self, trainer: Trainer) -> dict[str, int]:
        """Where the training stands: the epoch, and how many of its mini-batches are done."""
        epoch, batch = divmod(trainer.global_step, trainer.train_dataloader.batches)
        return {"epoch": epoch, "batch": batch}

    def on_save_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        train_metrics = self._gather_train_metrics(trainer, module)  # all processes, before the first can fail alone
        tables = [logger.position() for logger in trainer.loggers if isinstance(logger, MetricsCSV)]
        loader = trainer.train_dataloader
        checkpoint[STATE] = {
            **self._position(trainer),
            "step": trainer.global_step,
            "best": self.best,
            "model": type(module).__name__,
            "precision": trainer.precision,
            "global_batch_size": loader.global_batch_size,
            "world_size": trainer.world_size,
            "batches": loader.batches,
            "scheduled_steps": module.scheduled_steps,
            "train_metrics": train_metrics,
            "metrics_csv": tables[0] if tables else None,
        }
        checkpoint["epoch"] = checkpoint[STATE]["epoch"]
        del checkpoint["loops"]

    def on_load_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn != "fit":
            checkpoint.pop("loops", None)
            return
        state = checkpoint[STATE]
        self._refuse_another_length(trainer, module, state)
        self.resumed = True
        trainer.num_sanity_val_steps = 0  # what comes before any training has been
        # in another run's folder the best so far is not there to be kept
        self.best = tuple(state["best"]) if state["best"] and (self.folder / "best.ckpt").exists() else None
        self._train_metrics = state["train_metrics"]
        checkpoint["loops"] = {"fit_loop": self._loops(trainer, state)}

    def _refuse_another_length(self, trainer: Trainer, module: Any, state: dict[str, Any]) -> None:
        """An epoch or a schedule of another length would put the run at another place than it was at."""
        batches = trainer.datamodule.train_dataloader().batches
        if state["batches"] != batches:
            raise UserError(
                f"an epoch had {state['batches']} batches and now has {batches}: give the same "
                "--trainer.limit_train_batches and data, or start a new run without --ckpt_path"
            )
        if state["scheduled_steps"] != module.scheduled_steps:
            raise UserError(
                f"the schedule was made for {state['scheduled_steps']} steps and would now have "
                f"{module.scheduled_steps}: give the same --trainer.max_epochs, or start a new run without --ckpt_path"
            )

    def _loops(self, trainer: Trainer, state: dict[str, Any]) -> dict[str, Any]:
        """The state of Lightning's fit loop at the end of a block, or at the start of an epoch."""
        loader = trainer.datamodule.train_dataloader()
        epoch, batch = state["epoch"], state["batch"]
        blocks = len(loader)
        done = blocks - -(-(loader.batches - batch) // loader.steps_per_block)  # blocks of this epoch
        loops = trainer.fit_loop.state_dict()
        started = epoch + 1 if batch else epoch  # Lightning takes it for an interrupted epoch even if done is 0
        for count in ("total", "current"):
            loops["epoch_progress"][count].update(ready=started, started=started, processed=epoch, completed=epoch)
            seen = done if count == "current" else epoch * blocks + done
            loops["epoch_loop.batch_progress"][count].update(ready=seen, started=seen, processed=seen, completed=seen)
            loops["epoch_loop.manual_optimization.optim_step_progress"][count].update(
                ready=state["step"], completed=state["step"]
            )
        loops["state_dict"]["combined_loader"] = [{"epoch": epoch, "batch": batch}]
        return loops

    def _gather_train_metrics(self, trainer: Trainer, module: Any) -> dict[str, Tensor]:
        """The running sums of this epoch's training metrics, on each rank."""
        gathered = {}
        for name in ("train_acc", "train_loss"):
            for key in module.metrics[name]._defaults:
                value = getattr(module.metrics[name], key).reshape(1)
                parts = [torch.zeros_like(value) for _ in range(trainer.world_size)]
                if trainer.world_size > 1:
                    torch.distributed.all_gather(parts, value)
                else:
                    parts = [value]
                gathered[f"{name}/{key}"] = torch.cat(parts)
        return gathered

    def _restore_train_metrics(self, trainer: Trainer, module: Any) -> None:
        for path, parts in (self._train_metrics or {}).items():
            name, key = path.split("/")
            metric = module.metrics[name]
            if len(parts) != trainer.world_size:  # another number of ranks: what matters is the sum
                parts = torch.cat([parts.sum().reshape(1), parts.new_zeros(trainer.world_size - 1)])
            old = getattr(metric, key)
            setattr(metric, key, parts[trainer.global_rank].to(old).reshape(old.shape))
            metric._update_count = 1
