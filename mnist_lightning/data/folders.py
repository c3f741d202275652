"""Folders of pictures, mostly a folder a class: PNG, JPEG, BMP, GIF, TIFF, WebP and PGM files, also in an archive."""

import io
import os
import stat
import threading
import zipfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mnist_lightning.data import cache, png
from mnist_lightning.data.digits import ARRAYS, PICTURES, SIDE, Digits, Part, digits_of, fitted, kind_of
from mnist_lightning.data.labels import class_names, is_table, labels_of
from mnist_lightning.data.packed import contents_of, items_of
from mnist_lightning.errors import UserError, first_line

MOST_PIXELS = 1 << 25  # of a picture: no photo of a digit needs more, and a few bytes can claim any number
AT_ONCE = 4096  # pictures of one piece of work
MOST_BYTES = 1 << 26  # of a picture in an archive
LARGE = 1 << 18  # pixels, above which files are not decoded together
GATHERED = 1 << 22  # bytes that are
MOST_WAITING = 1 << 26  # bytes of files that wait to be decoded one by one
Content = Callable[[Path], bytes]
_READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)  # a pipe would be waited for


def pictures_among(files: list[Path]) -> tuple[list[Path], list[Path]]:
    """The files that are pictures by their names, and the others."""
    parted: tuple[list[Path], list[Path]] = ([], [])
    for file in files:
        parted[os.path.splitext(file)[1].lower() not in PICTURES].append(file)
    return parted


def recognise(root: Path, files: list[Path], keep: bool = True) -> list[Part]:
    """The folders of pictures under `root`, with a class a folder. `keep`: in the cache, what took time to read."""
    pictures, others = pictures_among(files)
    parts = _parts(root, pictures, _content, keep, others)
    for file in others:
        if file.suffix.lower() not in ARRAYS:
            inside, besides = pictures_among([file / item.member for item in items_of(file)])
            tables = [path for path in besides if is_table(path) and path != file] if inside else []
            if members := [path.relative_to(file).as_posix() for path in inside + tables]:
                packed = _Zip(file) if _is_zip(file, members) else _Packed(file, members)
                parts += _parts(root, inside, packed.content, keep=False, files=tables)
    return parts


def _is_zip(file: Path, members: list[str]) -> bool:
    """Whether all these lie in a zip archive itself."""
    with suppress(OSError, zipfile.BadZipFile, NotImplementedError, ValueError), zipfile.ZipFile(file) as archive:
        return archive.NameToInfo.keys() >= set(members)
    return False


def _parts(root: Path, pictures: list[Path], content: Content, keep: bool, files: Sequence[Path] = ()) -> list[Part]:
    """One for each folder that holds folders of pictures. Where there is none such, the labels of a folder's pictures
    may be in their names, or in a table among `files`."""
    lies_in: dict[str, list[Path]] = defaultdict(list)
    for path in pictures:
        parent, name = os.path.split(path)
        if not name.startswith("."):
            lies_in[parent].append(path)
    folders: dict[Path, dict[Path, list[Path]]] = defaultdict(dict)
    for folder, paths in ((Path(name), paths) for name, paths in lies_in.items()):
        if not any(name.startswith((".", "__MACOSX")) for name in folder.parts[len(root.parts) :]):
            folders[folder.parent][folder] = paths
    known = {folder.name for classes in folders.values() if len(classes) > 1 for folder in classes}
    parts, bare = [], []
    for place, classes in folders.items():
        labelled = {folder for folder in classes if folder != root and (folder.name in known or folder.name.isdigit())}
        for label in {folder for folder in classes if kind_of(folder, folder.parent) != "unknown"} & labelled:
            labelled.discard(label)  # pictures lie in test/ itself, beside train/'s classes or train/ itself
        inside = [folder for folder in classes if folder in labelled]
        names = dict(zip(inside, class_names([folder.name for folder in inside]), strict=True))
        labels = {path: names[folder] for folder in inside for path in classes[folder]}
        parts += [_part(place, list(labels), labels, " in folders", root, content, keep)] if inside else []
        bare += [(folder, paths) for folder, paths in classes.items() if folder not in labelled]
    found = [({}, "") if parts else labels_of(paths, files, content) for _, paths in bare]
    for (folder, paths), (labels, told) in zip(bare, found, strict=True):
        parts.append(_part(folder, paths, labels, told, root, content, keep))
    return parts


def _part(
    where: Path, paths: list[Path], labels: dict[Path, str], told: str, root: Path, content: Content, keep: bool
) -> Part:
    form = f"{paths[0].suffix[1:].upper().replace('JPG', 'JPEG')} files{told}"
    try:
        size: tuple[int, ...] | None = tuple(_of_any(paths[0], content(paths[0])).shape)
    except UserError:
        size = None  # it will be told when all are read
    read = partial(_read, where, paths, labels, content, keep)
    return Part(where, form, read, kind_of(where, root), len(paths), size, bool(labels))


