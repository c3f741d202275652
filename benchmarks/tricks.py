"""What each trick is worth: an epoch without it over an epoch with all, in turns, each in a process of its own.

python benchmarks/tricks.py --recipes fast simple_mlp mccaffrey_cnn
"""

import argparse
import logging
import os
import shlex
import statistics
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["TTY_COMPATIBLE"] = "1"  # rich draws its bars although nobody looks

import torch

sys.path.insert(0, str(Path(__file__).parent))
from results import machine, write_section
from steps import MNIST
from turns import Side, answer, in_turns

from mnist_lightning.cli import main
from mnist_lightning.data import loader
from mnist_lightning.models import layers, metrics
from mnist_lightning.training import optimization, trainer
from mnist_lightning.training.checkpoints import DurableCheckpointIO

EPOCHS = {"fast": 1, "simple_mlp": 1, "nielsen_mlp": 1, "nextjournal_cnn": 1, "fidle_cnn": 1, "mccaffrey_cnn": 4}
MORE = {"fused optimizer": ["--model.optimizer_args.fused", "false"]}


def then(method: Callable[..., Any], more: Callable[[Any], Any]) -> Callable[..., Any]:
    """The method, and something done to its object afterwards."""

    def both(self: Any, *args: Any, **options: Any) -> None:
        method(self, *args, **options)
        more(self)

    return both


# How a process does without a trick, where it is not a setting.
WITHOUT: dict[str, tuple[Any, str, Any]] = {
    "QuickLoop": (trainer, "quick", lambda trainer: trainer),
    "quick self.log": (optimization, "QuickLog", lambda *_: None),
    "optimizer without hooks": (
        optimization.QuickOptimization, "plan",
        then(optimization.QuickOptimization.plan, lambda self: setattr(self, "_raw_step", None)),
    ),
    "memory kept": (trainer, "keep_freed_memory", lambda: None),
    "GPU looked for once": (trainer, "_ask_once_for_a_gpu", lambda: None),
    "many batches gathered at once": (loader, "AT_ONCE", 0),
    "many batches counted at once": (metrics.Accuracy, "add", metrics.Accuracy.update),
    "layout of convolutions": (torch, "channels_last", torch.contiguous_format),
    "pooling before ReLU": (layers.Network, "in_training", lambda net: list(net)),
    "cheap dropout": (layers.Dropout, "forward", torch.nn.Dropout.forward),
    "weights divided among threads": (layers.Linear, "forward", torch.nn.Linear.forward),
    "one thread for small steps": (trainer, "SMALL_STEP", 0),
    "checkpoints in a thread": (
        DurableCheckpointIO, "save_checkpoint", then(DurableCheckpointIO.save_checkpoint, DurableCheckpointIO.wait),
    ),
}  # fmt: skip
TRICKS = (*WITHOUT, *MORE)


def epochs(recipe: str, trick: str) -> float:
    """Seconds of training."""
    words = ["fit", "--config", recipe, "--data.root", str(MNIST)]
    words += ["--trainer.max_epochs", str(EPOCHS[recipe]), "--trainer.callbacks", "steps.Stopwatch"]
    words += ["--trainer.num_sanity_val_steps", "0", "--data.test_each_epoch", "false", *MORE.get(trick, [])]
    with tempfile.TemporaryDirectory() as folder:
        if main([*words, "--trainer.default_root_dir", folder, "--trainer.accelerator", "cpu"]) != 0:
            raise SystemExit(f"{recipe}: fit failed")
    return sys.modules["steps"].Stopwatch.seconds  # type: ignore[attr-defined,no-any-return]


def measure(recipe: str, tricks: list[str], rounds: int) -> list[str]:
    """For each trick, time without it over time with all: median (smallest–largest)."""
    sides = {trick: Side(__file__, "--recipes", recipe, "--without", trick) for trick in ("nothing", *tricks)}
    seconds = in_turns(sides, rounds)
    cells = []
    for trick in tricks:
        ratios = [without / whole for without, whole in zip(seconds[trick], seconds["nothing"], strict=True)]
        cells.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})")
    return cells


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=list(EPOCHS), choices=EPOCHS)
    parser.add_argument("--tricks", nargs="+", default=list(TRICKS), choices=TRICKS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--without", choices=("nothing", *TRICKS), help="measure so for each line of standard input")
    parser.add_argument("--write", action="store_true", help="put the table into RESULTS.md")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    if options.without:
        if options.without in WITHOUT:
            setattr(*WITHOUT[options.without])
        answer(lambda turn: epochs(options.recipes[0], options.without))
        raise SystemExit
    columns = [measure(recipe, options.tricks, options.rounds) for recipe in options.recipes]
    lines = [f"| without | {' | '.join(options.recipes)} |", "| --- |" + " --- |" * len(options.recipes)]
    lines += [f"| {trick} | {' | '.join(cells)} |" for trick, *cells in zip(options.tricks, *columns, strict=True)]
    lines += ["", f"Medians of {options.rounds} rounds in turns (smallest–largest), as ratios of times. {machine()}"]
    print("\n".join(lines))
    if options.write:
        command = shlex.join(["python", "benchmarks/tricks.py", *(word for word in sys.argv[1:] if word != "--write")])
        write_section("What each trick is worth", [f"`{command}`", "", *lines])
