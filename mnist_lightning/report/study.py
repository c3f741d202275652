"""The report of a search: what was tried, what came of it, which settings matter."""

import base64
import math
import warnings
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import matplotlib
import optuna
from matplotlib import pyplot
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from optuna.trial import FrozenTrial, TrialState
from optuna.visualization import matplotlib as plots
from rich.markup import escape as plain
from rich.table import Table

from mnist_lightning.console import console, say
from mnist_lightning.errors import UserError, first_line
from mnist_lightning.report import page
from mnist_lightning.report.look import png
from mnist_lightning.searching import end
from mnist_lightning.searching.screen import final_table, in_words, shown, spread, with_std
from mnist_lightning.searching.storage import load, quiet
from mnist_lightning.searching.study import TERMS, final_name

SHOWN = 15  # trials in the terminal
WIDE, HIGH = 9.0, 4.8  # inches of a picture
PICTURES: dict[str, tuple[str, Callable[..., Any]]] = {
    "history": ("Value of each trial, and the best so far", plots.plot_optimization_history),
    "importance": ("How much of the difference between trials each setting makes", plots.plot_param_importances),
    "parallel": ("Each trial as a line through its settings", plots.plot_parallel_coordinate),
    "slices": ("Value over each setting alone", plots.plot_slice),
    "epochs": ("Value after each epoch, trials that were pruned with them", plots.plot_intermediate_values),
}


class StudyReport:
    """What a study came to, read from its journal or database."""

    def __init__(self, folder: Path, storage: str | None) -> None:
        self.folder, self.notes = folder, list[str]()
        with quiet():
            study, final = (load(folder, storage, name) for name in (folder.name, final_name(folder.name)))
        if study is None:
            raise UserError(f"{folder} holds no study: begin one with search --study {folder.name}")
        self.study = study
        self.trials = self.study.get_trials(deepcopy=False)
        self.terms: dict[str, Any] = self.study.user_attrs.get(TERMS, {})
        self.accuracy = self.study.direction == optuna.study.StudyDirection.MAXIMIZE
        self.finalists = end.of_final(self.trials, final.get_trials(deepcopy=False)) if final else []
        self.winner = end.winner_of(self.finalists, self.accuracy) if self.finalists else None
        self.tests: dict[str, Any] = final.user_attrs.get(end.TEST, {}) if final else {}

    @property
    def what(self) -> str:
        return "validation accuracy" if self.accuracy else "validation loss"

    def importance(self) -> dict[str, float]:
        """Each setting's share of what makes trials differ; empty where there are too few."""
        with quiet():
            try:
                return {k: float(v) for k, v in optuna.importance.get_param_importances(self.study).items()}
            except (ValueError, RuntimeError, ZeroDivisionError):
                self.notes.append("too few trials, or too alike, to tell which settings matter")
                return {}

    def numbers(self) -> dict[str, Any]:
        """All of it, as JSON has it."""
        states = [trial.state.name.lower() for trial in self.trials]
        best = end.by_rank(self.trials, self.accuracy)[:1]
        winner = self.winner
        return {
            "study": self.folder.name,
            "objective": self.what,
            "terms": self.terms,
            "counts": {state: states.count(state) for state in sorted(set(states))},
            "best": _numbers(best[0]) if best else None,
            "importance": self.importance(),
            "trials": [_numbers(trial) for trial in self.trials],
            "final": [
                {"settings": one.name, "mean": one.mean, "std": one.std, "values": one.values, "params": one.params}
                for one in self.finalists
            ],
            "winner": winner.name if winner else None,
            "test": self.tests.get(str(winner.number)) if winner else None,
            "notes": self.notes,
        }

    def pictures(self) -> dict[str, Figure]:
        """Optuna's plots; pyplot's state is left as it was."""
        drawn = {}
        for name, (_, plot) in PICTURES.items():
            with matplotlib.rc_context(), warnings.catch_warnings(), quiet():
                warnings.simplefilter("ignore")
                try:
                    axes = plot(self.study) if name == "epochs" else plot(self.study, target_name=self.what)
                except (ValueError, RuntimeError, ZeroDivisionError, IndexError) as error:
                    self.notes.append(f"no picture of {name}: {first_line(error)}")
                    continue
                figure = (axes.flat[0] if hasattr(axes, "flat") else axes).figure
                columns = len(axes) if hasattr(axes, "__len__") else 1
                figure.set_size_inches(max(WIDE, 2.6 * columns), HIGH)
                _tidy(figure, name)
                pyplot.close(figure)
                drawn[name] = figure
        return drawn

    def tell(self, found: dict[str, Any]) -> None:
        """In the terminal: the best trials, what matters, the end."""
        counts = ", ".join(f"{number} {state}" for state, number in found["counts"].items())
        table = Table(title=f"{plain(self.folder.name)}: {counts}", title_justify="left")
        for name in ("trial", self.what, "epoch", "seconds", "settings"):
            table.add_column(name, justify="left" if name == "settings" else "right")
        for trial in end.by_rank(self.trials, self.accuracy)[:SHOWN]:
            notes = trial.user_attrs
            seconds = f"{notes['seconds']:,.0f}" if "seconds" in notes else "–"
            cells = [str(trial.number), shown(trial.value, self.accuracy), str(notes.get("epoch", "–")), seconds]
            table.add_row(*cells, plain(in_words(trial.params)))
        console.print(table)
        if shares := found["importance"]:
            told = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
            say(f"What makes trials differ: {told}")
        if self.winner:
            console.print(final_table(self.finalists, self.winner, self.accuracy))
        if found["test"]:
            mean, std, n = end.mean_std(found["test"]["accuracies"])
            say(f"Test accuracy of {self.winner.name}: {with_std(mean, std, n, True)}")

    def page(self, found: dict[str, Any], drawn: dict[str, Figure]) -> str:
        """The same as a page, with the pictures in it."""
        rows = [
            [str(one["trial"]), one["state"], shown(one["value"], self.accuracy), str(len(one["epochs"])),
             in_words(one["params"])]
            for one in found["trials"]
        ]  # fmt: skip
        sections = [(name, name.capitalize(), _image(figure, PICTURES[name][0])) for name, figure in drawn.items()]
        if self.finalists:
            sections.insert(0, ("end", "Trained anew", self._end()))
        columns = ["trial", "state", self.what, "epochs", "settings"]
        sections.append(("trials", "All trials", page.table("Trials in their order", columns, rows)))
        space = "; ".join(f"{name.removeprefix('space of ')}: {value}" for name, value in self.terms.items()
                          if name.startswith("space of "))  # fmt: skip
        header = f"<h1>{escape(self.folder.name)}</h1><p>A search for settings. {escape(space)}</p>"
        return page.page(f"{self.folder.name}: a search", header, sections, self.notes)

    def _end(self) -> str:
        rows = []
        start = next((one for one in self.finalists if one.number == end.START), None)
        for one in self.finalists:
            paired = one.beside(start) if start else None
            mean = f"{100 * paired[0]:+.2f}" if paired and self.accuracy else f"{paired[0]:+.4f}" if paired else ""
            p = "" if not paired or paired[2] is None else f"{paired[2]:.2g}"
            rows.append([one.name, shown(one.mean, self.accuracy), spread(one.std, self.accuracy), str(len(one.values)),
                         mean, p, in_words(one.params)])  # fmt: skip
        columns = ["settings", self.what, "std", "n", "beside the start", "p (paired t-test)", "what differs"]
        return page.table("The best settings and the start's, with other seeds", columns, rows)