# ---------------------------------------------------------------------- reading


def _read(where: Path, paths: list[Path], labels: dict[Path, str], content: Content, keep: bool) -> Digits:
    """All these pictures as digits; from the cache, if they are still what was put there."""
    # by the files' names, so that what was numbered before it was sorted into folders is in its order again
    paths = sorted(paths, key=lambda path: os.path.split(path)[::-1])
    if labels and (bare := next((path for path in paths if path not in labels), None)):
        raise UserError(f"{bare} has no label in the table beside it: add it, or remove the picture")
    values = [labels[path] for path in paths] if labels else None
    if not keep or len(paths) < cache.LEAST:
        return digits_of(images_of(paths, content), values, where)
    return digits_of(cache.kept(where, paths, lambda: images_of(paths, content)), values, where)


def images_of(paths: list[Path], content: Content) -> Tensor:
    """uint8 [N, 28, 28] of pictures of any kinds and sizes; what Pillow has to decode, in threads."""
    images = torch.empty(len(paths), SIDE, SIDE, dtype=torch.uint8)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for at in range(0, len(paths), AT_ONCE):
            _fill(images[at : at + AT_ONCE], paths[at : at + AT_ONCE], content, pool)
    return images


def _fill(images: Tensor, paths: list[Path], content: Content, pool: ThreadPoolExecutor) -> None:
    """Puts the pictures into `images`; plain PNG files of one size are decoded together, in this thread.

    Opening and looking at small files holds the interpreter: in two threads it takes a third longer than in one.
    """
    plain: dict[tuple[int, ...], list[tuple[int, png.Rows]]] = defaultdict(list)
    others: list[tuple[int, bytes]] = []
    waiting = 0  # bytes of the others

    def decoded(one: tuple[int, bytes]) -> None:
        images[one[0]] = fitted(_of_any(paths[one[0]], one[1])[None])[0]

    for at, path in enumerate(paths):
        data = content(path)
        rows = png.rows_of(data, LARGE)
        if rows is not None:
            plain[rows.shape].append((at, rows))
            if len(plain[rows.shape]) * len(rows.content) > GATHERED:
                _fill_plain(images, plain.pop(rows.shape))
            continue
        others.append((at, data))
        waiting += len(data)
        if waiting > MOST_WAITING:
            list(pool.map(decoded, others))
            others, waiting = [], 0
    list(pool.map(decoded, others))
    for files in plain.values():
        _fill_plain(images, files)


def _fill_plain(images: Tensor, files: list[tuple[int, png.Rows]]) -> None:
    decoded = png.pixels_of([rows for _, rows in files])
    images[[at for at, _ in files]] = fitted(torch.from_numpy(decoded))


def _content(path: Path) -> bytes:
    try:
        file = os.open(path, _READ)  # half of what open() costs, which counts with 60,000 files
        try:
            status = os.fstat(file)
            if not stat.S_ISREG(status.st_mode):
                raise UserError(f"{path} is a pipe or a device, not a picture: remove it")
            content = os.read(file, status.st_size)
            while more := os.read(file, 1 << 20):
                content += more
            return content
        finally:
            os.close(file)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}): check path and permissions") from error


class _Zip:
    """The pictures in a zip file, by their paths as if it were a folder; opened once in each thread."""

    def __init__(self, file: Path) -> None:
        self._file, self._of_thread = file, threading.local()

    def content(self, path: Path) -> bytes:
        try:
            if not hasattr(self._of_thread, "archive"):
                self._of_thread.archive = zipfile.ZipFile(self._file)
            archive: zipfile.ZipFile = self._of_thread.archive
            info = archive.getinfo(path.relative_to(self._file).as_posix())
            if info.file_size > MOST_BYTES:
                raise UserError(f"{path} unpacks to {info.file_size:,} bytes, which no picture of a digit takes")
            return archive.read(info)
        except UserError:
            raise
        except Exception as error:  # zipfile and what it unpacks with raise many kinds
            raise UserError(f"{path} cannot be unpacked ({first_line(error)}): unpack the archive") from error


class _Packed:
    """The same in a tar file, or in an archive in another: read at once, as going back costs reading it anew."""

    def __init__(self, file: Path, members: list[str]) -> None:
        self._file, self._members, self._lock = file, set(members), threading.Lock()
        self._contents: dict[Path, bytes] = {}

    def content(self, path: Path) -> bytes:
        with self._lock:
            if not self._contents:
                self._contents = self._all()
        return self._contents[path]

    def _all(self) -> dict[Path, bytes]:
        found, size = {}, 0
        most = min(16 * MOST_BYTES, max(MOST_BYTES, 100 * self._file.stat().st_size))
        for member, content in contents_of(self._file, self._members, MOST_BYTES):
            found[self._file / member], size = content, size + len(content)
            if size > most:
                raise UserError(f"{self._file} holds over {most >> 20} MB of pictures: unpack it")
        return found


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
