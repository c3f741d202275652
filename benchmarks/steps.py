"""One epoch of each recipe six ways, in turns, each way in a process of its own.

    python benchmarks/steps.py                        # all eight recipes, 5 rounds: an hour and a half on 2 cores
    python benchmarks/steps.py --recipes simple_mlp --ways bd --rounds 9

(a) the article's own loop: DataLoader with ToTensor for each image, `.item()` where the article had it
(b) the bare loop: same network, optimizer and batches out of a preloaded float tensor; no metrics, no logging
(c) idiomatic Lightning: DataLoader, automatic optimization, self.log of loss and accuracy, RichProgressBar
(d) this project's recipe: progress bar, metrics, metrics.csv, TensorBoard and checkpoints on
(e) the module of (c) with this project's data and QuickLoop, as anybody's Trainer gets it; no progress bar
(l) the same under Lightning's own loop
"""

import argparse
import gc
import logging
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["TTY_COMPATIBLE"] = "1"  # rich draws its bars although nobody looks

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
import yaml
from lightning.pytorch.callbacks import Callback, RichProgressBar
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchmetrics.classification import MulticlassAccuracy
from torchvision.transforms.functional import normalize, to_tensor

sys.path.insert(0, str(Path(__file__).parent))
from results import machine, write_section
from turns import Side, answer, in_turns

from mnist_lightning import MNISTDataModule, quick
from mnist_lightning.cli import main
from mnist_lightning.data.sources import read as read_digits
from mnist_lightning.models import MODELS
from mnist_lightning.models.layers import Dropout, Linear

ROOT = Path(__file__).parents[1]
MNIST = Path(os.environ.get("MNIST_ROOT") or ROOT.parent / "shared" / "mnist")
RECIPES = (
    "simple_mlp", "nielsen_mlp", "nextjournal_cnn", "fidle_cnn",
    "simple_cnn", "fidle_cnn2", "fidle_dnn", "mccaffrey_cnn",
)  # fmt: skip
REQUIRED_A_D = {
    "simple_mlp": 4.0, "nielsen_mlp": 2.5, "nextjournal_cnn": 1.8, "fidle_cnn": 1.4, "simple_cnn": 1.2,
    "fidle_cnn2": 1.1, "fidle_dnn": 1.1, "mccaffrey_cnn": 1.1,
}  # fmt: skip
REQUIRED_L_E = {"simple_mlp": 1.2, "nielsen_mlp": 1.5, "nextjournal_cnn": 1.5}


