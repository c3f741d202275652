"""`convert`: images as text, which trains as the files that it came from."""

from pathlib import Path

import pytest
from outcome import RUNS, one_line, outcome, same


def test_convert_and_back(fit, cli, tiny_mnist: Path):
    for split, count in (("train", 300), ("test", 100)):
        result = cli("convert", "--data.root", tiny_mnist, "--split", split, "--output", f"{split}.txt")
        assert (result.status, result.err) == (0, "")
        assert result.out == f"{count} images of mnist written to {split}.txt\n"
    fit("--run", "idx")
    text = ["--data.source", "text", "--data.train_file", "train.txt", "--data.test_file", "test.txt"]
    fit("--run", "text", *text)
    assert same(RUNS / "idx" / "last.ckpt", RUNS / "text" / "last.ckpt")
    assert outcome("text")["correct"] == outcome("idx")["correct"]
    assert outcome("text")["source"] == "text"
    assert cli("convert", "--data.root", tiny_mnist, "--rows", 7, "--output", "few.txt").status == 0
    assert len([line for line in Path("few.txt").read_text().splitlines() if line[0] != "#"]) == 7


WRONG = [
    ("", "--output is missing; see --help", 2),
    ("--output x --split both", "--split: 'both' is not what it takes: one of 'train', 'test'", 2),
    ("--output x --rows 0", "--rows is 0; there are 300 images", 2),
    ("--output x --data mine.Data", "--data: convert reads MNISTDataModule's files, no Data", 2),
    ("--output no/where.txt", "no/where.txt cannot be written", 1),
    ("--output /dev/null", "/dev/null is a pipe or a device", 1),
]


@pytest.mark.parametrize(("words", "told", "status"), WRONG, ids=[words for words, *_ in WRONG])
def test_wrong_words(mine, cli, tiny_mnist: Path, words: str, told: str, status: int):
    root = [] if "mine" in words else ["--data.root", tiny_mnist]
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
