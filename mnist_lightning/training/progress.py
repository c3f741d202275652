"""What is seen of a training: a bar in a terminal, one line an epoch in a file or a pipe."""

import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar, RichModelSummary
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from mnist_lightning.console import console, say
from mnist_lightning.models import DigitClassifier

NOT_SHOWN = {"train_loss_step", "lr", "images"}  # of an epoch
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

    def enable(self) -> None:
        """Lightning's tuner asks for it; the bar comes back with the next training."""

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
        step, batches = trainer.global_step, trainer.num_training_batches
        speed = (step - self._first_step) / (now - self._started)  # steps per second
        end = trainer.max_steps if trainer.max_steps != -1 else (trainer.max_epochs or -1) * batches
        if trainer.max_steps == -1:
            end = end // trainer.accumulate_grad_batches if end != float("inf") else -1
        left = f"{_clock((end - step) / speed)} left" if end > 0 and speed else ""
        loss = outputs.get("loss") if isinstance(outputs, dict) else None
        shown = {} if loss is None else {"loss": f"{float(loss):.4f}"}
        shown |= {name: f"{value:.4g}" for name, value in trainer.progress_bar_metrics.items()}
        shown |= _running_accuracy(module)
        text = "  ".join([*(f"{name} {value}" for name, value in shown.items()), _pace(trainer, speed), left])
        done = 100 * (batch_idx + 1) / batches
        self._bar.update(self._task, description=_epoch(trainer), completed=done, text=text, refresh=True)

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        if self._bar is not None:
            self._bar.update(self._task, text="validating", refresh=True)

    def on_train_epoch_end(self, trainer: Trainer, module: Any) -> None:
        row = {name: float(value) for name, value in trainer.callback_metrics.items()}  # all ranks take part
        if not trainer.is_global_zero or not trainer.is_last_batch:
            return  # or something ended the training inside the epoch
        parts = [_epoch(trainer)]
        for split in ("train", "val", "test"):
            accuracy, loss = row.pop(f"{split}_acc", None), row.pop(f"{split}_loss", None)
            if accuracy is not None or loss is not None:
                parts.append(f"{split}" + (f" {accuracy:.2%}" if accuracy is not None else ""))
                parts[-1] += f" loss {loss:.4f}" if loss is not None else ""
        rest = {name: value for name, value in row.items() if name not in NOT_SHOWN}
        parts += [f"{name} {value:.4g}" for name, value in rest.items()]
        steps = (trainer.global_step - self._epoch_step) / (time.monotonic() - self._epoch_started)
        say("  ".join([*parts, _pace(trainer, steps)]))

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


def _pace(trainer: Trainer, steps: float) -> str:
    """Images per second, where the loader tells how many there are in a batch."""
    size = getattr(trainer.train_dataloader, "global_batch_size", None)
    return f"{steps * trainer.accumulate_grad_batches * size:,.0f} images/s" if size else f"{steps:,.0f} steps/s"


def _running_accuracy(module: Any) -> dict[str, str]:
    """This rank's training accuracy so far in the epoch; `compute` would wait for the other ranks."""
    if not isinstance(module, DigitClassifier):
        return {}
    state: Any = module.accuracy["train_acc"].metric_state
    right, wrong = int(state["tp"].sum()), int(state["fn"].sum())
    return {"acc": f"{right / max(1, right + wrong):.2%}"}


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
