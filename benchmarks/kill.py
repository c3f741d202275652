"""Kills real training processes at random moments, resumes them, and compares with a run that nobody disturbed.

  python benchmarks/kill.py --kills 100
  python benchmarks/kill.py --kills 20 --cases nextjournal_cnn simple_mlp_ddp --seed 7

SIGKILL, SIGTERM and SIGINT come in turns, one in six already during start-up; under DDP the main process, a child
and all of them are hit in turns. Each time a fresh process goes on with --ckpt_path last, until the run is complete.
Then last.ckpt, best.ckpt and metrics.csv must be the same bytes as those of the undisturbed run, and test.json the
same numbers. Exit status 1 on any difference.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
MNIST = HERE.parent / "shared" / "mnist"  # where the variable MNIST_ROOT is unset
DDP = "--trainer.accelerator cpu --trainer.devices 2 --trainer.strategy ddp"
OFTEN = "--checkpoint.every_n_steps 5 --trainer.enable_model_summary false"
# Settings that make a few seconds of a recipe, or of what stands in FILES.
CASES = {
    "mccaffrey_cnn": "--config mccaffrey_cnn --trainer.max_epochs 2",
    "nextjournal_cnn": "--config nextjournal_cnn --trainer.max_epochs 3 --trainer.limit_train_batches 60",
    "cnn": "--config cnn --trainer.max_epochs 4 --trainer.limit_train_batches 30 --data.val_size 3000",
    "cnn_val_inside": "--config cnn --trainer.max_epochs 2 --trainer.limit_train_batches 60 --data.val_size 2000 "
    "--trainer.val_check_interval 0.34",
    "ema": "--config cnn --config {root}/ema.yaml --trainer.max_epochs 4 --trainer.limit_train_batches 30 "
    "--data.val_size 3000",
    # steps that nobody looks between
    "nielsen_mlp": "--config nielsen_mlp --trainer.max_epochs 3 --data.train_size 20000 "
    "--checkpoint.every_n_steps null --checkpoint.every_n_seconds 0.3",
    "plain_loader": "--config {root}/plain.yaml --trainer.max_epochs 6",
    "simple_mlp_ddp": "--config simple_mlp --trainer.max_epochs 3 --trainer.limit_train_batches 150 "
    f"--data.val_size 5000 {DDP}",
    "mccaffrey_cnn_ddp": f"--config mccaffrey_cnn --trainer.max_epochs 2 --trainer.limit_train_batches 40 {DDP}",
}
# What a user may bring, in the folder of the runs.
FILES = {
    "ema.yaml": """
trainer:
  callbacks:
    - class_path: EMAWeightAveraging
      init_args: {decay: 0.9, update_starting_at_step: 20}
    - LearningRateMonitor
""",
    "plain.yaml": """
model:
  class_path: CNN
  init_args: {channels: [8, 16], dropout: 0.5, optimizer: SGD, lr: 0.05, optimizer_args: {momentum: 0.9}}
data: {class_path: plain_data.Plain}
""",
    "plain_data.py": """
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, TensorDataset


class Plain(LightningDataModule):
    def loader(self, first, last, **options):
        generator = torch.Generator().manual_seed(7)
        images, labels = torch.rand(3000, 1, 28, 28, generator=generator), torch.arange(3000) % 10
        images[range(3000), 0, labels] = 1.0
        return DataLoader(TensorDataset(images[first:last], labels[first:last]), batch_size=25, **options)

    def train_dataloader(self):
        return self.loader(0, 2000, shuffle=True)

    def val_dataloader(self):
        return self.loader(2000, 2500)

    def test_dataloader(self):
        return self.loader(2500, 3000)
