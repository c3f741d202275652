"""What is seen of a training: a bar in a terminal, one line an epoch in a file or a pipe."""

import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar, RichModelSummary
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from mnist_lightning.console import console, say

REFRESH = 0.2  # seconds; reading the loss waits for the device


class NetworkSummary(RichModelSummary):
    """The layers of the network, without the metrics beside it."""

    @staticmethod
    def summarize(summary_data: list[tuple[str, list[str]]], total_parameters: int, *args: Any, **kwargs: Any) -> None:
        columns = {name: values for name, values in summary_data if name in ("Name", "Type", "Params", "Out sizes")}
        table = Table(caption=f"{total_parameters:,} parameters", caption_justify="left", caption_style="")
        for name in columns:
            table.add_column({"Name": "layer", "Type": "", "Params": "parameters", "Out sizes": "output"}[name])
        for row in zip(*columns.values(), strict=True):
            if row[0].startswith("net."):
                table.add_row(*row)
        console.print(table)


class RunProgress(ProgressBar):
    """Epoch, loss, accuracy, images per second and time left."""

    def __init__(self) -> None:
        super().__init__()
        self._bar: Progress | None = None
        self._task: Any = None
        self._shown_at = self._started = self._epoch_started = 0.0
        self._first_step = self._epoch_step = 0

    def disable(self) -> None:
        self._stop()

    def print(self, *args: Any, **kwargs: Any) -> None:
        if self.trainer.is_global_zero:
            console.print(*args)

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._started = self._epoch_started = time.monotonic()
        self._first_step = self._epoch_step = trainer.global_step
        if trainer.is_global_zero and console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"), BarColumn(24), TextColumn("{task.fields[text]}"),
                console=console, auto_refresh=False, transient=True,
            )  # fmt: skip
            self._task = self._bar.add_task(_epoch(trainer), total=100, text="the first steps")
            self._bar.start()

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._epoch_started, self._epoch_step = time.monotonic(), trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.monotonic()
        if self._bar is None or now - self._shown_at < REFRESH:
            return
        self._shown_at = now
        loader = trainer.train_dataloader
        step, epochs = trainer.global_step, trainer.max_epochs
        speed = (step - self._first_step) / (now - self._started)  # steps per second
        end = trainer.max_steps if trainer.max_steps != -1 else loader.batches * (epochs or -1)
        left = f"{_clock((end - step) / speed)} left" if end > 0 else ""
        text = (
            f"loss {outputs['losses'][-1].item():.4f}  acc {_running_accuracy(module):.2%}  "
            f"{speed * loader.global_batch_size:,.0f} images/s  {left}"
        )
        done = (step % loader.batches or loader.batches) / loader.batches
        self._bar.update(self._task, description=_epoch(trainer), completed=100 * done, text=text, refresh=True)

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        if self._bar is not None:
            self._bar.update(self._task, text="validating", refresh=True)

    def on_train_epoch_end(self, trainer: Trainer, module: Any) -> None:
        if trainer.global_step % trainer.train_dataloader.batches:
            return  # max_steps ended the training inside the epoch
        # The module computes them after this hook; torchmetrics keeps the result. All ranks take part.
        row = {name: float(module.metrics[name].compute()) for name in ("train_loss", "train_acc")}
        row |= module.epoch_results
        if not trainer.is_global_zero:
            return
        now = time.monotonic()
        images = (trainer.global_step - self._epoch_step) * trainer.train_dataloader.global_batch_size
        parts = [_epoch(trainer)]
        for split in ("train", "val", "test"):
            if f"{split}_loss" in row:
                parts.append(f"{split} {row[f'{split}_acc']:.2%} loss {row[f'{split}_loss']:.4f}")
        parts.append(f"{images / (now - self._epoch_started):,.0f} images/s")
        say("  ".join(parts))

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._stop()

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _epoch(trainer: Trainer) -> str:
    known = trainer.max_epochs is not None and trainer.max_epochs > 0
    return f"epoch {trainer.current_epoch + 1}" + (f"/{trainer.max_epochs}" if known else "")


def _running_accuracy(module: Any) -> float:
    """This rank's training accuracy so far in the epoch; `compute` would wait for the other ranks."""
    metric = module.metrics["train_acc"]
    return float(metric.tp.sum() / (metric.tp + metric.fn).sum().clamp(min=1))


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
