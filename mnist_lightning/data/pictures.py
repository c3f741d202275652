"""From what a person names (files, folders, patterns, standard input) to pictures, whatever is in those files."""

import io
import os
import re
import stat
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from glob import glob
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image

from mnist_lightning.data import arrays, idx, parquet, photo, png, tables
from mnist_lightning.data.digits import Part
from mnist_lightning.data.photo import Seen
from mnist_lightning.data.sources import is_dark_on_light
from mnist_lightning.errors import UserError, first_line

FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "BMP", "DIB", "TIFF", "GIF", "PPM", "ICO", "HEIF", "AVIF")  # none of programs
ENDINGS = re.compile(r"\.(png|jpe?g|jpe|jfif|webp|bmp|dib|tiff?|gif|hei[cf]|hif|avif|p[pgb]m)$", re.IGNORECASE)
MOST_BYTES, MOST_PIXELS = 256 << 20, 100_000_000  # of a file; of a picture, but for JPEG, of which a part is decoded
STDIN = ("-", "/dev/stdin")
_PIPES = re.compile(r"/dev/fd/\d+|/proc/self/fd/\d+")  # what a shell makes of <(command)
READERS = (idx.recognise, arrays.recognise, tables.recognise, parquet.recognise)
Sight = tuple[str, Seen | str]  # what a picture is called, and what is seen on it, or why nothing can be


def named(words: list[str]) -> Iterator[str]:
    """The files that words mean, in their order: a folder's pictures, and what a pattern fits, by their names."""
    for word in words:
        if any(sign in word for sign in "*?[") and not os.path.lexists(word):
            yield from sorted(glob(word, recursive=True)) or [word]
        elif os.path.isdir(word):
            yield from _pictures_in(word) or [word]
        else:
            yield word


def _pictures_in(folder: str) -> list[str]:
    found = []
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [os.path.join(place, file) for file in files if not file.startswith(".") and _is_picture(file)]
    return sorted(found)


def _is_picture(name: str) -> bool:
    return ENDINGS.search(name) is not None


def sights(names: Iterable[str], formats: list[str]) -> Iterator[Sight]:
    """What is seen in files, in their order: on a picture, each page of a TIFF, each image of a data file.

    Files as MNIST's images are often stored come in thousands: those are looked at together.
    """
    opened = [(name, _opened(name, formats)) for name in names]
    plain = [one for _, one in opened if isinstance(one, png.Rows)]
    levels = png.pixels_of(plain) if plain else np.zeros((0, 28, 28), np.uint8)
    images, like = photo.as_they_are(levels)
    looked_at = zip(torch.from_numpy(images), levels, like.tolist(), strict=True)
    for name, one in opened:
        if not isinstance(one, png.Rows):
            yield from one
            continue
        image, level, is_like = next(looked_at)
        yield name, Seen("ok", image, (image,)) if is_like else _seen(Image.fromarray(level), 0)


def _opened(name: str, formats: list[str]) -> png.Rows | list[Sight]:
    """What is seen in a file; of a plain grey PNG of 28 x 28 its rows."""
    try:
        content = _content(name, formats)
        if content is None:
            return list(_of_data(name))
        if (rows := png.rows_of(content, 28 * 28)) and rows.shape == (28, 28, 1):
            return rows
        return list(_of_picture(name, content, formats))
    except UserError as error:
        return [(name, str(error).removeprefix(f"{name} "))]
    except OSError as error:
        return [(name, (error.strerror or first_line(error)).lower())]
    except MemoryError:
        return [(name, "there is not enough memory for it")]


def _content(name: str, formats: list[str]) -> bytes | None:
    """A picture's bytes; None of a file of data."""
    if name in STDIN:
        return _limited(sys.stdin.buffer)
    mode, size = (found := os.stat(name)).st_mode, found.st_size
    if stat.S_ISDIR(mode):
        raise UserError("holds no pictures; files of data are named one by one")
    if not stat.S_ISREG(mode) and not _PIPES.fullmatch(name):
        raise UserError("is a pipe or a device")
    if stat.S_ISREG(mode) and size and not _is_picture(name) and not _opens(name, formats) and _parts(Path(name)):
        return None
    with open(name, "rb", buffering=0) as file:
        return _limited(file) if not stat.S_ISREG(mode) or size > MOST_BYTES else _some(file.read())


