"""What a GPU does with the recipes: pace, exactness, what is between two kernels, how far the limits are.

    python benchmarks/gpu.py epochs --write + exact --write + fast --write + limits --write + profile --write
    python benchmarks/gpu.py best --config best_gpu --seeds 3 --more "--trainer.max_epochs 50" --validation_only

Everything in one process, in turns; a plus sign leads to the next part. Each line is printed, and with --write put into
RESULTS.md, as soon as it is known, and a recipe that fails is told and passed over. The loops that ours is held against
are those of by_hand.py: `bare`, eager, and `graph`, replayed. With --device cpu the parts can be tried anywhere.
"""

import argparse
import contextlib
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import torch
from gpu_kernels import limits, profile
from gpu_turns import ALL, Seconds, Table, data, measure, options, ours, passed_over, spread, train
from lightning.pytorch.callbacks import Callback
from steps import MNIST, Recipe, Stopwatch, ratio
from time_to_99 import cell, cold, floats, yardstick

from mnist_lightning.processes import Interrupted
from mnist_lightning.training.checkpoint_content import STATE
from mnist_lightning.training.checkpoints import read_checkpoint

LEAST = {"mccaffrey_cnn": 8.0, "nielsen_mlp": 8.0}  # times as fast as the bare loop; of the others 4
MOST = 1.25  # times the graph loop's seconds
PRECISIONS = ("32-true", "bf16-mixed")


def epochs() -> None:
    table = Table(
        "Seconds an epoch on a GPU",
        "recipe | bare | graph by hand | ours | of it steps | ours / graph | bare / ours | images/s | bare, graph read",
        f"Medians of {options.rounds} rounds in turns (smallest–largest), of ours each the median of the epochs after "
        f"the second, everything on; the graph loop takes {options.at_once} steps a replay. Bare and graph read so "
        "much of 10,000 training images in the end. In brackets: at most 1.25, at least 4 or 8.",
    )
    for name in options.recipes:
        with passed_over(name):
            recipe = Recipe(name)
            seconds, read = measure(recipe, options.rounds)
            pace = len(recipe.labels) / statistics.median(seconds["ours"])
            cells = [spread(seconds[way], ".4f") for way in ("bare", "graph", "ours", "steps")]
            cells += [ratio(seconds, "ours", "graph", MOST), ratio(seconds, "bare", "ours", LEAST.get(name, 4.0))]
            table.add(name, *cells, f"{pace:,.0f}", ", ".join(read))


# ---------------------------------------------------------------------- exactness


class Stop(Callback):
    """Ctrl-C at the start of the second epoch: the training stops inside it."""

    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
        if trainer.current_epoch == 1:
            os.kill(os.getpid(), signal.SIGINT)


def tensors(value: Any, name: str = "") -> dict[str, torch.Tensor]:
    """All tensors of a nested value, by their places."""
    if isinstance(value, torch.Tensor):
        return {name: value}
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    return {place: one for key, inner in items for place, one in tensors(inner, f"{name}/{key}").items()}


def kept(run: Path | None) -> dict[str, torch.Tensor]:
    """Weights and optimizer state of a run's last checkpoint."""
    assert run is not None
    checkpoint = read_checkpoint(run / "last.ckpt")
    return tensors({name: checkpoint[name] for name in ("state_dict", "optimizer_states")})


