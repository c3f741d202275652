"""Where digits come from: IDX files (MNIST, Fashion-MNIST, KMNIST, QMNIST), the network, and text files.

Whatever is wrong with a file ends in one UserError. A header is not believed until the file's size bears it
out, so that no file costs memory or time out of proportion to its size.
"""

import gzip
import hashlib
import math
import os
import struct
import tempfile
import threading
import time
import urllib.request
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch

from mnist_lightning.errors import UserError
from mnist_lightning.files import whole_file


class Digits(NamedTuple):
    """What every source gives."""

    images: torch.Tensor  # uint8 [N, 28, 28]
    labels: torch.Tensor  # uint8 [N], values 0..9


@contextmanager
def _reading(path: Path) -> Iterator[BinaryIO]:
    """The open file; what goes wrong while it is read becomes a UserError."""
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for, and /dev/zero has no end
            raise UserError(f"{path} is a folder or a device, not a file: put the data file there")
        with open(path, "rb") as file:
            yield file
    except (EOFError, zlib.error, gzip.BadGzipFile) as exc:
        raise UserError(f"{path} is a truncated or damaged gzip file ({exc}): get it anew") from exc
    except OSError as exc:
        raise UserError(f"{path} cannot be read ({exc.strerror or exc}): check path and permissions") from exc


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
    with _reading(path) as raw:
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


def download(folder: Path, timeout: float = 20.0) -> None:
    """Puts MNIST's four files where find_idx(folder) finds them: all of them, each checked, or none.

    Gives up (UserError) when mirrors let `timeout` seconds in all pass in silence, and after 30 times that in any case.
    """
    try:
        bodies = _fetch_all(timeout)
        raw = folder / "MNIST" / "raw"
        raw.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=raw) as part:
            for name, body in bodies.items():
                (Path(part) / name).write_bytes(body)
            for name in bodies:
                os.replace(Path(part) / name, raw / name)
    except OSError as exc:
        raise UserError(
            f"MNIST could not be downloaded ({exc}): put the four files into {folder}, "
            "or set --data.root to a folder that holds them"
        ) from exc


def _fetch_all(timeout: float) -> dict[str, bytearray]:
    """Name and content of each of the four files; OSError if no mirror gives them."""
    from torchvision.datasets import MNIST  # takes a second to import, and is seldom needed

    deadline = time.monotonic() + 30 * timeout
    bodies: dict[str, bytearray] = {}
    reasons = []
    for mirror in MNIST.mirrors:
        try:
            for name, md5 in MNIST.resources:
                if name not in bodies:
                    bodies[name] = _fetch(mirror + name, md5, timeout / len(MNIST.mirrors), deadline)
            return bodies
        except Exception as exc:  # those of http.client, ssl and urllib share no base
            reasons.append(f"{mirror}: {' '.join(str(exc).split())[:200] or type(exc).__name__}")
    raise OSError("; ".join(reasons))


def _fetch(url: str, md5: str, silence: float, deadline: float) -> bytearray:
    """The content of `url`; any exception where it does not arrive, is silent too long, or is not right.

    In a thread of its own, since a socket's time limit covers neither the look-up of a name, nor several
    addresses that hang one after the other, nor headers that drip in byte by byte.
    """
    body = bytearray()
    problems: list[Exception] = []

    def receive() -> None:
        try:
            with urllib.request.urlopen(url, timeout=2 * silence) as response:  # given up before that
                while piece := response.read1(1 << 16):
                    body.extend(piece)
                    if len(body) > 1 << 24:  # the largest of the four files has 9.9 MB
                        raise ValueError("sends far more than MNIST")
                    if time.monotonic() > deadline:
                        raise TimeoutError("too slow")
        except Exception as exc:
            problems.append(exc)

    thread = threading.Thread(target=receive, daemon=True)
    thread.start()
    seen = -1
    while thread.is_alive() and len(body) > seen:
        seen = len(body)
        thread.join(silence)
    if thread.is_alive():
        raise TimeoutError(f"no answer within {silence:.3g} s, or too slow")
    if problems:
        raise problems[0]
    if hashlib.md5(body, usedforsecurity=False).hexdigest() != md5:
        raise ValueError(f"wrong checksum of {url.rsplit('/', 1)[-1]}")
    return body


# Looking each value up is faster than int(), and strict: int() also takes "1_0", "+1" and Arabic digits.
_TEXT = [b"%d" % value for value in range(256)]
_BYTE = {text: value for value, text in enumerate(_TEXT)}
_LONGEST_LINE = 8192  # 785 values take 3140 bytes
_FORMAT = "a line takes 784 pixels and the label, parted by tabs"


def read_text(path: Path) -> Digits:
    """Digits from lines of 784 pixels and the label, as integers parted by tabs; `#` starts a comment."""
    pixels, labels = bytearray(), bytearray()
    number = 0
    with _reading(path) as file:
        while line := file.readline(_LONGEST_LINE + 1):
            number += 1
            if len(line) > _LONGEST_LINE:
                raise UserError(f"{path}, line {number} is over {_LONGEST_LINE} bytes long: {_FORMAT}")
            line = line.partition(b"#")[0].strip()
            if not line:
                continue
            values = line.split(b"\t")
            if len(values) != 785:
                raise UserError(f"{path}, line {number} has {len(values)} values, expected 785: {_FORMAT}")
            try:
                row = bytes(map(_BYTE.__getitem__, values))
            except KeyError:  # blanks and leading zeros, or what is no pixel
                bare = [value.strip() for value in values]
                found = [_BYTE.get(value.lstrip(b"0") or value[-1:], -1) for value in bare]
                if -1 in found:
                    column = found.index(-1)
                    problem = f"{values[column][:20]!r}"[1:] + " is not an integer from 0 to 255"  # shows no controls
                    raise UserError(f"{path}, line {number}, value {column + 1}: {problem}: correct it") from None
                row = bytes(found)
            if row[-1] > 9:
                raise UserError(f"{path}, line {number} has label {row[-1]}, expected 0 to 9: correct it")
            pixels += row[:-1]
            labels.append(row[-1])
    if not labels:
        raise UserError(f"{path} has {number} lines and no digits: {_FORMAT}")
    images = torch.frombuffer(pixels, dtype=torch.uint8).view(-1, 28, 28)
    return Digits(images, torch.frombuffer(labels, dtype=torch.uint8))


def write_text(digits: Digits, path: Path) -> None:
    """Writes what read_text reads; the file appears whole or not at all."""
    with whole_file(path) as file:
        file.write(b"# %d digits: 28 rows of 28 pixels (0 to 255), then the label\n" % len(digits.labels))
        for image, label in zip(digits.images, digits.labels.tolist(), strict=True):
            file.write(b"\t".join([_TEXT[value] for value in (*image.flatten().tolist(), label)]) + b"\n")