class Recipe:
    """A recipe of configs/ taken apart, for the ways that are not this project's."""

    def __init__(self, name: str) -> None:
        self.name = name
        settings = yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text())
        self.model_class, self.model_args = settings["model"]["class_path"], settings["model"].get("init_args", {})
        self.data, self.max_epochs = settings["data"], settings["trainer"]["max_epochs"]
        self.precision = settings["trainer"].get("precision", "32-true")
        self.epochs = 5 if self.data.get("train_size") else 1  # a timing of 0.4 s would be noise
        digits = read_digits(MNIST, "train")
        count = self.data.get("train_size") or len(digits.labels)
        self.images, self.labels = digits.images[:count], digits.labels[:count].long()
        wanted: Any = self.data.get("normalize", (0.1307, 0.3081))  # what `auto` finds
        self.mean, self.std = (0.0, 1.0) if wanted == "none" else wanted
        self.batch_size = self.data["batch_size"]

    def floats(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 [n, 28, 28] -> float32 [n, 1, 28, 28], normalised as the article does."""
        return (images[:, None].float() / 255 - self.mean) / self.std

    def network(self) -> torch.nn.Sequential:
        """With torch's own layers in the article's order, and in torch's default layout."""
        net = MODELS[self.model_class](**self.model_args).net.to(memory_format=torch.contiguous_format)
        for layer in net:
            if isinstance(layer, (Dropout, Linear)):
                layer.__class__ = type(layer).__base__
        return torch.nn.Sequential(*net)

    def optimizer(self, parameters: Any) -> torch.optim.Optimizer:
        kind = getattr(torch.optim, self.model_args.get("optimizer", "Adam"))
        return kind(parameters, lr=self.model_args.get("lr", 1e-3), **self.model_args.get("optimizer_args", {}))

    def loss(self, output: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if self.model_args.get("loss") == "mse":
            return F.mse_loss(output, labels if labels.is_floating_point() else F.one_hot(labels, 10).float())
        return F.cross_entropy(output, labels)


class Items(Dataset):
    """What torchvision's MNIST does for each image: a PIL image, ToTensor, and Normalize if the article has it.

    mccaffrey_cnn and Fidle's recipes have their images as float rows already (as the seconds of Fidle's loop tell).
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.rows = recipe.images[:, None].float() / 255 if recipe.name.startswith(("mccaffrey", "fidle")) else None

    def __len__(self) -> int:
        return len(self.recipe.labels)

    def __getitem__(self, i: int) -> Any:
        recipe = self.recipe
        if self.rows is not None:
            return self.rows[i], recipe.labels[i]
        image = to_tensor(Image.fromarray(recipe.images[i].numpy(), mode=None))
        if recipe.std != 1:
            image = normalize(image, [recipe.mean], [recipe.std])
        label = int(recipe.labels[i])
        if recipe.model_args.get("loss") == "mse":  # its labels are one-hot rows from the start
            return image, F.one_hot(torch.tensor(label), 10).float()
        return image, label


def article(recipe: Recipe) -> Callable[[], float]:
    torch.manual_seed(0)
    net = recipe.network()
    optimizer = recipe.optimizer(net.parameters())
    loader = DataLoader(Items(recipe), batch_size=recipe.batch_size, shuffle=True)

    def epoch() -> float:
        start = time.perf_counter()
        net.train()
        running, correct = 0.0, 0
        for _ in range(recipe.epochs):
            for i, (images, labels) in enumerate(loader):
                optimizer.zero_grad()
                output = net(images)
                loss = recipe.loss(output, labels)
                loss.backward()
                optimizer.step()
                if recipe.name != "nextjournal_cnn" or i % 10 == 0:  # it looks at the loss every 10 batches
                    running += loss.item()
                if recipe.name.startswith("fidle"):
                    correct += (output.argmax(1) == labels).sum().item()
        return time.perf_counter() - start

    return epoch


def bare(recipe: Recipe) -> Callable[[], float]:
    torch.manual_seed(0)
    net = recipe.network()
    optimizer = recipe.optimizer(net.parameters())
    images, labels, size = recipe.floats(recipe.images), recipe.labels, recipe.batch_size

    def epoch() -> float:
        start = time.perf_counter()
        net.train()
        for _ in range(recipe.epochs):
            order = torch.randperm(len(labels))
            for first in range(0, len(labels), size):
                batch = order[first : first + size]
                optimizer.zero_grad()
                loss = recipe.loss(net(images[batch]), labels[batch])
                loss.backward()
                optimizer.step()
        return time.perf_counter() - start

    return epoch


class Stopwatch(Callback):
    """Seconds from the first epoch's start to the training's end, checkpoints and all."""

    seconds = start = 0.0

    def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
        Stopwatch.start = Stopwatch.start or time.perf_counter()

    def on_train_end(self, trainer: Any, module: Any) -> None:
        Stopwatch.seconds, Stopwatch.start = time.perf_counter() - Stopwatch.start, 0.0


class Idiomatic(pl.LightningModule):
    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.recipe, self.net = recipe, recipe.network()
        self.accuracy = MulticlassAccuracy(10, average="micro")

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        images, labels = batch
        output = self.net(images)
        loss = self.recipe.loss(output, labels)
        self.accuracy(output, labels if labels.ndim == 1 else labels.argmax(1))
        self.log("train_loss", loss, prog_bar=True)
        self.log("train_acc", self.accuracy, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.recipe.optimizer(self.parameters())


def lightnings(trainer: pl.Trainer) -> pl.Trainer:
    """The Trainer with Lightning's own loop."""
    return trainer


def seconds_of_lightning(
    module: pl.LightningModule, epochs: int, loop: Callable[[pl.Trainer], pl.Trainer], data: Any,
    bar: Callback | None = None, **settings: Any,
) -> float:  # fmt: skip
    """What a Trainer takes for so many epochs."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            max_epochs=epochs, callbacks=[Stopwatch(), *([bar] if bar else [])], default_root_dir=folder,
            accelerator="cpu", enable_model_summary=False, enable_progress_bar=bar is not None, **settings,
        )  # fmt: skip
        loop(trainer).fit(module, data)
    return Stopwatch.seconds


def idiomatic(recipe: Recipe) -> Callable[[], float]:
    def epoch() -> float:
        loader = DataLoader(Items(recipe), batch_size=recipe.batch_size, shuffle=True)
        return seconds_of_lightning(Idiomatic(recipe), recipe.epochs, lightnings, loader, bar=RichProgressBar())

    return epoch


def data_of(recipe: Recipe) -> MNISTDataModule:
    settings = {name: recipe.data.get(name) for name in ("batch_size", "val_size", "train_size", "normalize")}
    return MNISTDataModule(root=str(MNIST), source="mnist", **settings)


def users(recipe: Recipe, loop: Callable[[pl.Trainer], pl.Trainer]) -> Callable[[], float]:
    return lambda: seconds_of_lightning(Idiomatic(recipe), recipe.epochs, loop, data_of(recipe))


def project(recipe: Recipe, *extra: str) -> Callable[[], float]:
    words = ["fit", "--config", recipe.name, "--data.root", str(MNIST), "--data.test_each_epoch", "false"]
    words += ["--trainer.max_epochs", str(recipe.epochs), "--trainer.num_sanity_val_steps", "0"]
    words += ["--trainer.callbacks", "steps.Stopwatch", "--trainer.accelerator", "cpu", *extra]
    gc.freeze()  # as the program does

    def epoch() -> float:
        with tempfile.TemporaryDirectory() as folder:
            if main([*words, "--trainer.default_root_dir", folder]) != 0:
                raise SystemExit(f"{recipe.name}: fit failed")
        return sys.modules["steps"].Stopwatch.seconds  # the callback's name imported this file a second time

    return epoch


WAYS = {
    "a": article, "b": bare, "c": idiomatic, "d": project,
    "e": lambda recipe: users(recipe, quick), "l": lambda recipe: users(recipe, lightnings),
}  # fmt: skip


def measure(name: str, ways: str, rounds: int, extra: list[str]) -> dict[str, list[float]]:
    """Seconds an epoch of each way in each round."""
    return in_turns({way: Side(__file__, "--recipes", name, "--side", way, "--extra", *extra) for way in ways}, rounds)


def ratio(seconds: dict[str, list[float]], over: str, under: str, least: float | None = None) -> str:
    if over not in seconds or under not in seconds:
        return ""
    ratios = [x / y for x, y in zip(seconds[over], seconds[under], strict=True)]
    asked = f" ({least})" if least else ""
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f}){asked}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=RECIPES, choices=RECIPES)
    parser.add_argument("--ways", default="abcdel")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--side", choices=WAYS, help="measure this way for each line of standard input")
    parser.add_argument("--extra", nargs=argparse.REMAINDER, default=[], help="more settings for (d), last")
    parser.add_argument("--write", action="store_true", help="put the table into RESULTS.md")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    if options.side:
        if options.side in "ab":  # a loop without Lightning has not got this switch of its, 0.1 ms a step
            os.environ.pop("PYTORCH_NVML_BASED_CUDA_CHECK", None)
        recipe = Recipe(options.recipes[0])
        epoch = WAYS[options.side](recipe, *(options.extra if options.side == "d" else ()))
        answer(lambda turn: epoch() / recipe.epochs)
        raise SystemExit
    lines = [
        "| recipe | a/d (at least) | d/b | c/d | b/d | l/e (at least) | e/b | d: s an epoch |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in options.recipes:
        seconds = measure(name, options.ways, options.rounds, options.extra)
        cells = [ratio(seconds, "a", "d", REQUIRED_A_D[name]), *(ratio(seconds, *pair) for pair in ("db", "cd", "bd"))]
        cells += [ratio(seconds, "l", "e", REQUIRED_L_E.get(name)), ratio(seconds, "e", "b")]
        cells += [f"{statistics.median(seconds['d']):.2f}" if "d" in seconds else ""]
        lines.append(f"| {name} | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    note = f"Medians of {options.rounds} rounds in turns (smallest–largest), as ratios of times. {machine()}"
    if options.write:
        command = " ".join(["python benchmarks/steps.py", *(word for word in sys.argv[1:] if word != "--write")])
        write_section(
            "An epoch six ways" + (f" ({' '.join(options.extra)})" if options.extra else ""),
            [f"`{command}`", "", note, "", *lines],
        )
