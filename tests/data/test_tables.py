"""Tables of pixels in every form: exact values, what is said about them, and which line is named where it is broken."""

import bz2
import csv
import gzip
import io
import lzma
import os
import random
import time
import zipfile
from pathlib import Path

import pytest
import torch

from mnist_lightning.data.digits import Digits, fitted
from mnist_lightning.data.tables import read_text, recognise, write_text
from mnist_lightning.errors import UserError


def some(count: int, seed: int = 0, side: int = 28) -> tuple[torch.Tensor, torch.Tensor]:
    """Images with an empty frame, as digits have, and labels in no order."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.zeros(count, side, side, dtype=torch.uint8)
    inside = (count, side - 2, side - 2)
    images[:, 1:-1, 1:-1] = torch.randint(0, 256, inside, dtype=torch.uint8, generator=generator)
    return images, torch.randint(0, 10, (count,), dtype=torch.uint8, generator=generator)


def table(
    images, labels, separator=",", label: int | None = 0, header=None, end="\n", show=str, quote=csv.QUOTE_MINIMAL
) -> bytes:
    """Such a file, made by Python's csv; `label`: its column, counted from either end."""
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=separator, lineterminator=end, quoting=quote)
    writer.writerows([header] if header else [])
    for image, text in zip(images.flatten(1).tolist(), labels, strict=True):
        row = [show(value) for value in image]
        if label is not None:
            row.insert(label if label >= 0 else len(row), str(text))
        writer.writerow(row)
    return out.getvalue().encode()


def only(path: Path, **settings):
    """The one part that is recognised in this file."""
    (part,) = recognise(path.parent, [path], **settings)
    assert part.where == path
    return part


def read(path: Path, content: bytes) -> Digits:
    path.write_bytes(content)
    return only(path).read()


def message(call, *args) -> str:
    """That of the UserError that the call must raise: one line."""
    with pytest.raises(UserError) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def same(one: Digits, images, labels) -> bool:
    return torch.equal(one.images, images) and torch.equal(one.labels, labels)


PIXELS = [f"pixel{at}" for at in range(784)]


@pytest.mark.parametrize(
    ("changes", "form"),
    [
        ({"header": ["label", *PIXELS]}, "CSV (label in column label)"),  # Kaggle
        ({"header": [*PIXELS, "class"], "label": -1}, "CSV (label in column class)"),  # OpenML
        ({"header": ["5th", *PIXELS]}, "CSV (label first)"),
        ({"header": [*PIXELS[:9], "Target", *PIXELS[9:]], "label": 9}, "CSV (label in column Target)"),
        ({"header": ["what", *PIXELS]}, "CSV (label in column what)"),
        ({"header": [*map(str, range(784)), "y"], "label": -1}, "CSV (label in column y)"),
        ({"header": [*map(str, range(785))], "label": -1}, "CSV (label last)"),  # pandas numbers columns
        ({"header": ["label", *(f"{at // 28}x{at % 28}" for at in range(784))]}, "CSV (label in column label)"),
        ({}, "CSV (label first)"),
        ({"label": -1}, "CSV (label last)"),
        ({"label": -1, "separator": "\t"}, "TSV (label last)"),
        ({"separator": ";"}, "CSV (label first)"),
        ({"separator": " ", "label": -1}, "text (label last)"),
        ({"end": "\r\n"}, "CSV (label first)"),
        ({"quote": csv.QUOTE_ALL, "header": ["label", *PIXELS]}, "CSV (label in column label)"),
        ({"show": lambda value: f"{value:.1f}"}, "CSV (label first)"),
        ({"show": lambda value: f"{value / 255:.6f}", "label": -1}, "CSV (label last)"),
        ({"show": lambda value: f"{value / 127.5 - 1:.18e}", "separator": " "}, "text (label first)"),  # numpy.savetxt
        ({"show": lambda value: f"{value / 255:.6f}".replace(".", ","), "separator": ";"}, "CSV (label first)"),
        ({"show": lambda value: f" {value}"}, "CSV (label first)"),
    ],
)  # fmt: skip
def test_forms(tmp_path: Path, changes, form):
    images, labels = some(60)
    images[0, 5, 5:7] = torch.tensor([0, 255])  # the range is seen
    path = tmp_path / "digits.csv"
    path.write_bytes(table(images, labels.tolist(), **changes))
    part = only(path)
    assert (part.form.split(";")[0].rstrip(")"), part.size, part.labelled) == (form.rstrip(")"), (28, 28), True)
    assert same(part.read(), images, labels)
    assert part.read().names == tuple("0123456789")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes() + b"\n\n")  # Excel's mark, and empty lines
    assert same(only(path).read(), images, labels)


