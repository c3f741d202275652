"""`convert`: images in other forms, which read and train as the files that they came from."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from outcome import RUNS, one_line, outcome, same

from mnist_lightning.data import folders, parquet, tables, writing
from mnist_lightning.data.digits import Digits

FORMS = ["text", "csv", "idx", "npz", "png", "parquet"]
OUTPUTS = {"text": "{}.txt", "csv": "{}.csv", "npz": "{}.npz", "parquet": "{}.parquet", "idx": ".", "png": "."}


def test_convert_and_back(fit, cli, tiny_mnist: Path):
    for split, count in (("train", 300), ("test", 100)):
        result = cli("convert", "--data.root", tiny_mnist, "--split", split, "--output", f"{split}.txt")
        assert (result.status, result.err) == (0, "")
        assert result.out.endswith(f"{count} images of mnist written to {split}.txt\n")
    fit("--run", "idx")
    text = ["--data.source", "text", "--data.train_file", "train.txt", "--data.test_file", "test.txt"]
    fit("--run", "text", *text)
    assert same(RUNS / "idx" / "last.ckpt", RUNS / "text" / "last.ckpt")
    assert outcome("text")["correct"] == outcome("idx")["correct"]
    assert outcome("text")["source"] == "text"
    assert cli("convert", "--data.root", tiny_mnist, "--rows", 7, "--output", "few.txt").status == 0
    assert len([line for line in Path("few.txt").read_text().splitlines() if line[0] != "#"]) == 7


def test_an_ending_that_no_form_has(cli, tiny_mnist: Path):
    for name in ("x.gif", "x.json"):
        result = cli("convert", "--data.root", tiny_mnist, "--output", name)
        assert result.status == 2
        assert f"--output {name}: {name[1:]} is no form that is written; there are .csv, .npz" in one_line(result)
        assert not Path(name).exists()
    assert cli("convert", "--data.root", tiny_mnist, "--output", "x.gif", "--form", "npz").status == 0
    assert cli("convert", "--data.root", tiny_mnist, "--output", "x").status == 0
    assert Path("x").read_bytes().startswith(b"# 300 digits")


def read_again(root: Path, form: str, split: str) -> Digits:
    """What was written there, by its own reader."""
    if form == "idx":
        prefix = {"train": "train", "test": "t10k"}[split]
        images = np.fromfile(root / f"{prefix}-images-idx3-ubyte", np.uint8, offset=16).reshape(-1, 28, 28)
        labels = np.fromfile(root / f"{prefix}-labels-idx1-ubyte", np.uint8, offset=8)
        return Digits(torch.from_numpy(images), torch.from_numpy(labels))
    if form == "npz":
        with np.load(root / f"{split}.npz") as content:
            return Digits(*(torch.from_numpy(content[f"{name}_{split}"]) for name in "xy"))
    files = sorted(path for path in root.rglob("*") if path.is_file())
    reader = {"parquet": parquet, "png": folders}.get(form, tables)
    (part,) = (part for part in reader.recognise(root, files) if part.kind == split)
    return part.read()


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_digits(cli, tiny_mnist: Path, tiny_digits, form: str, tmp_path: Path):
    out = tmp_path / "out"
    out.mkdir()
    for split in ("train", "test"):
        words = [] if OUTPUTS[form] != "." else ["--form", form]
        path = out / OUTPUTS[form].format(split)
        result = cli("convert", "--data.root", tiny_mnist, "--split", split, "--output", path, *words)
        assert (result.status, result.err) == (0, "")
    for split, (images, labels) in zip(("train", "test"), tiny_digits, strict=True):
        digits = read_again(out, form, split)
        assert torch.equal(digits.images, images)
        assert torch.equal(digits.labels, labels)
        assert digits.names == tuple("0123456789")
    assert not [path for path in out.rglob("*") if ".tmp" in path.name]


NAMED = Digits(
    torch.randint(0, 256, (9, 28, 28), dtype=torch.uint8, generator=torch.manual_seed(0)),
    torch.tensor([2, 0, 1, 1, 0, 2, 2, 1, 0], dtype=torch.uint8),
    ("ant", "bee", "cat"),
)


@pytest.mark.parametrize("form", ["csv", "png", "parquet"])
def test_names_are_kept(tmp_path: Path, form: str):
    writing.write(NAMED, "train", tmp_path / OUTPUTS[form].format("train"), form)
    digits = read_again(tmp_path, form, "train")
    assert torch.equal(digits.images, NAMED.images)
    assert (digits.labels.tolist(), digits.names) == (NAMED.labels.tolist(), NAMED.names)


@pytest.mark.parametrize("form", FORMS)
def test_a_full_disk_leaves_nothing(cli, tiny_mnist: Path, monkeypatch, form: str, tmp_path: Path):
    def full(*_args):
        raise OSError(28, "No space left on device")

    out = tmp_path / "out"
    out.mkdir()
    monkeypatch.setattr(os, "replace", full)
    result = cli("convert", "--data.root", tiny_mnist, "--rows", 20, "--form", form, "--output", out / OUTPUTS[form])
    assert result.status == 1
    assert "cannot be written: No space left on device: make room" in one_line(result)
    assert list(out.iterdir()) == []


def test_folders_are_not_mixed(cli, tiny_mnist: Path):
    words = ["convert", "--data.root", tiny_mnist, "--rows", 20, "--form", "png", "--output", "digits"]
    assert cli(*words).status == 0
    again = cli(*words)
    assert (again.status, "digits/train is there already: remove it" in one_line(again)) == (1, True)


def test_what_a_csv_holds(cli, tiny_mnist: Path, tiny_digits):
    """Kaggle's header, then label and pixels."""
    assert cli("convert", "--data.root", tiny_mnist, "--rows", 2, "--output", "few.csv").status == 0
    header, first, *_ = Path("few.csv").read_text().splitlines()
    assert header.startswith("label,pixel0,pixel1,")
    (images, labels), _ = tiny_digits
    assert first == ",".join(map(str, [int(labels[0]), *images[0].flatten().tolist()]))


