"""EMNIST's files: upright and with the names of their classes; several sets in one folder."""

import gzip
import struct
from pathlib import Path

import numpy as np
import torch

from mnist_lightning.data.sources import find
from mnist_lightning.data.synthetic import synthetic_digits


def idx(array: np.ndarray) -> bytes:
    array = np.ascontiguousarray(array, dtype=np.uint8)
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def test_letters_and_digits(tmp_path: Path):
    images, labels = synthetic_digits(260, 1)
    letters = torch.arange(260) % 26
    for name, values in (("letters", letters + 1), ("digits", labels)):
        for split in ("train", "test"):
            start = tmp_path / f"emnist-{name}-{split}"
            turned = idx(images.transpose(1, 2).numpy())
            start.with_name(f"{start.name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(turned))
            start.with_name(f"{start.name}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(values.numpy())))
    found = find(tmp_path)
    assert torch.equal(found.read("train").images, images)
    assert "emnist-digits is taken, there are also emnist-letters: --data.subset takes another" in found.told()
    found = find(tmp_path, "letters")
    assert "".join(found.read("train").names) == "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    assert torch.equal(found.read("test").labels, letters.to(torch.uint8))