def test_without_labels(tmp_path: Path):
    images, labels = some(5)
    path = tmp_path / "test.csv"
    for changes in ({"header": PIXELS}, {}):
        path.write_bytes(table(images, labels, label=None, **changes))
        part = only(path)
        assert (part.form, part.kind, part.labelled) == ("CSV", "test", False)
        digits = part.read()
        assert torch.equal(digits.images, images)
        assert digits.labels is None
    ids = table(images, ["image-7"] * 5, header=["image_id", *PIXELS])
    assert torch.equal(read(path, ids).images, images)


def test_columns_that_only_number_the_lines(tmp_path: Path):
    images, labels = some(5)
    rows = table(images, labels.tolist()).decode().splitlines()
    numbered = "\n".join(f"{at},{row}" for at, row in enumerate(rows))
    names = ",".join(["", "label", *PIXELS])  # as pandas writes its index
    assert same(read(tmp_path / "a.csv", f"{names}\n{numbered}\n".encode()), images, labels)
    assert same(read(tmp_path / "a.csv", f"{numbered}\n".encode()), images, labels)


@pytest.mark.parametrize(
    ("side", "top", "shape"), [(8, 16, (8, 8)), (16, 255, (16, 16)), (32, 255, (32, 32)), (28, 1, (28, 28))]
)
def test_other_sizes_and_ranges(tmp_path: Path, side: int, top: int, shape):
    """scikit-learn's 8x8 of 0 to 16, USPS' 16x16, padded 32x32, and images of 0 and 1."""
    images, labels = some(40, side=side)
    images = (images.double() * top / 255).round().to(torch.uint8)
    path = tmp_path / "digits.csv"
    path.write_bytes(table(images, labels.tolist(), label=-1))
    part = only(path)
    assert part.size == shape
    assert same(part.read(), fitted((images.double() * 255 / top).round().to(torch.uint8)), labels)


def test_colour(tmp_path: Path):
    _, labels = some(6)
    images = torch.randint(0, 256, (6, 28, 28, 3), dtype=torch.uint8, generator=torch.manual_seed(0))
    path = tmp_path / "digits.csv"
    path.write_bytes(
        table(images, labels.tolist(), header=[*(f"pixel{at:04}" for at in range(2352)), "label"], label=-1)
    )
    part = only(path)
    assert part.size == (28, 28, 3)
    assert same(part.read(), fitted(images), labels)


def test_a_range_that_shows_late(tmp_path: Path):
    """More than a piece of the file looks as if pixels went to 1."""
    images, labels = some(1500)
    images[:1400].clamp_(max=1)
    content = table(images, labels.tolist(), show=lambda value: f"{value:.2f}")
    assert same(read(tmp_path / "a.csv", content), images, labels)


def test_labels_that_are_words_letters_and_other_numbers(tmp_path: Path):
    images, _ = some(6)
    for words, names, labels in (
        (["cat", "dog", "cat", "ant", "dog", "ant"], ("ant", "cat", "dog"), [1, 2, 1, 0, 2, 0]),
        (["b", "a", "c", "a", "b", "b"], ("a", "b", "c"), [1, 0, 2, 0, 1, 1]),
        ([12, 7, 30, 7, 7, 12], ("7", "12", "30"), [1, 0, 2, 0, 0, 1]),
        (["3.0", "1.0", "3.0", "4.0", "4.0", "1.0"], tuple("0123456789"), [3, 1, 3, 4, 4, 1]),
    ):
        for column in (0, -1):
            digits = read(tmp_path / "a.csv", table(images, words, label=column))
            assert torch.equal(digits.images, images)
            assert (digits.names, digits.labels.tolist()) == (names, labels)


