"""Folders of pictures: every layout and kind of file, exact pixels, and which file is named where one is broken."""

import io
import os
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mnist_lightning.data import cache, folders, png
from mnist_lightning.data.digits import fitted
from mnist_lightning.data.folders import recognise
from mnist_lightning.data.labels import class_names
from mnist_lightning.errors import UserError


@pytest.fixture(autouse=True)
def users_cache(tmp_path_factory, monkeypatch) -> Path:
    """A cache folder of the test's own."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr(cache, "folder", lambda: folder / "mnist_lightning")
    return folder / "mnist_lightning"


def some(count: int, seed: int = 0, shape: tuple[int, ...] = (28, 28)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def put(folder: Path, images: np.ndarray, labels, suffix: str = ".png") -> None:
    for at, (image, label) in enumerate(zip(images, labels, strict=True)):
        (folder / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / str(label) / f"{at:05}{suffix}")


def files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file() and not path.name.startswith("."))


def parts(root: Path):
    return recognise(root, files(root))


def message(call, *args) -> str:
    with pytest.raises(UserError) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def right(digits, images: np.ndarray, labels: list[int]) -> bool:
    """Whether these are the images that were put there, in their order."""
    return digits.labels.tolist() == labels and np.array_equal(digits.images, images)


LABELS = [3, 0, 9, 3, 1, 0]


@pytest.mark.parametrize(
    ("train", "test"),
    [("train", "test"), ("training", "testing"), ("mnist_png/training", "mnist_png/testing"), ("Train", "valid")],
)
def test_splits(tmp_path: Path, train: str, test: str):
    put(tmp_path / train, some(6), LABELS)
    put(tmp_path / test, some(2, seed=1), [4, 0])
    for name in ("train/.DS_Store", "Thumbs.db", "__MACOSX/3/._0.png", "README.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"no picture")
    by_kind = {part.kind: part for part in parts(tmp_path)}
    other = "val" if test == "valid" else "test"
    assert by_kind.keys() == {"train", other}
    part = by_kind["train"]
    assert (part.where, part.form, part.count, part.size) == (tmp_path / train, "PNG files in folders", 6, (28, 28))
    assert right(part.read(), some(6), LABELS)
    assert part.read().names == tuple("0123456789")
    assert right(by_kind[other].read(), some(2, seed=1), [4, 0])


def test_without_splits(tmp_path: Path):
    put(tmp_path / "digits", some(6), LABELS)
    for root in (tmp_path, tmp_path / "digits"):
        (part,) = parts(root)
        assert (part.kind, part.where) == ("unknown", tmp_path / "digits")
        assert right(part.read(), some(6), LABELS)


def test_unlabelled(tmp_path: Path):
    """Kaggle's way: classes to train on, and a heap to predict."""
    put(tmp_path / "train", some(6), LABELS)
    put(tmp_path, some(3, seed=1), ["test"] * 3)
    train, test = sorted(parts(tmp_path), key=lambda part: part.labelled, reverse=True)
    assert right(train.read(), some(6), LABELS)
    assert (test.where, test.kind, test.labelled) == (tmp_path / "test", "test", False)
    digits = test.read()
    assert digits.labels is None
    assert np.array_equal(digits.images, some(3, seed=1))
    (alone,) = parts(tmp_path / "test")
    assert (alone.labelled, alone.count) == (False, 3)


def test_names_of_classes(tmp_path: Path):
    put(tmp_path, some(3), ["dog", "cat", "dog"])
    (part,) = parts(tmp_path)
    assert part.read().names == ("cat", "dog")
    assert part.read().labels.tolist() == [1, 0, 1]
    assert class_names(["class_3", "class_10"]) == ["3", "10"]
    assert class_names(["3", "10"]) == ["3", "10"]
    assert class_names(["3 (2)", "10 (2)"]) == ["3", "10"]
    assert class_names(["a1", "b2"]) == ["a1", "b2"]
    assert class_names(["1a", "2b"]) == ["1a", "2b"]
    put(tmp_path / "n", some(3), ["digit-2", "digit-10", "digit-2"])
    (part,) = parts(tmp_path / "n")
    assert part.read().names == ("2", "10")
    assert part.read().labels.tolist() == [0, 1, 0]


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".gif", ".tif", ".webp", ".PNG", ".jpg"])
def test_kinds_of_files(tmp_path: Path, suffix: str):
    """The same pixels, whatever holds them; JPEG and WebP lose some."""
    smooth = np.add.outer(np.arange(28), np.arange(28)).astype(np.uint8)[None].repeat(2, 0) * 4
    put(tmp_path, smooth, [0, 1], suffix)
    (part,) = parts(tmp_path)
    difference = part.read().images.int() - torch.from_numpy(smooth).int()
    assert int(difference.abs().max()) <= (5 if suffix in (".jpg", ".webp") else 0)


