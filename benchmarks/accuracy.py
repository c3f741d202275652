"""Test accuracy of each recipe against the bar that it has to reach, over several seeds.

    MNIST_ROOT=/path/to/mnist python benchmarks/accuracy.py
    MNIST_ROOT=/path/to/mnist python benchmarks/accuracy.py --recipes simple_mlp fidle_cnn --seeds 5 --jobs 2

Each training is a fresh process; with --jobs, several of them share the cores. The articles' recipes hold out
no validation images: what is tested is their last epoch. Exit status 1 if a mean is below its bar.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path

from results import NOTES, ROOT, machine, read_section, write_section

# recipe: (least mean test accuracy, what the article published, seeds), accuracies in percent
RECIPES = {
    "mccaffrey_cnn": (92.5, "96.00 (100 images)", 1),
    "nextjournal_cnn": (98.2, "97 (3 epochs)", 3),
    "simple_mlp": (97.6, "97.76", 3),
    "simple_cnn": (98.9, "99.08", 3),
    "fidle_dnn": (97.3, "90.12 (softmax slip)", 3),
    "fidle_cnn": (98.1, "98.15", 3),
    "fidle_cnn2": (98.4, "98.48", 3),
    "nielsen_mlp": (97.6, "97.85 to 97.96", 1),
    "cnn": (99.3, "", 3),
}
HEADING = "Accuracy"
HEADER = [
    "| recipe | at least % | published % | mean % | std | n | epoch tested | training s | at a time | date |",
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
]


def train(recipe: str, seed: int, folder: Path, threads: int) -> tuple[float, int, float]:
    """Trains and tests in a fresh process -> test accuracy in percent, epoch tested, seconds of training."""
    command = [sys.executable, "-m", "mnist_lightning", "fit", "--config", f"configs/{recipe}.yaml"]
    command += ["--seed", str(seed), "--run", f"{recipe}-{seed}", "--trainer.default_root_dir", str(folder)]
    env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=env)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\nended with {done.returncode}:\n{done.stdout}{done.stderr}")
    run = folder / f"{recipe}-{seed}"
    result = json.loads((run / "test.json").read_text())
    assert (result["source"], result["images"]) == ("mnist", 10_000), result
    # config.yaml is written when the data is ready, last.ckpt after the last epoch, before the test
    seconds = (run / "last.ckpt").stat().st_mtime - (run / "config.yaml").stat().st_mtime
    return 100 * result["accuracy"], result["epoch"], seconds


def cpu_seconds() -> tuple[float, float]:
    """Used so far by everything on this machine, and by those children of this process that have ended."""
    user, nice, system = map(int, Path("/proc/stat").read_text().split()[1:4])
    own = os.times()
    return (user + nice + system) / os.sysconf("SC_CLK_TCK"), own.children_user + own.children_system


def write(row: str, recipe: str) -> None:
    """Puts the row in its place; other recipes keep theirs if they were measured on this machine."""
    old = read_section(HEADING)
    old = old[: old.index(NOTES)] if NOTES in old else old
    kept = [line for line in old if line.startswith("| ")] if any(machine() in line for line in old) else []
    rows = {line.split()[1]: line for line in kept} | {recipe: row}
    intro = [
        f"On {machine()}. Accuracy on MNIST's 10,000 test images, on which nothing is chosen. Training "
        "seconds: mean, up to the last checkpoint, imports and test apart; in brackets if others took more than "
        "a twentieth of the machine meanwhile, or several trainings (at a time) shared the cores.",
        "",
        "    MNIST_ROOT=/path/to/mnist python benchmarks/accuracy.py --jobs 2",
        "",
    ]
    write_section(HEADING, [*intro, *HEADER, *(rows[name] for name in RECIPES if name in rows)])


def measure(recipe: str, seeds: int, jobs: int) -> tuple[float, str]:
    """Mean accuracy in percent, and the recipe's row of the table."""
    least, published, _ = RECIPES[recipe]
    (all_before, own_before), start = cpu_seconds(), time.monotonic()
    threads = max(1, len(os.sched_getaffinity(0)) // jobs)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(jobs) as pool:
        runs = list(pool.map(lambda seed: train(recipe, seed, Path(folder), threads), range(seeds)))
    (all_after, own_after), end = cpu_seconds(), time.monotonic()
    others = (all_after - all_before) - (own_after - own_before)
    accuracies, epochs, seconds = zip(*runs, strict=True)
    mean = statistics.mean(accuracies)
    std = f"{statistics.stdev(accuracies):.2f}" if seeds > 1 else ""
    took = f"{statistics.mean(seconds):.1f}"
    if jobs > 1 or others > (end - start) * (os.cpu_count() or 1) / 20:
        took = f"({took})"
    epoch = ", ".join(map(str, sorted(set(epochs))))
    cells = [recipe, least, published, f"{mean:.2f}", std, seeds, epoch, took, jobs, date.today()]
    return mean, f"| {' | '.join(map(str, cells))} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES), metavar="RECIPE")
    parser.add_argument("--seeds", type=int, help="by default 3, and 1 for mccaffrey_cnn and nielsen_mlp")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time")
    options = parser.parse_args()

    print("\n".join(HEADER), flush=True)
    missed = []
    for recipe in options.recipes:
        least, _, seeds = RECIPES[recipe]
        mean, row = measure(recipe, options.seeds or seeds, options.jobs)
        print(row, flush=True)
        write(row, recipe)
        if mean < least:
            missed.append(recipe)
    print(f"below their bar: {', '.join(missed)}" if missed else "every mean reaches its bar")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
