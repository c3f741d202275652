"""Mutated files: each loads with valid content or raises a one-line UserError, at a cost in proportion.

FUZZ_N is the number of mutations of each kind of file; a failure names the seed that brings it back.
"""

import gzip
import os
import random
import struct
import time
import tracemalloc
from pathlib import Path

import pytest

from mnist_lightning.data.sources import Digits
from mnist_lightning.data.sources import read as read_idx
from mnist_lightning.data.tables import read_text
from mnist_lightning.errors import UserError

COUNT = int(os.environ.get("FUZZ_N", "150"))
TRAIN = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
TEST = ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
QMNIST = ("qmnist-train-images-idx3-ubyte", "qmnist-train-labels-idx2-int")
QMNIST_TEST = ("qmnist-test-images-idx3-ubyte", "qmnist-test-labels-idx2-int")
NUMBERS = (
    0,
    1,
    2,
    3,
    4,
    27,
    29,
    784,
    0x801,
    0x803,
    0xC02,
    1 << 16,
    1 << 24,
    (1 << 31) - 1,
    1 << 31,
    (1 << 32) - 1,
)


def contents(rng: random.Random) -> dict[str, bytes]:
    """The content of one small split, in every form."""
    count = rng.randint(1, 4)
    pixels = [rng.choice((0, 0, 0, rng.randrange(256))) for _ in range(count * 784)]
    labels = [rng.randrange(10) for _ in range(count)]
    rows = [[*pixels[at * 784 : at * 784 + 784], label] for at, label in enumerate(labels)]
    return {
        "images": struct.pack(">4I", 0x803, count, 28, 28) + bytes(pixels),
        "labels": struct.pack(">2I", 0x801, count) + bytes(labels),
        "qmnist": struct.pack(">3I", 0xC02, count, 8)
        + b"".join(struct.pack(">8i", label, *range(-3, 4)) for label in labels),
        "text": b"# digits\n" + b"".join(b"\t".join(b"%d" % value for value in row) + b"\n" for row in rows),
    }


def mutate(content: bytes, rng: random.Random) -> bytes:
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        at = rng.randrange(len(data) + 1)
        near = min(at, rng.randrange(24))  # headers are short, and worth more mutations than their share
        match rng.randrange(9):
            case 0:
                del data[at:]
            case 1 if data:
                data[at % len(data)] ^= 1 << rng.randrange(8)
            case 2 if data:
                data[near % len(data)] ^= 1 << rng.randrange(8)
            case 3:
                data[at:at] = rng.randbytes(rng.choice((1, 2, 100)))
            case 4:
                data[at:at] = rng.choice((b"\n", b"\r", b"\t", b"#", b" ", b"-", b"256", b"\0", b"\xff\xfe", b"1e3"))
            case 5:
                del data[at : at + rng.choice((1, 4, 784))]
            case 6:
                data[near // 4 * 4 : near // 4 * 4 + 4] = struct.pack(">I", rng.choice(NUMBERS))
            case 7:
                data += bytes(rng.choice((1, 784, 100_000)))
            case 8:
                data += data[at:]
    return bytes(data)


def attempt(read) -> tuple[Digits | None, str, int, float]:
    """The digits or else the error's message, the peak of memory in bytes, and the seconds."""
    start = time.perf_counter()
    tracemalloc.start()
    try:
        digits, error = read(), ""
    except UserError as exc:
        digits, error = None, str(exc)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return digits, error, peak, time.perf_counter() - start


def check(read, size: int, seed: int) -> bool:
    """Whether it loaded. Fails on anything but valid digits or a one-line UserError, and on undue cost."""
    # gzip's buffers and one piece of a file come to 1 MB; text is mostly small objects of one line at a time.
    bound = 2_000_000 + 20 * size
    digits, error, peak, seconds = attempt(read)
    if peak > bound:  # Python's table of interned strings (pathlib adds to it) grows by megabytes, once in a while
        digits, error, peak, seconds = attempt(read)
    assert peak < bound, f"seed {seed}: {peak} bytes for a file of {size}"
    assert seconds < 2, f"seed {seed}"
    if digits is None:
        assert error, f"seed {seed}"
        assert "\n" not in error, f"seed {seed}"
        return False
    assert isinstance(digits, Digits), f"seed {seed}"
    assert digits.images.shape == (len(digits.labels), 28, 28), f"seed {seed}"
    assert digits.images.dtype == digits.labels.dtype, f"seed {seed}"
    assert len(digits.labels) > 0, f"seed {seed}"
    assert digits.labels.max() < len(digits.names), f"seed {seed}"
    assert int(digits.images.max()) <= 255, f"seed {seed}"  # touches every byte of a mapped file
    return True


@pytest.mark.parametrize("form", ["plain", "gz", "packed-after", "qmnist"])
def test_mutated_idx(tmp_path: Path, form: str):
    """`gz` damages the packed file, `packed-after` the content before it is packed."""
    end = "" if form in ("plain", "qmnist") else ".gz"
    image_name, label_name = QMNIST if form == "qmnist" else TRAIN
    for name in QMNIST_TEST if form == "qmnist" else TEST:
        (tmp_path / (name + end)).write_bytes(b"not read")
    loaded = 0
    for seed in range(COUNT):
        rng = random.Random(f"{form} {seed}")
        good = contents(rng)
        parts = {image_name: good["images"], label_name: good["qmnist" if form == "qmnist" else "labels"]}
        victim = rng.choice((image_name, label_name))
        size = 0
        for name, content in parts.items():
            if name == victim and form != "gz":
                content = mutate(content, rng)
            if end:
                content = gzip.compress(content, mtime=0)
            if name == victim and form == "gz":
                content = mutate(content, rng)
            (tmp_path / (name + end)).write_bytes(content)
            size += len(content)
        loaded += check(lambda: read_idx(tmp_path, "train"), size, seed)
    assert 0 < loaded < COUNT  # some mutations are harmless, or else the test tests nothing


def test_mutated_text(tmp_path: Path):
    path = tmp_path / "digits.tsv"
    loaded = 0
    for seed in range(COUNT):
        rng = random.Random(f"text {seed}")
        content = mutate(contents(rng)["text"], rng)
        path.write_bytes(content)
        loaded += check(lambda: read_text(path), len(content), seed)
    assert 0 < loaded < COUNT


@pytest.mark.parametrize("names", [TRAIN, QMNIST], ids=["mnist", "qmnist"])
def test_random_bytes(tmp_path: Path, names: tuple[str, str]):
    rng = random.Random(0)
    for name in TEST if names == TRAIN else QMNIST_TEST:
        (tmp_path / name).write_bytes(b"")
    for seed in range(max(1, COUNT // 5)):
        content = rng.randbytes(rng.choice((0, 1, 15, 16, 17, 1000, 100_000)))
        for name in names:
            (tmp_path / name).write_bytes(content)
        assert not check(lambda: read_idx(tmp_path, "train"), len(content), seed)
        assert not check(lambda: read_text(tmp_path / names[0]), len(content), seed)
