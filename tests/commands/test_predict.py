"""`predict FILE…`: each picture is told as what it is, and none keeps the others from being read."""

import csv
import gzip
import io
import json
import os
import signal
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from outcome import one_line
from PIL import Image, ImageDraw

from mnist_lightning.commands import answers
from mnist_lightning.commands.predict import parted
from mnist_lightning.data.photo import prepare
from mnist_lightning.data.synthetic import synthetic_digits
from mnist_lightning.predictor import Predictor
from mnist_lightning.reading import WORDS, Reading

SHIPPED = ("--ckpt_path", "pretrained")


def four(size: int = 200) -> Image.Image:
    """A four as one writes it with a thick pen: black on white."""
    picture = Image.new("L", (size, size), 255)
    draw, s = ImageDraw.Draw(picture), size / 300
    draw.line([(150 * s, 40 * s), (60 * s, 180 * s), (240 * s, 180 * s)], 0, int(20 * s))
    draw.line([(180 * s, 100 * s), (180 * s, 270 * s)], 0, int(20 * s))
    return picture


def numbers(count: int) -> Image.Image:
    """So many fours in a row."""
    row = Image.new("L", (200 * count, 200), 255)
    for place in range(count):
        row.paste(four(), (200 * place, 0))
    return row


def announced(width: int, height: int) -> bytes:
    """A PNG of 60 bytes that announces a size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def content(form: str, picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, form)
    return file.getvalue()


def rows(out: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in out.splitlines()]


@pytest.fixture
def predict(cli):
    """`predict("a.png")` gives the objects of --json; with the shipped weights, and it must do."""

    def run(*words: object):
        result = cli("predict", *words, "--json", *SHIPPED)
        assert result.status == 0, result.err
        assert result.err.startswith("mnist_lightning: with the shipped weights")
        return rows(result.out)

    return run


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM"])
def test_forms(form: str, predict):
    Path("digit").write_bytes(content(form, four()))  # its name does not tell
    (row,) = predict("digit")
    assert list(row) == ["file", "digit", "word", "confidence", "runner_up", "status"]
    assert [row[name] for name in ("file", "digit", "word", "status")] == ["digit", 4, "four", "ok"]
    assert 0.5 < row["confidence"] <= 1
    assert row["runner_up"] in "012356789"


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_modes(mode: str, predict):
    deep = Image.fromarray(np.asarray(four()).astype(np.uint16) * 257)
    picture = deep if mode == "I;16" else four().convert(mode)
    assert picture.mode == mode
    picture.save("a.tiff")
    assert predict("a.tiff")[0]["digit"] == 4


def test_heic(predict, cli, monkeypatch: pytest.MonkeyPatch):
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    four().convert("RGB").save("a.heic")
    assert predict("a.heic")[0]["digit"] == 4
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    for name in ("HEIF", "AVIF"):
        monkeypatch.delitem(Image.OPEN, name, raising=False)
    result = cli("predict", "a.heic", *SHIPPED)
    assert (result.status, "pip install 'mnist-lightning[heic]'" in result.err) == (1, True)


def test_folders_patterns_and_their_order(predict):
    for name in ("b/10.png", "b/9.PNG", "a/x.jpg", "a/deep/y.png", "a/notes.txt", "a/.hidden.png", "[1].png"):
        Path(name).parent.mkdir(exist_ok=True, parents=True)
        Path(name).write_bytes(content("PNG", four(40)))
    asked = ["b", "[1].png", "a", "b/1*.png", "**/y.png"]
    named = [row["file"] for row in predict(*asked)]
    assert named == ["b/10.png", "b/9.PNG", "[1].png", "a/deep/y.png", "a/x.jpg", "b/10.png", "a/deep/y.png"]


def test_many_come_in_the_order_that_they_were_named(predict):
    images, _ = synthetic_digits(150, seed=5)
    sizes = (28, 56, 28, 140)
    for number, image in enumerate(images):
        picture = Image.fromarray(255 - image.numpy())
        picture.resize((sizes[number % 4],) * 2).save(f"{number}.png")
    names = [f"{number}.png" for number in reversed(range(150))]
    found = predict(*names)
    assert [row["file"] for row in found] == names
    predictor = Predictor()
    for name, row in list(zip(names, found, strict=True))[::29]:
        seen = prepare(Image.open(name))
        best = predictor(seen.image.unsqueeze(0)).max(1)
        assert row["word"] == WORDS[int(best.indices)]
        assert row["confidence"] == pytest.approx(float(best.values), abs=1e-5)


def test_standard_input(predict, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content("PNG", four()))))
    (row,) = predict("-")
    assert (row["file"], row["digit"]) == ("-", 4)


def test_what_is_no_single_digit(predict):
    numbers(3).save("number.png")
    Image.new("RGB", (90, 90), "white").save("blank.png")
    number, blank = predict("number.png", "blank.png")
    assert [number[name] for name in ("digit", "number", "word", "status")] == [None, "444", "four four four", "number"]
    assert number["runner_up"] is None
    assert blank == {
        "file": "blank.png", "digit": None, "word": None, "confidence": None, "runner_up": None, "status": "blank",
    }  # fmt: skip


def test_pages_of_a_tiff(predict):
    blank = Image.new("L", (200, 200), 255)
    four().save("two.tiff", save_all=True, append_images=[blank])
    assert [(row["file"], row["status"]) for row in predict("two.tiff")] == [
        ("two.tiff#1", "ok"),
        ("two.tiff#2", "blank"),
    ]
    four().save("moves.gif", save_all=True, append_images=[blank])  # of an animation the first
    assert [(row["file"], row["status"]) for row in predict("moves.gif")] == [("moves.gif", "ok")]


WHOLE = content("PNG", four())
HOSTILE = {
    "empty.png": (b"", "is empty"),
    "text.png": (b"hello", "is no picture that can be read"),
    "cut.png": (WHOLE[: len(WHOLE) // 2], "is damaged"),
    "cut.jpg": (content("JPEG", four())[:900], "is damaged"),
    "header.png": (WHOLE[:20], "is no picture that can be read"),
    "bomb.png": (announced(60_000, 60_000), "announces more pixels"),
    "large.png": (announced(12_000, 12_000), "has 12000x12000 pixels"),
    "a.svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is SVG"),
    "a.pdf": (b"%PDF-1.4\n", "is PDF"),
    "a.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n", "is EPS"),
}


def test_hostile_pictures_among_others(cli):
    Path("first.png").write_bytes(WHOLE)
    for name, (data, _) in HOSTILE.items():
        Path(name).write_bytes(data)
    os.mkfifo("pipe.png")
    Path("void").mkdir()
    expected = {name: reason for name, (_, reason) in HOSTILE.items()}
    expected |= {
        "pipe.png": "is a pipe",
        "void": "holds no pictures",
        "nope.png": "no such file",
        "q*.png": "no such file",
    }
    result = cli("predict", "first.png", *expected, "first.png", "--json", *SHIPPED)
    assert result.status == 1
    first, *bad, last = rows(result.out)
    assert (first["digit"], last["digit"]) == (4, 4)
    assert {row["file"]: (row["status"], row["digit"]) for row in bad} == dict.fromkeys(expected, ("unreadable", None))
    for row in bad:
        assert expected[row["file"]] in row["reason"]
    told = result.err.splitlines()
    assert told[1:] == [f"mnist_lightning: {len(bad)} of {len(bad) + 2} files could not be read, the first: "
                        "empty.png is empty"]  # fmt: skip


def test_bytes_at_random(cli):
    """Whatever is damaged, it is read or told; nothing else comes of it."""
    generator = torch.Generator().manual_seed(1)
    names = []
    for form in ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF"):
        whole = content(form, four(60))
        for number in range(12):
            data = bytearray(whole)
            for place in torch.randint(len(data), (1 + number,), generator=generator).tolist():
                data[place] ^= 1 + place % 255
            names.append(f"{number}.{form.lower()}")
            Path(names[-1]).write_bytes(data)
    result = cli("predict", *names, "--json", *SHIPPED)
    assert [row["file"] for row in rows(result.out)] == names
    assert "Warning" not in result.err + result.out
    assert len(result.err.splitlines()) <= 2


# ---------------------------------------------------------------------- how it is told


def test_lines_for_other_programs(cli):
    four().save("a\tb.png")
    Image.new("L", (90, 90), 255).save("blank.png")
    result = cli("predict", "a\tb.png", "blank.png", *SHIPPED)
    first, second = (line.split("\t") for line in result.out.splitlines())
    assert (first[:3], first[5]) == (["a\\tb.png", "4", "four"], "ok")
    assert second == ["blank.png", "", "", "", "", "blank"]


def test_a_table(cli):
    four().save("a.png")
    numbers(2).save("b.png")
    printed = cli("predict", "a.png", "b.png", "--csv", *SHIPPED).out
    cli("predict", "a.png", "b.png", "--csv", "out.csv", *SHIPPED)
    assert Path("out.csv").read_text() == printed
    first, second = csv.DictReader(printed.splitlines())
    assert list(first) == ["file", "digit", "word", "confidence", "runner_up", "status", "number"]
    assert (first["digit"], first["number"], second["digit"], second["number"]) == ("4", "", "", "44")
    result = cli("predict", "a.png", "--csv=a.png", *SHIPPED)
    assert (result.status, "is there and is no table of predict" in result.err) == (1, True)
    assert cli("predict", "a.png", "--csv", "out.csv", *SHIPPED).status == 0  # its own it replaces
    assert len(Path("out.csv").read_text().splitlines()) == 2


def test_files_of_data_and_kaggles_form(cli):
    images, labels = synthetic_digits(30, seed=7)
    header = ",".join(f"pixel{number}" for number in range(784))
    lines = [",".join(map(str, image)) for image in images.flatten(1).tolist()]
    Path("test.csv").write_text("\n".join([header, *lines]) + "\n")
    best = Predictor()(images).argmax(1).tolist()
    result = cli("predict", "test.csv", "--csv", *SHIPPED)
    assert result.status == 0
    assert result.out == "".join(["ImageId,Label\n", *(f"{row},{digit}\n" for row, digit in enumerate(best, 1))])
    labelled = [f"{label},{line}" for label, line in zip(labels.tolist(), lines, strict=True)]
    Path("train.csv").write_text("\n".join([f"label,{header}", *labelled]) + "\n")
    found = rows(cli("predict", "train.csv", "--json", *SHIPPED).out)
    assert [row["file"] for row in found] == [f"train.csv#{number}" for number in range(1, 31)]
    assert [row["digit"] for row in found] == best
    Path("broken.csv").write_text(f"{header}\n1,2,x\n")
    result = cli("predict", "broken.csv", *SHIPPED)
    assert (result.status, result.err.count("\n")) == (1, 2)


@pytest.mark.parametrize("name", ["test.csv", "test.npz", "t10k-images-idx3-ubyte.gz", "test.npy"])
def test_files_of_data_in_any_form_and_dark_on_light(cli, name: str):
    images, _ = synthetic_digits(30, seed=7)
    best = Predictor()(images).argmax(1).tolist()
    for pixels in (images.numpy(), 255 - images.numpy()):
        if name.endswith("csv"):
            Path(name).write_text("".join(",".join(map(str, row)) + "\n" for row in pixels.reshape(30, -1).tolist()))
        elif name.endswith("npz"):
            np.savez(name, x_test=pixels)
        elif name.endswith("npy"):
            np.save(name, pixels)
        else:
            Path(name).write_bytes(gzip.compress(struct.pack(">4I", 0x803, *pixels.shape) + pixels.tobytes()))
        result = cli("predict", name, "--csv", *SHIPPED)
        assert result.status == 0
        assert result.out == "".join(["ImageId,Label\n", *(f"{row},{digit}\n" for row, digit in enumerate(best, 1))])


def test_what_the_network_saw(cli):
    four().save("a.png")
    numbers(2).save("b.png")
    Path("in").mkdir()
    four().save("in/a.png")
    assert cli("predict", "a.png", "b.png", "in", "--save_seen", "seen", *SHIPPED).status == 0
    assert sorted(path.name for path in Path("seen").iterdir()) == [
        "a-2.seen.png", "a.seen.png", "b-1.seen.png", "b-2.seen.png",
    ]  # fmt: skip
    saved = Image.open("seen/a.seen.png")
    assert (saved.size, saved.mode) == ((28, 28), "L")
    assert torch.equal(torch.tensor(list(saved.tobytes())), prepare(four()).image.flatten().long())
    result = cli("predict", "a.png", "--save_seen", "a.png", *SHIPPED)
    assert (result.status, "cannot be written" in result.err) == (1, True)


def test_a_terminal(cli, monkeypatch: pytest.MonkeyPatch):
    four().save("a.png")
    numbers(2).save("b.png")
    Image.new("L", (90, 90), 255).save("blank.png")
    monkeypatch.setattr(answers, "as_line", lambda reading: pytest.fail("that is for pipes"))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    result = cli("predict", "a.png", "b.png", "blank.png", "b.png", *SHIPPED)
    assert result.out.count("4 four") >= 1
    assert "44 four four" in result.out
    assert "blank.png  nothing is on it" in result.out


def test_half_blocks():
    image = torch.zeros(28, 28, dtype=torch.uint8)
    image[0, 0] = image[1, 1] = image[2, 2] = image[3, 2] = 255
    lines = answers.half_blocks(image).plain.splitlines()
    assert [len(line) for line in lines] == [28] * 14
    assert [line[:4] for line in lines[:2]] in (["▀▄  ", "  █ "], ["▀▀▀▀", "▀▀▀▀"])  # without colour, with it


def test_names_that_are_no_text():
    assert answers.printable("a\x1b[2Jb\udcff") == "a\\x1b[2Jb\\xff"


def test_classes_that_are_no_digits():
    row = Reading("a.png", "ok", "B", "B", 0.9, "8", parts=[torch.zeros(28, 28)]).row()
    assert (row["digit"], row["word"], row["runner_up"]) == (None, "B", "8")


# ---------------------------------------------------------------------- words


ASKED = [
    ("a.png --json", ["a.png"], {"json": True}),
    ("--json a.png", ["a.png"], {"json": True}),
    ("a.png --csv", ["a.png"], {"csv": ""}),
    ("a.png --csv out.csv", ["a.png"], {"csv": "out.csv"}),
    ("--csv out.csv a.png", ["a.png"], {"csv": "out.csv"}),
    ("--csv test.csv", ["test.csv"], {"csv": ""}),
    ("--csv=out.csv test.csv", ["test.csv"], {"csv": "out.csv"}),
    ("--run a -- --json", ["--json"], {"run": "a"}),
    ("- --save_seen seen", ["-"], {"save_seen": "seen"}),
]


@pytest.mark.parametrize(("words", "files", "asked"), ASKED, ids=[words for words, *_ in ASKED])
def test_words(words: str, files: list[str], asked: dict[str, object]):
    assert parted(words.split()) == (files, asked)


FAILS = [
    ("a.png --jsn x", "there is no flag --jsn; did you mean --json?"),
    ("--jsn a.png", "there is no flag --jsn; did you mean --json?"),
    ("a.png --trainer.devices 2", "there is no flag --trainer.devices for pictures"),
    ("--json", "--json goes with pictures: name their files, or - for standard input"),
    ("a.png --json --csv", "--json and --csv both write to standard output: give --csv a file"),
    ("a.png --save_seen", "--save_seen takes a value; see --help"),
]


@pytest.mark.parametrize(("words", "expected"), FAILS, ids=[words for words, _ in FAILS])
def test_wrong_words(words: str, expected: str, cli):
    result = cli("predict", *words.split())
    assert (result.status, expected in one_line(result)) == (2, True)


def test_no_such_run(cli):
    result = cli("predict", "a.png", "--run", "nope")
    assert (result.status, "there is no run 'nope'" in one_line(result)) == (1, True)


def test_help(cli):
    result = cli("predict", "--help")
    assert (result.status, result.out.startswith("usage: ")) == (0, True)


def test_the_newest_run_reads(fit, cli):
    fit("--run", "a")
    four().save("a.png")
    result = cli("predict", "a.png")
    assert result.err.startswith("mnist_lightning: with checkpoints/a/best.ckpt (MLP, epoch 1); --ckpt_path pretrained")


# ---------------------------------------------------------------------- processes


def started(*words: str, **options: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "mnist_lightning", "predict", *words, *SHIPPED]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


@pytest.mark.slow
def test_a_pipe_that_is_closed(tmp_path: Path):
    Image.fromarray(synthetic_digits(1, seed=1)[0][0].numpy()).save(tmp_path / "a.png")
    with started(*["a.png"] * 5000, cwd=tmp_path) as process:
        process.stdout.readline()
        process.stdout.close()
        told = process.stderr.read().decode()
    assert (process.returncode, len(told.splitlines())) == (0, 1)


@pytest.mark.slow
def test_ctrl_c(tmp_path: Path):
    photo = Image.effect_noise((1500, 1500), 60)
    photo.save(tmp_path / "a.png")
    with started(*["a.png"] * 5000, cwd=tmp_path) as process:
        assert b"with" in process.stderr.readline()
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        told = process.stderr.read().decode()
    assert (process.returncode, told) == (130, "mnist_lightning: stopped\n")