def test_files_that_come_in_pieces(tmp_path: Path, monkeypatch):
    """Decoded a few at a time; some file systems hand out less than was asked for."""
    images, read = some(5), os.read
    put(tmp_path, images, [0, 1, 0, 1, 0], ".bmp")
    put(tmp_path, images[:1], [2])
    monkeypatch.setattr(folders, "MOST_WAITING", 3000)  # two and a bit
    monkeypatch.setattr(folders.os, "read", lambda descriptor, most: read(descriptor, min(most, 100)))
    (part,) = parts(tmp_path)
    assert sorted(part.read().images.flatten(1).tolist()) == sorted(images[[0, 0, 1, 2, 3, 4]].reshape(6, -1).tolist())


def test_modes(tmp_path: Path):
    """Grey, two levels, colour, palette, 16 bits and transparency, all of one picture."""
    ink = np.zeros((28, 28), np.uint8)
    ink[8:20, 12:16] = 255
    grey = Image.fromarray(ink)
    clear = Image.merge("LA", (Image.new("L", (28, 28), 0), grey))  # black ink, and nothing around it
    modes = {
        "0": grey, "1": grey.convert("1"), "2": grey.convert("RGB"), "3": grey.convert("P"),
        "4": Image.fromarray(ink.astype(np.uint16) * 257), "5": clear, "6": clear.convert("RGBA"),
    }  # fmt: skip
    for name, picture in modes.items():
        (tmp_path / name).mkdir()
        picture.save(tmp_path / name / "a.png")
    (part,) = parts(tmp_path)
    images = part.read().images.numpy()
    for name in "01234":
        assert np.array_equal(images[int(name)], ink), name
    for name in "56":
        assert np.array_equal(images[int(name)], 255 - ink), name


def test_sizes(tmp_path: Path):
    """Every picture is made 28x28 by the one rule for arrays, whatever stands beside it."""
    shapes = [(28, 28), (64, 64), (300, 280), (20, 30), (64, 64, 3), (600, 700, 3)]
    images = [some(1, at, shape)[0] for at, shape in enumerate(shapes)]
    put(tmp_path, images, range(6))
    (part,) = parts(tmp_path)
    for got, image in zip(part.read().images, images, strict=True):
        assert torch.equal(got, fitted(torch.from_numpy(image)[None])[0])


@pytest.mark.parametrize("shape", [(28, 28), (28, 28, 3), (1, 1), (5, 40)])
def test_plain_png_is_decoded_as_pillow_does(tmp_path: Path, monkeypatch, shape):
    """All filters, of smooth pictures, of noise and of empty ones; every level of packing; other chunks between."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (20, *shape))
    smooth = noise.cumsum(1).cumsum(2) // 50 + noise % 3
    sparse = noise * (rng.random((20, *shape)) < 0.2)
    images = np.concatenate([noise, smooth, sparse, noise * 0]).astype(np.uint8)
    contents = []
    for at, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / "a.png", compress_level=at % 10, dpi=(72, 72) if at % 3 else None)
        contents.append((tmp_path / "a.png").read_bytes())
    files = [png.rows_of(content, 10_000) for content in contents]
    assert np.array_equal(png.pixels_of(files), images)


def test_every_filter_is_undone_as_pillow_does():
    rng = np.random.default_rng(0)
    contents = []
    for _ in range(20):
        rows = rng.integers(0, 256, (28, 29), dtype=np.uint8)
        rows[:, 0] = rng.integers(0, 5, 28)  # the filter of a row
        contents.append(png_file(28, 28, rows.tobytes()))
    decoded = png.pixels_of([png.rows_of(content, 10_000) for content in contents])
    for image, content in zip(decoded, contents, strict=True):
        assert np.array_equal(image, Image.open(io.BytesIO(content)))


def test_png_that_is_not_plain_is_left_to_pillow():
    whole = png_file(28, 28, bytes(28 * 29))
    assert png.rows_of(whole, 10_000) is not None
    for at in range(len(whole)):
        damaged = whole[:at] + bytes([whole[at] ^ 16]) + whole[at + 1 :]
        assert png.rows_of(damaged, 10_000) is None, at
        assert png.rows_of(whole[:at], 10_000) is None, at
    for other in (
        png_file(28, 28, bytes(28 * 29 + 1)),
        png_file(28, 28, bytes(28 * 29 - 1)),
        png_file(28, 28, b"\5" + bytes(28 * 29 - 1)),  # there are five filters
        png_file(28, 28, bytes(100_000_000)),
        png_file(100, 101, bytes(10_100)),
        png_file(0, 28, bytes(28)),
    ):
        assert png.rows_of(other, 10_000) is None


def test_zip_of_folders(tmp_path: Path):
    put(tmp_path / "in", some(6), LABELS)
    with zipfile.ZipFile(tmp_path / "digits.zip", "w") as archive:
        for path in files(tmp_path / "in"):
            archive.write(path, f"mnist/train/{path.relative_to(tmp_path / 'in')}")
        archive.writestr("__MACOSX/mnist/train/3/._00000.png", b"no picture")
    (part,) = recognise(tmp_path, [tmp_path / "digits.zip"])
    assert (part.kind, part.count) == ("train", 6)
    assert right(part.read(), some(6), LABELS)


# ---------------------------------------------------------------------- what is wrong is named


def png_file(wide: int, high: int, body: bytes = b"") -> bytes:
    """A PNG file that claims this size."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", wide, high, 8, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(body)),
        (b"IEND", b""),
    ]
    packed = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("x.png", b"", " is damaged or no picture (no picture): remove it or get it anew"),
        ("x.png", b"<html>not found</html>", " is damaged or no picture (no picture): remove it or get it anew"),
        ("x.png", png_file(28, 28, bytes(100)), " is damaged or no picture ("),
        ("x.png", png_file(60_000, 60_000), " claims more pixels than a file of "),
        ("x.png", png_file(6_000, 6_000), " claims more pixels than a file of "),
        ("x.png", png_file(0, 5), " is damaged or no picture ("),
        ("x.jpg", b"\xff\xd8\xff", " is damaged or no picture ("),
    ],
)
def test_broken_file(tmp_path: Path, name: str, content: bytes, expected: str):
    put(tmp_path, some(6), LABELS)
    (tmp_path / "3" / name).write_bytes(content)
    (part,) = parts(tmp_path)
    assert message(part.read).startswith(f"{tmp_path / '3' / name}{expected}")


