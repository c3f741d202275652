"""`test` of several networks, those that a person names or those of a run: the mean of their probabilities."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from mnist_lightning.console import console
from mnist_lightning.data.module import MNISTDataModule
from mnist_lightning.errors import BadSetting
from mnist_lightning.predictor import Predictor, check_alike
from mnist_lightning.run import Run
from mnist_lightning.settings import parsed
from mnist_lightning.training.checkpoints import read_weights
from mnist_lightning.words import merged, pairs_of_words, root_and_name, with_files

SHIFTS = 5  # places of an image that are read: as it is, and a pixel to each side


def parted(words: list[str]) -> tuple[list[str], list[str]]:
    """The checkpoints that --ckpt_path names, if they are several, and the other words."""
    for start, word in enumerate(words):
        first = word.partition("=")[2] if word.startswith("--ckpt_path=") else ""
        if word == "--ckpt_path" or first:
            end = start + 1
            while end < len(words) and not words[end].startswith("-"):
                end += 1
            members = [first] * bool(first) + words[start + 1 : end]
            return ([], words) if len(members) < 2 else (members, words[:start] + words[end:])
    return [], words


def average(stage: str, members: Sequence[str], words: list[str]) -> None:
    """Tests each network and the mean of their probabilities, on the data of the first if none is given."""
    if stage != "test":
        raise BadSetting(f"--ckpt_path: {stage} takes one checkpoint; test averages several")
    asked = merged(with_files(pairs_of_words(words)))
    root, _ = root_and_name(asked)
    for flag in asked.keys() & {"run", "model"}:
        raise BadSetting(f"--{flag} goes with one checkpoint: --ckpt_path names {len(members)}")
    console.print(average_of([_member(root, member) for member in members], asked)[1])


def average_of(predictors: Sequence[Predictor], asked: Mapping[str, Any]) -> tuple[dict[str, Any], Table]:
    """What the mean of the networks reads of the test images, and a table of that and of each of them.

    `asked`: settings of `test`; with `tta` it is the mean over images that are moved, too.
    """
    check_alike(predictors)
    # each normalises as it was trained
    config = parsed("test", {**_data_of(predictors[0]), **asked, "data.normalize": "none"})
    data = config.data.make()
    if not isinstance(data, MNISTDataModule):
        raise BadSetting(f"--data {type(data).__name__}: several checkpoints are tested on MNISTDataModule's images")
    data.prepare_data()
    data.setup("test")
    digits = data.read("test")
    table = Table(
        "checkpoint", "accuracy", "loss", title=f"{len(digits.labels):,} test images of {escape(data.source)}"
    )
    labels, rows = digits.labels.long(), []
    start = time.perf_counter()
    for predictor in predictors:
        rows.append(predictor(digits.images))
        table.add_row(escape(predictor.origin), *_in_words(_measured(rows[-1], labels)))
    seconds, mean = time.perf_counter() - start, torch.stack(rows).mean(0)
    if len(rows) > 1:
        table.add_section()
        told = f"mean of the {len(rows)} probabilities"
        table.add_row(told, *_in_words(_measured(mean, labels)), style="bold")
    if config.tta == "shifts":
        start, each = time.perf_counter(), [one(part) for part in shifted(digits.images) for one in predictors]
        mean, cost = torch.stack(each).mean(0), (time.perf_counter() - start) / seconds
        told = f"mean over {SHIFTS} places of the image, in {cost:.1f} times the time"
        table.add_row(told, *_in_words(_measured(mean, labels)), style="bold")
    return _measured(mean, labels) | {"source": data.source}, table


def shifted(images: Tensor) -> list[Tensor]:
    """The images [n, 28, 28], and the same moved by a pixel down, up, right and left; paper comes in at the edge."""
    paper = F.pad(images, (1, 1, 1, 1))
    return [paper[:, 1 + y : 29 + y, 1 + x : 29 + x] for y, x in ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))]


def _member(root: Path, source: str) -> Predictor:
    run = Run(root / source)
    return Predictor(run.folder if run.config.exists() and not Path(source).exists() else source)


def _data_of(predictor: Predictor) -> dict[str, object]:
    """Where the digits come from that a network was trained on, as its checkpoint says."""
    checkpoint = {} if predictor.file.suffix == ".onnx" else read_weights(predictor.file)
    resolved = {name: value for name, value in checkpoint.get("MNISTDataModule", {}).items() if name == "source"}
    known = checkpoint.get("datamodule_hyper_parameters", {}) | resolved
    names = ("root", "source", "train_file", "test_file", "subset", "label", "classes")
    return {f"data.{name}": known[name] for name in names if known.get(name) is not None}


def _measured(probabilities: Tensor, labels: Tensor) -> dict[str, Any]:
    correct = int((probabilities.argmax(1) == labels).sum())
    loss = float(F.nll_loss(probabilities.clamp_min(1e-12).log(), labels))
    return {"accuracy": correct / len(labels), "loss": loss, "images": len(labels), "correct": correct}


def _in_words(found: Mapping[str, Any]) -> tuple[str, str]:
    return f"{found['accuracy']:.2%}  ({found['correct']:,})", f"{found['loss']:.4f}"
