"""What is seen of a search: a table that lives in a terminal, a line for each trial that has ended everywhere."""

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.trial import TrialState
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from mnist_lightning.console import console, say
from mnist_lightning.searching.conduct import Conductor
from mnist_lightning.searching.end import Finalist, by_rank

REFRESH = 0.5  # seconds
STATES = {
    "done": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL, "running": TrialState.RUNNING,
}  # fmt: skip


class Screen:
    """Shows the trials of one study while they are trained."""

    def __init__(self, title: str, most: int, accuracy: bool, deadline: float = math.inf) -> None:
        self.title, self.most, self.accuracy, self.deadline = title, most, accuracy, deadline
        self._started, self._shown, self._before = time.monotonic(), -math.inf, -1
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None

    def __enter__(self) -> "Screen":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live:
            self._live.stop()

    def seen(self, conductor: Conductor, line: str | None) -> None:
        """Something has changed; `line`: a trial has ended, and how."""
        if line:
            say(self._ended(conductor, line))
        if self._live and (line or time.monotonic() - self._shown >= REFRESH):
            self._shown = time.monotonic()
            self._live.update(self._table(conductor), refresh=True)

    def _ended(self, conductor: Conductor, line: str) -> str:
        trial = conductor.ended
        if trial is None:
            return line
        value = "" if trial.value is None else f"  val {shown(trial.value, self.accuracy)}"
        seconds = f"  {trial.user_attrs['seconds']:.0f} s" if "seconds" in trial.user_attrs else ""
        return f"{line}{value}{seconds}  {in_words(trial.params)}".rstrip()

    def _table(self, conductor: Conductor) -> Table:
        trials = conductor.study.trials()
        count = {name: sum(trial.state == state for trial in trials) for name, state in STATES.items()}
        finished = count["done"] + count["pruned"] + count["failed"]
        self._before = finished if self._before < 0 else self._before
        told = "  ".join(f"{name} {number}" for name, number in count.items() if number)
        left = self._left(finished)
        table = Table(
            title=f"{escape(self.title)}: {finished} of {self.most}  {told}{f'  {left} left' if left else ''}",
            title_justify="left",
        )
        for name in ("trial", "epoch", "val", "seconds", "settings"):
            table.add_column(name, justify="right" if name != "settings" else "left", no_wrap=name != "settings")
        for best in by_rank(trials, self.accuracy)[:1]:
            value = shown(best.value, self.accuracy)
            seconds = f"{best.user_attrs.get('seconds', 0):.0f}"
            epoch = str(best.user_attrs.get("epoch", ""))
            table.add_row(f"best: {best.number}", epoch, value, seconds, escape(in_words(best.params)), style="bold")
            table.add_section()
        for running in sorted(conductor.running.values(), key=lambda one: one.trial.number):
            value = "" if running.value is None else shown(running.value, self.accuracy)
            seconds = f"{time.monotonic() - running.started:.0f}"
            words = in_words(running.trial.params) or running.name
            table.add_row(str(running.trial.number), str(running.epoch or ""), value, seconds, escape(words))
        return table

    def _left(self, finished: int) -> str:
        """How long it will take at this pace, or until its time is up."""
        since = finished - self._before
        pace = (time.monotonic() - self._started) / since if since else math.inf
        seconds = min(pace * (self.most - finished), self.deadline - time.monotonic())
        if not math.isfinite(seconds):
            return ""
        return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{max(0, seconds):.0f} s"


def shown(value: float | None, accuracy: bool) -> str:
    """A value of what counts."""
    return "–" if value is None else f"{value:.2%}" if accuracy else f"{value:.4f}"


def in_words(params: Mapping[str, Any]) -> str:
    """Settings in a line."""
    values = {name: f"{value:.3g}" if isinstance(value, float) else str(value) for name, value in params.items()}
    return ", ".join(f"{name.partition('.')[2] or name} {value}" for name, value in values.items())


def final_table(those: Sequence[Finalist], winner: Finalist, accuracy: bool) -> Table:
    """The settings that were trained anew, beside the start's."""
    seeds = seeds_in_words(max(len(one.values) for one in those))
    table = Table(title=f"Trained anew with {seeds}, validation images", title_justify="left")
    what = "accuracy" if accuracy else "loss"
    for name in ("settings", f"val {what}", "std", "n", "beside the start", "p", "what differs"):
        table.add_column(name, justify="left" if name in ("settings", "what differs") else "right")
    start = next((one for one in those if one.number < 0), None)
    for one in sorted(those, key=lambda one: one.mean * (-1 if accuracy else 1)):
        paired = one.beside(start) if start else None
        cells = [escape(one.name), shown(one.mean, accuracy), spread(one.std, accuracy), str(len(one.values))]
        if paired:
            mean, std, p = paired
            cells += [difference(mean, std, accuracy), "–" if p is None else f"{p:.2g}"]
        else:
            cells += ["", ""]
        table.add_row(*cells, escape(in_words(one.params)), style="bold" if one is winner else None)
    return table


def seeds_in_words(count: int) -> str:
    return "one seed" if count == 1 else f"{count} seeds"


def with_std(mean: float, std: float | None, n: int, accuracy: bool) -> str:
    """A mean as a line has it."""
    return shown(mean, accuracy) + ("" if std is None else f" ± {spread(std, accuracy)}") + f" (n {n})"


def spread(std: float | None, accuracy: bool) -> str:
    return "–" if std is None else f"{100 * std:.2f}" if accuracy else f"{std:.4f}"


def difference(mean: float, std: float | None, accuracy: bool) -> str:
    """A difference of accuracies in points of a hundred, or of losses."""
    text = f"{100 * mean:+.2f}" if accuracy else f"{mean:+.4f}"
    return text + (f" ± {spread(std, accuracy)}" if std is not None else "")
