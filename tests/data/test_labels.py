"""Labels in the names of pictures and in tables beside them: exact, and none where a name says nothing."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mnist_lightning.data.labels import labels_of
from mnist_lightning.data.sources import find, saw
from mnist_lightning.errors import UserError

LABELS = [at * 7 % 10 for at in range(50)]


@pytest.mark.parametrize(
    ("form", "place"),
    [
        ("{label}_{at:04}", "first"),
        ("{at}-{label}", "last"),
        ("img_{at:04}_num{label}", "last"),
        ("{word}.{at}", "first"),
        ("scan {at} label={letter}", "last"),
    ],
)
def test_in_names(form: str, place: str):
    words = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    called = [{"label": label, "word": words[label], "letter": "ABCDEFGHIJ"[label]} for label in LABELS]
    paths = [Path(f"{form.format(at=at, **names)}.png") for at, names in enumerate(called)]
    found, told = labels_of(paths, [], Path.read_bytes)
    kind = next(kind for kind in ("label", "word", "letter") if f"{{{kind}}}" in form)
    assert [found[path] for path in paths] == [str(names[kind]) for names in called]
    assert told == f" (label {place} in their names)"


@pytest.mark.parametrize("form", ["img_{at}", "{at:04}", "{label}_{at}_{label}", "IMG_2026{at:02}_1", "page{at}_{at}"])
def test_names_that_say_nothing(form: str):
    paths = [Path(f"{form.format(at=at, label=label)}.png") for at, label in enumerate(LABELS)]
    assert labels_of(paths, [], Path.read_bytes) == ({}, "")


def test_numbers_that_only_count():
    assert labels_of([Path(f"img_{at}.png") for at in range(10)], [], Path.read_bytes) == ({}, "")


@pytest.mark.parametrize("name", ["labels.csv", "labels.tsv", "train/index.txt"])
@pytest.mark.parametrize("header", [("filename", "label"), ("id", "digit"), None])
def test_in_a_table(tmp_path: Path, name: str, header):
    (tmp_path / "train").mkdir()
    images = np.random.default_rng(0).integers(0, 100, (50, 28, 28), dtype=np.uint8)
    for at, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / "train" / f"{at:02}.png")
    shown = "train/{:02}.png" if header != ("id", "digit") else "{:02}"
    rows = [header] if header else []
    rows += [(shown.format(at), str(label)) for at, label in enumerate(LABELS)]
    sign = "," if name.endswith("csv") else "\t"
    (tmp_path / name).write_text("".join(sign.join(row) + "\n" for row in rows), encoding="utf-8")
    found = find(tmp_path)
    (part,) = found.parts["train"]
    assert part.form == f"PNG files (labels in {Path(name).name})"
    digits = part.read()
    assert digits.labels.tolist() == LABELS
    assert np.array_equal(digits.images, images)
    (tmp_path / name).write_text("".join(sign.join(row) + "\n" for row in rows[:-1]), encoding="utf-8")
    with pytest.raises(UserError, match=r"train.49\.png has no label in the table beside it: add it"):
        find(tmp_path).read("train")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_numbers_for_names(tmp_path: Path, encoding: str):
    """Labels that are names of pictures, too."""
    table = "id,label\n" + "".join(f"{at},{label}\n" for at, label in enumerate(LABELS))
    for at in range(50):
        Image.new("L", (28, 28), at).save(tmp_path / f"{at}.png")
    (tmp_path / "labels.csv").write_text(table, encoding=encoding)
    digits = find(tmp_path).whole()
    assert [LABELS[int(image[0, 0])] for image in digits.images] == digits.labels.tolist()


def test_in_an_archive(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for at in range(50):
            file = io.BytesIO()
            Image.new("L", (28, 28), at).save(file, "PNG")
            archive.writestr(f"set/images/{at:03}.png", file.getvalue())
        archive.writestr("set/labels.csv", "".join(f"{at:03}.png,{label}\n" for at, label in enumerate(LABELS)))
    (part,) = find(tmp_path).parts["train"]
    assert part.form == "PNG files (labels in labels.csv)"
    assert part.read().labels.tolist() == LABELS


def test_pictures_without_labels(tmp_path: Path):
    for at in range(50):
        Image.new("L", (28, 28)).save(tmp_path / f"img_{at}.png")
    assert find(tmp_path) is None
    assert "from pictures' names such as 7_0012.png or a table of names and labels beside them" in saw(tmp_path)
