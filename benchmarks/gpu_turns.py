"""What the parts of gpu.py share: tables that are written line by line, trainings in this process, times by turns."""

import argparse
import contextlib
import io
import os
import shlex
import statistics
import sys
import tempfile
import time
import traceback
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# cuBLAS reads it at the first product of the process: a deterministic training may come later
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import torch
from lightning.pytorch.callbacks import Callback

sys.path.insert(0, str(Path(__file__).parent))
from by_hand import Bare, ByHand, Graph, wait
from results import machine, write_section
from steps import MNIST, RECIPES, Recipe

from mnist_lightning.commands import guest
from mnist_lightning.commands.fit import Result, train_one
from mnist_lightning.words import pairs_of, pairs_of_words

ALL = (*RECIPES, "cnn")
Seconds = dict[str, list[float]]
options = argparse.Namespace()  # of the part that is measured


class Table:
    """A section of RESULTS.md that is there from its first line on."""

    def __init__(self, heading: str, columns: str, *notes: str) -> None:
        command = f"`python benchmarks/gpu.py {shlex.join(word for word in options.words if word != '--write')}`"
        card = torch.cuda.get_device_name() if options.device.type == "cuda" else "no GPU"
        self.heading, self.lines = heading, [command, "", *notes, f"{card}; {machine()}", ""]
        self.lines += [f"| {columns} |", "|" + " --- |" * (columns.count("|") + 1)]
        print(f"\n## {heading}", *self.lines, sep="\n", flush=True)

    def add(self, *cells: Any) -> None:
        self.say(f"| {' | '.join(map(str, cells))} |")

    def say(self, line: str) -> None:
        self.lines.append(line)
        print(line, flush=True)
        if options.write:
            write_section(self.heading, self.lines)


@contextlib.contextmanager
def passed_over(what: str) -> Iterator[None]:
    """Whatever goes wrong inside is told in a few lines, and the next thing is measured."""
    try:
        yield
    except (Exception, SystemExit) as error:
        told = traceback.format_exc(limit=-4).splitlines()
        print(f"{what} FAILED: {type(error).__name__}: {str(error)[:500]}", *told[:-1], sep="\n", flush=True)


def spread(values: list[float], form: str = ".3f") -> str:
    return f"{statistics.median(values):{form}} ({min(values):{form}}–{max(values):{form}})"


def train(config: str, *, test: bool = False, callbacks: Any = (), **groups: Any) -> Result:
    """`fit` in this process, with its bar, tables and checkpoints, without what it prints."""
    fixed = {"accelerator": options.device.type, "devices": 1, "num_sanity_val_steps": 0, "callbacks": list(callbacks)}
    groups = {"config": config} | groups
    groups["trainer"] = fixed | groups.get("trainer", {})
    pairs = pairs_of(groups) + pairs_of_words(shlex.split(options.more))
    with contextlib.redirect_stdout(io.StringIO()), guest() as signals:
        signals.imported()
        return train_one(pairs, signals, test)


def data(**settings: Any) -> dict[str, Any]:
    return {"root": str(MNIST), "val_size": 0, "test_each_epoch": False} | settings


class EpochSeconds(Callback):
    """From one epoch's start to the next one's, and from the start to the end of the steps; from the third epoch on."""

    def __init__(self) -> None:
        self.starts: list[float] = []
        self.ends: list[float] = []

    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
        wait(options.device)
        self.starts.append(time.perf_counter())

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        wait(options.device)
        self.ends.append(time.perf_counter())

    @property
    def whole(self) -> float:
        return statistics.median(b - a for a, b in zip(self.starts[2:], self.starts[3:], strict=False))

    @property
    def steps(self) -> float:
        return statistics.median(b - a for a, b in zip(self.starts[2:], self.ends[2:], strict=True))


def epochs_of(name: str) -> int:
    """Enough for a median."""
    return options.epochs or (20 if name.startswith(("mccaffrey", "fidle")) else 6)


def ours(name: str, **trainer: Any) -> EpochSeconds:
    watch = EpochSeconds()
    with tempfile.TemporaryDirectory() as folder:
        trainer |= {"max_epochs": epochs_of(name), "default_root_dir": folder}
        train(name, callbacks=[watch], data=data(), trainer=trainer)
    return watch


# ---------------------------------------------------------------------- seconds an epoch

measured: dict[str, Seconds] = {}  # of the parts before, in seconds an epoch


def graph_loop(recipe: Recipe, at_once: int | None = None) -> Graph:
    """In the faster of the two layouts that convolutions may have."""
    layouts = [torch.contiguous_format, torch.channels_last][: 1 + (recipe.model_class == "CNN")]
    loops = [Graph(recipe, options.device, at_once or options.at_once, layout) for layout in layouts]
    taken = [min(loop.seconds(1) for _ in range(2)) for loop in loops]
    told = ", ".join(f"{str(way)[6:]} {seconds:.4f}" for way, seconds in zip(layouts, taken, strict=True))
    print(f"{recipe.name}: graph {told} s", flush=True)
    return loops[taken.index(min(taken))]


def measure(
    recipe: Recipe, rounds: int, ways: tuple[str, ...] = ("bare", "graph", "ours")
) -> tuple[Seconds, list[str]]:
    """Seconds an epoch of each way in each round, in turns; and what bare and graph read in the end."""
    name, seconds, loops = recipe.name, defaultdict[str, list[float]](list), dict[str, ByHand]()
    if "bare" in ways:
        loops["bare"] = bare = Bare(recipe, options.device)
        bare.passes(1, most=50)
    if "graph" in ways:
        loops["graph"] = graph_loop(recipe)
    for turn in range(rounds):
        for way in ways[turn % len(ways) :] + ways[: turn % len(ways)]:
            if way == "ours":
                watch = ours(name)
                seconds["ours"].append(watch.whole)
                seconds["steps"].append(watch.steps)
            else:
                seconds[way].append(loops[way].seconds(recipe.epochs * (3 if way == "graph" else 1)))
        print(name, *(f"{way} {values[-1]:.4f}" for way, values in seconds.items()), flush=True)
    measured[name] = dict(seconds)
    return measured[name], [f"{loop.accuracy():.1%}" for loop in loops.values()]
