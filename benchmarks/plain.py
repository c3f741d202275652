"""Test accuracy of an article's own loop in plain torch, for comparison with its recipe.

    python benchmarks/plain.py --recipe nextjournal_cnn --seeds 30 --jobs 2

The network, optimizer, batch size and epochs of the recipe; shuffled by torch, with torch's own dropout, layout and
random numbers; no Lightning. Images come from memory as floats, since that changes no number.
"""

import argparse
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from results import machine, read_section, write_section
from steps import MNIST, RECIPES, Recipe

from mnist_lightning.data.sources import read as read_digits

HEADING = "Accuracy of plain loops"


def train(name: str, seed: int) -> float:
    """Test accuracy in percent after the recipe's epochs."""
    torch.manual_seed(seed)
    recipe = Recipe(name)
    net = recipe.network()
    optimizer = recipe.optimizer(net.parameters())
    images, labels = recipe.floats(recipe.images), recipe.labels
    for _ in range(recipe.max_epochs):
        for batch in torch.randperm(len(labels)).split(recipe.batch_size):
            optimizer.zero_grad()
            recipe.loss(net(images[batch]), labels[batch]).backward()
            optimizer.step()
    test = read_digits(MNIST, "test")
    net.eval()
    with torch.inference_mode():
        predictions = torch.cat([net(part).argmax(1) for part in recipe.floats(test.images).split(1000)])
    return 100 * (predictions == test.labels).double().mean().item()


def in_a_process(name: str, seed: int) -> float:
    command = [sys.executable, __file__, "--recipe", name, "--only", str(seed)]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="nextjournal_cnn", choices=RECIPES)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time")
    parser.add_argument("--only", type=int, metavar="SEED", help="train this seed here, and print its accuracy")
    parser.add_argument("--write", action="store_true", help="put the row into RESULTS.md")
    options = parser.parse_args()
    if options.only is not None:
        print(train(options.recipe, options.only))
        raise SystemExit
    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // options.jobs))
    with ThreadPoolExecutor(options.jobs) as pool:
        accuracies = list(pool.map(lambda seed: in_a_process(options.recipe, seed), range(options.seeds)))
    std = f"{statistics.stdev(accuracies):.3f}" if options.seeds > 1 else ""
    row = f"| {options.recipe} | {statistics.mean(accuracies):.3f} | {std} | {options.seeds} |"
    print(*(f"{accuracy:.2f}" for accuracy in accuracies), row, sep="\n")
    if options.write:
        kept = [line for line in read_section(HEADING) if line.startswith("| ") and "---" not in line][1:]
        rows = {line.split()[1]: line for line in kept} | {options.recipe: row}
        command = " ".join(["python benchmarks/plain.py", *sys.argv[1:]])
        head = ["| recipe | mean % | std | n |", "| --- | --- | --- | --- |"]
        write_section(HEADING, [f"`{command}`", "", machine(), "", *head, *rows.values()])
