"""Digits in arrays: NumPy's, PyTorch's and MATLAB's files, as the sets that people share are laid out."""

from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch

from mnist_lightning.data.digits import TEN, Digits
from mnist_lightning.data.sources import find
from mnist_lightning.data.synthetic import synthetic_digits
from mnist_lightning.errors import UserError


@pytest.fixture(scope="module")
def digits() -> tuple[Digits, Digits]:
    return Digits(*synthetic_digits(300, 1)), Digits(*synthetic_digits(60, 2))


def write(form: str, folder: Path, train: Digits, test: Digits) -> None:
    (x, y), (u, v) = ((one.images.numpy(), one.labels.numpy()) for one in (train, test))
    if form == "keras":
        np.savez(folder / "mnist.npz", x_train=x, y_train=y, x_test=u, y_test=v)
    elif form == "kmnist":
        for name, array in (("train-imgs", x), ("train-labels", y), ("test-imgs", u), ("test-labels", v)):
            np.savez_compressed(folder / f"kmnist-{name}.npz", array)
    elif form == "floats, one-hot":
        for name, array in (("X_train", x / 255), ("Y_train", np.eye(10)[y]), ("X_test", u / 255), ("Y_test", v)):
            np.save(folder / f"{name}.npy", array)
    elif form == "torchvision":
        torch.save((train.images, train.labels.long()), folder / "training.pt")
        torch.save((test.images, test.labels.long()), folder / "test.pt", _use_new_zipfile_serialization=False)
    else:
        halves = {
            name: {"images": a.transpose(0, 2, 1).reshape(-1, 784), "labels": b[:, None].astype(float)}
            for name, a, b in (("train", x, y), ("test", u, v))
        }
        mapping = np.c_[np.arange(10), 48 + np.arange(10)]
        scipy.io.savemat(folder / "emnist-digits.mat", {"dataset": halves | {"mapping": mapping}}, do_compression=True)


@pytest.mark.parametrize("form", ["keras", "kmnist", "floats, one-hot", "torchvision", "emnist"])
def test_the_same_digits_in_every_form(form: str, digits, tmp_path: Path):
    write(form, tmp_path, *digits)
    found = find(tmp_path)
    for split, right in zip(("train", "test"), digits, strict=True):
        read = found.read(split)
        assert torch.equal(read.images, right.images)
        assert torch.equal(read.labels, right.labels)
        assert read.names == TEN


def test_what_could_run_code_is_refused(tmp_path: Path):
    np.save(tmp_path / "x_train.npy", np.array([{}], dtype=object))
    np.save(tmp_path / "y_train.npy", np.zeros(1, np.uint8))
    with pytest.raises(UserError, match="holds pickled objects, which could run code"):
        find(tmp_path).read("train")
