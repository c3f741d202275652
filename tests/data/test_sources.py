"""Every source: the exact values it gives, and the one-line UserError for everything that can be wrong."""

import gzip
import hashlib
import http.server
import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from mnist_lightning.data import sources
from mnist_lightning.data.download import download
from mnist_lightning.data.sources import TAKES, Digits, find
from mnist_lightning.data.sources import read as read_idx
from mnist_lightning.data.tables import read_text, write_text
from mnist_lightning.errors import UserError

REAL = Path(os.environ.get("MNIST_ROOT", Path(__file__).parents[3] / "shared" / "mnist"))
needs_mnist = pytest.mark.skipif(
    not REAL.is_dir(), reason=f"{REAL} is not there: set MNIST_ROOT to a folder with MNIST's four files"
)
NAMES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def some(count: int, seed: int = 0) -> Digits:
    images = torch.randint(0, 256, (count, 28, 28), dtype=torch.uint8, generator=torch.manual_seed(seed))
    return Digits(images, (torch.arange(count) % 10).to(torch.uint8))


def idx_images(images: torch.Tensor) -> bytes:
    return struct.pack(">4I", 0x803, *images.shape) + bytes(images.flatten().tolist())


def idx_labels(labels: torch.Tensor) -> bytes:
    return struct.pack(">2I", 0x801, len(labels)) + bytes(labels.tolist())


def put(path: Path, content: bytes, gz: bool) -> None:
    if gz:
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(content, mtime=0))
    else:
        path.write_bytes(content)


def write_idx(folder: Path, gz: bool, train: Digits | None = None, test: Digits | None = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    train, test = train or some(5), test or some(3, seed=1)
    contents = (
        idx_images(train.images),
        idx_labels(train.labels),
        idx_images(test.images),
        idx_labels(test.labels),
    )
    for name, content in zip(NAMES, contents, strict=True):
        put(folder / name, content, gz)


def message(call, *args) -> str:
    """That of the UserError that the call must raise: one line."""
    with pytest.raises(UserError) as caught:
        call(*args)
    text = str(caught.value)
    assert "\n" not in text
    return text


def same(one: Digits, other: Digits) -> bool:
    return torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)


# IDX files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gz", [False, True], ids=["plain", "gz"])
def test_idx_values(tmp_path, gz):
    write_idx(tmp_path, gz)
    train, test = read_idx(tmp_path, "train"), read_idx(tmp_path, "test")
    assert same(train, some(5))
    assert same(test, some(3, seed=1))
    assert train.images.dtype == train.labels.dtype == torch.uint8
    assert train.images.shape == (5, 28, 28)


def test_a_download_that_lies_there_twice(tmp_path):
    write_idx(tmp_path, gz=True)
    for path in list(tmp_path.iterdir()):
        shutil.copy(path, path.with_name(path.name.replace(".gz", " (1).gz")))
    assert same(read_idx(tmp_path, "train"), some(5))
    assert same(read_idx(tmp_path, "test"), some(3, seed=1))


@pytest.mark.skipif(sys.platform == "win32", reason="links take a right there")
def test_links_in_a_circle(tmp_path):
    write_idx(tmp_path / "mnist", gz=True)
    (tmp_path / "mnist" / "up").symlink_to("..")
    (tmp_path / "again").symlink_to("mnist")
    assert len(sources.files_under(tmp_path)) == 4
    assert same(read_idx(tmp_path, "train"), some(5))


def test_images_to_validate_on_are_those_to_test_on_where_there_are_no_others(tmp_path):
    write_idx(tmp_path, gz=True)
    for path in tmp_path.glob("t10k*"):
        path.rename(path.with_name(path.name.replace("t10k", "val")))
    found = sources.find(tmp_path)
    assert same(found.read("train"), some(5))
    assert same(found.read("test"), some(3, seed=1))
    assert found.told().endswith("10 classes; those for validation to test on")


def test_what_is_pickled_is_not_read(tmp_path):
    (tmp_path / "mnist.pkl.gz").write_bytes(gzip.compress(b"\x80\x04."))
    assert "mnist.pkl.gz is pickled, which could run code and is not read" in sources.saw(tmp_path)
    assert sources.saw(tmp_path / "none").startswith(f"there is no {tmp_path / 'none'}: give the folder")


