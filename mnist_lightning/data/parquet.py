"""Parquet files: a column of pictures as data hubs store them, of lists of pixels, or a column for each pixel."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from mnist_lightning.data.columns import INDEX, LABEL, plain, size_of
from mnist_lightning.data.digits import MOST_CLASSES, Digits, Part, digits_of, kind_of
from mnist_lightning.data.folders import images_of
from mnist_lightning.errors import UserError, first_line

ROWS = 4096  # at once
MISSING = "needs pyarrow, which is not installed: pip install 'mnist-lightning[parquet]'"


class Columns(NamedTuple):
    """Which columns of a file hold what."""

    images: list[str]  # one of pictures or of lists of pixels, or one for each pixel
    label: str | None
    names: tuple[str, ...] | None  # of classes, where the file says what label 0, 1, … mean


def recognise(root: Path, files: list[Path], label: str = "auto") -> list[Part]:
    """The Parquet files among `files` that hold images. `label`: auto, none, or the name of a column."""
    parts = []
    for file in filter(_is_parquet, files):
        kind = kind_of(file, root)
        try:
            with _opened(file) as content:
                columns, count = _columns(content.schema_arrow, label), content.metadata.num_rows
                if columns is None:
                    continue
                first = next(_images(content, columns, 1, file), None)
            size = None if first is None else tuple(first.shape[1:])
            parts.append(Part(file, "Parquet", partial(_read, file, columns), kind, count, size, bool(columns.label)))
        except UserError as error:
            parts.append(Part(file, "Parquet", partial(_refuse, error), kind))
    return parts


def _is_parquet(file: Path) -> bool:
    try:
        with file.open("rb") as content:
            return content.read(4) == b"PAR1"
    except OSError:
        return False


def _refuse(error: UserError) -> Digits:
    raise error


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """A ParquetFile; whatever is wrong with it becomes a UserError."""
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise UserError(f"{file} {MISSING}") from error
    try:
        with ParquetFile(file) as content:
            yield content
    except UserError:
        raise
    except Exception as error:  # Arrow raises many kinds
        raise UserError(f"{file} is no Parquet file that can be read ({first_line(error)}): get it anew") from error


def _columns(schema: Any, label: str) -> Columns | None:
    """None: there are no images in it."""
    import pyarrow.types as types

    names = [name for name in schema.names if not INDEX.fullmatch(plain(name))]
    labels = [name for name in names if LABEL.fullmatch(plain(name))] if label == "auto" else [label]
    chosen = labels[0] if labels and labels[0] in names else None
    rest = [name for name in names if name != chosen]
    for name in rest:
        kind = schema.field(name).type
        kind = getattr(kind, "storage_type", kind)  # of an extension, such as a hub's Array2D
        if _is_picture(kind) or types.is_list(kind) or types.is_fixed_size_list(kind) or types.is_large_list(kind):
            return Columns([name], chosen, _class_names(schema, chosen))
    numbers = [
        name for name in rest if types.is_integer(schema.field(name).type) or types.is_floating(schema.field(name).type)
    ]
    return Columns(numbers, chosen, _class_names(schema, chosen)) if size_of(len(numbers)) else None


def _is_picture(kind: Any) -> bool:
    import pyarrow.types as types

    if types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0
    return types.is_binary(kind) or types.is_large_binary(kind)


def _class_names(schema: Any, label: str | None) -> tuple[str, ...] | None:
    """Those that a data hub's metadata give."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        names = features[label]["names"]
        names = list(names.values()) if isinstance(names, dict) else names
        return tuple(str(name) for name in names) if 0 < len(names) <= MOST_CLASSES else None
    except (KeyError, ValueError, TypeError, AttributeError):
        return None


# ---------------------------------------------------------------------- reading


def _read(file: Path, columns: Columns) -> Digits:
    """All digits of a file."""
    with _opened(file) as content:
        images = [digits_of(piece, None, file).images for piece in _images(content, columns, ROWS, file)]
        if not images:
            raise UserError(f"{file} holds no images: get it anew")
        labels = content.read([columns.label]).column(0).to_pylist() if columns.label else None
    made = torch.cat(images)
    if labels is None or all(label in (-1, None) for label in labels):  # a hub's way to keep them secret
        return digits_of(made, None, file)
    if None in labels:
        raise UserError(f"{file}, row {labels.index(None)} (from 0) has no label: give it one")
    if columns.names is None:
        return digits_of(made, labels, file)
    wrong = next(
        (at for at, one in enumerate(labels) if not isinstance(one, int) or not 0 <= one < len(columns.names)), None
    )
    if wrong is not None:
        raise UserError(
            f"{file}, row {wrong} (from 0) has label {labels[wrong]!r}, expected 0 to {len(columns.names) - 1}"
        )
    return Digits(made, torch.tensor(labels, dtype=torch.uint8), columns.names)


def _images(content: Any, columns: Columns, rows: int, file: Path) -> Iterator[np.ndarray]:
    """Pixels as they stand there, of so many rows at once: [n, 28, 28] of pictures, else [n, H, W] or [n, H * W]."""
    done = 0
    for batch in content.iter_batches(rows, columns=columns.images):
        if len(columns.images) > 1:
            yield np.stack([column.to_numpy(zero_copy_only=False) for column in batch.columns], axis=1)
        elif _is_picture(batch.column(0).type):
            yield _decoded(batch.column(0), done, file)
        else:
            column = batch.column(0)
            yield np.array(getattr(column, "storage", column).to_pylist())
        done += len(batch)


def _decoded(column: Any, done: int, file: Path) -> np.ndarray:
    """uint8 [n, 28, 28]"""
    import pyarrow.types as types

    cells = column.field("bytes") if types.is_struct(column.type) else column
    contents = {Path(f"{file}, row {done + at} (from 0)"): data for at, data in enumerate(cells.to_pylist())}
    missing = next((row for row, data in contents.items() if data is None), None)
    if missing:
        raise UserError(f"{missing} holds no picture: the file names others, which must be put into it")
    return images_of(list(contents), contents.__getitem__).numpy()
