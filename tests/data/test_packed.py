"""Archives in every packing and in one another: what is in them, and what is out of proportion."""

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from samples import write_mnist

from mnist_lightning.data import sources
from mnist_lightning.data.packed import Item, items_of, unpacked
from mnist_lightning.errors import UserError


def zipped(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return out.getvalue()


def tarred(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return out.getvalue()


PACKINGS = {
    "digits.zip": zipped,
    "digits.tar": tarred,
    "digits.tar.gz": lambda files: gzip.compress(tarred(files)),
    "digits.tgz": lambda files: bz2.compress(tarred(files)),  # whatever it is called
    "digits.tar.xz": lambda files: lzma.compress(tarred(files)),
    "of_zip.zip": lambda files: zipped({"inner.zip": zipped(files)}),
    "of_tar.zip": lambda files: zipped({"a/inner.tar.gz": gzip.compress(tarred(files))}),
    "of_zip.tar": lambda files: tarred({"./inner.zip": zipped(files)}),
}


def same(found: sources.Found, tiny_digits) -> bool:
    splits = zip(("train", "test"), tiny_digits, strict=True)
    return all(
        (digits := found.read(split)).images.equal(images) and digits.labels.equal(labels)
        for split, (images, labels) in splits
    )


@pytest.mark.parametrize("name", PACKINGS)
def test_idx_in_archives(tmp_path: Path, tiny_digits, name: str):
    write_mnist(tmp_path / "plain", *tiny_digits)
    files = {f"mnist/{path.name}": path.read_bytes() for path in (tmp_path / "plain").iterdir()}
    root = tmp_path / "root"
    root.mkdir()
    (root / name).write_bytes(PACKINGS[name](files | {"__MACOSX/._x": b"", "mnist/.DS_Store": b""}))
    assert same(sources.find(root), tiny_digits)
    assert same(sources.find(root / name), tiny_digits)


def test_packed_twice(tmp_path: Path, tiny_digits):
    write_mnist(tmp_path, *tiny_digits)
    for path in tmp_path.iterdir():
        path.write_bytes(gzip.compress(path.read_bytes()))
    assert same(sources.find(tmp_path), tiny_digits)


@pytest.mark.parametrize("name", PACKINGS)
def test_arrays_in_archives(tmp_path: Path, tiny_digits, name: str):
    (images, labels), (test_images, test_labels) = tiny_digits
    out = io.BytesIO()
    np.savez(out, x_train=images, y_train=labels, x_test=test_images, y_test=test_labels)
    (tmp_path / name).write_bytes(PACKINGS[name]({"mnist.npz": out.getvalue()}))
    assert same(sources.find(tmp_path), tiny_digits)


@pytest.mark.parametrize("name", PACKINGS)
def test_all_pictures_of_an_archive(tmp_path: Path, tiny_digits, name: str):
    (images, labels), _ = tiny_digits
    files = {}
    for at in range(1100):
        out = io.BytesIO()
        Image.fromarray(images[at % len(images)].numpy()).save(out, "PNG")
        files[f"mnist_png/training/{labels[at % len(images)]}/{at:05}.png"] = out.getvalue()
    (tmp_path / name).write_bytes(PACKINGS[name](files))
    (part,) = next(iter(sources.find(tmp_path).parts.values()))
    digits = part.read()
    assert len(digits.labels) == part.count == 1100
    assert digits.images[:300].equal(images[:300])
    assert digits.labels[:300].equal(labels[:300])


@pytest.mark.parametrize("form", ["/data/train/{}/{}.png", "../../train/{}/{}.png", ".\\train\\{}\\{}.png"])
@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz"])
def test_names_that_lead_out_of_an_archive(tmp_path: Path, tiny_digits, name: str, form: str):
    (images, labels), _ = tiny_digits
    files = {"..": b"", "/": b""}
    for at in range(60):
        out = io.BytesIO()
        Image.fromarray(images[at].numpy()).save(out, "PNG")
        files[form.format(int(labels[at]), at + 100)] = out.getvalue()
    packed = zipped(files) if name == "a.zip" else gzip.compress(tarred(files))
    (tmp_path / name).write_bytes(packed)
    digits = sources.find(tmp_path).parts["train"][0].read()
    assert digits.images.equal(images[:60])
    assert [digits.names[label] for label in digits.labels] == [str(int(label)) for label in labels[:60]]


def test_what_is_no_file_in_a_tar_archive(tmp_path: Path):
    """Links, pipes and devices under names that would be read."""
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE):
            member = tarfile.TarInfo(f"train/3/{kind.decode()}.png")
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
        member = tarfile.TarInfo("train/3/9.png")
        archive.addfile(member)
    assert items_of(tmp_path / "a.tar") == [Item(tmp_path / "a.tar", "train/3/9.png")]


@pytest.mark.slow
def test_what_is_out_of_proportion(tmp_path: Path):
    empty = bytes(1 << 28)
    for name, content in {
        "a.zip": zipped({"inner.zip": zipped({"t10k-images-idx3-ubyte": b"\0\0\x08\x03" + empty})}),
        "a.tar.gz": gzip.compress(tarred({"first": empty, "t10k-images-idx3-ubyte": b"\0\0\x08\x03"}), 9),
    }.items():
        (tmp_path / name).write_bytes(content)
    assert [str(item) for item in items_of(tmp_path / "a.tar.gz")] == [str(tmp_path / "a.tar.gz")]
    large = io.BytesIO()
    with zipfile.ZipFile(large, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("t10k-images-idx3-ubyte", empty)
    (tmp_path / "b.zip").write_bytes(zipped({"inner.zip": large.getvalue()}))
    assert items_of(tmp_path / "b.zip") == [Item(tmp_path / "b.zip", "inner.zip")]  # nobody looks into that
    (item,) = items_of(tmp_path / "a.zip")
    with pytest.raises(UserError, match="more than a zip file of"), unpacked(item) as source:
        source.check(1 << 28, str(item))


def test_what_is_no_archive(tmp_path: Path):
    files = {"train.csv": b"1,2\n"}
    for name, content in {"cut.zip": zipped(files)[:-9], "cut.tar": tarred(files)[:600], "text.zip": b"text"}.items():
        (tmp_path / name).write_bytes(content)
        assert [item.path for item in items_of(tmp_path / name)] == [tmp_path / name]
    (tmp_path / "a.zip").write_bytes(zipped(files))
    gone = Item(tmp_path / "a.zip", "other.csv")
    with pytest.raises(UserError, match=r"zip archive that cannot be read .*no 'other.csv' in it"), unpacked(gone):
        pass
