"""IDX files: MNIST's own form, also that of Fashion-MNIST, KMNIST, QMNIST and EMNIST.

They are known by their first bytes, under any name, packed or not; names only tell which labels go with which images
where the counts leave that open. A header is not believed until the file's size bears it out, so that no file costs
memory or time out of proportion.
"""

import math
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mnist_lightning.data.digits import ARRAYS, PICTURES, Digits, Part, classes_of, digits_of, fitted, kind_of
from mnist_lightning.data.packed import Item, Unpacked, items_of, read_all, unpacked
from mnist_lightning.data.pairs import PACKED, paired
from mnist_lightning.errors import UserError

_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_NAMED = re.compile(r"idx\d|ubyte|t10k", re.IGNORECASE)  # a file of such a name is meant to be IDX
_QMNIST_COLUMNS = 8  # of a row of labels; the first is the class


@dataclass(frozen=True)
class _File:
    """An IDX file's header; `problem` instead of a shape where it could not be read."""

    item: Item
    kind: str  # "images" or "labels"
    type: int = 0x08
    shape: tuple[int, ...] = ()
    problem: UserError | None = None

    @property
    def place(self) -> Path:
        """Where it lies, as if archives were folders."""
        return self.item.path / self.item.member if self.item.member else self.item.path

    @property
    def header(self) -> int:
        return 4 + 4 * len(self.shape)


def recognise(root: Path, files: list[Path]) -> list[Part]:
    """Images with their labels; images alone are a part without labels."""
    found = list(_without_copies(file for path in files for file in _looked_at(path)))
    images = [file for file in found if file.kind == "images"]
    labels = [file for file in found if file.kind == "labels"]
    parts = []
    for file, partner in paired(images, labels):
        kinds = [kind_of(one.place, root) for one in (file, partner) if one]
        kind = next((kind for kind in kinds if kind != "unknown"), "unknown")
        count, size = (file.shape[0], file.shape[1:]) if len(file.shape) > 2 else (None, None)
        parts.append(Part(file.place, "IDX", partial(_read, file, partner), kind, count, size, partner is not None))
    return parts


def _looked_at(path: Path) -> Iterable[_File]:
    """What the first bytes of a file tell, if it is IDX or is called so."""
    if path.suffix.lower() in PICTURES | ARRAYS:
        return
    for item in items_of(path):
        name = item.member or path.name
        if Path(name).suffix.lower() in PICTURES | ARRAYS:
            continue
        try:
            with unpacked(item) as source:
                file = _header(item, source.file.read(4 + 4 * 4))
        except UserError as problem:
            file = _File(item, "", problem=problem)
        word = re.search("image|label", name.lower())
        called = f"{word[0]}s" if word else file.kind
        if file.shape and called == file.kind:
            yield file
        elif file.shape:
            magic, right = (file.type << 8) + len(file.shape), {"images": 0x803, "labels": 0x801}[called]
            claim = f"{item} has magic number {magic}, {called} have {right}: get the right file"
            yield _File(item, called, problem=UserError(claim))
        elif _NAMED.search(name) and not name.lower().endswith((".txt", ".md")):
            found = file.problem or UserError(f"{item} is no IDX file, as its name would have it: get it anew")
            yield _File(item, "labels" if re.search("label|idx1|lbl", name.lower()) else "images", problem=found)


def _header(item: Item, start: bytes) -> _File:
    """Type and shape, or none where these are not the first bytes of such a file."""
    nothing = _File(item, "")
    if len(start) < 8 or start[:2] != b"\0\0" or start[2] not in _TYPES or not 1 <= start[3] <= 4:
        return nothing
    dimensions = start[3]
    if len(start) < 4 + 4 * dimensions:
        return nothing
    shape = struct.unpack_from(f">{dimensions}I", start, 4)
    flat_images = dimensions == 2 and shape[1] >= 25 and math.isqrt(shape[1]) ** 2 == shape[1]
    return _File(item, "images" if dimensions > 2 or flat_images else "labels", start[2], shape)


def _without_copies(files: Iterable[_File]) -> Iterable[_File]:
    """Of a file that lies there packed and plain, the plain one, which needs no memory; of a file that was fetched
    twice, as in `train-images (1).gz`, the first."""
    kept: dict[str, _File] = {}
    for file in files:
        name = PACKED.sub("", str(file.place))
        plain = not PACKED.search(str(file.place))
        if name not in kept or (plain and not file.problem) or (kept[name].problem and not file.problem):
            kept[name] = file
    firsts = {name: kept.get(re.sub(r" ?\(\d\)(?=\.|$)", "", name)) for name in kept}
    return [file for name, file in kept.items() if (first := firsts[name]) in (None, file) or first.shape != file.shape]


# ---------------------------------------------------------------------- from files to tensors


def _read(images: _File, labels: _File | None) -> Digits:
    for file in (images, labels):
        if file:
            _check_header(file)
    found, names, values = None, None, _body(labels).reshape(labels.shape) if labels else None
    pixels = _body(images)
    if labels and images.shape[0] != labels.shape[0]:
        counts = f"{images.shape[0]} images but {labels.place.name} {labels.shape[0]} labels"
        raise UserError(f"{images.item} holds {counts}: get both files from the same place")
    if labels and values is not None:
        qmnist = values.ndim == 2 and values.shape[1] == _QMNIST_COLUMNS and labels.type == 0x0C
        found, names = classes_of(values[:, 0] if qmnist else values, labels.item)
    if isinstance(pixels, Tensor):  # bytes
        pixels = pixels.view(images.shape)
        if len(images.shape) == 3:
            return _digits(fitted(pixels), found, names)
        return _digits(digits_of(pixels.numpy(), None, images.item).images, found, names)
    return _digits(digits_of(pixels.reshape(images.shape), None, images.item).images, found, names)


def _check_header(file: _File) -> None:
    if file.problem:
        raise file.problem
    if 0 in file.shape:
        raise UserError(f"{file.item} holds 0 {file.kind}, expected at least 1: get it anew")


def _digits(images: Tensor, labels: Tensor | None, names: tuple[str, ...] | None) -> Digits:
    return Digits(images, labels, names) if names else Digits(images, labels)  # type: ignore[arg-type]


def _body(file: _File) -> Tensor | np.ndarray:
    """The numbers after the header, flat: bytes of images as a tensor, anything else as an array.

    Plain bytes are mapped, not read: they cost no memory until used, and are then file-backed pages that processes
    share. (So the file must not be cut short while in use.)
    """
    dtype = np.dtype(_TYPES[file.type])
    body = math.prod(file.shape) * dtype.itemsize
    total = file.header + body
    claim = f"{file.item} announces {file.shape[0]} {file.kind}, {total} bytes"
    with unpacked(file.item) as source:
        _check(source, total, claim)
        if file.kind == "images" and file.type == 0x08:
            if not source.packing:
                # A private mapping: works on a read-only file, and a write to the tensor never reaches the file.
                return torch.from_file(str(file.item.path), size=total, dtype=torch.uint8)[file.header :]
            source.file.read(file.header)
            return torch.frombuffer(read_all(source, body, claim, file.header), dtype=torch.uint8)
        source.file.read(file.header)
        return np.frombuffer(read_all(source, body, claim, file.header), dtype=dtype)


def _check(source: Unpacked, total: int, claim: str) -> None:
    source.check(total, claim)
    if not source.packing and total != source.size:
        raise UserError(f"{claim}, but has {source.size} bytes: get it anew")
