"""What a larger data set costs in time per image, memory, and time to the first step.

    MNIST_ROOT=/path/to/mnist python benchmarks/growth.py --folder /path/with/6/GB

The IDX files hold drawn digits and are removed afterwards; just written, they are in the page cache.
Each training is a fresh process; sizes take turns. Anonymous memory is counted over a process that has just
imported lightning; the pages of a mapped file are no part of it.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from results import ROOT, machine, write_section

SIZES = [60_000, 600_000, 6_000_000]
STEPS, BATCH = 1500, 64
TEST = 1000  # test images beside them; `fit` wants some


def memory(pid: int | str, what: str) -> float:
    """RssAnon (now) or VmHWM (the peak) of a process, in MB."""
    found = re.search(rf"{what}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) * 1024 / 1e6 if found else 0.0  # a process that has ended has none


def write_idx(folder: Path, stem: str, images: torch.Tensor, labels: torch.Tensor, count: int) -> None:
    """Plain IDX files of `count` images: the given ones in random order and place, as often as it takes."""
    with (
        open(folder / f"{stem}-images-idx3-ubyte", "wb") as pixels,
        open(folder / f"{stem}-labels-idx1-ubyte", "wb") as classes,
    ):
        pixels.write(struct.pack(">4I", 0x803, count, 28, 28))
        classes.write(struct.pack(">2I", 0x801, count))
        for start in range(0, count, len(images)):
            order = torch.randperm(len(images))[: count - start]
            shift = torch.randint(-2, 3, (2,)).tolist()
            pixels.write(images[order].roll(shift, (1, 2)).numpy())
            classes.write(labels[order].numpy())
        os.fsync(pixels.fileno())  # else the disk would be busy with them during the measurement


class Clock(Callback):
    """When the file is opened, when the first step begins, and the first and the last are done."""

    opened = begun = first_done = last_done = 0.0
    first_step = last_step = 0

    def on_train_batch_start(self, *_: Any) -> None:
        Clock.begun = Clock.begun or time.monotonic()

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        Clock.last_done, Clock.last_step = time.monotonic(), trainer.global_step
        if not Clock.first_done:
            Clock.first_done, Clock.first_step = Clock.last_done, Clock.last_step


def child(words: list[str]) -> None:
    """`fit` in this process, or nothing; then a line of JSON."""
    seen = {"imported": memory("self", "RssAnon")}
    from mnist_lightning import cli
    from mnist_lightning.data import module

    find = module.find

    def found(*args: Any) -> Any:
        Clock.opened = Clock.opened or time.monotonic()
        return find(*args)

    module.find = found
    if words and cli.main(["fit", *words, "--trainer.callbacks", "growth.Clock"]):
        raise SystemExit("fit failed")
    if words:
        steps = Clock.last_step - Clock.first_step
        seen["us"] = 1e6 * (Clock.last_done - Clock.first_done) / (max(1, steps) * BATCH)
        seen["start"] = Clock.begun - Clock.opened
    print(json.dumps(seen | {"peak": memory("self", "VmHWM")}))


def measure(*words: str) -> dict[str, float]:
    """What `child` measures in a fresh process, and the greatest RssAnon seen from outside."""
    command = [sys.executable, "-c", "import sys, growth; growth.child(sys.argv[1:])", *words]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'benchmarks'}"}
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
        anonymous = 0.0
        while process.poll() is None:
            anonymous = max(anonymous, memory(process.pid, "RssAnon"))
            time.sleep(0.01)
        output.seek(0)
        text = output.read()
    if process.returncode:
        raise SystemExit(f"{' '.join(words)} ended with {process.returncode}:\n{text}")
    seen = json.loads(text.splitlines()[-1])
    return seen | {"anonymous": anonymous - seen["imported"]}


def make_files(folder: Path, sizes: list[int]) -> None:
    need, free = 1.1 * 785 * sum(sizes), shutil.disk_usage(folder).free
    if free < need:
        raise SystemExit(f"{folder} has {free / 1e9:.1f} GB free, {need / 1e9:.1f} are needed: see --folder")
    from mnist_lightning.data.synthetic import synthetic_digits

    digits = synthetic_digits(60_000, 0)
    for size in sizes:
        (folder / str(size)).mkdir()
        write_idx(folder / str(size), "train", *digits, size)
        write_idx(folder / str(size), "t10k", *digits, TEST)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--folder", help="where to put 5.3 GB for a while (default: $TMPDIR)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    options = parser.parse_args()

    found: dict[int, list[dict[str, float]]] = {size: [] for size in options.sizes}
    peaks, held_out = [], []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        make_files(Path(folder), options.sizes)
        common = ["--data.source", "mnist", "--trainer.default_root_dir", f"{folder}/runs"]
        mlp = ["--model", "MLP", "--data.batch_size", str(BATCH)]
        for _ in range(options.rounds):
            for size in options.sizes:
                words = [*common, *mlp, "--data.root", f"{folder}/{size}", "--trainer.max_steps", str(STEPS)]
                found[size].append(measure(*words, "--data.val_size", "0"))
            held_out.append(measure(*words, "--data.val_size", "5000")["anonymous"])
            peaks.append(measure(*common, "--trainer.max_epochs", "1")["peak"] - measure()["peak"])

    def median(size: int, what: str) -> float:
        return statistics.median(seen[what] for seen in found[size])

    lines = [
        f"On {machine()}, {date.today()}; medians of {options.rounds} runs, sizes in turns. An MLP of "
        f"784-256-128-10, {STEPS} steps of {BATCH}. Required: time per image within 10 %, anonymous memory "
        "flat but for the order of an epoch (4 bytes an image), first step within 2 s of opening the file.",
        "",
        "    MNIST_ROOT=/path/to/mnist python benchmarks/growth.py --folder /path/with/6/GB",
        "",
        "| images | µs an image | of the first | anonymous memory, MB | order, MB | first step after, s |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for size in options.sizes:
        us, anonymous, start = (median(size, what) for what in ("us", "anonymous", "start"))
        ratio, order = us / median(options.sizes[0], "us"), 4 * size / 1e6
        lines.append(f"| {size:,} | {us:.1f} | {ratio:.2f} | {anonymous:.0f} | {order:.1f} | {start:.2f} |")
    lines += ["", f"The last with 5,000 images held out, as is the default: {statistics.median(held_out):.0f} MB."]
    peak = f"{statistics.median(peaks):.0f} MB (required: at most 250)"
    lines += ["", f"Peak memory of plain `fit` on MNIST, over a process that has imported lightning: {peak}."]
    print("\n".join(lines))
    if options.sizes == SIZES:
        write_section("Memory and growth", lines)


if __name__ == "__main__":
    main()
