"""One, two or four processes with the same images in a step: images a second, seconds of all_reduce, and when it pays.

    python benchmarks/scaling.py --write
    python benchmarks/scaling.py --recipes cnn --processes 1 2 4 --rounds 3

Each is `fit` on the CPU with `--trainer.strategy ddp`, of several a thread each; the second epoch counts. The time of
all_reduce is that of one tensor as large as the network, by gloo, between as many processes. On paper a step of two
machines takes the step of half the images, and two messages with half of the gradients: the table tells what latency a
message may have at most for a second machine to pay, at 1 and at 10 Gbit/s.
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
from typing import Any

import torch
import torch.distributed
import torch.multiprocessing
import yaml

sys.path.insert(0, str(Path(__file__).parent))
from results import ROOT, machine, write_section

from mnist_lightning.models import MODELS

MNIST = Path(os.environ.get("MNIST_ROOT") or ROOT.parent / "shared" / "mnist")
CALLS = 200  # of all_reduce


def settings(recipe: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "configs" / f"{recipe}.yaml").read_text())
    return found


def second_epoch(recipe: str, processes: int, batch_size: int) -> float:
    """Seconds of the second epoch of a training with so many images a process in a step."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["fit", "--config", recipe, "--data.root", str(MNIST), "--data.batch_size", str(batch_size)]
        words += ["--trainer.max_epochs", "2", "--trainer.accelerator", "cpu", "--run", "a", "--data.val_size", "0"]
        words += ["--trainer.default_root_dir", folder, "--trainer.logger", "false"]
        words += ["--trainer.devices", str(processes), "--trainer.strategy", "ddp"] * (processes > 1)
        threads = {"OMP_NUM_THREADS": "1"} if processes > 1 else {}
        command = [sys.executable, "-m", "mnist_lightning", *words]
        done = subprocess.run(command, cwd=ROOT, env=os.environ | threads, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stdout + done.stderr)
        lines = [json.loads(line) for line in (Path(folder) / "a" / "sessions.jsonl").read_text().splitlines()]
        ends = [line["seconds"] for line in lines if "seconds" in line]
        return float(ends[1] - ends[0])


def _reduce(rank: int, processes: int, size: int, file: str, found: Any) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{file}", rank=rank, world_size=processes)
    tensor, taken = torch.zeros(size), []
    for _ in range(CALLS):
        start = time.perf_counter()
        torch.distributed.all_reduce(tensor)
        taken.append(time.perf_counter() - start)
    if rank == 0:
        found.value = statistics.median(taken)
    torch.distributed.destroy_process_group()


def all_reduce(processes: int, size: int) -> float:
    """Median seconds of an all_reduce of so many floats."""
    if processes == 1:
        return 0.0
    found = torch.multiprocessing.get_context("spawn").Value("d", 0.0)
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_reduce, (processes, size, f"{folder}/meet", found), processes)
    return float(found.value)


def most_latency(saved: float, size: int, bits: float) -> str:
    """Milliseconds that a message between two machines may take on its way, where a step of half the images saves so
    many seconds."""
    left = (saved - 2 * size * 4 / 2 / (bits / 8)) / 2
    return f"{1000 * left:.2f}" if left > 0 else "never pays"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=["simple_mlp", "cnn"])
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="put the table into RESULTS.md")
    options = parser.parse_args()
    lines = [
        "| recipe | processes | images a second | of one | ms of all_reduce in a step | of a step, ms |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    paper = [
        "| recipe | gradients, KB | a step, ms | of half the images | latency at most, ms, 1 Gbit/s | 10 Gbit/s |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for recipe in options.recipes:
        chosen = settings(recipe)
        size, model = chosen["data"]["batch_size"], chosen["model"]
        parameters = sum(p.numel() for p in MODELS[model["class_path"]](**model.get("init_args", {})).parameters())
        steps = -(-60_000 // size)
        taken: dict[Any, list[float]] = {}
        for _ in range(options.rounds):
            for processes in options.processes:
                taken.setdefault(processes, []).append(second_epoch(recipe, processes, size // processes))
            taken.setdefault("half", []).append(second_epoch(recipe, 1, size // 2))
        step = {name: statistics.median(seconds) / steps for name, seconds in taken.items()}
        step["half"] /= 2
        for processes in options.processes:
            reduced = 1000 * all_reduce(processes, parameters)
            pace, share = size / step[processes], step[options.processes[0]] / step[processes]
            lines.append(
                f"| {recipe} | {processes} | {pace:,.0f} | {share:.2f} | {reduced:.2f} | {1000 * step[processes]:.2f} |"
            )
        saved = step[options.processes[0]] - step["half"]
        limits = " | ".join(most_latency(saved, parameters, bits) for bits in (1e9, 1e10))
        paper.append(
            f"| {recipe} | {parameters * 4 / 1000:,.0f} | {1000 * step[1]:.2f} | {1000 * step['half']:.2f} | {limits} |"
        )
        print("\n".join([*lines[-len(options.processes) :], paper[-1]]), flush=True)
    if options.write:
        command = " ".join(["python benchmarks/scaling.py", *(word for word in sys.argv[1:] if word != "--write")])
        write_section(
            "Several processes",
            [
                f"`{command}`",
                "",
                f"Medians of {options.rounds} in turns. {machine()}",
                "",
                *lines,
                "",
                "On paper:",
                "",
                *paper,
            ],
        )