""",
}
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
STATUS = {signal.SIGKILL: {-9}, signal.SIGTERM: {143}, signal.SIGINT: {130}}
TROUBLES = ("hung", "wrong status", "tracebacks", "differences")
PER_RUN = 5  # kills, then the run may finish
PATIENCE = 60  # seconds that a process may take to end after a signal


class Training:
    """A training process, and those that it started, in a session of their own."""

    def __init__(self, words: list[str], log: Path, run: Path) -> None:
        self.log = log
        self._last = run / "last.ckpt"
        self._before = self._saved_at()
        self.started = time.monotonic()
        with log.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mnist_lightning", "fit", *words],
                stdout=file, stderr=subprocess.STDOUT, start_new_session=True, cwd=HERE,
                # one thread: what is measured is not the fight for the processors
                env={"MNIST_ROOT": str(MNIST), **os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1",
                     "COLUMNS": "200", "PYTHONPATH": str(log.parent)},
            )  # fmt: skip

    def wait_for_training(self) -> float:
        """Waits until the process has written a checkpoint, or is gone; seconds since the start."""
        while self._saved_at() == self._before and self.process.poll() is None:
            time.sleep(0.01)
        return time.monotonic() - self.started

    def _saved_at(self) -> int:
        return self._last.stat().st_mtime_ns if self._last.exists() else 0

    def members(self) -> list[int]:
        """The main process first, then its children."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [self.process.pid, *map(int, children.read_text().split())] if children.exists() else []

    def kill(self, signum: int, whom: str) -> bool:
        """Sends a signal to the "main" process, a "child" or "all"; False if there was nobody any more."""
        deadline = time.monotonic() + PATIENCE
        while whom == "child" and len(self.members()) < 2 and time.monotonic() < deadline:
            if self.process.poll() is not None:
                return False
            time.sleep(0.05)
        if self.process.poll() is not None:
            return False
        chosen = {"main": self.members()[:1], "child": self.members()[1:2], "all": self.members()}[whom]
        for pid in chosen:
            try:
                os.kill(pid, signum)
            except ProcessLookupError:
                return False
        return bool(chosen)

    def end(self, patience: float = PATIENCE) -> tuple[int, bool]:
        """Exit status of the main process, and whether a process had to be put to an end."""
        hung, deadline = False, time.monotonic() + patience
        while self._alive():
            if time.monotonic() > deadline:
                hung = True
                os.killpg(self.process.pid, signal.SIGKILL)
                deadline += PATIENCE
            time.sleep(0.05)
        return self.process.wait(), hung

    def _alive(self) -> bool:
        self.process.poll()
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                state, _, group = stat.read_text().rpartition(")")[2].split()[:3]
            except (OSError, ValueError):
                continue
            if int(group) == self.process.pid and state != "Z":
                return True
        return False


def differences(run: Path, undisturbed: Path) -> list[str]:
    """Files of the run folder that are not what they are in the undisturbed one."""
    found = []
    for name in ("last.ckpt", "best.ckpt", "metrics.csv"):
        mine, other = run / name, undisturbed / name
        if not mine.exists() or not other.exists() or mine.read_bytes() != other.read_bytes():
            found.append(name)
    results = []
    for folder in (run, undisturbed):
        file = folder / "test.json"
        results.append(json.loads(file.read_text()) | {"checkpoint": ""} if file.exists() else None)
    if results[0] is None or results[0] != results[1]:
        found.append("test.json")
    return found


def words_of(case: str, root: Path, run: str, often: str = OFTEN) -> list[str]:
    words = CASES[case].format(root=root)
    return f"{often} {words} --trainer.default_root_dir {root} --run {run}".split()


