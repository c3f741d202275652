"""RunKeeper: saves at the right moments, stops when asked to, and puts a resumed run exactly where it was."""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, GradientAccumulationScheduler, StochasticWeightAveraging
from torch import Tensor
from torch.optim.lr_scheduler import OneCycleLR

from mnist_lightning.console import say
from mnist_lightning.data.loader import TensorLoader
from mnist_lightning.errors import UserError
from mnist_lightning.files import give_name, sync
from mnist_lightning.processes import Interrupted, Signals
from mnist_lightning.run import Run
from mnist_lightning.training import graphs, loop_state, several
from mnist_lightning.training.causes import refuse_lone_images
from mnist_lightning.training.checkpoint_content import FORMAT, STATE, plain
from mnist_lightning.training.checkpoints import model_name
from mnist_lightning.training.loggers import places

UNSEEN = 64  # batches whose losses may wait on the device before somebody looks at them
SOON = 1.0  # seconds after which an epoch's end on a GPU is saved again
AGREE = 8  # batches after which several processes tell each other what they have seen


class RunKeeper(Checkpoint):
    """Writes a run's `last.ckpt` and `best.ckpt`, when QuickLoop tells that all others have done their part.

    `last.ckpt` is written at the start, at each epoch's end (on a GPU once a second at most, and at the last), after
    `every_n_seconds` or `every_n_steps`, and when a signal comes; with Lightning's own loop at epochs' ends only.
    `best.ckpt` is the epoch with the highest validation accuracy, then the lowest validation loss; without validation
    images it is the last epoch.
    """

    takes_several = True  # batches in one call of on_train_batch_end

    def __init__(
        self,
        run: Run,
        signals: Signals,
        every_n_seconds: float | None = 30.0,
        every_n_steps: int | None = None,
        seed: int = 0,
        freeze: Iterable[str] = (),
    ) -> None:
        self.run = run
        self.freeze = list(freeze)  # patterns; part of what is trained
        self.seed = seed  # what is random in a batch and its step is a function of it
        self.signals = signals
        self.every_n_seconds = every_n_seconds
        self.every_n_steps = every_n_steps
        self.best: tuple[float, float] | None = None  # validation accuracy, minus validation loss
        self.resumed: dict[str, Any] | None = None  # what the checkpoint says that the training goes on from
        self._validated_step = self.saved_step = -1  # the training has not begun
        self._unseen: list[Tensor] = []  # losses on the device that have not been looked at yet
        self._between_epochs, self._epoch = False, 0

    # ------------------------------------------------------------------ when to save and when to stop

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        # only the first process has made the folder, or knows which it is
        folder = Path(trainer.strategy.broadcast(str(self.run.folder)))
        if folder != self.run.folder:
            self.run = Run(folder)
        trainer.fit_loop.epoch_loop.seed = self.seed
        if trainer.precision == "64-true":  # Lightning converts it after the weights are loaded
            module.double()

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.signals.install()
        self._anywhere = loop_state.stops_anywhere(trainer)
        if not self._anywhere and trainer.is_global_zero:
            say("The training data has no state to go on from inside an epoch: checkpoints are taken at epochs' ends")
        refuse_lone_images(trainer, module)
        self._saved_at, self.saved_step = time.monotonic(), trainer.global_step
        if self.resumed is not None and self.resumed["batch"]:
            for callback in trainer.callbacks:  # Lightning tells none of an epoch that goes on
                if isinstance(callback, GradientAccumulationScheduler | StochasticWeightAveraging):
                    callback.on_train_epoch_start(trainer, module)
        if self.resumed is None:
            self._save(trainer)  # there is something to resume from the first step on
            self._wait(trainer)  # a full disk shows now
        else:
            self._refuse_another_length(trainer, self.resumed)
            several.go_on(trainer, self.resumed.get("step_by", "eager"))
        self.signals.deferred = True

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._epoch = trainer.current_epoch
        if isinstance(outputs, dict) and isinstance(outputs.get("loss"), Tensor):
            self._unseen.append(outputs["loss"])
        every = trainer.log_every_n_steps
        if every and (trainer.global_step % every == 0 or trainer.fast_dev_run):
            self._log_place(trainer, on_step=True)

    def between_batches(self, trainer: Trainer) -> None:
        by_steps = self.every_n_steps is not None and trainer.global_step - self.saved_step >= self.every_n_steps
        late = self.every_n_seconds is not None and time.monotonic() - self._saved_at >= self.every_n_seconds
        ends = loop_state.ends_early(trainer)
        if trainer.world_size == 1:
            losses = self._unseen
            at_hand = bool(losses) and losses[-1].numel() > 1 and losses[-1].device.type == "cpu"
            look = self.signals.received or late or at_hand or len(losses) >= UNSEEN
        else:
            look = (trainer.fit_loop.batch_idx + 1) % AGREE == 0
        if not (look or by_steps or ends) or trainer.is_last_batch or loop_state.accumulates(trainer):
            return
        received, due = self._look(trainer, late or by_steps)
        if ends or (self._anywhere and (received or due)):
            self._save(trainer)
        self._stop_if_asked(trainer, received)

    def between_epochs(self, trainer: Trainer) -> None:
        received, _ = self._look(trainer)
        if trainer.is_last_batch:  # else the epoch was ended early, and its last batch has been saved
            best = self._is_best(trainer)
            if best or received or not self._is_soon(trainer):
                self._between_epochs = True
                self._save(trainer, best)
                self._between_epochs = False
        self._stop_if_asked(trainer, received)

    def _is_soon(self, trainer: Trainer) -> bool:
        """Whether the last checkpoint can do for an epoch, which on a GPU can take less than to save it."""
        soon = time.monotonic() - self._saved_at < SOON and trainer.strategy.root_device.type == graphs.DEVICE
        return soon and not loop_state.ends(trainer) and hasattr(trainer.fit_loop.epoch_loop, "tell")

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._validated_step = trainer.global_step

    def on_sanity_check_end(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.num_sanity_val_steps == float("inf"):  # all images: what an untrained network reads
            row = {name: float(value) for name, value in trainer.callback_metrics.items()}
            for logger in trainer.loggers:
                logger.log_metrics(row | {"epoch": 0, "images": 0}, 0)

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._log_place(trainer, on_step=False)
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

    def _log_place(self, trainer: Trainer, on_step: bool) -> None:
        """Learning rate and images seen, as columns of their own."""
        groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
        values = {"lr": groups[0]["lr"]} if groups else {}
        if isinstance(trainer.train_dataloader, TensorLoader):
            batches = trainer.fit_loop.total_batch_idx + 1
            values["images"] = trainer.train_dataloader.images_after(batches, int(trainer.num_training_batches))
        log: Any = (on_step and getattr(trainer.fit_loop.epoch_loop, "log_at_end", None)) or self.log
        for name, value in values.items() if trainer.loggers else ():
            log(name, torch.tensor(value, dtype=torch.float64), on_step=on_step, on_epoch=not on_step)

    def _look(self, trainer: Trainer, due: bool = False) -> tuple[int, int]:
        """The signal that came and whether it is time to save; a loss that is not finite ends the training."""
        bad, losses = 0, self._unseen
        if losses:
            finite = torch.cat([loss.float().reshape(-1) for loss in losses]).isfinite()
            if not bool(finite.all()):
                bad = trainer.global_step - len(finite) + int(finite.logical_not().int().argmax()) + 1
            self._unseen = []
        received, bad, due = self._agree(trainer, self.signals.received, bad, due)
        self._stop_if_bad(trainer, bad)
        return received, due

    def _agree(self, trainer: Trainer, *seen: int) -> Any:
        """What any rank has seen, all ranks act on, at the same batch."""
        if trainer.world_size == 1:
            return seen
        flags = torch.tensor(seen, dtype=torch.long, device=trainer.strategy.root_device)
        torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX)
        return flags.tolist()

    def _is_best(self, trainer: Trainer) -> bool:
        metrics, before = trainer.callback_metrics, self.best
        if "val_acc" in metrics and self._validated_step == trainer.global_step:  # else it is of earlier weights
            score = (float(metrics["val_acc"]), -float(metrics.get("val_loss", 0)))
            self.best = max(before or score, score)
        return self.best != before

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
                f"the loss is not finite in epoch {self._epoch + 1} at step {step}: lower --model.lr, or "
                f"clip with --trainer.gradient_clip_val; the last finite checkpoint is {self.run.last}"
            )

    def _save(self, trainer: Trainer, best: bool = False) -> None:
        # the loss of a step is finite before its update makes the weights infinite
        finite = [parameter.isfinite().all() for parameter in trainer.lightning_module.parameters()]
        bad = bool(finite) and not bool(torch.stack(finite).all())
        self._stop_if_bad(trainer, *self._agree(trainer, bad * trainer.global_step))
        self._wait(trainer)
        names = {"also": self.run.best if best else None, "previous": self.run.previous, "table": self.run.table}
        trainer.save_checkpoint(self.run.last, storage_options=names)
        self._saved_at, self.saved_step = time.monotonic(), trainer.global_step

    def _wait(self, trainer: Trainer) -> None:
        """Until the last checkpoint is on the disk. All processes fail if the first could not write it."""
        failure = None
        try:
            trainer.strategy.checkpoint_io.wait()
        except UserError as error:
            failure = error
        if any(self._agree(trainer, failure is not None)):
            raise failure or UserError("the first process could not write a checkpoint")

    # ------------------------------------------------------------------ what a checkpoint holds

    def on_save_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        place = loop_state.place_of(trainer, self._between_epochs)
        # all processes, before the first can fail alone
        mine = plain(loop_state.epoch_sums(trainer, inside=place["batch"] > 0))
        sums = [mine] * trainer.world_size
        if trainer.world_size > 1:
            torch.distributed.all_gather_object(sums, mine)
        checkpoint[STATE] = {
            **place,
            "format": FORMAT,
            "best": self.best,
            "model": model_name(module),
            "precision": trainer.precision,
            "step_by": several.way_of_steps(trainer),
            "global_batch_size": getattr(trainer.train_dataloader, "global_batch_size", None),
            "world_size": trainer.world_size,
            "accumulate": trainer.accumulate_grad_batches,
            "scheduled_steps": self._scheduled_steps(trainer),
            "seed": self.seed,
            "freeze": self.freeze,
            "clip": _clipping(trainer),
            "loaders": loop_state.loader_states(trainer),
            "metrics": {"ranks": sums},
            **places(trainer.loggers),
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
            sums = loop_state.merged(state["metrics"].get("ranks", []), trainer.world_size, trainer.global_rank)
            checkpoint["loops"] = loop_state.go_on_from(trainer, state, sums, state["loaders"])

    def _scheduled_steps(self, trainer: Trainer) -> int | None:
        """Optimizer steps that a schedule is made for, where it matters."""
        cycles = any(isinstance(config.scheduler, OneCycleLR) for config in trainer.lr_scheduler_configs)
        return int(trainer.estimated_stepping_batches) if cycles else None

    def _refuse_another_length(self, trainer: Trainer, state: dict[str, Any]) -> None:
        """An epoch or a schedule of another length would put the run at another place than it was at."""
        batches = trainer.num_training_batches
        for was, now, what, same in (
            (state["batches"] or batches, batches, "an epoch had {} batches and now has {}",
             "--trainer.limit_train_batches and data"),
            (state["clip"], _clipping(trainer), "gradients were clipped by {}, now by {}",
             "--trainer.gradient_clip_val"),
            (state["scheduled_steps"], self._scheduled_steps(trainer),
             "the schedule was made for {} steps and would now have {}", "--trainer.max_epochs"),
        ):  # fmt: skip
            if was != now:
                raise UserError(
                    f"{what.format(was, now)}: give the same {same}, or start a new run without --ckpt_path"
                )


def _clipping(trainer: Trainer) -> list[Any]:
    return [trainer.gradient_clip_val, str(getattr(trainer.gradient_clip_algorithm, "value", "norm"))]