def test_label_first_or_last_can_be_said(tmp_path: Path):
    """A file whose first and last columns could both be the label."""
    images, labels = some(50)
    images[:, 0, 0] = torch.arange(50) % 4
    path = tmp_path / "a.csv"
    path.write_bytes(table(images, labels.tolist(), label=-1))
    part = only(path)
    assert part.form == "CSV (label last; --data.label first takes the first column for it)"
    assert same(part.read(), images, labels)
    first = only(path, label="first").read()
    assert first.labels.tolist() == [at % 4 for at in range(50)]
    assert only(path, label="last").form == "CSV (label last)"
    path.write_bytes(table(images, labels.tolist(), label=3, header=["a", "b", "c", "d", *PIXELS[4:], "e"]))
    assert same(only(path, label="d").read(), images, labels)


def test_sorted_by_class(tmp_path: Path):
    """The first lines are all of one class; later ones tell that their last column is the label, and of letters."""
    images, _ = some(800)
    labels = [*"0123456789abcdefghijklmnopqrstuvwxyz"]
    sorted_labels = [labels[at * 36 // 800] for at in range(800)]
    for names in (sorted_labels, [label if label.isdigit() else "9" for label in sorted_labels]):
        digits = read(tmp_path / "a.csv", table(images, names, label=-1))
        assert [digits.names[label] for label in digits.labels.tolist()] == names
        assert torch.equal(digits.images, images)


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress, "zip"])
def test_packed(tmp_path: Path, pack):
    """Told by content: the file's name says nothing."""
    images, labels = some(5)
    content = table(images, labels.tolist(), header=["label", *PIXELS])
    path = tmp_path / "digits.csv"
    if pack != "zip":
        path.write_bytes(pack(content))
        assert same(only(path).read(), images, labels)
        path.write_bytes(path.read_bytes()[:-20])
        assert "truncated or damaged" in message(read_text, path)
        return
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:  # as Kaggle packs a competition
        archive.writestr("train.csv", content)
        archive.writestr("test.csv", table(images, labels, label=None, header=PIXELS))
        archive.writestr("sample_submission.csv", "ImageId,Label\n1,0\n2,0\n")
    test, train = recognise(tmp_path, [path])
    assert (test.kind, test.labelled, train.kind, train.labelled) == ("test", False, "train", True)
    assert same(train.read(), images, labels)
    assert torch.equal(test.read().images, images)


def test_what_is_no_table_of_pixels(tmp_path: Path):
    for name, content in {
        "sample_submission.csv": b"ImageId,Label\n1,0\n2,0\n",
        "metrics.csv": b"epoch,loss\n0,1.5\n1,0.7\n",
        "README.md": b"# MNIST\n\nSixty thousand digits, and ten thousand more.\n",
        "noise": random.Random(0).randbytes(100_000),
        "utf16.csv": b"\xff\xfe" + random.Random(1).randbytes(10_001),
        "empty": b"",
        "header.csv": ",".join(PIXELS).encode(),
    }.items():
        (tmp_path / name).write_bytes(content)
        assert recognise(tmp_path, [tmp_path / name]) == [], name


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.slow
def test_utf_16(tmp_path: Path, encoding: str):
    images, labels = some(500)
    content = "\ufeff".encode(encoding) + table(images, labels.tolist(), end="\r\n").decode().encode(encoding)
    assert len(content) > 1 << 20
    assert same(read(tmp_path / "train.csv", content), images, labels)
    packed = read(tmp_path / "train.csv.gz", gzip.compress(content))
    assert same(packed, images, labels)
    assert "is damaged UTF-16 text" in message(read, tmp_path / "train.csv", content + b"\xd8" * 8 + b"\n\0")


