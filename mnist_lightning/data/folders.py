"""Folders of pictures, a folder a class: PNG, JPEG, BMP, GIF, TIFF and WebP files, also in a zip archive."""

import io
import os
import re
import stat
import threading
import zipfile
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mnist_lightning.data import cache, png
from mnist_lightning.data.digits import SIDE, Digits, Part, digits_of, fitted, kind_of
from mnist_lightning.data.packed import items_of
from mnist_lightning.errors import UserError, first_line

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"}
MOST_PIXELS = 1 << 25  # of a picture: no photo of a digit needs more, and a few bytes can claim any number
AT_ONCE = 4096  # pictures of one piece of work
LARGE = 1 << 18  # pixels, above which files are not decoded together
GATHERED = 1 << 22  # bytes that are
Content = Callable[[Path], bytes]


def pictures_among(files: list[Path]) -> tuple[list[Path], list[Path]]:
    """The files that are pictures by their names, and the others."""
    parted: tuple[list[Path], list[Path]] = ([], [])
    for file in files:
        parted[os.path.splitext(file)[1].lower() not in SUFFIXES].append(file)
    return parted


def recognise(root: Path, files: list[Path], keep: bool = True) -> list[Part]:
    """The folders of pictures under `root`, with a class a folder. `keep`: in the cache, what took time to read."""
    pictures, others = pictures_among(files)
    parts = _parts(root, pictures, _content, keep)
    for archive in (file for file in others if file.suffix.lower() == ".zip"):
        inside, _ = pictures_among([archive / item.member for item in items_of(archive)])
        parts += _parts(root, inside, _Archive(archive).content, keep=False)
    return parts


def _parts(root: Path, pictures: list[Path], content: Content, keep: bool) -> list[Part]:
    """One for each folder that holds folders of pictures; a folder of pictures without classes is without labels."""
    lies_in: dict[str, list[Path]] = defaultdict(list)
    for path in pictures:
        folder, name = os.path.split(path)
        if not name.startswith("."):
            lies_in[folder].append(path)
    folders: dict[Path, dict[Path, list[Path]]] = defaultdict(dict)
    for folder, inside in ((Path(name), inside) for name, inside in lies_in.items()):
        if not any(name.startswith((".", "__MACOSX")) for name in folder.parts[len(root.parts) :]):
            folders[folder.parent][folder] = inside
    known = {folder.name for classes in folders.values() if len(classes) > 1 for folder in classes}
    parts = []
    for place, classes in folders.items():
        labelled = {folder for folder in classes if folder != root and (folder.name in known or folder.name.isdigit())}
        for label in {folder for folder in classes if kind_of(folder, folder.parent) != "unknown"} & labelled:
            labelled.discard(label)  # pictures lie in test/ itself, beside train/'s classes or train/ itself
        inside = {folder: classes[folder] for folder in classes if folder in labelled}
        parts += [_part(place, inside, root, content, keep)] if inside else []
        bare = {folder: classes[folder] for folder in classes if folder not in labelled}
        parts += [_part(folder, {folder: paths}, root, content, keep, labelled=False) for folder, paths in bare.items()]
    return parts


def _part(
    where: Path, classes: dict[Path, list[Path]], root: Path, content: Content, keep: bool, labelled: bool = True
) -> Part:
    paths = [path for folder in classes.values() for path in folder]
    form = f"{paths[0].suffix[1:].upper().replace('JPG', 'JPEG')} files" + (" in folders" if labelled else "")
    try:
        size: tuple[int, ...] | None = tuple(_of_any(paths[0], content(paths[0])).shape)
    except UserError:
        size = None  # it will be told when all are read
    read = partial(_read, where, classes, content, keep, labelled)
    return Part(where, form, read, kind_of(where, root), len(paths), size, labelled)


# ---------------------------------------------------------------------- reading


def _read(where: Path, classes: dict[Path, list[Path]], content: Content, keep: bool, labelled: bool) -> Digits:
    """All pictures of these folders as digits; from the cache, if they are still what was put there."""
    names = dict(zip(classes, class_names([folder.name for folder in classes]), strict=True))
    # by the files' names, so that what was numbered before it was sorted into folders is in its order again
    files = sorted(
        (*os.path.split(path)[::-1], path, names[folder]) for folder, inside in classes.items() for path in inside
    )
    paths = [path for *_, path, _ in files]
    labels = [name for *_, name in files] if labelled else None
    if not keep or len(paths) < cache.LEAST:
        return digits_of(images_of(paths, content), labels, where)
    return digits_of(cache.kept(where, paths, lambda: images_of(paths, content)), labels, where)