def _limited(file: BinaryIO | io.RawIOBase) -> bytes:
    """All that a pipe gives, if that is not too much."""
    content = bytearray()
    while len(content) <= MOST_BYTES and (more := file.read(1 << 20)):
        content += more
    if len(content) > MOST_BYTES:
        raise UserError(f"has over {MOST_BYTES >> 20} MB")
    return _some(bytes(content))


def _some(content: bytes) -> bytes:
    if not content:
        raise UserError("is empty")
    return content


# ---------------------------------------------------------------------- pictures


def _opens(name: str, formats: list[str]) -> bool:
    """Whether the beginning of a file is that of a picture, whatever its name."""
    with suppress(Exception), Image.open(name, formats=formats):
        return True
    return False


def known_formats() -> list[str]:
    """Those that Pillow can read here; HEIC with its extra."""
    try:
        import pillow_heif  # type: ignore[import-not-found, unused-ignore]

        pillow_heif.register_heif_opener()
    except ImportError:
        pass
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _of_picture(name: str, content: bytes, formats: list[str]) -> Iterator[Sight]:
    try:
        picture = Image.open(io.BytesIO(content), formats=formats)
        pages = getattr(picture, "n_frames", 1) if picture.format == "TIFF" else 1
    except Image.DecompressionBombError:
        raise UserError("announces more pixels than are read") from None
    except Exception as error:  # Pillow's readers raise whatever a damaged file brings about
        raise UserError(_why_not(content)) from error
    with picture:
        for page in range(pages):
            yield f"{name}#{page + 1}" if pages > 1 else name, _seen(picture, page)


def _seen(picture: Image.Image, page: int) -> Seen | str:
    try:
        if page:
            picture.seek(page)
        width, height = picture.size
        if width * height > MOST_PIXELS and picture.format not in ("JPEG", "MPO"):
            return f"has {width}x{height} pixels; at most {MOST_PIXELS // 10**6} million are read"
        return photo.prepare(picture)
    except MemoryError:
        raise
    except Exception as error:  # as above, while it is decoded
        return f"is damaged: {first_line(error)[:100]}"


def _why_not(content: bytes) -> str:
    """What a file is that is no picture."""
    start = content[:512].lstrip().lower()
    if content[4:8] == b"ftyp" and content[8:12] in (b"heic", b"heix", b"mif1", b"msf1", b"hevc", b"heim", b"heis"):
        return "is HEIC: pip install 'mnist-lightning[heic]' brings what reads it"
    kinds = {b"<svg": "SVG", b"<?xml": "XML", b"<!doctype": "HTML", b"<html": "HTML", b"%pdf": "PDF", b"%!ps": "EPS"}
    kind = next((kind for sign, kind in kinds.items() if start.startswith(sign)), None)
    return f"is {kind}, no picture that is read: save it as PNG" if kind else "is no picture that can be read"


# ---------------------------------------------------------------------- files of data


def _parts(path: Path) -> list[Part]:
    """The digits of a data file, such as Kaggle's test.csv; none of a file that is something else."""
    if not path.is_file():
        return []
    return [part for reader in READERS for part in reader(path, [path])]


def _of_data(name: str) -> Iterator[Sight]:
    number = 0
    for part in _parts(Path(name)):
        images = part.read().images
        for image in 255 - images if is_dark_on_light(images) else images:
            number += 1
            yield f"{name}#{number}", Seen("ok", image, (image,))


def is_unlabelled(name: str) -> bool:
    """Whether this is a data file without labels, of which Kaggle's form of a submission can be made."""
    if name in STDIN or _is_picture(name) or _opens(name, known_formats()):
        return False
    parts = _parts(Path(name))
    return bool(parts) and not any(part.labelled for part in parts)