def torment(case: str, root: Path, run: str, kills: int, rng: random.Random, timing: tuple[float, float]) -> Counter:
    """One run, killed so many times; counts kills by signal, resumes and troubles."""
    start_up, training = timing
    count: Counter = Counter()
    ddp, folder, planned = DDP in CASES[case], root / run, kills
    while True:
        words = words_of(case, root, run)
        if any(folder.glob("*.ckpt")):
            words += ["--ckpt_path", "last"]
            count["resumes"] += 1
        process = Training(words, root / f"{run}-{count['starts']}.log", folder)
        count["starts"] += 1
        if not planned:
            status, hung = process.end(300)
            count["hung"] += hung
            if status:
                print(f"{process.log}: status {status}: {process.log.read_text()[-600:]}", flush=True)
                count["wrong status"] += 1
            return count
        number = rng.randrange(1_000_000)
        signum, whom = SIGNALS[number % 3], ("main", "child", "all")[number // 3 % 3] if ddp else "main"
        if rng.random() < 1 / 6:
            moment = rng.uniform(0.1, start_up)
            time.sleep(moment)
        else:
            process.wait_for_training()
            moment = rng.uniform(0, 0.4 * training)  # of a run that may have come some way already
            time.sleep(moment)
        hit = process.kill(signum, whom)
        planned = planned - 1 if hit else 0  # too late: the run is complete
        status, hung = process.end(PATIENCE if hit else 300)
        count["hung"] += hung
        if hung:
            print(f"{process.log}: hung after {signum.name} to {whom} {moment:.2f} s: {process.log.read_text()[-600:]}")
        count[signum.name] += hit
        # a signal can come too late (0), before Python listens (-n), or take a child from under the main process
        allowed = {0} if not hit else {0, -signum, *STATUS[signum]} | ({1, -9} if whom != "main" else set())
        if status not in allowed:
            print(
                f"{process.log}: {signum.name} to {whom} gave {status}: {process.log.read_text()[-1500:]}",
                flush=True,
            )
            count["wrong status"] += 1
        if "Traceback" in process.log.read_text():
            print(f"{process.log}: a traceback after {signum.name} to {whom}, status {status}", flush=True)
            count["tracebacks"] += 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="How many, over all cases.")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--seed", type=int, default=0, help="Of the moments and the signals.")
    parser.add_argument("--keep", action="store_true", help="Keep the run folders and the logs.")
    settings = parser.parse_args()
    rng = random.Random(settings.seed)
    root = Path(tempfile.mkdtemp(prefix="kill-"))
    for name, text in FILES.items():
        (root / name).write_text(text)
    table, began = {}, time.monotonic()
    shares = [len(range(i, settings.kills, len(settings.cases))) for i in range(len(settings.cases))]
    for case, share in zip(settings.cases, shares, strict=True):
        process = Training(words_of(case, root, f"{case}-whole"), root / f"{case}-whole.log", root / f"{case}-whole")
        start_up = process.wait_for_training()
        status, _ = process.end(300)
        timing = start_up, time.monotonic() - process.started - start_up
        if status:
            print(process.log.read_text())
            return 1
        count: Counter = Counter()
        while kills := min(PER_RUN, share - sum(count[signum.name] for signum in SIGNALS)):
            run = f"{case}-{count['runs']}"
            count += torment(case, root, run, kills, rng, timing)
            count["runs"] += 1
            if found := differences(root / run, root / f"{case}-whole"):
                count["differences"] += 1
                print(f"{root / run}: {', '.join(found)} differ", flush=True)
        table[case] = count
        print(f"{case}: {dict(count)}, undisturbed {timing[0]:.1f} + {timing[1]:.1f} s", flush=True)
    columns = ["runs", *(signum.name for signum in SIGNALS), "resumes", *TROUBLES]
    total: Counter = sum(table.values(), Counter())
    print("| case | " + " | ".join(columns) + " |\n|---|" + "---:|" * len(columns))
    for case, count in {**table, "**all**": total}.items():
        print(f"| {case} | " + " | ".join(str(count[column]) for column in columns) + " |")
    print(
        f"{sum(total[s.name] for s in SIGNALS)} kills in {(time.monotonic() - began) / 60:.0f} min, "
        f"seed {settings.seed}"
    )
    bad = sum(total[trouble] for trouble in TROUBLES)
    if settings.keep or bad:
        print(f"run folders and logs: {root}")
    else:
        shutil.rmtree(root)
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
