"""Mutated tables, pictures and Parquet files: right digits, or a UserError in a line, at a cost in proportion.

A failure names the seed that brings it back. By default a sample, more with `-m slow`; FUZZ=1000 sets how many.
"""

import gzip
import io
import os
import random
import tarfile
import time
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image

from mnist_lightning.data import arrays, cache, folders, parquet, tables
from mnist_lightning.data.digits import Digits
from mnist_lightning.errors import UserError

SPLICES = (b"\n", b"\r", b",", b"\t", b"#", b'"', b" ", b"-", b"256", b"1e999", b"nan", b"\0", b"\xff\xfe", b"a" * 3000)


def image(rng: random.Random) -> Image.Image:
    pixels = bytes(rng.choice((0, 0, 0, rng.randrange(256))) for _ in range(784))
    return Image.frombytes("L", (28, 28), pixels)


def rows(rng: random.Random) -> list[list[int]]:
    return [[rng.randrange(10), *image(rng).tobytes()] for _ in range(rng.randint(1, 5))]


def a_table(rng: random.Random) -> bytes:
    separator = rng.choice(",;\t ")
    header = [["label", *(f"pixel{at}" for at in range(784))]] if rng.random() < 0.5 else []
    return "".join(separator.join(map(str, row)) + "\n" for row in [*header, *rows(rng)]).encode()


def floats(rng: random.Random) -> bytes:
    return "".join(",".join(f"{value / 255:.4f}" for value in row[1:]) + f",{row[0]}\n" for row in rows(rng)).encode()


def words(rng: random.Random) -> bytes:
    return "".join(f'"{rng.choice("abc")}",' + ",".join(map(str, row[1:])) + "\n" for row in rows(rng)).encode()


def a_picture(rng: random.Random, form: str) -> bytes:
    file = io.BytesIO()
    image(rng).convert(rng.choice(("L", "RGB"))).save(file, form)
    return file.getvalue()


def archive(rng: random.Random) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as content:
        for at in range(rng.randint(2, 4)):
            content.writestr(f"train/{at % 2}/{at}.png", a_picture(rng, "PNG"))
        content.writestr("train.csv", a_table(rng))
    return file.getvalue()


def a_parquet(rng: random.Random) -> bytes:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    count, file = rng.randint(1, 4), io.BytesIO()
    cells = [{"bytes": a_picture(rng, "PNG"), "path": None} for _ in range(count)]
    pq.write_table(pa.table({"image": cells, "label": [rng.randrange(10) for _ in range(count)]}), file)
    return file.getvalue()


def an_npz(rng: random.Random) -> bytes:
    content, file = np.array(rows(rng), dtype=np.uint8), io.BytesIO()
    save = rng.choice((np.savez, np.savez_compressed))
    save(file, x_train=content[:, 1:].reshape(-1, 28, 28), y_train=content[:, 0])
    return file.getvalue()


def an_npy(rng: random.Random) -> bytes:
    file, content = io.BytesIO(), np.array([row[1:] for row in rows(rng)], dtype=rng.choice((np.uint8, np.float32)))
    np.save(file, content.reshape(-1, 28, 28))
    return file.getvalue()


def a_pt(rng: random.Random) -> bytes:
    content, file = torch.tensor(rows(rng), dtype=torch.uint8), io.BytesIO()
    torch.save((content[:, 1:].reshape(-1, 28, 28), content[:, 0].long()), file)
    return file.getvalue()


def a_mat(rng: random.Random) -> bytes:
    content, file = np.array(rows(rng), dtype=np.uint8), io.BytesIO()
    split = {"images": content[:, 1:], "labels": content[:, :1]}
    scipy.io.savemat(file, {"dataset": {"train": split, "test": split}}, do_compression=rng.random() < 0.5)
    return file.getvalue()