def compared(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> str:
    if one.keys() != other.keys():
        return "other tensors"
    bits = [[t[name].detach().cpu().reshape(-1).view(torch.uint8) for name in one] for t in (one, other)]
    differ = sum(not torch.equal(a, b) for a, b in zip(*bits, strict=True))
    return f"{differ} differ" if differ else "equal"


def exact() -> None:
    table = Table(
        "Exactness on a GPU",
        "recipe | precision | tensors | same seed again | stopped and resumed | stopped at step",
        f"Two epochs of {options.images:,} images; all tensors of weights and optimizer state, bit for bit.",
    )
    for name in options.recipes:
        for precision in PRECISIONS:
            with passed_over(f"{name} {precision}"), tempfile.TemporaryDirectory() as folder:
                size = min(options.images, Recipe(name).data.get("train_size", options.images))
                where = {"default_root_dir": folder}
                trainer = {"max_epochs": 2, "precision": precision} | where
                more: dict[str, Any] = {"data": data(train_size=size), "trainer": trainer}
                first, second = (kept(train(name, run=run, **more).run) for run in "ab")
                with contextlib.suppress(Interrupted):
                    train(name, run="c", callbacks=[Stop()], **more)
                step = read_checkpoint(Path(folder) / "c" / "last.ckpt")[STATE]["step"]
                resumed = kept(train(name, run="c", ckpt_path="last", **more).run)
                both = compared(first, second), compared(first, resumed)
                table.add(name, precision, len(first), *both, step)
    if not options.rounds:
        return
    table.say("")
    table.say("| recipe | s an epoch, deterministic | not | cost |")
    table.say("| --- | --- | --- | --- |")
    for name in ("simple_mlp", "simple_cnn", "cnn"):
        with passed_over(name):
            seconds: Seconds = {"default": [], "free": []}
            for _ in range(options.rounds):
                seconds["default"].append(ours(name).whole)
                seconds["free"].append(ours(name, deterministic=False).whole)
            cells = [spread(seconds[way], ".4f") for way in ("default", "free")]
            table.add(name, *cells, ratio(seconds, "default", "free"))


# ---------------------------------------------------------------------- whole trainings


def trained(config: str, seed: int, folder: str, test: bool = True, **groups: Any) -> tuple[float, Any, Any]:
    """Seconds of training, test accuracy, and the validation accuracy of the checkpoint that is chosen, or None."""
    trainer, Stopwatch.start = {"default_root_dir": folder}, 0.0  # a training that failed leaves it running
    result = train(config, test=test, seed=seed, callbacks=[Stopwatch()], trainer=trainer, **groups)
    run = result.run or Path()
    accuracy = json.loads((run / "test.json").read_text())["accuracy"] if test else None
    best = read_checkpoint(run / "best.ckpt")[STATE]["best"]
    return Stopwatch.seconds, accuracy, best[0] if best else None


def fast() -> None:
    table = Table(
        "Seconds to 99 % on a GPU",
        "| test accuracy % | seconds of training | n",
        "Both in one process, in turns, after one of each that does not count.",
    )
    digits = [tuple(part.to(options.device) for part in floats(split)) for split in ("train", "test")]
    runs: dict[str, list[tuple[float, ...]]] = {"train_mnist_fast, written plainly": [], "configs/fast.yaml": []}
    with tempfile.TemporaryDirectory() as folder:
        for seed in (1000, *range(options.seeds)):
            with passed_over(f"seed {seed}"):
                pair = yardstick(seed, *digits), trained("fast", seed, folder, data={"root": str(MNIST)})
                print(seed, *(f"{one[0]:.3f} s {one[1]:.2%}" for one in pair), flush=True)
                for values, one in zip(runs.values(), pair, strict=True):
                    values.extend([one] * (seed != 1000))
        for name, values in runs.items():
            cells = cell([100 * one[1] for one in values], ".3f"), cell([one[0] for one in values], ".3f")
            table.add(name, *cells, len(values))
        theirs, mine = ([one[0] for one in values] for values in runs.values())
        table.say("")
        table.say(f"Ratio of times, pair by pair: {spread([a / b for a, b in zip(mine, theirs, strict=True)])}.")
        os.environ["MNIST_ROOT"] = str(MNIST)
        for turn in range(options.cold):
            table.say(f"The whole command from a cold start: {cold(2000 + turn, folder):.1f} s.")


def best() -> None:
    where = "GPU" if options.device.type == "cuda" else "CPU"
    table = Table(
        f"{Path(options.config).stem} on a {where}{f', {options.more}' if options.more else ''}",
        "seed | validation accuracy % | test accuracy % | seconds of training",
    )
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(options.first_seed, options.first_seed + options.seeds):
            with passed_over(f"seed {seed}"):
                root = {"data": {"root": str(MNIST)}}
                runs.append(trained(options.config, seed, folder, not options.validation_only, **root))
                seconds, accuracy, validation = runs[-1]
                shares = ["" if one is None else f"{100 * one:.2f}" for one in (validation, accuracy)]
                table.add(seed, *shares, f"{seconds:.2f}")
    if runs:
        columns = [[100 * run[at] for run in runs if run[at] is not None] for at in (2, 1)]
        cells = [cell(values, ".3f") if values else "" for values in columns]
        table.add(f"mean ± std, n {len(runs)}", *cells, cell([run[0] for run in runs], ".2f"))


PARTS = {"epochs": epochs, "exact": exact, "fast": fast, "limits": limits, "profile": profile, "best": best}


def parsed(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    for name in PARTS:
        part = parts.add_parser(name)
        part.add_argument("--device", type=torch.device, default=torch.device("cuda"))
        part.add_argument("--more", default="", help="more settings of fit, in one word: '--loop.step eager'")
        part.add_argument("--write", action="store_true", help="put the table into RESULTS.md")
        part.add_argument("--recipes", nargs="+", default=ALL, choices=ALL)
        part.add_argument("--rounds", type=int, default=3 if name == "epochs" else 2)
        part.add_argument("--epochs", type=int, help="of a training of ours that is timed")
        part.add_argument("--at_once", type=int, default=16, help="steps of the hand-written loop in a graph")
        part.add_argument("--images", type=int, default=10_000, help="exact: to train on")
        part.add_argument("--seeds", type=int, default=10 if name == "fast" else 3)
        part.add_argument("--first_seed", type=int, default=0)
        part.add_argument("--cold", type=int, default=3, help="fast: cold starts")
        part.add_argument("--config", default="best_gpu", help="best: what to train")
        part.add_argument("--validation_only", action="store_true", help="best: do not look at the test images")
    return parser.parse_args(words, argparse.Namespace(words=words))


if __name__ == "__main__":
    groups: list[list[str]] = [[]]
    for word in sys.argv[1:]:
        if word == "+":
            groups.append([])
        else:
            groups[-1].append(word)
    for asked in [parsed(group) for group in groups]:  # all of them before the first is measured
        vars(options).update(vars(asked))
        start = time.perf_counter()
        with passed_over(options.part):
            PARTS[options.part]()
        print(f"({options.part}: {time.perf_counter() - start:.0f} s)", flush=True)
