"""A process that trains trials, one after the other: `python -m mnist_lightning.searching.worker`.

It reads a line of JSON a task and answers in lines of JSON; whoever started it decides. When that process ends, so does
this one, at once: others may take its trial.
"""

import json
import os
import queue
import shutil
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from lightning.pytorch import Callback, LightningModule, Trainer

from mnist_lightning.commands import evaluate, guest
from mnist_lightning.commands.fit import train_one
from mnist_lightning.data import lent
from mnist_lightning.errors import UserError, first_line
from mnist_lightning.processes import Interrupted, Signals
from mnist_lightning.report.history import number, read_history
from mnist_lightning.run import Run
from mnist_lightning.words import Pairs

Message = dict[str, Any]


class Line:
    """The line to the process that started this one."""

    def __init__(self, tasks: IO[str], answers: IO[str]) -> None:
        self._answers = answers
        self._tasks: queue.Queue[Message] = queue.Queue()
        self.lent: str | None = None  # a folder that goes with that process
        threading.Thread(target=self._read, args=(tasks,), daemon=True).start()

    def _read(self, tasks: IO[str]) -> None:
        for line in tasks:
            self._tasks.put(json.loads(line))
        if self.lent:
            shutil.rmtree(self.lent, ignore_errors=True)
        os._exit(0)

    def hear(self) -> Message:
        return self._tasks.get()

    def say(self, **message: Any) -> None:
        print(json.dumps(message), file=self._answers, flush=True)


class Reporter(Callback):
    """Tells what each epoch came to; ends the training where it is told to."""

    def __init__(self, line: Line) -> None:
        self.line, self.pruned = line, False
        self._validated = False

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._validated = True

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        if not self._validated:
            return
        self._validated = False
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.line.say(epoch=trainer.current_epoch + 1, acc=metrics.get("val_acc"), loss=metrics.get("val_loss"))
        if not self.line.hear()["goes_on"]:
            self.pruned = trainer.should_stop = True


def train_trial(settings: Pairs, root: str, name: str, line: Line, signals: Signals) -> Message:
    """Trains a trial in its own run, from its last checkpoint if there is one; what it came to."""
    run, reporter = Run(Path(root) / name), Reporter(line)
    ours: Pairs = [("trainer.default_root_dir", root), ("run", name), ("trainer.callbacks+", reporter)]
    goes_on = any(run.folder.glob("*.ckpt"))
    try:
        train_one(settings + ours + [("ckpt_path", "last")] * goes_on, signals, test=False)
    except UserError:
        if not goes_on or reporter.pruned:
            raise
        shutil.rmtree(run.folder)  # its checkpoint is damaged, or of another version
        train_one(settings + ours, signals, test=False)
    if reporter.pruned:
        return {"pruned": True}
    return {"done": outcome(run) or _validated(root, name, signals)}


def outcome(run: Run) -> Message | None:
    """What the epoch came to that best.ckpt is of: the highest validation accuracy, then the lowest loss."""
    epochs = [
        {"epoch": epoch, "acc": number(row.get("val_acc")), "loss": number(row.get("val_loss"))}
        for epoch, row in read_history(run).epochs.items()
    ]
    epochs = [one for one in epochs if one["acc"] is not None or one["loss"] is not None]
    return max(epochs, key=lambda one: (one["acc"] or 0, -(one["loss"] or 0)), default=None)


def _validated(root: str, name: str, signals: Signals) -> Message:
    """Of a training that was limited to steps, and saw no validation."""
    evaluate.command("validate", ["--run", name, "--trainer.default_root_dir", root], signals)
    found = json.loads((Path(root) / name / "val.json").read_text(encoding="utf-8"))
    return {"epoch": found.get("epoch"), "acc": found.get("accuracy"), "loss": found.get("loss")}


def test_run(root: str, name: str, settings: list[str], signals: Signals) -> Message:
    """The test accuracy of a run's best checkpoint."""
    evaluate.command("test", ["--run", name, "--trainer.default_root_dir", root, *settings], signals)
    return {"tested": json.loads((Path(root) / name / "test.json").read_text(encoding="utf-8"))}


def work(task: Mapping[str, Any], line: Line) -> Message:
    """What came of a task; nothing that a setting can cause ends the process."""
    with guest(program=True) as signals:
        signals.imported()
        try:
            if "test" in task:
                return test_run(task["root"], task["test"], task["settings"], signals)
            pairs = [(name, value) for name, value in task["settings"]]
            return train_trial(pairs, task["root"], task["train"], line, signals)
        except Interrupted:
            return {"stopped": True}
        except Exception as error:  # a value that torch, or a module of the user's, does not take
            kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            return {"failed": kind + first_line(error)}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what a training prints is in its table, too
    line = Line(sys.stdin, answers)
    line.say(ready=True)
    while True:
        task = line.hear()
        if "take" in task:
            line.lent = task["take"]
            with suppress(OSError):  # then it reads them itself
                lent.take(Path(task["take"]))
            continue
        line.say(**work(task, line))


if __name__ == "__main__":
    main()
