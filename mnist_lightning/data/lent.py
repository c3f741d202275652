"""Digits that another process has read: mapped, so that trainings beside each other have them in memory once."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mnist_lightning.data.digits import Digits

_lent: dict[str, Digits] = {}  # by where they come from


def write(folder: Path, data: Any, split: str) -> None:
    """Puts the digits that an MNISTDataModule has read, all classes of them, where others can take them."""
    digits = data.read(split)
    for name, tensor in (("images", digits.images), ("labels", digits.labels)):
        np.save(folder / f"{name}.npy", tensor.cpu().numpy())
    told = {"origin": _origin(data, split), "names": digits.names}
    (folder / "lent.json").write_text(json.dumps(told), encoding="utf-8")


def take(folder: Path) -> None:
    """From now on this process reads these digits no more; what it would write to them stays its own."""
    told = json.loads((folder / "lent.json").read_text(encoding="utf-8"))
    images, labels = (torch.from_numpy(np.load(folder / f"{name}.npy", mmap_mode="c")) for name in ("images", "labels"))
    _lent[told["origin"]] = Digits(images, labels, tuple(told["names"]))


def lent(data: Any, split: str) -> Digits | None:
    """The digits that an MNISTDataModule would read, if they were taken."""
    return _lent.get(_origin(data, split)) if _lent else None


def _origin(data: Any, split: str) -> str:
    """Where they come from, in words that tell it from every other place."""
    names = ("subset", "label", f"{split}_file")
    return " ".join(map(str, (data.source, data.root, *(data.hparams[name] for name in names), split)))
