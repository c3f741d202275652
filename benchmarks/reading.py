"""Digits in other forms: 60,000 PNG files beside Pillow in two processes, a CSV of 60,000 lines on one core, memory.

python benchmarks/reading.py --rounds 5
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from results import ROOT, machine, write_section
from turns import Side, answer, in_turns

MNIST = Path(os.environ.get("MNIST_ROOT") or ROOT.parent / "shared" / "mnist")


def make(folder: Path, count: int) -> None:
    """MNIST's first training images as PNG files in folders, and as Kaggle's CSV."""
    from PIL import Image

    from mnist_lightning.data.sources import read

    images, labels, _ = read(MNIST, "train")
    texts = [str(value) for value in range(256)]
    for label in texts[:10]:
        (folder / "png" / "train" / label).mkdir(parents=True)
    with open(folder / "train.csv", "w") as table:
        print("label", *(f"pixel{at}" for at in range(784)), sep=",", file=table)
        for at, (image, label) in enumerate(zip(images[:count].numpy(), labels[:count].tolist(), strict=True)):
            Image.fromarray(image).save(folder / "png" / "train" / str(label) / f"{at:05}.png")
            print(texts[label], *(texts[value] for value in image.flatten().tolist()), sep=",", file=table)


def with_pillow(paths: list[str]) -> bytes:
    from PIL import Image

    content = bytearray()
    for path in paths:
        with Image.open(path) as picture:
            content += picture.tobytes()
    return bytes(content)


def pillow(folder: Path) -> tuple[float, float]:
    """Seconds that two processes take to list, read and decode the files with Pillow; nothing more."""
    start = time.perf_counter()
    paths = sorted(str(path) for path in (folder / "png").rglob("*.png"))
    with ProcessPoolExecutor(2) as pool:
        parts = list(pool.map(with_pillow, (paths[at : at + 1000] for at in range(0, len(paths), 1000))))
    assert sum(map(len, parts)) == len(paths) * 784
    return time.perf_counter() - start, 0.0


def reads(what: Path) -> tuple[float, float]:
    """Seconds until these digits are a tensor, and the MB that the process grew by at most."""
    from mnist_lightning.data.sources import find

    before, start = peak(), time.perf_counter()
    found = find(what)
    assert found is not None
    digits = found.whole() if found.divided else found.read("train")
    assert digits.images.shape[1:] == (28, 28)
    return time.perf_counter() - start, peak() - before


def peak() -> float:
    """The most memory that this process has had, in MB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def measured(side: str, folder: Path) -> tuple[float, float]:
    """One side, once; from the cache where it says so."""
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    if side == "PNG, first time":
        for kept in (folder / "cache").glob("*/*.npz"):
            kept.unlink()
    if side == "Pillow":
        return pillow(folder)
    return reads(folder / ("train.csv" if side == "CSV" else "png"))


SIDES = {
    "Pillow": "PNG files, Pillow in two processes",
    "PNG, first time": "PNG files, `fit`'s reader, nothing in the cache",
    "PNG, again": "PNG files, from the cache",
    "CSV": "CSV, one core",
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=60_000, help="images")
    parser.add_argument("--write", action="store_true", help="put the table into RESULTS.md")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        if options.side == "CSV" and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        answer(lambda turn: measured(options.side, options.folder))
        raise SystemExit
    with tempfile.TemporaryDirectory() as name:
        make(Path(name), options.count)
        command = [__file__, "--folder", name, "--side"]
        taken = in_turns({side: Side(*command, side) for side in SIDES}, options.rounds)
    lines = ["| | seconds | of Pillow's | MB |", "| --- | --- | --- | --- |"]
    for side, told in SIDES.items():
        seconds = [one[0] for one in taken[side]]
        ratios = [one / other[0] for one, other in zip(seconds, taken["Pillow"], strict=True)]
        spread = f"{statistics.median(seconds):.2f} ({min(seconds):.2f}–{max(seconds):.2f})"
        memory = f"{max(one[1] for one in taken[side]):.0f}" if side != "Pillow" else ""
        lines.append(f"| {told} | {spread} | {statistics.median(ratios):.2f} | {memory} |")
    lines += [
        "",
        f"{options.count:,} images, {options.count * 784 / 2**20:.0f} MB. {options.rounds} rounds. {machine()}",
    ]
    print("\n".join(lines))
    if options.write:
        write_section(
            "Digits in other forms", [f"`python benchmarks/reading.py --rounds {options.rounds}`", "", *lines]
        )
