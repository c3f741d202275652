"""What a step and a call of self.log cost under QuickLoop, under Lightning's loop and in a bare loop, in turns.

python benchmarks/hooks.py --recipe nielsen_mlp

The accuracy's forward, which is torchmetrics' own, is the same under both loops.
"""

import argparse
import logging
import statistics
import sys
import time
import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
from results import machine, write_section
from steps import RECIPES, Idiomatic, Recipe, data_of, lightnings, seconds_of_lightning

from mnist_lightning import quick

STEPS = 300
BOTH = {"on_step": True, "on_epoch": True, "prog_bar": True}
CALLS: dict[str, dict[str, Any]] = {
    "loss": {}, "loss, on_epoch": {"on_step": False, "on_epoch": True}, "loss, on_step, on_epoch, prog_bar": BOTH,
    "accuracy": {}, "accuracy, on_epoch": {"on_step": False, "on_epoch": True},
}  # fmt: skip
WAYS = ("bare", "QuickLoop", "Lightning")
SECONDS: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))  # what, way


class Silent(Idiomatic):
    """Logs nothing."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.recipe.loss(self.net(batch[0]), batch[1])


class Clocked(Idiomatic):
    """Logs in each way, and notes what each call takes."""

    way = ""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        output = self.net(batch[0])
        loss = self.recipe.loss(output, batch[1])
        self.accuracy(output, batch[1])
        for name, options in CALLS.items():
            value = self.accuracy if name.startswith("accuracy") else loss
            start = time.perf_counter()
            self.log(name, value, **options)
            SECONDS[f"self.log: {name}"][self.way].append(time.perf_counter() - start)
        return loss


def bare(recipe: Recipe) -> float:
    net = recipe.network()
    optimizer, loader = recipe.optimizer(net.parameters()), data_of(recipe).train_dataloader()
    start = time.perf_counter()
    for _, (images, labels) in zip(range(STEPS), loader, strict=False):
        optimizer.zero_grad()
        recipe.loss(net(images), labels).backward()
        optimizer.step()
    return time.perf_counter() - start


def measure(recipe: Recipe) -> None:
    """One round."""
    few = {"enable_checkpointing": False, "limit_train_batches": STEPS}
    steps = {"a step, nothing logged": Silent, "a step, loss and accuracy logged": Idiomatic, "": Clocked}
    for what, module in steps.items():
        for way, loop in (("QuickLoop", quick), ("Lightning", lightnings)):
            Clocked.way = way
            seconds = seconds_of_lightning(module(recipe), 1, loop, data_of(recipe), **few)
            if what:
                SECONDS[what][way].append(seconds / STEPS)
    SECONDS["a step, nothing logged"]["bare"].append(bare(recipe) / STEPS)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="nielsen_mlp", choices=RECIPES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="put the table into RESULTS.md")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    recipe = Recipe(options.recipe)
    for turn in range(options.rounds + 1):
        if turn == 1:  # the first round warms up
            SECONDS.clear()
        measure(recipe)
    lines = [f"| median, µs | {' | '.join(WAYS)} | QuickLoop / Lightning |", "| --- |" + " --- |" * (len(WAYS) + 1)]
    for what, ways in SECONDS.items():
        medians = {way: 1e6 * statistics.median(values) for way, values in ways.items()}
        cells = [f"{medians[way]:.0f}" if way in medians else "" for way in WAYS]
        lines.append(f"| {what} | {' | '.join(cells)} | {medians['QuickLoop'] / medians['Lightning']:.2f} |")
    lines += ["", f"{options.recipe}, {options.rounds} rounds of {STEPS} steps. {machine()}"]
    print("\n".join(lines))
    if options.write:
        command = f"`python benchmarks/hooks.py --recipe {options.recipe} --write`"
        write_section("Cost of a step", [command, "", *lines])
