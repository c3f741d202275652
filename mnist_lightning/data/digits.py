"""Digits, and what every reader of files shares: Part, the rule for 28x28, labels and their names.

A reader is a function `recognise(root, files) -> list[Part]`: it looks at the first bytes of those `files` that it may
know, and says what lies there. It raises nothing: what is surely its own but damaged is a Part whose `read` raises.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mnist_lightning.errors import UserError

SIDE = 28  # pixels
MOST_CLASSES = 256  # labels are bytes
AT_ONCE = 2048  # images resized together
TEN = tuple("0123456789")
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LUMINANCE = (0.299, 0.587, 0.114)
PICTURES = {".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pgm", ".ppm", ".pbm"}
ARRAYS = {".npz", ".npy", ".pt", ".pth", ".mat"}


class Digits(NamedTuple):
    """What every source gives."""

    images: Tensor  # uint8 [N, 28, 28]
    labels: Tensor  # uint8 [N], below len(names); None, where predictions alone are wanted
    names: tuple[str, ...] = TEN  # of the classes


@dataclass(frozen=True)
class Part:
    """Some digits that were recognised, and not yet read."""

    where: Path  # the file, or the folder
    form: str  # such as "IDX" or "CSV"
    read: Callable[[], Digits]  # all of them; the names of classes are their labels as they stand there
    kind: str = "unknown"  # or "train", "test", "val", as `kind_of` has it
    count: int | None = None  # images, where it costs nothing to know
    size: tuple[int, ...] | None = (SIDE, SIDE)  # of an image as it lies there: (H, W) or (H, W, C); None: several
    labelled: bool = True


_SPLIT_WORD = re.compile(
    r"[xy]?(?:(train|training|trn|tra)|(test|testing|tst|tes|t10k)|(val|valid|validation|dev|eval))(?:[xy]|images?|labels?|data|set|ing)?"
)


def kind_of(where: Path, root: Path) -> str:
    """Which split a file or folder in `root` is by its name: "train", "test", "val" or "unknown"."""
    inside = where.relative_to(root).parts if where != root else (root.name,) if root.is_file() else ()
    for name in reversed(inside):
        words = [
            _SPLIT_WORD.fullmatch(word) for word in re.split(r"[^a-z0-9]+|(?<=[a-z]{3})(?=\d)", name.lower()) if word
        ]
        kinds = {("train", "test", "val")[(match.lastindex or 1) - 1] for match in words if match}
        if kinds:
            return kinds.pop() if len(kinds) == 1 else "unknown"
    return "unknown"


# ---------------------------------------------------------------------- images of any size


def fitted(images: Tensor) -> Tensor:
    """uint8 [N, H, W], or [N, H, W, C] with C of 1 to 4 -> uint8 [N, 28, 28], by one rule.

    Colour becomes grey by its luminance (0.299 R + 0.587 G + 0.114 B); what is transparent is laid on white where the
    ink is dark, else on black. The longer side becomes 28 pixels (bilinear; made smaller with antialiasing), the
    shorter one in proportion, in the middle; what is left is filled with the median grey of the image's frame.
    """
    images = images.squeeze(3) if images.ndim == 4 and images.shape[3] == 1 else images
    if images.shape[1:] == (SIDE, SIDE):
        return images
    made = torch.empty(len(images), SIDE, SIDE, dtype=torch.uint8)
    for start in range(0, len(images), AT_ONCE):
        piece = _grey(images[start : start + AT_ONCE])
        made[start : start + AT_ONCE] = _resized(piece).round_().clamp_(0, 255).to(torch.uint8)
    return made


def _grey(images: Tensor) -> Tensor:
    """uint8 [n, H, W] or [n, H, W, C] -> float32 [n, H, W], still 0 to 255."""
    if images.ndim == 3:
        return images.float()
    colours = images.float()
    grey = colours[..., :3] @ torch.tensor(LUMINANCE) if images.shape[3] > 2 else colours[..., 0]
    if images.shape[3] in (2, 4):
        cover = colours[..., -1] / 255
        ink = (grey * cover).sum((1, 2)) / cover.sum((1, 2)).clamp(min=1e-6)
        paper = torch.where(ink < 128, 255.0, 0.0)[:, None, None]
        clear = (cover < 1).flatten(1).any(1)[:, None, None]
        grey = torch.where(clear, grey * cover + paper * (1 - cover), grey)
    return grey


def _resized(grey: Tensor) -> Tensor:
    """float32 [n, H, W] -> [n, 28, 28]"""
    high, wide = grey.shape[1:]
    if (high, wide) == (SIDE, SIDE):
        return grey
    longer = max(high, wide)
    shape = [max(1, round(side * SIDE / longer)) for side in (high, wide)]
    small = F.interpolate(grey[:, None], shape, mode="bilinear", antialias=longer > SIDE)[:, 0]
    if shape == [SIDE, SIDE]:
        return small
    frame = torch.cat([grey[:, 0], grey[:, -1], grey[:, :, 0], grey[:, :, -1]], dim=1).median(1).values
    made = frame[:, None, None].expand(-1, SIDE, SIDE).clone()
    top, left = ((SIDE - side) // 2 for side in shape)
    made[:, top : top + shape[0], left : left + shape[1]] = small
    return made


def sample(count: int) -> Tensor:
    """Positions of up to 500 images to look at, in ten rows: single ones would each cost a read of a mapped file."""
    starts = torch.linspace(0, max(0, count - 50), 10).long()
    return torch.arange(count) if count <= 500 else (starts[:, None] + torch.arange(50)).flatten()


# ---------------------------------------------------------------------- arrays as they come


def digits_of(images: Any, labels: Any, where: object) -> Digits:
    """Checked digits of an array of images and one of labels, or None; `where` begins what an error says.

    images: integers, bools, or floats in 0..1, -1..1 or 0..255 (or normalised as MNIST usually is); [N, H * H],
    [N, H, W], [N, H, W, C] or [N, C, H, W]; N may be last where the labels tell. labels: as `classes_of` takes them.
    """
    found, names = (None, TEN) if labels is None else classes_of(labels, where)
    images = _images_first(np.asarray(images), None if found is None else len(found), where)
    if found is not None and len(images) != len(found):
        raise UserError(f"{where} holds {len(images)} images but {len(found)} labels: they must be as many")
    if len(images) == 0:
        raise UserError(f"{where} holds no images: get it anew")
    made: Any = torch.empty(len(images), SIDE, SIDE, dtype=torch.uint8)
    as_bytes = _to_bytes(images, where)
    if images.dtype == np.uint8 and images.shape[1:] == (SIDE, SIDE) and as_bytes is None:
        return Digits(torch.from_numpy(np.ascontiguousarray(images)), found, names)  # type: ignore[arg-type]
    for start in range(0, len(images), AT_ONCE):
        piece = np.ascontiguousarray(images[start : start + AT_ONCE])
        made[start : start + AT_ONCE] = fitted(torch.from_numpy(piece if as_bytes is None else as_bytes(piece)))
    return Digits(made, found, names)  # type: ignore[arg-type]


def _images_first(images: np.ndarray, count: int | None, where: object) -> np.ndarray:
    """[N, H, W] or [N, H, W, C] of what an array of images can look like."""
    if count is not None and images.ndim > 1 and images.shape[0] != count and images.shape[-1] == count:
        images = np.moveaxis(images, -1, 0)
    if images.ndim == 2:
        side = round(images.shape[1] ** 0.5)
        if side * side == images.shape[1] and side > 1:
            return images.reshape(-1, side, side)
    shape = images.shape
    if images.ndim == 4 and shape[3] not in (1, 2, 3, 4) and shape[1] in (1, 2, 3, 4):
        images = np.moveaxis(images, 1, 3)
    if images.ndim in (3, 4) and min(images.shape[1:3]) > 1 and images.shape[3:] in ((), (1,), (2,), (3,), (4,)):
        return images
    raise UserError(
        f"{where} holds an array of shape {list(shape)}: images are [N, H, W], [N, H*H], [N, H, W, C] or [N, C, H, W]"
    )


def _to_bytes(images: np.ndarray, where: object) -> Callable[[np.ndarray], np.ndarray] | None:
    """How numbers become 0 to 255, told from the least and the largest; None: they are that already."""
    if images.dtype.kind not in "buif":
        raise UserError(f"{where} holds images of type {images.dtype}: they must be numbers")
    if images.size == 0:
        return None
    shift, scale = scaling(float(images.min()), float(images.max()), images.dtype, max(images.shape[1:]), where)
    if images.dtype == np.uint8 and scale == 1:
        return None
    return lambda piece: (
        ((piece.astype(np.float32) + np.float32(shift)) * np.float32(scale)).round().clip(0, 255).astype(np.uint8)
    )


def scaling(low: float, high: float, kind: np.dtype, side: int, where: object) -> tuple[float, float]:
    """What is added to pixels from `low` to `high`, and what they are then multiplied with, to be 0 to 255."""
    if kind.kind == "f" and low >= -1 and 0 < high <= 1:
        return (0.0, 255.0) if low >= 0 else (1.0, 127.5)
    if abs(low + 0.4242) < 2e-3 and abs(high - 2.8215) < 2e-3:  # (pixel - 0.1307) / 0.3081, as every tutorial has it
        return 0.1307 / 0.3081, 0.3081 * 255
    if kind == np.uint16 and high > 255:
        return 0.0, 1 / 257
    if low >= 0 and 0 < high <= 1:
        return 0.0, 255.0
    if low >= 0 and 1 < high <= 16 and side == 8:  # scikit-learn's 8x8 digits
        return 0.0, 255 / 16
    if low >= 0 and high <= 255:
        return 0.0, 1.0
    raise UserError(f"{where} holds pixels from {low:.6g} to {high:.6g}: they are 0 to 255, 0 to 1 or -1 to 1")


def classes_of(labels: Any, where: object) -> tuple[Tensor, tuple[str, ...]]:
    """uint8 [N] and the classes' names, of labels that are whole numbers, texts, or rows with one 1 (one-hot).

    Numbers from 0 to 9 are the ten digits, whichever of them are there; else the classes are the distinct labels, in
    their order.
    """
    values = np.asarray(labels)
    if values.ndim == 2 and values.shape[1] > 1:
        if values.dtype.kind not in "buif" or not (
            ((values == 0) | (values == 1)).all() and (values.sum(1) == 1).all()
        ):
            raise UserError(f"{where} holds labels of shape {list(values.shape)}: one a line, or rows with a single 1")
        values = values.argmax(1)
    values = values.reshape(-1) if values.ndim == 2 else values
    if values.ndim != 1 or len(values) == 0:
        raise UserError(f"{where} holds labels of shape {list(values.shape)}: there must be one for each image")
    if values.dtype.kind in "SUO":
        return _text_classes(values, where)
    if values.dtype.kind not in "buif":
        raise UserError(f"{where} holds labels of type {values.dtype}: they are whole numbers or texts")
    if values.dtype.kind == "f" and not (np.isfinite(values).all() and (values == np.floor(values)).all()):
        at = int(np.argmin(np.isfinite(values) & (values == np.floor(values))))
        raise UserError(f"{where}: label {at} is {values[at]}: labels are whole numbers or texts")
    values = values.astype(np.int64) if values.dtype.kind in "bf" else values
    if values.dtype == np.uint8 and values.max() <= 9:
        return torch.from_numpy(values), TEN
    strange = (values < 0) | (values > 9)
    if not strange.any():
        return torch.from_numpy(values.astype(np.uint8)), TEN
    if strange.sum() * 100 <= len(values):  # a slip, not a class
        at = int(strange.argmax())
        raise UserError(f"{where}: label {at} is {values[at]}, where nearly all are 0 to 9: correct it")
    return _distinct(values, where)


def _distinct(values: np.ndarray, where: object) -> tuple[Tensor, tuple[str, ...]]:
    found, index = np.unique(values, return_inverse=True)
    if len(found) > MOST_CLASSES:
        raise UserError(f"{where} holds {len(found)} different labels: there can be {MOST_CLASSES} classes at most")
    return torch.from_numpy(index.astype(np.uint8)), tuple(str(value) for value in found)


def _text_classes(values: np.ndarray, where: object) -> tuple[Tensor, tuple[str, ...]]:
    """Of texts; those that are all whole numbers are numbers."""
    texts = [value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value) for value in values.tolist()]
    distinct = {text: text.strip() for text in dict.fromkeys(texts)}
    if all(bare.lower() in WORDS for bare in distinct.values()):
        distinct = {text: str(WORDS.index(bare.lower())) for text, bare in distinct.items()}
    if len(distinct) <= MOST_CLASSES and all(re.fullmatch(r"-?\d{1,9}(\.0*)?", text) for text in distinct.values()):
        whole = {text: int(float(bare)) for text, bare in distinct.items()}
        return classes_of(np.array([whole[text] for text in texts]), where)
    if bad := next((text for text in distinct.values() if not text.isprintable() or not 0 < len(text) <= 80), None):
        raise UserError(f"{where} holds the label {bad[:20]!r}: a label is 1 to 80 printable characters")
    return _distinct(np.array([distinct[text] for text in texts]), where)
