"""Digits in files of arrays: NumPy's .npz and .npy, PyTorch's .pt, MATLAB's .mat; nothing in them is ever run.

Each array is looked at by its header: images and labels are told by shape and name, and paired wherever they lie, in
one file or in two.
"""

import ast
import math
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mnist_lightning.data import matlab
from mnist_lightning.data.columns import size_of
from mnist_lightning.data.digits import PICTURES, Digits, Part, digits_of, kind_of
from mnist_lightning.data.packed import Item, items_of, read_all, unpacked
from mnist_lightning.data.pairs import paired
from mnist_lightning.errors import UserError, first_line

_LABELS = re.compile(
    r"label|target|class|(?<![a-z])(y|lbl)s?(?![a-z])|(?<![a-z])y(?=train|test|val)|(train|test|val)y", re.IGNORECASE
)
_LEAST_SIDE = 5  # pixels of an image; what is smaller is a network's kernel
_HEADER = 4096  # bytes at most of an array's description
_DEEP = 3  # dicts and tuples in each other


@dataclass(frozen=True)
class _Array:
    """An array in a file, known by its header and not read yet."""

    place: Path  # the file and, as if that were a folder, the array's name
    form: str
    shape: tuple[int, ...]
    load: Callable[[], Any]
    numbers: str = "u"  # as NumPy's dtype.kind has it
    problem: UserError | None = None

    @property
    def kind(self) -> str:
        """images, labels, or "" for what is neither."""
        if self.problem:
            return "labels" if _LABELS.search(self.place.name) else "images"
        called = bool(_LABELS.search(self.place.name))
        if self.numbers not in "buifSU":
            return ""
        if len(self.shape) == 1 or (len(self.shape) == 2 and 1 in self.shape):
            return "labels" if called or self.numbers != "f" or self.form == "MATLAB" else ""
        if len(self.shape) == 2:
            square = any(side >= 25 and math.isqrt(side) ** 2 == side for side in self.shape)
            return "images" if square and not called else "labels" if called or self.shape[1] <= 64 else ""
        return "images" if len(self.shape) in (3, 4) and sorted(self.shape)[-2] >= _LEAST_SIDE else ""


def recognise(root: Path, files: list[Path]) -> list[Part]:
    """Images with their labels, wherever these lie; images alone are a part without labels."""
    arrays = [array for path in files for array in _arrays(path)]
    images, labels = ([array for array in arrays if array.kind == kind] for kind in ("images", "labels"))
    parts = []
    for one, other in paired(images, labels):
        kinds = [kind_of(array.place, root) for array in (one, other) if array]
        kind = next((kind for kind in kinds if kind != "unknown"), "unknown")
        count = _count(other) if other else one.shape[0] if one.shape else None
        size = one.shape[1:] if count is not None and one.shape[:1] == (count,) else None
        size = size_of(size[0]) if size and len(size) == 1 else size
        parts.append(Part(one.place, one.form, partial(_read, one, other), kind, count, size, other is not None))
    return parts


def _count(labels: _Array) -> int | None:
    return (max(labels.shape) if 1 in labels.shape else labels.shape[0]) if labels.shape else None


def _arrays(path: Path) -> list[_Array]:
    readers = {".npz": _of_numpy, ".npy": _of_numpy, ".pt": _of_torch, ".pth": _of_torch, ".mat": _of_matlab}
    if path.suffix.lower() in PICTURES:
        return []
    # a .pt file is a zip archive of its own
    items = [Item(path)] if path.suffix.lower() in (".pt", ".pth") else items_of(path)
    found = [(readers.get(Path(item.member or path.name).suffix.lower()), item) for item in items]
    return [array for reader, item in found if reader for array in reader(item)]


def _read(images: _Array, labels: _Array | None) -> Digits:
    for array in (images, labels):
        if array and array.problem:
            raise array.problem
    values = labels.load() if labels else None
    values = values.reshape(-1) if values is not None and 1 in values.shape[:2] and values.ndim == 2 else values
    if values is not None and images.form.startswith("MATLAB"):
        values = _ten_is_zero(values)
    return digits_of(images.load(), values, images.place)


def _ten_is_zero(labels: np.ndarray) -> np.ndarray:
    """MATLAB counts from 1: where labels are 1 to 10, 10 is the digit 0."""
    if labels.dtype.kind in "uif" and labels.size and labels.min() >= 1 and labels.max() == 10:
        return np.where(labels == 10, 0, labels)
    return labels


# ---------------------------------------------------------------------- NumPy


def _of_numpy(item: Item) -> Iterator[_Array]:
    place = item.path / item.member.removesuffix(".npy")
    form = "npz" if re.search(r"\.npz(/|$)", place.as_posix(), re.IGNORECASE) else "npy"
    try:
        shape, dtype, *_ = _npy_header(item)
    except UserError as problem:
        yield _Array(place, form, (), _nothing, problem=problem)
        return
    yield _Array(place, form, shape, partial(_npy, item), dtype.kind)


def _nothing() -> Any:
    raise RuntimeError("the problem is raised in its place")


