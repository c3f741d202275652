"""`test` on MNIST's 10,000 images beside a bare forward loop, in turns, in one process; start-up and files apart.

python benchmarks/evaluation.py --rounds 9
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
from mnist_lightning.data.sources import read_idx

MNIST = Path(os.environ.get("MNIST_ROOT") or ROOT.parent / "shared" / "mnist")
RECIPES = ("simple_mlp", "fidle_cnn", "nextjournal_cnn", "simple_cnn", "cnn")


class TestWatch(Callback):
    """Seconds from the start of a test to its results."""

    seconds = 0.0

    def on_test_start(self, trainer: Any, module: Any) -> None:
        trainer.datamodule._load("test").images.max()  # the file is mapped; the bare loop has its images in memory
        self.start = time.perf_counter()

    def on_test_end(self, trainer: Any, module: Any) -> None:
        TestWatch.seconds = time.perf_counter() - self.start


def project(words: list[str]) -> float:
    with contextlib.redirect_stdout(io.StringIO()):
        if main([*words, "--trainer.callbacks", "evaluation.TestWatch"]) != 0:
            raise SystemExit("test failed")
    return sys.modules["evaluation"].TestWatch.seconds


def bare(net: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Normalise, forward, count: what no test can leave out."""
    start = time.perf_counter()
    correct = torch.zeros((), dtype=torch.int64)
    with torch.inference_mode():
        for part, label in zip(images.split(500), labels.split(500), strict=True):
            correct += (net(part[:, None].float().div_(255)).argmax(1) == label).sum()
    correct.item()
    return time.perf_counter() - start


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--write", action="store_true", help="put the table into RESULTS.md")
    options = parser.parse_args()
    images, labels = read_idx(MNIST, "test")
    lines = ["| recipe | test / bare loop | bare loop, s |", "| --- | --- | --- |"]
    for recipe in RECIPES:
        with tempfile.TemporaryDirectory() as folder:
            where = ["--trainer.default_root_dir", folder, "--trainer.accelerator", "cpu", "--run", recipe]
            config = ["--config", str(ROOT / "configs" / f"{recipe}.yaml"), "--data.root", str(MNIST)]
            with contextlib.redirect_stdout(io.StringIO()):
                main(["fit", *config, *where, "--trainer.max_steps", "1", "--trainer.precision", "32-true"])
            net = load_model(Path(folder) / recipe / "last.ckpt").net
            pairs = [(project(["test", *where]), bare(net, images, labels)) for _ in range(options.rounds + 1)][1:]
        ratios = [own / other for own, other in pairs]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"
        lines.append(f"| {recipe} | {spread} | {statistics.median(other for _, other in pairs):.3f} |")
        print(lines[-1], flush=True)
    lines += ["", f"Medians of {options.rounds} (smallest–largest). {machine()}"]
    if options.write:
        write_section(
            "Evaluation", [f"`python benchmarks/evaluation.py --rounds {options.rounds} --write`", "", *lines]
        )
