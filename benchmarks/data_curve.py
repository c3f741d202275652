"""Accuracy over the number of real training images, with and without digits that the program draws, and a picture.

    python benchmarks/data_curve.py --write                                   # hours: 2 recipes, 5 sizes, 3 seeds
    python benchmarks/data_curve.py --recipes cnn --sizes 10 100 --seeds 2    # some minutes

The real images are the first so many of the training file; none is held out, as labels are what is scarce, and the
last epoch is tested. Few images are seen more often: until --seen images have gone by an epoch of the recipe, but for
at most --most_epochs in all. Batches are no larger than the set. Seeds change weights and order, not which images
there are. The test images choose nothing. Rows that are in RESULTS.md already, of as many seeds, are not measured
again.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

sys.path.insert(0, str(Path(__file__).parent))
from results import ROOT, machine, read_section, write_section

MNIST = Path(os.environ.get("MNIST_ROOT") or ROOT.parent / "shared" / "mnist")
HEADING = "Accuracy over the number of real images"
SIZES = (10, 100, 1000, 10_000, 60_000)
HEADER = ["| recipe | real images | drawn | test % | std | n |", "| --- | --- | --- | --- | --- | --- |"]
PICTURE = ROOT / "benchmarks" / "data_curve.png"


def words(recipe: str, size: int, drawn: int, options: argparse.Namespace) -> list[str]:
    """The settings of a training on so many real images, and so many drawn ones."""
    settings: dict[str, Any] = yaml.safe_load((ROOT / "configs" / f"{recipe}.yaml").read_text())
    epochs, batch, images = settings["trainer"]["max_epochs"], settings["data"]["batch_size"], size + drawn
    more = max(epochs, min(epochs * options.seen // images, options.most_epochs))
    return [
        "--config", recipe, "--data.root", str(MNIST), "--data.source", "mnist", "--data.drawn", str(drawn),
        "--data.val_size", "0", "--data.train_size", str(size), "--data.batch_size", str(min(batch, images)),
        "--trainer.max_epochs", str(more), "--trainer.logger", "false",
    ]  # fmt: skip


def train(recipe: str, size: int, drawn: int, seed: int, options: argparse.Namespace) -> float:
    """Test accuracy in percent of a training in a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "mnist_lightning", "fit", *words(recipe, size, drawn, options)]
        command += ["--seed", str(seed), "--run", "a", "--trainer.default_root_dir", folder, *options.more]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}\nended with {done.returncode}:\n{done.stdout}{done.stderr}")
        return 100 * json.loads((Path(folder) / "a" / "test.json").read_text())["accuracy"]


def known() -> dict[tuple[str, int, int], list[str]]:
    """The rows that have been measured: their cells, by recipe, real and drawn images."""
    rows = [line.strip("| ").split(" | ") for line in read_section(HEADING) if line.startswith("| ")]
    return {(row[0], int(row[1]), int(row[2])): row for row in rows if row[1].isdigit()}


def picture(rows: dict[tuple[str, int, int], list[str]]) -> None:
    """Errors over real images, a line for each recipe with and without drawn ones; bars are standard deviations."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    for recipe in dict.fromkeys(name for name, *_ in rows):
        for with_drawn in (False, True):
            line = sorted((key[1], row) for key, row in rows.items() if key[0] == recipe and bool(key[2]) == with_drawn)
            if line:
                sizes, cells = zip(*line, strict=True)
                errors, spread = [100 - float(row[3]) for row in cells], [float(row[4] or 0) for row in cells]
                label = f"{recipe}{', and drawn digits' * with_drawn}"
                axes.errorbar(sizes, errors, spread, marker="o", linestyle="--" if with_drawn else "-", label=label)
    axes.set(xscale="log", xlabel="real training images", yscale="log", ylabel="errors on MNIST's test images, %")
    axes.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    axes.set_yticks([0.5, 1, 2, 5, 10, 20, 50], minor=False)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(PICTURE, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    recipes = [name for name in ("cnn", "best") if (ROOT / "configs" / f"{name}.yaml").is_file()]
    parser.add_argument("--recipes", nargs="+", default=recipes)
    parser.add_argument("--sizes", nargs="+", type=int, default=list(SIZES))
    parser.add_argument("--drawn", nargs="+", type=int, default=[0, 12_000], help="drawn digits besides; 0: none")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seen", type=int, default=10_000, help="images of which fewer are seen more often")
    parser.add_argument("--most_epochs", type=int, default=300)
    parser.add_argument("--write", action="store_true", help="put the rows into RESULTS.md, and draw the picture")
    options, options.more = parser.parse_known_args()

    rows = known() if options.write else {}
    print("\n".join(HEADER), flush=True)
    for recipe in options.recipes:
        for size in options.sizes:
            for drawn in options.drawn:
                if rows.get((recipe, size, drawn), [""])[-1] == str(options.seeds):
                    continue
                found = [train(recipe, size, drawn, seed, options) for seed in range(options.seeds)]
                std = f"{statistics.stdev(found):.2f}" if len(found) > 1 else ""
                row = [recipe, str(size), str(drawn), f"{statistics.mean(found):.2f}", std, str(options.seeds)]
                rows[recipe, size, drawn] = row
                print(f"| {' | '.join(row)} |", flush=True)
                if options.write:
                    command = " ".join(["python benchmarks/data_curve.py", *sys.argv[1:]])
                    lines = [f"| {' | '.join(cells)} |" for _, cells in sorted(rows.items())]
                    write_section(HEADING, [f"`{command}`", "", machine(), "", *HEADER, *lines])
    if options.write:
        picture(rows)


if __name__ == "__main__":
    main()
