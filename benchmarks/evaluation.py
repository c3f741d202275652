"""`test` and `predict` of MNIST's 10,000 images beside a bare forward loop, in turns, in one process; files apart.

python benchmarks/evaluation.py --rounds 21
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

import torch
from lightning.pytorch.callbacks import Callback

sys.path.insert(0, str(Path(__file__).parent))
from results import ROOT, machine, write_section

from mnist_lightning import load_model
from mnist_lightning.cli import main
from mnist_lightning.data.sources import read as read_digits
from mnist_lightning.models.classifier import DigitClassifier

MNIST = Path(os.environ.get("MNIST_ROOT") or ROOT.parent / "shared" / "mnist")
RECIPES = ("simple_mlp", "fidle_cnn", "nextjournal_cnn", "simple_cnn", "cnn")


class Watch(Callback):
    """Seconds from the start of a test or prediction to its results; the file of predictions comes after."""

    seconds = 0.0

    def on_test_start(self, trainer: Any, module: Any) -> None:
        trainer.datamodule.read("test").images.max()  # the file is mapped; the bare loop has its images in memory
        self.start = time.perf_counter()

    def on_test_end(self, trainer: Any, module: Any) -> None:
        Watch.seconds = time.perf_counter() - self.start

    on_predict_start, on_predict_end = on_test_start, on_test_end


def project(words: list[str]) -> float:
    with contextlib.redirect_stdout(io.StringIO()):
        if main([*words, "--trainer.callbacks", "evaluation.Watch"]) != 0:
            raise SystemExit(f"{words[0]} failed")
    return sys.modules["evaluation"].Watch.seconds  # the callback's name imported this file a second time


def bare(model: DigitClassifier, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Normalise, forward, count: what no test can leave out; in the portions that suit the cache."""
    net, most = model.net, model.net.at_once
    start = time.perf_counter()
    correct = torch.zeros((), dtype=torch.int64)
    with torch.inference_mode():
        for part, label in zip(images.split(most), labels.split(most), strict=True):
            correct += (net(part[:, None].float().div_(255)).argmax(1) == label).sum()
    correct.item()
    return time.perf_counter() - start


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}–{max(values):.2f})"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=RECIPES)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--write", action="store_true", help="put the table into RESULTS.md")
    options = parser.parse_args()
    images, labels, _ = read_digits(MNIST, "test")
    lines = ["| recipe | test / bare loop | predict / bare loop | bare loop, ms |", "| --- | --- | --- | --- |"]
    for recipe in options.recipes:
        with tempfile.TemporaryDirectory() as folder:
            where = ["--trainer.default_root_dir", folder, "--trainer.accelerator", "cpu", "--run", recipe]
            config = ["--config", recipe, "--data.root", str(MNIST)]
            with contextlib.redirect_stdout(io.StringIO()):
                main(["fit", *config, *where, "--trainer.max_steps", "1", "--trainer.precision", "32-true"])
            model = load_model(Path(folder) / recipe / "last.ckpt")
            rounds = [
                (project(["test", *where]), project(["predict", *where]), bare(model, images, labels))
                for _ in range(options.rounds + 1)
            ][1:]
        ratios = [spread([row[side] / row[2] for row in rounds]) for side in (0, 1)]
        milliseconds = 1000 * statistics.median(row[2] for row in rounds)
        lines.append(f"| {recipe} | {ratios[0]} | {ratios[1]} | {milliseconds:.0f} |")
        print(lines[-1], flush=True)
    lines += ["", f"Medians of {options.rounds} (smallest–largest). {machine()}"]
    if options.write:
        write_section(
            "Evaluation", [f"`python benchmarks/evaluation.py --rounds {options.rounds} --write`", "", *lines]
        )