def tarred(rng: random.Random) -> bytes:
    """The same in a tar file, packed or not."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive(rng))) as files, tarfile.open(fileobj=out, mode="w") as tar:
        for info in files.infolist():
            member = tarfile.TarInfo(info.filename)
            member.size = info.file_size
            tar.addfile(member, io.BytesIO(files.read(info)))
    return gzip.compress(out.getvalue(), mtime=0) if rng.random() < 0.2 else out.getvalue()


# name of the file that is mutated (beside whole ones, where it is a picture), how it is made, what reads it
FORMS = {
    "table": ("train.csv", a_table, tables),
    "floats": ("train.csv", floats, tables),
    "words": ("train.csv", words, tables),
    "gzip": ("train.csv.gz", lambda rng: gzip.compress(a_table(rng), mtime=0), tables),
    "zip of tables": ("train.zip", archive, tables),
    "zip of pictures": ("train.zip", archive, folders),
    "tar of tables": ("train.tar", tarred, tables),
    "tar of pictures": ("train.tar", tarred, folders),
    "png": ("0/a.png", lambda rng: a_picture(rng, "PNG"), folders),
    "jpeg": ("0/a.jpg", lambda rng: a_picture(rng, "JPEG"), folders),
    "gif": ("0/a.gif", lambda rng: a_picture(rng, "GIF"), folders),
    "tiff": ("0/a.tif", lambda rng: a_picture(rng, "TIFF"), folders),
    "bmp": ("0/a.bmp", lambda rng: a_picture(rng, "BMP"), folders),
    "webp": ("0/a.webp", lambda rng: a_picture(rng, "WEBP"), folders),
    "parquet": ("train.parquet", a_parquet, parquet),
    "npz": ("mnist.npz", an_npz, arrays),
    "npy": ("train-images.npy", an_npy, arrays),
    "pt": ("training.pt", a_pt, arrays),
    "mat": ("emnist.mat", a_mat, arrays),
}


def mutate(content: bytes, rng: random.Random) -> bytes:
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.choice(
            (rng.randrange(len(data) + 1), min(len(data), rng.randrange(64)), max(0, len(data) - rng.randrange(64)))
        )
        match rng.randrange(7):
            case 0:
                del data[at:]
            case 1 | 2 if data:
                data[at % len(data)] ^= 1 << rng.randrange(8)
            case 3:
                data[at:at] = rng.randbytes(rng.choice((1, 2, 100)))
            case 4:
                data[at:at] = rng.choice(SPLICES)
            case 5:
                del data[at : at + rng.choice((1, 4, 784))]
            case 6:
                data[at : at + 4] = rng.choice((b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\1\0\0"))
    return bytes(data)


def check(reader, root: Path, size: int, seed: str, measured: bool) -> bool:
    """Whether any digits were read; fails on anything but digits and a UserError, and on undue cost."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    start, read, told = time.process_time(), False, f"{root}"
    if measured:  # which makes Python slow
        tracemalloc.start()
    try:
        for part in reader.recognise(root, files):
            digits = part.read()
            assert isinstance(digits, Digits), seed
            assert digits.images.shape[1:] == (28, 28), seed
            assert len(digits.images) > 0, seed
            assert digits.labels is None or int(digits.labels.max()) < len(digits.names), seed
            assert digits.labels is None or len(digits.labels) == len(digits.images), seed
            read = True
    except UserError as error:
        told = str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1] if measured else 0
        tracemalloc.stop()
    assert str(root) in told, seed
    assert "\n" not in told, seed
    assert peak < 25_000_000 + 30 * size, f"{seed}: {peak} bytes"
    assert measured or time.process_time() - start < 3, seed  # what is traced takes up to a hundred times as long
    return read


@pytest.mark.filterwarnings("ignore:::PIL")  # what Pillow says of a damaged file that it reads all the same
@pytest.mark.parametrize("count", [25, pytest.param(int(os.environ.get("FUZZ", 150)), marks=pytest.mark.slow)])
@pytest.mark.parametrize("form", FORMS)
def test_mutated(tmp_path: Path, form: str, count: int):
    name, make, reader = FORMS[form]
    for label in "01" if "/" in name else "":
        (tmp_path / label).mkdir()
        image(random.Random(label)).save(tmp_path / label / "whole.png")
    loaded = 0
    for at in range(count):
        seed = f"{form} {at}"
        rng = random.Random(seed)
        content = mutate(make(rng), rng)
        (tmp_path / name).write_bytes(content)
        loaded += check(reader, tmp_path, len(content), seed, at % 8 == 0)
    assert loaded < count
    assert (
        loaded or form == "gzip"
    )  # some mutations are harmless, or else the test tests nothing; but gzip has a checksum


@pytest.mark.parametrize("count", [25, pytest.param(int(os.environ.get("FUZZ", 150)), marks=pytest.mark.slow)])
def test_mutated_cache(tmp_path: Path, monkeypatch, capsys, count: int):
    """Whatever lies in the cache, the images are right."""
    monkeypatch.setattr(cache, "LEAST", 1)
    monkeypatch.setattr(cache, "folder", lambda: tmp_path / "cache")
    for label in "01":
        (tmp_path / "in" / label).mkdir(parents=True)
        image(random.Random(label)).save(tmp_path / "in" / label / f"{label}.png")
    right = np.stack([np.array(image(random.Random(label))) for label in "01"])
    files = sorted((tmp_path / "in").rglob("*.png"))
    (part,) = folders.recognise(tmp_path / "in", files)
    part.read()
    (kept,) = (tmp_path / "cache").iterdir()
    whole = kept.read_bytes()
    for at in range(count):
        rng = random.Random(f"cache {at}")
        kept.write_bytes(mutate(whole, rng))
        assert np.array_equal(part.read().images, right), at