def class_names(folders: list[str]) -> list[str]:
    """Names of classes: those of their folders, less what stands before the number in each, as in class_3."""
    found = [re.fullmatch(r"(\D*)(\d+)", name) for name in folders]
    prefixes = {match[1] for match in found if match}
    return [match[2] for match in found if match] if all(found) and len(prefixes) == 1 else folders


def images_of(paths: list[Path], content: Content) -> Tensor:
    """uint8 [N, 28, 28] of pictures of any kinds and sizes; in threads, as most of the time goes into opening files."""
    images = torch.empty(len(paths), SIDE, SIDE, dtype=torch.uint8)
    starts = range(0, len(paths), AT_ONCE)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        try:
            list(pool.map(lambda at: _fill(images[at : at + AT_ONCE], paths[at : at + AT_ONCE], content), starts))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return images


def _fill(images: Tensor, paths: list[Path], content: Content) -> None:
    """Puts the pictures into `images`; plain PNG files of one size are decoded together."""
    plain: dict[tuple[int, ...], list[tuple[int, png.Rows]]] = defaultdict(list)
    for at, path in enumerate(paths):
        data = content(path)
        rows = png.rows_of(data, LARGE)
        if rows is None:
            images[at] = fitted(_of_any(path, data)[None])[0]
        else:
            plain[rows.shape].append((at, rows))
            if len(plain[rows.shape]) * len(rows.content) > GATHERED:
                _fill_plain(images, plain.pop(rows.shape))
    for files in plain.values():
        _fill_plain(images, files)


def _fill_plain(images: Tensor, files: list[tuple[int, png.Rows]]) -> None:
    decoded = png.pixels_of([rows for _, rows in files])
    images[[at for at, _ in files]] = fitted(torch.from_numpy(decoded))


def _content(path: Path) -> bytes:
    try:
        with open(path, "rb", buffering=0, opener=_without_waiting) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise UserError(f"{path} is a pipe or a device, not a picture: remove it")
            return file.read()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}): check path and permissions") from error


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # a pipe would be waited for


class _Archive:
    """The pictures in a zip file, by their paths as if it were a folder; opened once in each thread."""

    def __init__(self, file: Path) -> None:
        self._file, self._of_thread = file, threading.local()

    def content(self, path: Path) -> bytes:
        try:
            if not hasattr(self._of_thread, "archive"):
                self._of_thread.archive = zipfile.ZipFile(self._file)
            archive: zipfile.ZipFile = self._of_thread.archive
            info = archive.getinfo(path.relative_to(self._file).as_posix())
            if info.file_size > 1 << 26:
                raise UserError(f"{path} unpacks to {info.file_size:,} bytes, which no picture of a digit takes")
            return archive.read(info)
        except UserError:
            raise
        except Exception as error:  # zipfile and what it unpacks with raise many kinds
            raise UserError(f"{path} cannot be unpacked ({first_line(error)}): unpack the archive") from error


# ---------------------------------------------------------------------- one picture


def _of_any(path: Path, data: bytes) -> Tensor:
    """uint8 [H, W] or, in colour or with transparency, [H, W, C]; what is wrong with it is told with its path."""
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(data)) as picture:
            if picture.width * picture.height > min(MOST_PIXELS, max(1 << 20, 1000 * len(data))):
                raise Image.DecompressionBombError
            return _levels(ImageOps.exif_transpose(picture))
    except Exception as error:  # Pillow's decoders raise many kinds
        if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
            why = f"claims more pixels than a file of {len(data):,} bytes needs, or any picture of a digit"
            raise UserError(f"{path} {why}: remove it or make it smaller") from error
        reason = "no picture" if "cannot identify" in str(error) else first_line(error)
        raise UserError(f"{path} is damaged or no picture ({reason}): remove it or get it anew") from error


def _levels(picture: Any) -> Tensor:
    """Bytes of a picture of any mode."""
    mode = picture.mode
    if mode.startswith(("I", "F")):  # more than 8 bits
        values = np.nan_to_num(np.asarray(picture, dtype=np.float32))
        top = next((top for top in (1.0, 255.0, 65535.0) if values.min() >= 0 and values.max() <= top), None)
        if mode.startswith("I;16"):
            top = 65535.0
        low, high = (0.0, top) if top else (float(values.min()), float(values.max()))
        return torch.from_numpy(((values - low) * (255 / (high - low))).round().astype(np.uint8))
    clear = mode in ("LA", "PA", "RGBA", "RGBa", "La") or "transparency" in picture.info
    picture = (
        picture if mode == "L" and not clear else picture.convert("RGBA" if clear else "L" if mode == "1" else "RGB")
    )
    return torch.from_numpy(np.array(picture))
