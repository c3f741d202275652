"""What is seen of a training: a bar in a terminal, one line an epoch everywhere."""

import io
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichModelSummary
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from mnist_lightning.console import console, in_notebook, say

SUMMARY = {"Name": "layer", "Type": "", "Params": "parameters", "Out sizes": "output"}  # Lightning's columns and ours
NOT_SHOWN = {"train_loss_step", "lr", "images"}  # of an epoch
REFRESH = 0.5  # seconds: to draw takes some milliseconds, and reading the loss waits for the device


class NetworkSummary(RichModelSummary):
    """The layers of the network, without the metrics beside it."""

    @staticmethod
    def summarize(summary_data: list[tuple[str, list[str]]], total_parameters: int, *args: Any, **kwargs: Any) -> None:
        columns = {name: values for name, values in summary_data if name in SUMMARY}
        table = Table(caption=f"{total_parameters:,} parameters", caption_justify="left", caption_style="")
        for name in columns:
            table.add_column(SUMMARY[name])
        for row in zip(*columns.values(), strict=True):
            if row[0].startswith("net."):
                table.add_row(*row)
        console.print(table)


class NotebookBar(Progress):
    """A bar in a notebook: one output that changes in its place, above what is printed."""

    _output: Any = None

    def refresh(self) -> None:
        from IPython.display import display

        # without colours: of the bar's two greys both look full
        plain = Console(file=io.StringIO(), width=120, color_system=None, force_jupyter=False)
        plain.print(self.get_renderable())
        line = {"text/plain": plain.file.getvalue().strip()}
        if self._output is None:
            self._output = display(line, raw=True, display_id=True)
        else:
            self._output.update(line, raw=True)

    start = refresh

    def stop(self) -> None:
        self.columns = self.columns[:-2]  # of the time left
        self.refresh()


class RunProgress(Callback):
    """Epoch, what is logged, images per second and time left. (Lightning's bars cost at each step.)"""

    takes_several = True  # batches in one call of on_train_batch_end
    _bar: Progress | None = None

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.on_train_epoch_start(trainer, module)  # no such call when a run goes on inside an epoch
        if trainer.is_global_zero and (console.is_terminal or in_notebook()):
            self._bar = (NotebookBar if in_notebook() else Progress)(
                TextColumn("{task.description}"), BarColumn(24), TextColumn("{task.fields[text]}"),
                TimeRemainingColumn(compact=True), TextColumn("left"),
                console=console, auto_refresh=False, transient=True,
            )  # fmt: skip
            steps: float = trainer.max_steps
            if steps == -1:
                steps = (trainer.max_epochs or -1) * trainer.num_training_batches // trainer.accumulate_grad_batches
            total = steps if steps > 0 else None
            self._task = self._bar.add_task(_epoch(trainer), total=total, completed=trainer.global_step, text="")
            self._shown_at = 0.0
            self._bar.start()

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._epoch_started, self._epoch_step = time.monotonic(), trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._bar is None or time.monotonic() - self._shown_at < REFRESH:
            return
        self._shown_at = time.monotonic()
        shown = {name: outputs[name].mean() for name in ("loss",) if outputs and name in outputs}
        parts = [f"{name} {float(value):.4g}" for name, value in (shown | trainer.progress_bar_metrics).items()]
        text = "  ".join([*parts, self._pace(trainer)])
        self._bar.update(
            self._task, description=_epoch(trainer), completed=trainer.global_step, text=text, refresh=True
        )

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        if self._bar is not None:
            self._bar.update(self._task, text="validating", refresh=True)

    def on_train_epoch_end(self, trainer: Trainer, module: Any) -> None:
        row = {name: float(value) for name, value in trainer.callback_metrics.items()}  # all ranks take part
        if not trainer.is_global_zero or not trainer.is_last_batch:
            return  # or something ended the training inside the epoch
        if self._bar is not None:
            self._bar.update(self._task, description=_epoch(trainer), completed=trainer.global_step)
        parts = [_epoch(trainer)]
        for split in ("train", "val", "test"):
            accuracy, loss = row.pop(f"{split}_acc", None), row.pop(f"{split}_loss", None)
            if accuracy is not None or loss is not None:
                parts.append(f"{split}" + (f" {accuracy:.2%}" if accuracy is not None else ""))
                parts[-1] += f" loss {loss:.4f}" if loss is not None else ""
        parts += [f"{name} {value:.4g}" for name, value in row.items() if name not in NOT_SHOWN]
        say("  ".join([*parts, self._pace(trainer)]))

    def _pace(self, trainer: Trainer) -> str:
        """Images per second in this epoch, where the loader tells how many there are in a batch."""
        steps = (trainer.global_step - self._epoch_step) / (time.monotonic() - self._epoch_started)
        size = getattr(trainer.train_dataloader, "global_batch_size", None)
        return f"{steps * trainer.accumulate_grad_batches * size:,.0f} images/s" if size else f"{steps:,.0f} steps/s"

    def on_train_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=trainer.global_step)
            self._bar.stop()
            self._bar = None

    on_exception = on_train_end


def _epoch(trainer: Trainer) -> str:
    known = trainer.max_epochs is not None and trainer.max_epochs > 0
    return f"epoch {trainer.current_epoch + 1}" + (f"/{trainer.max_epochs}" if known else "")
