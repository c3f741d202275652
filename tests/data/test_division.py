"""Which training images are held out."""

import re

import pytest
import torch
from torch import Tensor

from mnist_lightning import MNISTDataModule
from mnist_lightning.data.division import SPLIT_SEED, divided, size_held_out
from mnist_lightning.errors import BadSetting


def parts(images: int, folds: int, fold: int, **more) -> tuple[Tensor, Tensor]:
    """Positions that are trained on, and that are held out."""
    size = size_held_out(images, None, folds, fold)
    found = divided(images, size, more.get("train_size"), more.get("drawn", 0), fold * images // folds)
    assert found["train"] is not None
    assert found["val"] is not None
    return found["train"], found["val"]


@pytest.mark.parametrize(("images", "folds"), [(100, 5), (103, 5), (7, 7), (60_000, 3)])
def test_each_image_is_held_out_once(images: int, folds: int):
    every = [parts(images, folds, fold) for fold in range(folds)]
    held_out = torch.cat([val for _, val in every])
    assert held_out.sort().values.tolist() == list(range(images))
    sizes = [len(val) for _, val in every]
    assert max(sizes) - min(sizes) <= 1
    for train, val in every:
        assert torch.cat([train, val]).sort().values.tolist() == list(range(images))
        assert train.equal(train.sort().values)  # in their order


def test_folds_are_drawn_at_random_and_always_the_same():
    shuffled = torch.randperm(100, generator=torch.Generator().manual_seed(SPLIT_SEED), dtype=torch.int32)
    assert parts(100, 4, 2)[1].equal(shuffled[50:75].sort().values)
    assert divided(100, 25, None, 0)["val"].equal(parts(100, 4, 0)[1])  # val_size takes the first of them


def test_fewer_to_train_on_and_drawn_digits():
    train, val = parts(100, 4, 3, train_size=10, drawn=5)
    assert train[-5:].tolist() == [100, 101, 102, 103, 104]  # behind them all
    assert not set(train.tolist()) & set(val.tolist())
    assert len(train) == 15


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"folds": 1, "fold": 0}, "--data.folds is 1; it must be at least 2, as one fold is held out"),
        ({"fold": 0}, "--data.folds is None; it must be at least 2"),
        ({"folds": 3}, "--data.fold is None; of 3 folds it is from 0 to 2"),
        ({"folds": 3, "fold": 3}, "--data.fold is 3; of 3 folds it is from 0 to 2"),
    ],
)
def test_folds_that_there_are_not(settings: dict, told: str):
    with pytest.raises(BadSetting, match=re.escape(told)):
        MNISTDataModule(**settings)


def test_a_fold_says_how_many_are_held_out(tiny_mnist):
    data = MNISTDataModule(str(tiny_mnist), folds=3, fold=1)
    data.setup("fit")
    assert (data.hparams["val_size"], len(data.labels("val")), len(data.images("train"))) == (100, 100, 200)
    MNISTDataModule(str(tiny_mnist), folds=3, fold=1, val_size=100).setup("fit")  # as config.yaml has it then
    data = MNISTDataModule(str(tiny_mnist), folds=3, fold=1, val_size=50)
    with pytest.raises(BadSetting, match=re.escape("--data.val_size is 50; fold 1 of 3 has 100 images: leave it out")):
        data.setup("fit")
    data = MNISTDataModule(str(tiny_mnist), folds=301, fold=0)
    with pytest.raises(BadSetting, match=re.escape("--data.folds is 301, but there are only 300 training images")):
        data.setup("fit")
