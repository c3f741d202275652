"""Parquet files as data hubs and pandas write them: exact pixels, names of classes, what is told of a broken one."""

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mnist_lightning.data.parquet import recognise
from mnist_lightning.errors import UserError

pa = pytest.importorskip("pyarrow", reason="pip install 'mnist-lightning[parquet]'")
pq = pytest.importorskip("pyarrow.parquet")
IMAGES = np.random.default_rng(0).integers(0, 256, (7, 28, 28), dtype=np.uint8)
LABELS = [3, 0, 9, 3, 1, 0, 7]


def png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def hub(path: Path, names=None, labels=LABELS, images=IMAGES, **columns) -> Path:
    """As the hub stores MNIST: a struct of a PNG file and its name, numbers as labels, their names in the metadata."""
    cells = [{"bytes": png(image), "path": f"{at}.png"} for at, image in enumerate(images)]
    table = pa.table({"image": cells, "label": labels, **columns})
    if names:
        features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return path


def only(path: Path, **settings):
    (part,) = recognise(path.parent, [path], **settings)
    return part


def message(call, *args) -> str:
    with pytest.raises(UserError) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_as_hubs_store_it(tmp_path: Path):
    train = hub(tmp_path / "mnist" / "train-00000-of-00001.parquet", names=[*"0123456789"])
    test = hub(tmp_path / "mnist" / "test-00000-of-00001.parquet", images=IMAGES[:2], labels=[1, 2])
    parts = recognise(tmp_path, [test, train])
    assert [(part.kind, part.count, part.size, part.form) for part in parts] == [
        ("test", 2, (28, 28), "Parquet"),
        ("train", 7, (28, 28), "Parquet"),
    ]
    digits = parts[1].read()
    assert np.array_equal(digits.images, IMAGES)
    assert digits.labels.tolist() == LABELS
    assert digits.names == parts[0].read().names == tuple("0123456789")


def test_names_of_classes_are_the_files(tmp_path: Path):
    digits = only(hub(tmp_path / "a.parquet", names=["shirt", "bag", "boot"], labels=[2, 0, 1, 1, 0, 2, 2])).read()
    assert digits.names == ("shirt", "bag", "boot")
    assert digits.labels.tolist() == [2, 0, 1, 1, 0, 2, 2]
    path = hub(tmp_path / "b.parquet", names=["shirt", "bag"], labels=[1, 0, 0, 2, 0, 0, 0])
    assert message(only(path).read) == f"{path}, row 3 (from 0) has label 2, expected 0 to 1"
    digits = only(hub(tmp_path / "c.parquet", labels=["b", "a", "b", "b", "a", "c", "c"])).read()
    assert (digits.names, digits.labels.tolist()) == (("a", "b", "c"), [1, 0, 1, 1, 0, 2, 2])


@pytest.mark.parametrize("form", ["binary", "list", "lists", "columns", "floats"])
def test_other_columns(tmp_path: Path, form: str):
    flat = IMAGES.reshape(7, 784)
    columns = {
        "binary": lambda: {"img": [png(image) for image in IMAGES]},
        "list": lambda: {"pixels": flat.tolist()},
        "lists": lambda: {"image": IMAGES.tolist()},
        "columns": lambda: {f"pixel{at}": flat[:, at] for at in range(784)},
        "floats": lambda: {"image": (flat / 255).astype(np.float32).tolist()},
    }[form]()
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"__index__": list(range(7)), **columns, "target": LABELS}), path)
    digits = only(path).read()
    assert np.array_equal(digits.images, IMAGES)
    assert digits.labels.tolist() == LABELS


def test_labels(tmp_path: Path):
    path = hub(tmp_path / "a.parquet", other=[1, 2, 1, 2, 1, 2, 1])
    assert only(path, label="other").read().labels.tolist() == [1, 2, 1, 2, 1, 2, 1]
    unlabelled = only(path, label="none")
    assert not unlabelled.labelled
    assert unlabelled.read().labels is None
    assert only(hub(tmp_path / "b.parquet", labels=[-1] * 7)).read().labels is None
    path = hub(tmp_path / "c.parquet", labels=[1, None, 2, 3, 4, 5, 6])
    assert message(only(path).read) == f"{path}, row 1 (from 0) has no label: give it one"


def test_what_is_wrong(tmp_path: Path, monkeypatch):
    path = hub(tmp_path / "train.parquet")
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    assert message(only(path).read).startswith(f"{path} is no Parquet file that can be read (")
    cells = [{"bytes": png(IMAGES[0]), "path": None}, {"bytes": b"no picture", "path": None}]
    pq.write_table(pa.table({"image": cells, "label": [1, 2]}), path)
    assert message(only(path).read).startswith(f"{path}, row 1 (from 0) is damaged or no picture (no picture)")
    pq.write_table(pa.table({"image": [{"bytes": None, "path": "a.png"}], "label": [1]}, schema=pa.schema({
        "image": pa.struct({"bytes": pa.binary(), "path": pa.string()}), "label": pa.int64()})), path)  # fmt: skip
    assert f"{path}, row 0 (from 0) holds no picture" in message(only(path).read)
    pq.write_table(pa.table({"epoch": [1, 2], "loss": [0.5, 0.25]}), path)
    assert recognise(tmp_path, [path]) == []
    path.write_bytes(b"label,pixel0\n")
    assert recognise(tmp_path, [path]) == []
    path.write_bytes(whole)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    (part,) = recognise(tmp_path, [path])
    assert message(part.read) == (
        f"{path} needs pyarrow, which is not installed: pip install 'mnist-lightning[parquet]'"
    )