def test_idx_plain_wins_over_gz(tmp_path):
    write_idx(tmp_path, gz=True, train=some(7))
    write_idx(tmp_path, gz=False)
    assert same(read_idx(tmp_path, "train"), some(5))


def test_idx_mixed_plain_and_gz(tmp_path):
    write_idx(tmp_path, gz=True)
    write_idx(tmp_path, gz=False)
    (tmp_path / NAMES[0]).unlink()
    (tmp_path / (NAMES[1] + ".gz")).unlink()
    assert same(read_idx(tmp_path, "train"), some(5))


def test_idx_longer_than_a_chunk(tmp_path):
    write_idx(tmp_path, gz=True, train=some(3000))  # 2.35 MB, read in several pieces
    assert same(read_idx(tmp_path, "train"), some(3000))


def test_idx_plain_file_is_never_written(tmp_path):
    write_idx(tmp_path, gz=False)
    before = (tmp_path / NAMES[0]).read_bytes()
    (tmp_path / NAMES[0]).chmod(0o444)
    read_idx(tmp_path, "train").images.fill_(7)
    assert (tmp_path / NAMES[0]).read_bytes() == before


def test_idx_large_plain_file_opens_at_once(tmp_path):
    count = 6_000_000
    for name in (NAMES[0], NAMES[2]):
        with open(tmp_path / name, "wb") as file:  # sparse: 4.7 GB that take no room
            file.write(struct.pack(">4I", 0x803, count, 28, 28))
            file.truncate(16 + count * 784)
    for name in (NAMES[1], NAMES[3]):
        put(tmp_path / name, struct.pack(">2I", 0x801, count) + bytes(count), gz=False)
    start = time.perf_counter()
    digits = read_idx(tmp_path, "train")
    assert time.perf_counter() - start < 3  # 4.7 GB would take longer
    assert digits.images.shape == (count, 28, 28)
    assert digits.images[-1].sum() == 0


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_idx_plain_images_are_file_backed(tmp_path):
    write_idx(tmp_path, gz=False, train=Digits(torch.ones(40_000, 28, 28, dtype=torch.uint8), some(40_000).labels))

    def megabytes(kind: str) -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(kind)) / 1024

    read_idx(tmp_path, "test")  # what is imported on the way
    anonymous, file_backed = megabytes("RssAnon"), megabytes("RssFile")
    digits = read_idx(tmp_path, "train")
    assert digits.images.max() == 1  # touches all of its 30 MB
    assert megabytes("RssFile") - file_backed > 25
    assert megabytes("RssAnon") - anonymous < 15


def test_find(tmp_path):
    assert find(tmp_path) is None
    assert find(tmp_path / "nowhere") is None
    write_idx(tmp_path / "MNIST" / "raw", gz=True)
    put(tmp_path / "notes.txt", b"stray", gz=False)
    assert find(tmp_path).told() == (
        f"Digits of {tmp_path}: IDX, 5 to train on and 3 to test on, 28×28, 10 classes; train and test by their names"
    )
    image_file = tmp_path / "MNIST" / "raw" / (NAMES[2] + ".gz")
    assert same(find(image_file).read("test"), some(3, seed=1))  # its labels lie beside it


def test_read_idx_finds_torchvisions_folder(tmp_path):
    write_idx(tmp_path / "MNIST" / "raw", gz=True)
    assert same(read_idx(tmp_path, "train"), some(5))


def test_nothing_there_is_told_with_what_is_seen_and_taken(tmp_path):
    assert message(read_idx, tmp_path, "train").startswith(
        f"{tmp_path} holds nothing, in which no digits are recognised"
    )
    for number in range(10):
        (tmp_path / f"page{number}.html").write_text("<html>")
    assert message(read_idx, tmp_path, "train") == (
        f"{tmp_path} holds {', '.join(f'page{number}.html' for number in range(8))} and 2 more files, in which no "
        f"digits are recognised: taken are {TAKES}"
    )


