"""`predict` of many picture files beside Pillow decoding them in one process, in turns; files a second, start-up apart.

python benchmarks/predicting.py --rounds 5
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
from results import ROOT, machine, write_section

from mnist_lightning.data.synthetic import synthetic_digits

SIDES = {"28": "28×28, as MNIST's", "280": "280×280, black on white"}  # pixels of a picture


def make(folder: Path, side: int, count: int) -> None:
    """So many PNG files of digits that the program draws."""
    folder.mkdir()
    for at, image in enumerate(synthetic_digits(count, seed=4)[0].numpy()):
        picture = Image.fromarray(image)
        if side > 28:
            picture = Image.fromarray(255 - np.asarray(picture.resize((side, side), Image.Resampling.LANCZOS)))
        picture.save(folder / f"{at:05}.png")


def pillow(folder: Path) -> float:
    """Seconds to decode the files, one after the other."""
    start = time.perf_counter()
    for path in sorted(folder.iterdir()):
        with Image.open(path) as picture:
            picture.load()
    return time.perf_counter() - start


def predict(*what: Path) -> float:
    """Seconds of the whole command."""
    words = [sys.executable, "-m", "mnist_lightning", "predict", *map(str, what), "--ckpt_path", "pretrained", "--json"]
    start = time.perf_counter()
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - start
    assert all(json.loads(line)["status"] != "unreadable" for line in done.stdout.splitlines())
    return seconds


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--write", action="store_true", help="put the table into RESULTS.md")
    options = parser.parse_args()
    lines = ["| pictures | Pillow, s | predict, s | Pillow's time / predict's |", "| --- | --- | --- | --- |"]
    with tempfile.TemporaryDirectory() as name:
        for side, told in SIDES.items():
            folder = Path(name) / side
            make(folder, int(side), options.count)
            one = next(folder.iterdir())
            rounds = [(pillow(folder), predict(folder) - predict(one)) for _ in range(options.rounds)]
            ratios = [decoding / whole for decoding, whole in rounds]
            cells = [f"{statistics.median(column):.2f}" for column in zip(*rounds, strict=True)]
            spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"
            lines.append(f"| {told} | {' | '.join(cells)} | {spread} |")
            print(lines[-1], flush=True)
    lines += ["", f"{options.count:,} PNG files, medians of {options.rounds} (smallest–largest). {machine()}"]
    if options.write:
        command = f"`python benchmarks/predicting.py --rounds {options.rounds} --count {options.count} --write`"
        write_section("Predicting files", [command, "", *lines])
