"""`test --ckpt_path A B C`: the mean of several networks' probabilities, of those that a person names."""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from mnist_lightning.console import console
from mnist_lightning.data.module import MNISTDataModule
from mnist_lightning.errors import BadSetting, UserError
from mnist_lightning.predictor import Predictor
from mnist_lightning.run import Run
from mnist_lightning.settings import parsed
from mnist_lightning.training.checkpoints import read_weights
from mnist_lightning.words import merged, pairs_of_words, root_and_name, with_files


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


def average(stage: str, members: list[str], words: list[str]) -> None:
    """Tests each network and the mean of their probabilities, on the data of the first if none is given."""
    if stage != "test":
        raise BadSetting(f"--ckpt_path: {stage} takes one checkpoint; test averages several")
    pairs = pairs_of_words(words)
    asked = merged(with_files(pairs))
    root, _ = root_and_name(asked)
    for flag in asked.keys() & {"run", "model"}:
        raise BadSetting(f"--{flag} goes with one checkpoint: --ckpt_path names {len(members)}")
    predictors = [_member(root, member) for member in members]
    _check_alike(predictors)
    known = {**_data_of(predictors[0]), **asked, "data.normalize": "none"}  # each normalises as it was trained
    data = parsed("test", known).data.make()
    if not isinstance(data, MNISTDataModule):
        raise BadSetting(f"--data {type(data).__name__}: several checkpoints are tested on MNISTDataModule's images")
    data.prepare_data()
    data.setup("test")
    digits = data.read("test")
    labels = digits.labels.long()
    rows = [predictor(digits.images) for predictor in predictors]
    table = Table("checkpoint", "accuracy", "loss", title=f"{len(labels):,} test images of {escape(data.source)}")
    for predictor, probabilities in zip(predictors, rows, strict=True):
        table.add_row(escape(predictor.origin), *_measured(probabilities, labels))
    table.add_section()
    table.add_row(f"mean of the {len(rows)} probabilities", *_measured(torch.stack(rows).mean(0), labels), style="bold")
    console.print(table)


def _member(root: Path, source: str) -> Predictor:
    run = Run(root / source)
    return Predictor(run.folder if run.config.exists() and not Path(source).exists() else source)


def _check_alike(predictors: Sequence[Predictor]) -> None:
    first, *others = predictors
    for other in others:
        if other.names != first.names:
            one, two = (f"{it.file} has {it.classes} classes ({', '.join(it.names[:3])}, …)" for it in (first, other))
            raise UserError(f"{one}, {two}: average networks of the same classes")


def _data_of(predictor: Predictor) -> dict[str, object]:
    """Where the digits come from that a network was trained on, as its checkpoint says."""
    checkpoint = {} if predictor.file.suffix == ".onnx" else read_weights(predictor.file)
    known = checkpoint.get("datamodule_hyper_parameters", {}) | checkpoint.get("MNISTDataModule", {})
    names = ("root", "source", "train_file", "test_file")
    return {f"data.{name}": known[name] for name in names if known.get(name) is not None}


def _measured(probabilities: Tensor, labels: Tensor) -> tuple[str, str]:
    right = int((probabilities.argmax(1) == labels).sum())
    loss = float(F.nll_loss(probabilities.clamp_min(1e-12).log(), labels))
    return f"{right / len(labels):.2%}  ({right:,})", f"{loss:.4f}"
