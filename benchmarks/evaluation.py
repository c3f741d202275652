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
    """Seconds from the start of a test to its results, and of these in Lightning's `log_dict`."""

    seconds = logging = 0.0

    def on_test_start(self, trainer: Any, module: Any) -> None:
        trainer.datamodule._load("test").images.max()  # the file is mapped; the bare loop has its images in memory
        TestWatch.logging, log_dict = 0.0, module.log_dict

        def clocked(*args: Any, **options: Any) -> None:
            start = time.perf_counter()
            log_dict(*args, **options)
            TestWatch.logging += time.perf_counter() - start

        module.log_dict = clocked
        self.start = time.perf_counter()

    def on_test_end(self, trainer: Any, module: Any) -> None:
        TestWatch.seconds = time.perf_counter() - self.start


def project(words: list[str]) -> tuple[float, float]:
    with contextlib.redirect_stdout(io.StringIO()):
        if main([*words, "--trainer.callbacks", "evaluation.TestWatch"]) != 0:
            raise SystemExit("test failed")
    watch = sys.modules["evaluation"].TestWatch  # jsonargparse imported this file a second time
    return watch.seconds, watch.logging


def bare(net: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Normalise, forward, count: what no test can leave out."""
    start = time.perf_counter()
    correct = torch.zeros((), dtype=torch.int64)
    with torch.inference_mode():
        for part, label in zip(images.split(500), labels.split(500), strict=True):
            correct += (net(part[:, None].float().div_(255)).argmax(1) == label).sum()
    correct.item()
    return time.perf_counter() - start


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}–{max(values):.2f})"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--write", action="store_true", help="put the table into RESULTS.md")
    options = parser.parse_args()
    images, labels = read_idx(MNIST, "test")
    lines = ["| recipe | test / bare loop | without `log_dict` | bare loop, ms |", "| --- | --- | --- | --- |"]
    for recipe in RECIPES:
        with tempfile.TemporaryDirectory() as folder:
            where = ["--trainer.default_root_dir", folder, "--trainer.accelerator", "cpu", "--run", recipe]
            config = ["--config", str(ROOT / "configs" / f"{recipe}.yaml"), "--data.root", str(MNIST)]
            with contextlib.redirect_stdout(io.StringIO()):
                main(["fit", *config, *where, "--trainer.max_steps", "1", "--trainer.precision", "32-true"])
            net = load_model(Path(folder) / recipe / "last.ckpt").net
            rounds = [(*project(["test", *where]), bare(net, images, labels)) for _ in range(options.rounds + 1)][1:]
        whole = spread([own / other for own, _, other in rounds])
        without = spread([(own - logging) / other for own, logging, other in rounds])
        milliseconds = 1000 * statistics.median(other for _, _, other in rounds)
        lines.append(f"| {recipe} | {whole} | {without} | {milliseconds:.0f} |")
        print(lines[-1], flush=True)
    lines += ["", f"Medians of {options.rounds} (smallest–largest). {machine()}"]
    if options.write:
        write_section(
            "Evaluation", [f"`python benchmarks/evaluation.py --rounds {options.rounds} --write`", "", *lines]
        )
