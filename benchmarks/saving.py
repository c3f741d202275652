"""What saving takes of a training: the training's own time in RunKeeper's saving, beside the whole.

python benchmarks/saving.py
"""

import argparse
import contextlib
import io
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ["TTY_COMPATIBLE"] = "1"  # rich draws its bars although nobody looks

sys.path.insert(0, str(Path(__file__).parent))
from results import machine, write_section
from steps import MNIST

from mnist_lightning.cli import main
from mnist_lightning.training.keeper import RunKeeper

EPOCHS = {"mccaffrey_cnn": 15, "fidle_dnn": 10, "fidle_cnn": 4, "simple_mlp": 2, "nielsen_mlp": 2}
SECONDS: list[float] = []


def clocked(save: Any) -> Any:
    def run(self: Any, *args: Any, **kwargs: Any) -> None:
        start = time.perf_counter()
        save(self, *args, **kwargs)
        SECONDS.append(time.perf_counter() - start)

    return run


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the table into RESULTS.md")
    options = parser.parse_args()
    RunKeeper._save = clocked(RunKeeper._save)  # type: ignore[method-assign]
    lines = ["| recipe | epochs | saves | ms a save | of the training |", "| --- | --- | --- | --- | --- |"]
    for recipe, epochs in EPOCHS.items():
        SECONDS.clear()
        words = ["fit", "--config", recipe, "--data.root", str(MNIST)]
        words += ["--trainer.max_epochs", str(epochs), "--trainer.callbacks", "steps.Stopwatch"]
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            main([*words, "--trainer.default_root_dir", folder, "--trainer.accelerator", "cpu"])
        whole = sys.modules["steps"].Stopwatch.seconds  # type: ignore[attr-defined]
        share, each = sum(SECONDS) / whole, sum(SECONDS) / len(SECONDS)
        lines.append(f"| {recipe} | {epochs} | {len(SECONDS)} | {1000 * each:.1f} | {share:.1%} |")
        print(lines[-1], flush=True)
    lines += ["", machine()]
    if options.write:
        write_section("Saving", ["`python benchmarks/saving.py --write`", "", *lines])