def test_what_is_no_file(tmp_path: Path):
    put(tmp_path, some(6), LABELS)
    listed = files(tmp_path)
    listed[0].unlink()
    os.mkfifo(listed[0])
    assert (
        message(recognise(tmp_path, listed)[0].read) == f"{listed[0]} is a pipe or a device, not a picture: remove it"
    )
    listed[0].unlink()
    assert "cannot be read (No such file or directory)" in message(recognise(tmp_path, listed)[0].read)


# ---------------------------------------------------------------------- the cache


@pytest.fixture
def cached(monkeypatch):
    monkeypatch.setattr(cache, "LEAST", 1)


def test_cache_is_used_until_a_file_changes(tmp_path: Path, cached, users_cache: Path, capsys, monkeypatch):
    put(tmp_path, some(6), LABELS)
    (part,) = parts(tmp_path)
    first = part.read()
    assert "6 pictures of " in (told := capsys.readouterr().out)
    (kept,) = users_cache.iterdir()
    assert told.endswith(f" s, and kept in {kept}; --data.cache false reads them anew each time\n")
    with monkeypatch.context() as patch:
        patch.setattr(folders, "images_of", None)
        again = part.read()
    assert torch.equal(first.images, again.images)
    assert first.labels.tolist() == again.labels.tolist()
    told = capsys.readouterr().out
    assert told == f"6 pictures of {tmp_path} from {kept}, as they have not changed; {cache.OFF}\n"

    changed = some(1, seed=9)[0]
    Image.fromarray(changed).save(tmp_path / "0" / "00001.png")
    assert np.array_equal(parts(tmp_path)[0].read().images[1], changed)  # another time
    (tmp_path / "0" / "00001.png").unlink()
    assert len(parts(tmp_path)[0].read().images) == 5  # one less
    put(tmp_path, some(7)[6:], [1])
    assert len(parts(tmp_path)[0].read().images) == 6  # one more
    assert len(list(users_cache.iterdir())) == 1


def test_cache_can_be_left_alone(tmp_path: Path, cached, users_cache: Path, capsys):
    put(tmp_path, some(6), LABELS)
    recognise(tmp_path, files(tmp_path), keep=False)[0].read()
    assert not users_cache.exists()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("damage", [b"", b"PK\3\4 cut off", None])
def test_cache_that_cannot_be_used_is_made_anew(tmp_path: Path, cached, users_cache: Path, damage):
    put(tmp_path, some(6), LABELS)
    (part,) = parts(tmp_path)
    part.read()
    (kept,) = users_cache.iterdir()
    whole = kept.read_bytes()
    kept.write_bytes(damage if damage is not None else whole[:3000] + b"X" + whole[3001:])
    assert right(part.read(), some(6), LABELS)
    assert cache._load(kept, cache._state(sorted(tmp_path.rglob("*.png"), key=lambda path: path.name)), 6) is not None


def test_cache_where_nothing_can_be_written(tmp_path: Path, cached, monkeypatch, capsys):
    put(tmp_path, some(6), LABELS)
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")
    monkeypatch.setattr(cache, "folder", lambda: blocked / "mnist_lightning")
    assert right(parts(tmp_path)[0].read(), some(6), LABELS)
    assert "and not kept: " in capsys.readouterr().out

    def full(*_args, **_more):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache, "folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(np, "savez", full)
    assert right(parts(tmp_path)[0].read(), some(6), LABELS)
    assert "No space left on device" in capsys.readouterr().out
    assert list((tmp_path / "cache").iterdir()) == []


def test_where_the_cache_is(monkeypatch, tmp_path: Path):
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for system, folder in (
        ("linux", tmp_path),
        ("win32", tmp_path / "local"),
        ("darwin", tmp_path / "home/Library/Caches"),
    ):
        monkeypatch.setattr(cache.sys, "platform", system)
        assert cache.folder() == folder / "mnist_lightning"
