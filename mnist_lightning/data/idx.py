"""IDX files: MNIST's own form, also that of Fashion-MNIST, KMNIST, QMNIST and EMNIST.

A header is not believed until the file's size bears it out, so that no file costs memory or time out of proportion.
"""

import gzip
import math
import os
import struct
from pathlib import Path

import torch

from mnist_lightning.data.digits import Digits, reading
from mnist_lightning.errors import UserError

# Images and labels to train on, then to test on. QMNIST's labels are rows of eight numbers, first of them the class.
_MNIST = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_QMNIST = (
    *("qmnist-train-images-idx3-ubyte", "qmnist-train-labels-idx2-int"),
    *("qmnist-test-images-idx3-ubyte", "qmnist-test-labels-idx2-int"),
)
_DEFLATE_RATIO = 1032  # no deflate stream unpacks to more than this many times its size


def _survey(folder: Path) -> tuple[tuple[str, ...], dict[str, Path]]:
    """The family (four names) that the folder, or torchvision's subfolder of it, has most of; the paths of those."""
    surveys: list[tuple[tuple[str, ...], dict[str, Path]]] = [(_MNIST, {})]
    for place in (folder, folder / "MNIST" / "raw"):
        try:
            files = sorted(os.listdir(place), reverse=True)  # plain files after the packed ones, and so instead of them
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as exc:
            raise UserError(f"{place} cannot be listed ({exc.strerror}): check its permissions") from exc
        held = {file.removesuffix(".gz"): place / file for file in files}
        surveys += [(names, {name: held[name] for name in names if name in held}) for names in (_MNIST, _QMNIST)]
    return max(surveys, key=lambda survey: len(survey[1]))


def find_idx(folder: Path) -> Path | None:
    """`folder`, or torchvision's subfolder of it, whichever holds any (or more) of the four files."""
    return next((path.parent for path in _survey(folder)[1].values()), None)


def read_idx(folder: Path, split: str) -> Digits:
    """The digits of `split` ("train" or "test") from the four files in find_idx(folder), each plain or .gz.

    Plain images are mapped, not read: they cost no memory until used, and are then file-backed pages that
    processes share. (So the file must not be cut short while in use.)
    """
    names, paths = _survey(folder)
    if not paths:
        raise UserError(f"{folder} holds none of MNIST's four files: set --data.root to where they are")
    if missing := ", ".join(name for name in names if name not in paths):
        raise UserError(f"{find_idx(folder)} holds {len(paths)} of 4 files: add {missing} (plain or .gz)")
    image_path, label_path = (paths[name] for name in (names[:2] if split == "train" else names[2:]))

    images = _read_idx_file(image_path, "images", magic=0x803, shape=(28, 28)).view(-1, 28, 28)
    if names is _QMNIST:
        rows = _read_idx_file(label_path, "labels", magic=0xC02, shape=(8,), width=4).view(-1, 32)
        labels = rows[:, :4].flip(1).contiguous().view(torch.int32).flatten()  # from big-endian
    else:
        labels = _read_idx_file(label_path, "labels", magic=0x801, shape=())

    if len(images) != len(labels):
        counts = f"{len(images)} images but {label_path.name} {len(labels)} labels"
        raise UserError(f"{image_path} holds {counts}: get both files from the same place")
    wrong = (labels < 0) | (labels > 9)
    if wrong.any():
        index = int(wrong.to(torch.uint8).argmax())
        raise UserError(f"{label_path}: label {index} is {labels[index]}, expected 0 to 9: get the file anew")
    return Digits(images, labels.to(torch.uint8))


def _read_idx_file(path: Path, kind: str, magic: int, shape: tuple[int, ...], width: int = 1) -> torch.Tensor:
    """The bytes after the header, flat. `shape` is that of one item, `width` the bytes of one number."""
    header = struct.Struct(f">{2 + len(shape)}I")
    with reading(path) as raw:
        size = os.fstat(raw.fileno()).st_size
        packed = path.suffix == ".gz"
        if packed and raw.peek(2)[:2] != b"\x1f\x8b":  # type: ignore[attr-defined]
            raise UserError(f"{path} ({size} bytes) is not gzip: get it anew, or drop .gz if unpacked")
        file = gzip.GzipFile(fileobj=raw) if packed else raw

        start = file.read(header.size)
        if len(start) < header.size:
            raise UserError(f"{path} has {len(start)} bytes, its header takes {header.size}: get it anew")
        found_magic, count, *found_shape = header.unpack(start)
        if found_magic != magic:
            raise UserError(f"{path} has magic number {found_magic}, {kind} have {magic}: get the right file")
        if tuple(found_shape) != shape:
            found, expected = ("x".join(map(str, sides)) for sides in (found_shape, shape))
            raise UserError(f"{path} holds {kind} of {found}, expected {expected}: use MNIST's format")
        if count == 0:
            raise UserError(f"{path} holds 0 {kind}, expected at least 1: get it anew")

        body = count * math.prod(shape) * width
        total = header.size + body
        claim = f"{path} announces {count} {kind}, {total} bytes"
        if packed and total > size * _DEFLATE_RATIO:
            raise UserError(f"{claim}, more than a gzip file of {size} bytes can hold: get it anew")
        if not packed and total != size:
            raise UserError(f"{claim}, but has {size} bytes: get it anew")
        if not packed and kind == "images":
            # A private mapping: works on a read-only file, and a write to the tensor never reaches the file.
            return torch.from_file(str(path), size=total, dtype=torch.uint8)[header.size :]

        # Grown by what is there, not allocated by what the header claims; the tensor then uses it as it is.
        content = bytearray()
        while len(content) <= body and (piece := file.read(1 << 18)):  # at its end gzip compares the checksum
            content += piece
        if len(content) != body:
            end = "goes on after that" if len(content) > body else f"ends after {header.size + len(content)} bytes"
            raise UserError(f"{claim}, but {end}: get it anew")
    return torch.frombuffer(content, dtype=torch.uint8)