WRONG = [
    ("", "--output is missing; see --help", 2),
    ("--output x --split both", "--split: 'both' is not what it takes: one of 'train', 'test'", 2),
    ("--output x --form gif", "--form: 'gif' is not what it takes: one of 'text', ", 2),
    ("--output x --rows 0", "--rows is 0; there are 300 images", 2),
    ("--output x --data mine.Data", "--data: convert reads MNISTDataModule's files, no Data", 2),
    ("--output no/where.txt", "no/where.txt cannot be written", 1),
    ("--output /dev/null", "/dev/null is a pipe or a device", 1),
    ("--output .", "--output . is a folder, and text a file: give its name, or --form idx or png", 2),
    ("--output mine.py/x --form png", "mine.py/x cannot be written", 1),
]


@pytest.mark.parametrize(("words", "told", "status"), WRONG, ids=[words for words, *_ in WRONG])
def test_wrong_words(mine, cli, tiny_mnist: Path, words: str, told: str, status: int):
    root = [] if "mine.Data" in words else ["--data.root", tiny_mnist]
    result = cli("convert", *root, *words.split())
    assert (result.status, told in one_line(result)) == (status, True)


@pytest.mark.slow
def test_text_and_idx_of_mnist_train_alike(cli, real_mnist: Path):
    for split, count in (("train", 1000), ("test", 200)):
        words = ["--split", split, "--rows", count, "--output", f"{split}.txt"]
        assert cli("convert", "--data.root", real_mnist, *words).status == 0
    recipe = ["--config", "mccaffrey_cnn", "--trainer.max_epochs", 1]
    assert cli("fit", *recipe, "--run", "idx", "--data.root", real_mnist).status == 0
    text = ["--data.source", "text", "--data.train_file", "train.txt", "--data.test_file", "test.txt"]
    assert cli("fit", *recipe, "--run", "text", *text).status == 0
    assert same(RUNS / "idx" / "last.ckpt", RUNS / "text" / "last.ckpt")
