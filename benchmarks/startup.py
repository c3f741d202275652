"""How long one waits: answers beside `import lightning.pytorch`, in turns, and fit from its imports to its first step.

python benchmarks/startup.py --rounds 7
"""

import argparse
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
YARDSTICK = "import lightning.pytorch"
FIRST_STEP = """
import sys, time, mnist_lightning.commands.fit
from mnist_lightning.cli import main
from mnist_lightning.models import DigitClassifier
start, step = time.perf_counter(), DigitClassifier.training_step
def first(self, *args):
    print(time.perf_counter() - start, file=sys.stderr)
    DigitClassifier.training_step = step
    return step(self, *args)
DigitClassifier.training_step = first
main(sys.argv[1:])
"""


def seconds(words: list[str], folder: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *words], cwd=folder, capture_output=True, check=False)
    return time.perf_counter() - start


def first_step(folder: str) -> float:
    """Seconds from the end of the imports to the first optimizer step of plain `fit` on MNIST."""
    words = ["fit", "--data.root", str(MNIST), "--trainer.max_steps", "1"]
    done = subprocess.run(
        [sys.executable, "-c", FIRST_STEP, *words], cwd=folder, capture_output=True, text=True, check=True
    )
    return float(done.stderr.strip().splitlines()[-1])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--write", action="store_true", help="put the table into RESULTS.md")
    options = parser.parse_args()
    package = ["-m", "mnist_lightning"]
    commands = {
        f'python -c "{YARDSTICK}"': ["-c", YARDSTICK],
        "mnist_lightning --help": [*package, "--help"],
        "mnist_lightning fitt (no such command)": [*package, "fitt"],
        "mnist_lightning report nope (no such run)": [*package, "report", "nope"],
        "mnist_lightning fit --help": [*package, "fit", "--help"],
        "mnist_lightning fit --trainer.max_epoks 3 (no such flag)": [
            *package,
            "fit",
            "--trainer.max_epoks",
            "3",
        ],
    }
    taken: dict[str, list[float]] = {name: [] for name in commands}
    with tempfile.TemporaryDirectory() as folder:
        steps = [first_step(folder) for _ in range(options.rounds)]  # leaves runs among which `report` looks
        for turn in range(options.rounds + 1):
            for name, words in commands.items():
                spent = seconds(words, folder)
                if turn:  # the first round warms the file cache
                    taken[name].append(spent)
    yardstick, *_ = taken.values()
    lines = ["| | seconds | of the import |", "| --- | --- | --- |"]
    for name, values in taken.items():
        ratios = [value / other for value, other in zip(values, yardstick, strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"
        lines.append(f"| `{name}` | {statistics.median(values):.2f} | {spread} |")
    lines += [
        "",
        f"Plain `fit` on MNIST reaches its first step {statistics.median(steps):.2f} s "
        f"({min(steps):.2f}–{max(steps):.2f}) after its imports. Medians of {options.rounds}. {machine()}",
    ]
    print("\n".join(lines))
    if options.write:
        write_section(
            "Waiting for an answer",
            [f"`python benchmarks/startup.py --rounds {options.rounds} --write`", "", *lines],
        )