def test_columns_in_any_order(tmp_path: Path):
    images, labels = some(50)
    order = torch.randperm(784, generator=torch.Generator().manual_seed(0))
    mixed = images.flatten(1)[:, order].view(-1, 28, 28)
    for names in ([f"pixel{at}" for at in order], [f"px_{at + 1:03}" for at in order]):
        content = table(mixed, labels.tolist(), header=["label", *names])
        assert same(read(tmp_path / "train.csv", content), images, labels)
    sides = [f"{at // 28}x{at % 28}" for at in order]  # which of the two counts rows, nobody knows
    assert same(read(tmp_path / "train.csv", table(mixed, labels.tolist(), header=["label", *sides])), mixed, labels)


def test_arff(tmp_path: Path):
    images, labels = some(50)
    head = "% MNIST\n@RELATION mnist\n\n" + "".join(f"@ATTRIBUTE pixel{at} real\n" for at in range(784))
    head += "@ATTRIBUTE class {0,1,2,3,4,5,6,7,8,9}\n\n@DATA\n"
    content = head.encode() + table(images, labels.tolist(), label=-1)
    assert same(read(tmp_path / "mnist_784.arff", content), images, labels)


# ---------------------------------------------------------------------- what is wrong is named


def line(values=None, label=3) -> bytes:
    return b"\t".join(b"%d" % value for value in (values or [0] * 784)) + b"\t%d\n" % label


def refused(tmp_path: Path, content: bytes) -> str:
    path = tmp_path / "digits.tsv"
    path.write_bytes(content)
    text = message(read_text, path)
    assert text.startswith(str(path))
    return text.removeprefix(str(path))


def test_text_values(tmp_path):
    first, second = [value % 256 for value in range(784)], [255 - value % 256 for value in range(784)]
    path = tmp_path / "digits.tsv"
    path.write_bytes(
        b"# a comment\n\n  \t \n"
        + line(first, 7)
        + b" # another \xff\x00, not UTF-8\n"
        + line(second, 0)[:-1]
        + b"\t # trailing\r\n"
        + line(first, 9)[:-1].replace(b"\t", b" \t ")
        + b"\r\n"
        + line(second, 1).replace(b"\t7\t", b"\t007\t")[:-1]  # no line end
    )
    digits = read_text(path)
    assert digits.labels.tolist() == [7, 0, 9, 1]
    assert digits.images.shape == (4, 28, 28)
    assert digits.images.flatten(1).tolist() == [first, second, first, second]
    assert digits.images.dtype == digits.labels.dtype == torch.uint8


def change(column: int, value: bytes) -> bytes:
    values = line().rstrip().split(b"\t")
    values[column - 1] = value
    return b"# top\n" + line() + b"\t".join(values) + b"\n"


TAKES = "a line takes 784 pixels and the label, as most do"
NO_DIGITS = " holds no digits: a line takes 784 pixels and the label, parted by tabs, commas or blanks"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (change(3, b"x"), ", line 3, value 3: 'x' is no number from 0 to 255: correct it"),
        (change(784, b"256"), ", line 3, value 784: '256' is no number from 0 to 255: correct it"),
        (change(2, b"-1"), ", line 3, value 2: '-1' is no number from 0 to 255: correct it"),
        (change(2, b"nan"), ", line 3, value 2: 'nan' is no number from 0 to 255: correct it"),
        (change(2, b"1e3"), ", line 3, value 2: '1e3' is no number from 0 to 255: correct it"),
        (change(2, b'"1'), ", line 3, value 2: '\"1' is no number from 0 to 255: correct it"),
        (change(2, "٣".encode()), r", line 3, value 2: '\xd9\xa3' is no number from 0 to 255: correct it"),
        (change(2, b"1_0"), ", line 3, value 2: '1_0' is no number from 0 to 255: correct it"),
        (change(2, b"1 0"), ", line 3, value 2: '1 0' is no number from 0 to 255: correct it"),
        (change(2, b""), ", line 3, value 2: '' is no number from 0 to 255: correct it"),
        (
            change(9, b"\xff\x00"),
            r", line 3, value 9: '\xff\x00' is no number from 0 to 255: correct it",
        ),
        (
            change(9, b"9" * 30),
            f", line 3, value 9: '{'9' * 20}' is no number from 0 to 255: correct it",
        ),
        (change(785, b"b"), ", line 3, value 785: 'b' is no whole number, as labels before are: correct it"),
        (change(785, b"1.5"), ", line 3, value 785: '1.5' is no whole number, as labels before are: correct it"),
        (change(785, b""), f", line 3 has 784 values, expected 785: {TAKES}"),
        (line() + line()[2:], f", line 2 has 784 values, expected 785: {TAKES}"),
        (line() + b"1\t" + line() + line(), f", line 2 has 786 values, expected 785: {TAKES}"),
        (line()[2:] + line() + line(), f", line 1 has 784 values, expected 785: {TAKES}"),
        (line() + b"<html>\n", f", line 2 has 1 values, expected 785: {TAKES}"),
        (b"1\t" + line(), NO_DIGITS),
        (b"0" * 9000, NO_DIGITS),
        (b"", NO_DIGITS),
        (b"# a\n\n", NO_DIGITS),
    ],
)
def test_text_wrong(tmp_path, content, expected):
    assert refused(tmp_path, content) == expected


