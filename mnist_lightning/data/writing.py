"""Digits written in the forms that other programs read, and this one: whole or not at all."""

import io
import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from mnist_lightning.data.digits import TEN, Digits
from mnist_lightning.data.parquet import MISSING
from mnist_lightning.data.tables import write_text
from mnist_lightning.errors import BadSetting, UserError
from mnist_lightning.files import is_device, unwritable, whole_file

ENDINGS = {".csv": "csv", ".npz": "npz", ".parquet": "parquet", ".txt": "text", ".tsv": "text"}


def form_of(output: Path) -> str:
    """The form that a file's name asks for; text, where it has no ending."""
    ending = output.suffix.lower()
    if ending and ending not in ENDINGS:
        raise BadSetting(
            f"--output {output}: {ending} is no form that is written; there are {', '.join(ENDINGS)}, and --form"
        )
    return ENDINGS.get(ending, "text")


def write(digits: Digits, split: str, output: Path, form: str) -> None:
    """Writes the digits of "train" or "test" to a file, or for idx and png into a folder."""
    if is_device(output):
        raise UserError(f"{output} is a pipe or a device, which would be replaced: give a file's name")
    if form not in ("idx", "png") and output.is_dir():
        raise BadSetting(f"--output {output} is a folder, and {form} a file: give its name, or --form idx or png")
    WRITERS[form](digits, split, output)


def _text(digits: Digits, split: str, output: Path) -> None:
    if digits.names != TEN:
        raise BadSetting(f"--form text holds digits alone, and classes are {', '.join(digits.names)[:60]}: take csv")
    write_text(digits, output)


def _csv(digits: Digits, split: str, output: Path) -> None:
    """As Kaggle has it: a header, then label and pixels on each line."""
    if bad := next((name for name in digits.names if set(name) & set(",\"'\r\n#")), None):
        raise BadSetting(f"--form csv cannot hold the class name {bad!r}: take npz, png or parquet")
    texts, names = [b"%d" % value for value in range(256)], [name.encode() for name in digits.names]
    with whole_file(output) as file:
        file.write(b",".join([b"label", *(b"pixel%d" % at for at in range(784))]) + b"\n")
        for image, label in zip(digits.images, digits.labels.tolist(), strict=True):
            file.write(b",".join([names[label], *(texts[value] for value in image.flatten().tolist())]) + b"\n")


def _npz(digits: Digits, split: str, output: Path) -> None:
    """With Keras' names of arrays, and the names of the classes."""
    labels = digits.labels.numpy() if digits.names == TEN else np.array(digits.names)[digits.labels.numpy()]
    with whole_file(output) as file:
        arrays: dict[str, Any] = {f"x_{split}": digits.images.numpy(), f"y_{split}": labels}
        np.savez_compressed(file, **arrays)


def _parquet(digits: Digits, split: str, output: Path) -> None:
    """As data hubs store it: PNG files, labels as numbers, and the names of the classes."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise UserError(f"--form parquet {MISSING}") from error

    features = {"image": {"_type": "Image"}, "label": {"names": list(digits.names), "_type": "ClassLabel"}}
    schema = pa.schema(
        {"image": pa.struct({"bytes": pa.binary(), "path": pa.string()}), "label": pa.int64()},
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    with whole_file(output) as file, pq.ParquetWriter(file, schema) as writer:
        for start in range(0, len(digits.labels), 4096):
            pieces = zip(digits.images[start : start + 4096], digits.labels[start : start + 4096].tolist(), strict=True)
            rows = [{"image": {"bytes": _png(image.numpy()), "path": None}, "label": label} for image, label in pieces]
            writer.write_table(pa.Table.from_pylist(rows, schema))


def _png(image: np.ndarray) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def _idx(digits: Digits, split: str, output: Path) -> None:
    """MNIST's two files of a split, into a folder; and beside them the names of the classes, as EMNIST has them."""
    _make(output)
    prefix, shape = {"train": "train", "test": "t10k"}[split], digits.images.shape
    if digits.names != TEN:
        if any(len(name) != 1 for name in digits.names):
            raise BadSetting("--form idx names classes by a character each: take npz, png or parquet")
        with whole_file(output / "mapping.txt") as file:
            file.writelines(b"%d %d\n" % (label, ord(name)) for label, name in enumerate(digits.names))
    images, labels = (output / f"{prefix}-{what}-ubyte" for what in ("images-idx3", "labels-idx1"))
    with whole_file(images) as file:
        file.write(struct.pack(">4I", 0x803, *shape) + digits.images.contiguous().numpy().tobytes())
    with whole_file(labels) as file:
        file.write(struct.pack(">2I", 0x801, len(digits.labels)) + digits.labels.numpy().tobytes())


def _pictures(digits: Digits, split: str, output: Path) -> None:
    """PNG files in a folder of each class, in a folder of the split; their names keep the order."""
    if bad := next((name for name in digits.names if "/" in name or "\\" in name or name.startswith(".")), None):
        raise BadSetting(f"--form png cannot name a folder {bad!r}: take npz or parquet")
    _make(output)
    with _whole_folder(output / split) as folder:
        for label in digits.labels.unique().tolist():
            (folder / digits.names[label]).mkdir()
        width = len(str(len(digits.labels)))
        for at, (image, label) in enumerate(zip(digits.images, digits.labels.tolist(), strict=True)):
            (folder / digits.names[label] / f"{at:0{width}}.png").write_bytes(_png(image.numpy()))


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(folder, error) from error


@contextmanager
def _whole_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which has its name once it is full; nothing is left of it if that fails."""
    if path.exists():
        raise UserError(f"{path} is there already: remove it, or give another --output")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir()
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


WRITERS: dict[str, Callable[[Digits, str, Path], None]] = {
    "text": _text, "csv": _csv, "npz": _npz, "parquet": _parquet, "idx": _idx, "png": _pictures
}  # fmt: skip
