"""What digits that the program draws teach of real ones: alone, and put to 1,000 real training images.

    python benchmarks/synthetic.py --on training    # what drawn digits may be tuned by
    python benchmarks/synthetic.py --write          # on the 10,000 test images, once in the end

Alone: plain `fit` on nothing but drawn digits. With real ones: mccaffrey_cnn, which trains on 1,000 images, with drawn
digits and without. --on training needs training images only: it takes the first 50,000 for all there are, and has the
other 10,000 read.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from results import ROOT, machine, write_section

MNIST = Path(os.environ.get("MNIST_ROOT") or ROOT.parent / "shared" / "mnist")
HEADING = "What drawn digits teach of real ones"
HEADER = ["| row | trained on | with | read, % | std | n | each | s each |", "|" + " --- |" * 8]
ROWS = {
    "alone": ("drawn digits only", ["--data.source", "synthetic"]),
    "real": ("1,000 real", ["--config", "mccaffrey_cnn", "--data.source", "mnist"]),
    "both": ("1,000 real, {drawn:,} drawn", ["--config", "mccaffrey_cnn", "--data.source", "mnist"]),
}


def training_only(folder: Path) -> Path:
    """A folder in MNIST's form, all of whose images are MNIST's training images."""
    from mnist_lightning.data.digits import Digits
    from mnist_lightning.data.sources import read
    from mnist_lightning.data.writing import write

    digits = read(MNIST, "train")
    for split, some in (("train", slice(50_000)), ("test", slice(50_000, None))):
        write(Digits(digits.images[some], digits.labels[some]), split, folder, "idx")
    return folder


def call(*words: str) -> None:
    command = [sys.executable, "-m", "mnist_lightning", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\nended with {done.returncode}:\n{done.stdout}{done.stderr}")


def measure(row: str, root: Path, seed: int, options: argparse.Namespace) -> tuple[float, float]:
    """Percent of the real images that a training reads, and its seconds, both of a fresh process."""
    settings = list(ROWS[row][1])
    if row == "both":
        settings += ["--data.drawn", str(options.drawn)]
    with tempfile.TemporaryDirectory() as runs:
        at = ["--run", "a", "--trainer.default_root_dir", runs, "--data.root", str(root)]
        start = time.perf_counter()
        call("fit", *settings, "--seed", str(seed), *at, "--trainer.logger", "false")
        seconds = time.perf_counter() - start
        if row == "alone":
            call("test", *at, "--data.source", "mnist")
        return 100 * json.loads((Path(runs) / "a" / "test.json").read_text())["accuracy"], seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--on", choices=["training", "test"], default="test", help="real images that are read")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--drawn", type=int, default=4000, help="drawn digits put to the 1,000 real ones")
    parser.add_argument("--write", action="store_true", help="put the table into RESULTS.md")
    options = parser.parse_args()

    print("\n".join(lines := [*HEADER]), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        root = MNIST if options.on == "test" else training_only(Path(folder))
        for row in options.rows:
            found, seconds = zip(*(measure(row, root, seed, options) for seed in range(options.seeds)), strict=True)
            std = f"{statistics.stdev(found):.2f}" if len(found) > 1 else ""
            cells = [row, ROWS[row][0].format(drawn=options.drawn), "cnn" if row == "alone" else "mccaffrey_cnn"]
            cells += [f"{statistics.mean(found):.2f}", std, str(len(found))]
            cells += [", ".join(f"{one:.2f}" for one in found), f"{statistics.mean(seconds):.0f}"]
            lines.append(f"| {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    if options.write:
        command = " ".join(["python benchmarks/synthetic.py", *sys.argv[1:]])
        write_section(HEADING, [f"`{command}`, on {options.on} images", "", machine(), "", *lines])


if __name__ == "__main__":
    main()