def test_text_not_a_file(tmp_path):
    assert message(read_text, tmp_path).startswith(f"{tmp_path} is a folder or a device, not a file")
    assert "cannot be read (No such file or directory)" in message(read_text, tmp_path / "gone")
    assert "not a file" in message(read_text, Path("/dev/zero"))


def test_text_one_endless_line(tmp_path):
    path = tmp_path / "digits.tsv"
    with open(path, "wb") as file:
        file.truncate(1 << 30)  # 1 GB of NUL bytes, sparse
    start = time.perf_counter()
    assert ", line 1 is over 1048576 bytes long" in message(read_text, path)
    assert time.perf_counter() - start < 1


def test_text_write_and_read(tmp_path):
    path, digits, few = tmp_path / "digits.tsv", Digits(*some(12)), Digits(*some(2))
    write_text(digits, path)
    first, second = path.read_bytes().split(b"\n")[:2]
    assert first == b"# 12 digits: 28 rows of 28 pixels (0 to 255), then the label"
    assert second.split(b"\t") == [
        b"%d" % value for value in [*digits.images[0].flatten().tolist(), int(digits.labels[0])]
    ]
    assert same(read_text(path), digits.images, digits.labels)
    write_text(few, path)
    assert same(read_text(path), few.images, few.labels)
    assert [each.name for each in tmp_path.iterdir()] == ["digits.tsv"]


def test_text_write_fails(tmp_path, monkeypatch):
    path, few = tmp_path / "digits.tsv", Digits(*some(2))
    write_text(few, path)
    assert "cannot be written: No such file or directory" in message(write_text, few, tmp_path / "no" / "a")
    assert "cannot be written: Not a directory" in message(write_text, few, path / "a")
    assert "cannot be written: Is a directory" in message(write_text, few, tmp_path)

    def full(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert message(write_text, few, path) == (
        f"{path} cannot be written: No space left on device: make room or mend the folder"
    )
    assert same(read_text(path), few.images, few.labels)  # the old content
    assert [each.name for each in tmp_path.iterdir()] == ["digits.tsv"]


def test_labels_of_idx_are_no_table(tmp_path: Path):
    """Bytes that come out as lines of running numbers, as labels of letters do."""
    (tmp_path / "labels").write_bytes(
        b"\0\0\x08\x01\0\0\x0b\xb8\x06\x0e\x05\x0f\n\x10\x02\x11\x02\x12\x04\x13\x04\x14\x02\x15\x03\x16\x07"
        b"\x17\x05\x0e\n\x0f\x02\x10\x05\x11\x03\x15\x04\x16\x07\x17\x01\x13\x07\x0e\x08\x14\x02\x16\x08\x17\x04"
        b"\x17\t\x13\n\x11\x04\x0e\x08\x12\n"
    )
    assert recognise(tmp_path, [tmp_path / "labels"]) == []
