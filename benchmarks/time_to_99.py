"""Seconds to 99 %: configs/fast.yaml beside train_mnist_fast, in turns, each in a process of its own.

    python benchmarks/time_to_99.py --seeds 10

The yardstick is train_mnist_fast's network and schedule written plainly: conv 24 k5, pool, ReLU, conv 32 k3, pool,
ReLU, 800-256-10; one epoch of Adam (betas .7, .9), batch 256, one cycle to lr .01. Its images are in memory as
normalised floats before the clock starts. Ours starts from uint8, with bar, metrics, logs and checkpoints on.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ["TTY_COMPATIBLE"] = "1"  # rich draws its bars although nobody looks

import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from results import machine, write_section
from steps import MNIST
from turns import Side, answer

from mnist_lightning.cli import main
from mnist_lightning.data.sources import read as read_digits


def floats(split: str) -> tuple[torch.Tensor, torch.Tensor]:
    digits = read_digits(MNIST, split)
    return (digits.images[:, None].float() / 255 - 0.1307) / 0.3081, digits.labels.long()


def yardstick(seed: int, train: tuple[torch.Tensor, ...], test: tuple[torch.Tensor, ...]) -> tuple[float, float]:
    """Seconds of training and test accuracy of train_mnist_fast, on the device that holds the images."""
    torch.manual_seed(seed)
    wait: Callable[[], None] = torch.cuda.synchronize if train[0].is_cuda else lambda: None
    net = nn.Sequential(
        nn.Conv2d(1, 24, 5), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(24, 32, 3), nn.MaxPool2d(2), nn.ReLU(),
        nn.Flatten(), nn.Linear(800, 256), nn.ReLU(), nn.Linear(256, 10),
    ).to(train[0].device)  # fmt: skip
    images, labels = train
    wait()
    start = time.perf_counter()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01, betas=(0.7, 0.9))
    steps = -(-len(labels) // 256)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=steps, cycle_momentum=False)
    for batch, target in zip(images.split(256), labels.split(256), strict=True):  # in the order of the file
        optimizer.zero_grad()
        loss = F.cross_entropy(net(batch), target)
        loss.backward()
        optimizer.step()
        scheduler.step()
    wait()
    seconds = time.perf_counter() - start
    with torch.inference_mode():
        predictions = torch.cat([net(part).argmax(1) for part in test[0].split(1000)])
    return seconds, (predictions == test[1]).float().mean().item()


def words(seed: int, folder: str) -> list[str]:
    return [
        "fit", "--config", "fast", "--data.root", str(MNIST), "--seed", str(seed),
        "--run", f"seed{seed}", "--trainer.default_root_dir", folder,
    ]  # fmt: skip


def ours(seed: int, folder: str) -> tuple[float, float]:
    """The same of configs/fast.yaml."""
    if main([*words(seed, folder), "--trainer.callbacks", "steps.Stopwatch"]) != 0:
        raise SystemExit("fit failed")
    accuracy = json.loads((Path(folder) / f"seed{seed}" / "test.json").read_text())["accuracy"]
    return sys.modules["steps"].Stopwatch.seconds, accuracy


def cold(seed: int, folder: str) -> float:
    """Seconds of the whole command in a fresh process: imports, data, training, test."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "mnist_lightning", *words(seed, folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def cell(values: list[float], form: str) -> str:
    std = f" ± {statistics.stdev(values):{form}}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{form}}{std}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--side", choices=("yardstick", "ours"), help="measure it for each seed on standard input")
    parser.add_argument("--write", action="store_true", help="put the table into RESULTS.md")
    options = parser.parse_args()
    if options.side == "yardstick":
        os.environ.pop("PYTORCH_NVML_BASED_CUDA_CHECK", None)  # Lightning's import costs it nothing
        digits = floats("train"), floats("test")
        answer(lambda seed: yardstick(seed, *digits))
        raise SystemExit
    theirs, mine = [], []
    with tempfile.TemporaryDirectory() as folder:
        if options.side == "ours":
            answer(lambda seed: ours(seed, folder))
            raise SystemExit
        sides = [Side(__file__, "--side", side) for side in ("yardstick", "ours")]
        for seed in (1000, *range(options.seeds)):
            pair = [side.measure(seed) for side in sides]
            if seed != 1000:  # the first round warms up
                theirs.append(pair[0])
                mine.append(pair[1])
                print(seed, *(f"{seconds:.2f} s {accuracy:.2%}" for seconds, accuracy in pair), flush=True)
        for side in sides:
            side.end()
        wall = [cold(2000 + turn, folder) for turn in range(5)]
    ratios = [own / other for (own, _), (other, _) in zip(mine, theirs, strict=True)]
    lines = ["| | test accuracy | seconds of training | n |", "| --- | --- | --- | --- |"]
    for name, runs in (("configs/fast.yaml", mine), ("train_mnist_fast, written plainly", theirs)):
        seconds, accuracy = zip(*runs, strict=True)
        lines.append(
            f"| {name} | {cell([100 * a for a in accuracy], '.3f')} % | {cell(list(seconds), '.2f')} | {len(runs)} |"
        )
    lines += [
        "",
        f"Ratio of times, pair by pair: median {statistics.median(ratios):.3f} ({min(ratios):.3f}–{max(ratios):.3f}). "
        f"The whole command from a cold start: median {statistics.median(wall):.1f} s of {len(wall)}. {machine()}",
    ]
    print("\n".join(lines))
    if options.write:
        write_section(
            "Seconds to 99 %",
            [f"`python benchmarks/time_to_99.py --seeds {options.seeds} --write`", "", *lines],
        )