def _numbers(trial: FrozenTrial) -> dict[str, Any]:
    done = trial.state in (TrialState.COMPLETE, TrialState.PRUNED) and trial.value is not None
    return {
        "trial": trial.number,
        "state": trial.state.name.lower(),
        "value": trial.value if done and math.isfinite(trial.value or 0) else None,
        "params": trial.params,
        "epochs": {str(epoch): value for epoch, value in sorted(trial.intermediate_values.items())},
        **{name: trial.user_attrs[name] for name in ("seconds", "epoch", "failed") if name in trial.user_attrs},
    }


def _tidy(figure: Figure, name: str) -> None:
    """Letters that do not lie upon each other."""
    for axes in figure.axes:
        if name in ("parallel", "slices"):
            axes.tick_params(axis="x", labelrotation=30 if name == "parallel" else 45)
            pyplot.setp(axes.get_xticklabels(), ha="right")
        if name == "epochs" and (legend := axes.get_legend()):
            legend.remove()  # a line for each trial
        if name in ("epochs", "history"):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if name == "parallel":  # its axes lie upon each other
        figure.subplots_adjust(bottom=0.25, left=0.14)
    else:
        figure.set_layout_engine("constrained")


def _image(figure: Figure, words: str) -> str:
    data = base64.b64encode(png(figure)).decode()
    picture = f'<img alt="{escape(words)}" style="width: 100%" src="data:image/png;base64,{data}">'
    return f"<figure>{picture}<figcaption>{escape(words)}</figcaption></figure>"