def test_one_split_is_divided(tmp_path):
    write_idx(tmp_path, gz=True, train=some(60))
    for name in NAMES[2:]:
        (tmp_path / (name + ".gz")).unlink()
    train, test = read_idx(tmp_path, "train"), read_idx(tmp_path, "test")
    assert (len(train.labels), len(test.labels)) == (50, 10)
    rows = {bytes(image.flatten().tolist()) for digits in (train, test) for image in digits.images}
    assert rows == {bytes(image.flatten().tolist()) for image in some(60).images}
    assert same(read_idx(tmp_path, "test"), test)
    found = find(tmp_path)
    found.read("train")
    assert "50 to train on and 10 to test on" in found.told()
    assert "only one split, of which a sixth, drawn by a fixed seed, is held out" in found.told()


def test_test_images_alone_are_not_trained_on(tmp_path):
    write_idx(tmp_path, gz=True)
    for name in NAMES[:2]:
        (tmp_path / (name + ".gz")).unlink()
    assert same(read_idx(tmp_path, "test"), some(3, seed=1))
    assert message(read_idx, tmp_path, "train") == f"{tmp_path} holds images to test only: add those to train on"


def damage(tmp_path: Path, name: str, content: bytes, gz: bool) -> str:
    """The message, less the file's path, that reading gives with this content in place of the right one."""
    write_idx(tmp_path, gz)
    put(tmp_path / name, content, gz)
    text = message(read_idx, tmp_path, "train")
    path = str(tmp_path / (name + ".gz" * gz))
    assert text.startswith(path)
    return text.removeprefix(path)


@pytest.mark.parametrize("gz", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        (
            NAMES[0],
            idx_labels(some(5).labels) * 2,
            " has magic number 2049, images have 2051: get the right file",
        ),
        (
            NAMES[1],
            idx_images(some(5).images),
            " has magic number 2051, labels have 2049: get the right file",
        ),
        (NAMES[0], struct.pack(">4I", 0x803, 0, 28, 28), " holds 0 images, expected at least 1: get it anew"),
        (NAMES[1], struct.pack(">2I", 0x801, 0), " holds 0 labels, expected at least 1: get it anew"),
        (NAMES[0], idx_images(some(5).images)[:7], " is no IDX file, as its name would have it: get it anew"),
        (
            NAMES[0],
            idx_images(some(4).images),
            f" holds 4 images but {NAMES[1]} 5 labels: get both files from the same place",
        ),
    ],
)
def test_idx_wrong_content(tmp_path, name, content, expected, gz):
    expected = expected.replace(NAMES[1] + " ", NAMES[1] + ".gz" * gz + " ")
    assert damage(tmp_path, name, content, gz) == expected


@pytest.mark.parametrize(
    ("gz", "change", "expected"),
    [
        (False, lambda whole: whole[:-1], " announces 5 images, 3936 bytes, but has 3935 bytes: get it anew"),
        (
            False,
            lambda whole: whole + b"x",
            " announces 5 images, 3936 bytes, but has 3937 bytes: get it anew",
        ),
        (
            True,
            lambda whole: whole[:-1],
            " announces 5 images, 3936 bytes, but ends after 3935 bytes: get it anew",
        ),
        (
            True,
            lambda whole: whole + b"x",
            " announces 5 images, 3936 bytes, but goes on after that: get it anew",
        ),
    ],
)
def test_idx_wrong_length(tmp_path, gz, change, expected):
    assert damage(tmp_path, NAMES[0], change(idx_images(some(5).images)), gz) == expected


def test_idx_damaged_gzip(tmp_path):
    path = tmp_path / (NAMES[0] + ".gz")
    write_idx(tmp_path, gz=True)
    whole = path.read_bytes()
    damaged = f"{path} is a truncated or damaged gzip file ("

    path.write_bytes(whole[:-9])
    assert message(read_idx, tmp_path, "train").startswith(damaged)
    path.write_bytes(whole[:1000] + bytes(50) + whole[1050:])
    assert message(read_idx, tmp_path, "train").startswith(damaged)
    path.write_bytes(whole[:-8] + b"\0\0\0\0" + whole[-4:])
    assert message(read_idx, tmp_path, "train").startswith(damaged + "CRC check failed")
    path.write_bytes(whole + b"junk")
    assert message(read_idx, tmp_path, "train").startswith(damaged)
    path.write_bytes(b"")
    assert message(read_idx, tmp_path, "train") == f"{path} is no IDX file, as its name would have it: get it anew"
    path.write_bytes(idx_images(some(5).images))  # plain in spite of its name
    assert same(read_idx(tmp_path, "train"), some(5))


