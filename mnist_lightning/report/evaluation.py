"""Evaluation: the images that a run is measured on, and what its network says of each."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from mnist_lightning.data.module import MNISTDataModule
from mnist_lightning.errors import BadSetting, UserError, first_line
from mnist_lightning.predictor import Predictor, forward_of
from mnist_lightning.report.measures import DOUBTED, MNIST_TEST, fingerprint

SPLITS = {"test": "test", "val": "validate"}  # and the stage that Lightning sets each up for
Data = Any  # a LightningDataModule


@dataclass
class Evaluation:
    """Images uint8 [n, 28, 28], labels int64 [n], probabilities float32 [n, classes]."""

    images: Tensor
    labels: Tensor
    probabilities: Tensor
    names: tuple[str, ...]
    source: str  # "mnist", "synthetic", …
    split: str  # "test" or "val"

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(self.images, self.labels)

    @cached_property
    def predictions(self) -> Tensor:
        return self.probabilities.argmax(1)

    @cached_property
    def right(self) -> Tensor:
        return self.predictions == self.labels

    @cached_property
    def doubted(self) -> Tensor:
        """Which images' labels most annotators doubt, bool [n]; known of MNIST's test images only."""
        known = torch.tensor(DOUBTED if self.fingerprint == MNIST_TEST else (), dtype=torch.long)
        return torch.zeros(len(self.labels), dtype=torch.bool).index_fill(0, known, True)

    def name(self, label: int) -> str:
        return self.names[label] if label < len(self.names) else str(label)


def evaluate(predictor: Predictor, data: Data, notes: list[str]) -> Evaluation | None:
    """On the test images; without any, on those held out for validation. What is lacking becomes a note."""
    for split, stage in SPLITS.items():
        try:
            found = _labelled(predictor, data, split, stage)
        except (UserError, OSError) as error:
            notes.append(f"no {split} images: {first_line(error)}")
            continue
        except Exception as error:  # whatever a data module or a network of the user's comes to
            notes.append(f"no {split} images: {type(error).__name__}: {first_line(error)[:200]}")
            continue
        if split == "val":
            notes.append("there are no test images: measured on the images held out for validation")
        return found
    return None


def _labelled(predictor: Predictor, data: Data, split: str, stage: str) -> Evaluation:
    if isinstance(data, MNISTDataModule):
        images, labels, names = _of_tensors(data, split, stage)
        rows = predictor(images) if labels is not None and len(images) else None
    else:
        images, labels, rows = _of_loader(predictor, data, split, stage)
        names = predictor.names
    if labels is None or rows is None:
        raise UserError(f"the {split} images have no labels" if len(images) else "there are none")
    if not rows.isfinite().all():
        raise UserError("the network's outputs are not finite")
    labels = labels.cpu().long()
    if int(labels.max()) >= rows.shape[1]:
        raise UserError(f"their labels go to {int(labels.max())}, and the network has {rows.shape[1]} classes")
    source = getattr(data, "source", type(data).__name__)
    plain = tuple(map(str, range(rows.shape[1])))
    names = names if predictor.names == plain and len(names) == len(plain) else predictor.names
    return Evaluation(images, labels, rows, tuple(names), str(source), split)


def _of_tensors(data: MNISTDataModule, split: str, stage: str) -> tuple[Tensor, Tensor | None, tuple[str, ...]]:
    if split == "val" and not data.hparams["val_size"]:
        raise UserError("none were held out")
    data.prepare_data()
    data.setup(stage)
    digits: Any = data.read("test" if split == "test" else "train")
    images, labels = digits.images, digits.labels
    if split == "val":
        chosen = data.val_dataloader().subset  # type: ignore[union-attr]
        images, labels = images[chosen], labels[chosen]
    return images.cpu(), labels, tuple(getattr(digits, "names", ()))


def _of_loader(predictor: Predictor, data: Data, split: str, stage: str) -> tuple[Tensor, Tensor, Tensor]:
    """From batches (images, labels) of a module of the user's, with whatever normalisation that has done."""
    if predictor.model is None:
        raise BadSetting("an .onnx file is measured on the images of MNISTDataModule only")
    data.prepare_data()
    data.setup(stage)
    loader = getattr(data, f"{split}_dataloader")()
    loaders = loader if isinstance(loader, list | tuple) else [loader]
    batches = [_batch(predictor, batch) for batch in (loaders[0] if loaders else [])]
    if not batches:
        raise UserError("there are none")
    images, labels, rows = (torch.cat(parts) for parts in zip(*batches, strict=True))
    return _as_grey(images), labels, rows


def _batch(predictor: Predictor, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
    images, labels = batch[0], batch[1]
    assert predictor.model is not None  # an .onnx file has no run, and so no loaders
    with torch.inference_mode():
        rows = (forward_of(predictor.model)(images).float() / predictor.temperature).softmax(1)
    return images, labels, rows


def _as_grey(images: Tensor) -> Tensor:
    """uint8 [n, 28, 28] of images of any normalisation, for people to look at."""
    grey = images.reshape(len(images), -1, *images.shape[-2:])[:, 0].float()
    low, high = grey.min(), grey.max()
    return ((grey - low) / (high - low).clamp_min(1e-9) * 255).round().to(torch.uint8)


def first_layer(weights: Iterable[tuple[str, Tensor]]) -> Tensor | None:
    """The first layer's filters [n, height, width], or what each unit of a fully connected one weighs 28x28 with."""
    for _, weight in weights:
        if weight.ndim == 4 and weight.shape[1] in (1, 3) and min(weight.shape[2:]) > 1:
            return weight.float().mean(1)
        if weight.ndim == 2 and weight.shape[1] == 28 * 28:
            return weight.float().unflatten(1, (28, 28))
        if weight.ndim >= 2:
            return None  # a layer of another kind
    return None