def _npy_header(item: Item) -> tuple[tuple[int, ...], np.dtype, bool, int]:
    """Shape, type, whether columns come first, and bytes of an .npy file's header; strict, as it is a text to be read
    as Python."""
    with unpacked(item) as source:
        start = source.file.read(12)
        long = start[6:7] in (b"\2", b"\3")
        if start[:6] != b"\x93NUMPY" or len(start) < 12:
            raise UserError(f"{item} is no array of NumPy's: get it anew")
        size = int.from_bytes(start[8:12] if long else start[8:10], "little")
        text = (start[12:] if long else start[10:]) + source.file.read(min(size, _HEADER) - (0 if long else 2))
    try:
        described = ast.literal_eval(text.decode("latin-1").strip())
        shape, dtype = described["shape"], np.dtype(described["descr"])
        fine = size <= _HEADER and len(text) == size and isinstance(shape, tuple)
        fine = fine and all(type(side) is int and side >= 0 for side in shape) and len(shape) <= 8
    except (ValueError, TypeError, KeyError, SyntaxError, MemoryError, RecursionError, AttributeError) as error:
        raise UserError(f"{item} has a damaged header: get it anew") from error
    if not fine:
        raise UserError(f"{item} has a damaged header: get it anew")
    if dtype.hasobject:
        raise UserError(f"{item} holds pickled objects, which could run code: save plain numbers or texts")
    return shape, dtype, bool(described.get("fortran_order")), len(start[:10]) + (2 if long else 0) + size


def _npy(item: Item) -> np.ndarray:
    shape, dtype, fortran, header = _npy_header(item)
    body = math.prod(shape) * dtype.itemsize
    claim = f"{item} announces {shape[0] if shape else 1} items, {header + body} bytes"
    with unpacked(item) as source:
        source.check(header + body, claim)
        if not source.packing and header + body != source.size:
            raise UserError(f"{claim}, but has {source.size} bytes: get it anew")
        source.file.read(header)
        content = read_all(source, body, claim, header)
    if not body:
        raise UserError(f"{item} holds an empty array: get it anew")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")


# ---------------------------------------------------------------------- PyTorch


def _of_torch(item: Item) -> Iterator[_Array]:
    path = item.path / item.member
    try:
        if item.member:
            raise UserError(f"{item} lies in an archive: unpack it")
        content = _torch_content(path)
    except UserError as problem:
        yield _Array(path, "pt", (), _nothing, problem=problem)
        return
    for name, tensor in _named_tensors(content, (), _DEEP):
        place = path.joinpath(*name)
        numbers = "f" if tensor.is_floating_point() else "u"
        yield _Array(place, "pt", tuple(tensor.shape), partial(_tensor, path, name), numbers)


def _torch_content(path: Path) -> Any:
    """What a .pt file holds, as far as that is tensors in lists and dicts; its zip entries must not be packed."""
    import torch

    try:
        zipped = zipfile.is_zipfile(path)
        if zipped:
            with zipfile.ZipFile(path) as archive:
                if any(info.file_size != info.compress_size for info in archive.infolist()):
                    raise UserError(f"{path} is packed within, as torch.save never does: get it anew")
        # mapped, so that a tensor which is not asked for costs nothing, and one that lies about its size gets nothing
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped or None)
    except UserError:
        raise
    except Exception as error:  # whatever a damaged file comes to
        more = "holds more than tensors in lists or dicts, which could run code"
        why = more if "eights" in str(error) else f"cannot be read ({first_line(error)[:120]})"
        raise UserError(f"{path} {why}: save images and labels as tensors") from error
    size = path.stat().st_size
    for _, tensor in _named_tensors(content, (), _DEEP):
        if (
            tensor.numel() * tensor.element_size() > size
            or tensor.layout != torch.strided
            or tensor.device.type != "cpu"
        ):
            raise UserError(f"{path} holds a tensor of shape {list(tensor.shape)} that is not in it: get it anew")
    return content


def _named_tensors(content: Any, name: tuple[str, ...], deep: int) -> Iterable[tuple[tuple[str, ...], Any]]:
    import torch

    if isinstance(content, torch.Tensor):
        yield name, content
    elif deep and isinstance(content, dict | list | tuple) and len(content) <= 1000:
        pairs = content.items() if isinstance(content, dict) else enumerate(content)
        for key, value in pairs:
            yield from _named_tensors(value, (*name, re.sub(r"[/\\\0]", "-", str(key))[:80] or "-"), deep - 1)


def _tensor(path: Path, name: tuple[str, ...]) -> np.ndarray:
    tensor = dict(_named_tensors(_torch_content(path), (), _DEEP))[name].detach()
    tensor = tensor.float() if tensor.is_floating_point() else tensor
    try:
        return tensor.numpy()
    except (RuntimeError, TypeError) as error:
        raise UserError(f"{path} holds a tensor of type {tensor.dtype}: save plain numbers") from error


# ---------------------------------------------------------------------- MATLAB


def _of_matlab(item: Item) -> Iterator[_Array]:
    path = item.path / item.member
    try:
        variables = matlab.read(item)
    except UserError as problem:
        yield _Array(path, "MATLAB", (), _nothing, problem=problem)
        return
    emnist = any("mapping" in name.lower() for name in variables)
    for name, array in variables.items():
        if not re.search("writer|mapping", name.lower()):
            form = "MATLAB (EMNIST)" if emnist else "MATLAB"
            yield _Array(path / name, form, array.shape, partial(_itself, array), array.dtype.kind)


def _itself(array: np.ndarray) -> np.ndarray:
    return array
