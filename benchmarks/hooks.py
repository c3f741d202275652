"""Where the time of one optimizer step goes: each piece as Lightning does it and as torch alone does it, in turns.

python benchmarks/hooks.py --recipe nielsen_mlp
"""

import argparse
import contextlib
import io
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ["TTY_COMPATIBLE"] = "1"  # rich draws its bars although nobody looks

import torch

sys.path.insert(0, str(Path(__file__).parent))
from results import machine, write_section
from steps import MNIST, ROOT

from mnist_lightning.cli import main
from mnist_lightning.models.classifier import DigitClassifier, seed_generators

SECONDS: dict[str, list[float]] = {}
COUNT = 0


def clocked(name: str, function: Any, *args: Any) -> Any:
    start = time.perf_counter()
    result = function(*args)
    SECONDS.setdefault(name, []).append(time.perf_counter() - start)
    return result


def training_step(self: Any, block: Any, batch_idx: int) -> dict[str, torch.Tensor]:
    """DigitClassifier.training_step with a clock round each piece; odd steps Lightning's way, even steps torch's."""
    global COUNT
    optimizer: Any = self.optimizers()
    losses = []
    for images, target, _ in block.split(self._targets(block.labels)):
        COUNT += 1
        lightning = COUNT % 2
        clocked("seed", seed_generators, self.device, COUNT)
        output = clocked("forward", self.net, images)
        loss = clocked("loss", self._loss, output, target)
        clocked("zero_grad", optimizer.zero_grad)
        backward = (self.manual_backward, loss) if lightning else (loss.backward,)
        if COUNT % 4 < 2:
            clocked("backward: manual_backward, all callbacks" if lightning else "backward: torch", *backward)
        else:
            with self._only_listeners():
                clocked("backward: manual_backward, only listeners" if lightning else "backward: torch", *backward)
        with self._only_listeners():
            if lightning:
                clocked("step: Lightning's wrapper, only listeners", optimizer.step)
            else:
                clocked("step: torch", optimizer.optimizer.step)
        losses.append(loss.detach())
    return {"losses": torch.stack(losses)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="nielsen_mlp")
    parser.add_argument("--write", action="store_true", help="put the table into RESULTS.md")
    options = parser.parse_args()
    DigitClassifier.training_step = training_step  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        words = ["fit", "--config", str(ROOT / "configs" / f"{options.recipe}.yaml"), "--data.root", str(MNIST)]
        main(
            [*words, "--trainer.max_epochs", "1", "--trainer.default_root_dir", folder, "--trainer.accelerator", "cpu"]
        )
    lines = ["| piece of a step | median, µs |", "| --- | --- |"]
    for name, values in SECONDS.items():
        lines.append(f"| {name} | {statistics.median(values) * 1e6:.0f} |")
    lines += ["", f"{options.recipe}, {COUNT:,} steps. {machine()}"]
    print("\n".join(lines))
    if options.write:
        command = f"`python benchmarks/hooks.py --recipe {options.recipe} --write`"
        write_section("Profile of a step", [command, "", *lines])