def test_a_root_that_is_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    told = f"{tmp_path / 'pipe'} is a pipe or a device: give the folder or the file of the digits with --data.root"
    assert message(find, tmp_path / "pipe") == told


def test_pipes_beside_digits_are_passed_by(tmp_path):
    write_idx(tmp_path, gz=False)
    for name in ("train.csv", "a.npz", "b.parquet", "0.png", "labels"):
        os.mkfifo(tmp_path / name)
    assert find(tmp_path).told().startswith(f"Digits of {tmp_path}: IDX")


def test_idx_not_a_readable_file(tmp_path):
    write_idx(tmp_path, gz=False)
    path = tmp_path / NAMES[1]
    path.unlink()
    path.mkdir()
    images = tmp_path / NAMES[0]
    assert message(read_idx, tmp_path, "train") == f"{images} has no labels of as many images beside it: add them"
    path.rmdir()
    os.mkfifo(path)  # would wait for ever
    assert message(read_idx, tmp_path, "train").startswith(f"{path} is a folder or a device, not a file")
    path.unlink()
    path.symlink_to(tmp_path / "gone")
    assert message(read_idx, tmp_path, "train") == (
        f"{path} cannot be read (No such file or directory): check path and permissions"
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_idx_no_permission(tmp_path):
    write_idx(tmp_path, gz=False)
    (tmp_path / NAMES[1]).chmod(0)
    assert "cannot be read (Permission denied)" in message(read_idx, tmp_path, "train")
    tmp_path.chmod(0)
    try:
        assert message(read_idx, tmp_path, "train").startswith(f"{tmp_path} cannot be listed (Permission denied)")
    finally:
        tmp_path.chmod(0o700)


def test_idx_permission_errors_are_told(tmp_path, monkeypatch):
    """As the test above, but also where the tests run as root."""
    write_idx(tmp_path, gz=False)

    def denied(*_args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", denied)
    assert "cannot be read (Permission denied)" in message(read_idx, tmp_path, "train")
    monkeypatch.setattr(os, "scandir", denied)
    assert "cannot be listed (Permission denied)" in message(find, tmp_path)


@pytest.mark.parametrize("gz", [False, True], ids=["plain", "gz"])
def test_idx_header_that_claims_billions(tmp_path, gz):
    text = damage(tmp_path, NAMES[0], struct.pack(">4I", 0x803, 4_000_000_000, 28, 28) + bytes(784), gz)
    assert text.startswith(" announces 4000000000 images, 3136000000016 bytes, ")
    assert ("more than a gzip file of" in text) == gz


MEMORY = """
import sys, pathlib
from mnist_lightning.data.sources import read as read_idx
from mnist_lightning.data.tables import read_text
from mnist_lightning.errors import UserError
def peak():
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024
bomb, text = map(pathlib.Path, sys.argv[1:])
before = peak()
try:
    read_idx(bomb, "train")
except UserError as error:
    print(error)
print(peak() - before)
before = peak()
print(len(read_text(text).labels))
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_memory_is_that_of_the_digits(tmp_path):
    """A gzip bomb of 0.2 MB is unpacked only as far as its header says, and text is not held whole."""
    write_idx(tmp_path, gz=True)
    bomb = gzip.compress(idx_images(some(5).images) + bytes(200_000_000), compresslevel=6)
    (tmp_path / (NAMES[0] + ".gz")).write_bytes(bomb)
    text = tmp_path / "digits.tsv"
    text.write_bytes(line([100] * 784) * 20_000)  # 63 MB, of which 16 MB are digits
    done = subprocess.run(  # a process of its own, since a peak never falls
        [sys.executable, "-c", MEMORY, str(tmp_path), str(text)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    error, bomb_peak, count, text_peak = done.stdout.splitlines()
    assert error.endswith("announces 5 images, 3936 bytes, but goes on after that: get it anew")
    assert float(bomb_peak) < 40
    assert count == "20000"
    assert float(text_peak) < 40


# QMNIST ----------------------------------------------------------------------------------------------------


def qmnist_labels(labels: list[int], columns: int = 8, magic: int = 0xC02) -> bytes:
    rows = [[label, 4, 3, 2, -1, 300_000, 0, 9] for label in labels]
    return struct.pack(">3I", magic, len(labels), columns) + b"".join(struct.pack(">8i", *row) for row in rows)


def write_qmnist(folder: Path, labels: bytes, gz: bool) -> None:
    for part in ("train", "test"):
        put(folder / f"qmnist-{part}-images-idx3-ubyte", idx_images(some(4).images), gz)
        put(folder / f"qmnist-{part}-labels-idx2-int", labels, gz)


@pytest.mark.parametrize("gz", [False, True], ids=["plain", "gz"])
def test_qmnist(tmp_path, gz):
    write_qmnist(tmp_path, qmnist_labels([7, 0, 9, 3]), gz)
    for split in ("train", "test"):
        digits = read_idx(tmp_path, split)
        assert torch.equal(digits.images, some(4).images)
        assert digits.labels.tolist() == [7, 0, 9, 3]
        assert digits.labels.dtype == torch.uint8


@pytest.mark.parametrize("label", [10, 256, 1 << 24, -1])
def test_a_label_that_is_a_slip(tmp_path, label):
    for part in ("train", "test"):
        put(tmp_path / f"qmnist-{part}-images-idx3-ubyte", idx_images(some(200).images), False)
        put(tmp_path / f"qmnist-{part}-labels-idx2-int", qmnist_labels([7, 0, label, 3] + [5] * 196), False)
    assert f"label 2 is {label}, where nearly all are 0 to 9: correct it" in message(read_idx, tmp_path, "train")


def test_qmnist_wrong_header(tmp_path):
    write_qmnist(tmp_path, qmnist_labels([7, 0, 1, 3], columns=7), gz=False)
    assert "announces 4 labels, 124 bytes, but has 140 bytes" in message(read_idx, tmp_path, "train")
    write_qmnist(tmp_path, qmnist_labels([7, 0, 1, 3], magic=0x801), gz=False)
    assert "announces 4 labels, 12 bytes, but has 140 bytes" in message(read_idx, tmp_path, "train")


def test_qmnist_missing(tmp_path):
    write_qmnist(tmp_path, qmnist_labels([7, 0, 1, 3]), gz=True)
    (tmp_path / "qmnist-test-labels-idx2-int.gz").unlink()
    assert str(find(tmp_path).told()).endswith("; qmnist-test-images-idx3-ubyte.gz has no labels")


# Download --------------------------------------------------------------------------------------------------


@pytest.fixture
def mirror(monkeypatch, tmp_path):
    """Has torchvision name this server (one per call) as a mirror; files come from the folder `served`."""
    from torchvision.datasets import MNIST

    served = tmp_path / "served"
    served.mkdir()
    monkeypatch.setattr(MNIST, "mirrors", [])
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(served)))
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield served, f"http://127.0.0.1:{server.server_address[1]}/", MNIST
    server.shutdown()
    server.server_close()


@pytest.fixture
def hanging():
    """A server that accepts and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/"


def empty(folder: Path) -> bool:
    return not folder.exists() or not any(folder.rglob("*"))


def test_download(mirror, hanging, tmp_path, monkeypatch, capfd):
    served, url, torchvision = mirror
    write_idx(served, gz=True)
    sums = [(n + ".gz", hashlib.md5((served / (n + ".gz")).read_bytes()).hexdigest()) for n in NAMES]
    monkeypatch.setattr(torchvision, "resources", sums)
    monkeypatch.setattr(torchvision, "mirrors", [hanging, url])  # the first never answers, the second does
    target = tmp_path / "new" / "data"
    download(target, timeout=1.0)
    assert same(read_idx(target, "train"), some(5))
    assert sorted(path.name for path in (target / "MNIST" / "raw").iterdir()) == sorted(n for n, _ in sums)
    assert capfd.readouterr() == ("", "")


def test_download_refuses_a_wrong_checksum(mirror, tmp_path, monkeypatch):
    served, url, torchvision = mirror
    write_idx(served, gz=True)  # the right names, but not MNIST
    monkeypatch.setattr(torchvision, "mirrors", [url])
    assert message(download, tmp_path / "data") == (
        f"there is no {tmp_path / 'data'}, and MNIST could not be downloaded "
        f"({url}: wrong checksum of {NAMES[0]}.gz): put the four files into "
        f"{tmp_path / 'data'}, or set --data.root to a folder that holds them"
    )
    assert empty(tmp_path / "data")


def test_download_leaves_nothing_if_a_file_is_not_there(mirror, tmp_path, monkeypatch):
    served, url, torchvision = mirror
    write_idx(served, gz=True)
    sums = [(n + ".gz", hashlib.md5((served / (n + ".gz")).read_bytes()).hexdigest()) for n in NAMES]
    (served / (NAMES[3] + ".gz")).unlink()
    monkeypatch.setattr(torchvision, "resources", sums)
    monkeypatch.setattr(torchvision, "mirrors", [url])
    assert "HTTP Error 404: File not found" in message(download, tmp_path / "data")
    assert empty(tmp_path / "data")


def test_download_gives_up_on_hanging_mirrors(mirror, hanging, tmp_path, monkeypatch):
    monkeypatch.setattr(mirror[2], "mirrors", [hanging, hanging])
    start = time.monotonic()
    text = message(download, tmp_path / "data", 1.0)
    assert 0.9 < time.monotonic() - start < 3
    assert text.count("no answer within 0.5 s") == 2
    assert empty(tmp_path / "data")


@pytest.mark.parametrize(
    ("start", "drip", "timeout", "expected"),
    [
        (b"", b"x", 0.05, "too slow"),  # never ends its status line
        (b"HTTP/1.0 200 OK\r\n\r\n", b"x", 0.05, "too slow"),  # never ends the file
        (b"HTTP/1.0 200 OK\r\n\r\n", b"x" * 4_000_000, 10.0, "sends far more than MNIST"),
        (b"nonsense\r\n\r\n", b"x", 10.0, "nonsense"),
    ],
)
def test_download_from_a_server_that_never_ends(mirror, tmp_path, monkeypatch, start, drip, timeout, expected):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            connection, _ = server.accept()
            try:
                connection.sendall(start)
                while True:
                    connection.sendall(drip)
                    time.sleep(0.02)
            except OSError:
                pass

        threading.Thread(target=serve, daemon=True).start()
        monkeypatch.setattr(mirror[2], "mirrors", [f"http://127.0.0.1:{server.getsockname()[1]}/"])
        began = time.monotonic()
        assert expected in message(download, tmp_path / "data", timeout)
        assert time.monotonic() - began < 5
    assert empty(tmp_path / "data")


def test_download_where_nothing_can_be_written(mirror, tmp_path, monkeypatch):
    served, url, torchvision = mirror
    write_idx(served, gz=True)
    sums = [(n + ".gz", hashlib.md5((served / (n + ".gz")).read_bytes()).hexdigest()) for n in NAMES]
    monkeypatch.setattr(torchvision, "resources", sums)
    monkeypatch.setattr(torchvision, "mirrors", [url])
    (tmp_path / "data").write_text("a file is in the way")
    assert "Not a directory" in message(download, tmp_path / "data")


def line(values=None, label=3) -> bytes:
    return b"\t".join(b"%d" % value for value in (values or [0] * 784)) + b"\t%d\n" % label


# The real files --------------------------------------------------------------------------------------------


@needs_mnist
def test_real_mnist(tmp_path):
    train, test = read_idx(REAL, "train"), read_idx(REAL, "test")
    assert train.images.shape == (60_000, 28, 28)
    assert test.images.shape == (10_000, 28, 28)
    assert train.labels.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert test.labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    # Mean 0.1307. The order of the images within a class may differ from the published one, so look at test.
    assert train.images.sum(dtype=torch.int64) == 1_567_298_545
    assert test.images[0, 7, 5:13].tolist() == [0, 84, 185, 159, 151, 60, 36, 0]
    assert train.labels[:5].tolist() == [5, 0, 4, 1, 9]
    few = Digits(test.images[:500], test.labels[:500])
    write_text(few, tmp_path / "test.tsv")
    assert same(read_text(tmp_path / "test.tsv"), few)
