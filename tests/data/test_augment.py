"""Augmented images: what each number does, and that they are a function of seed, epoch and index."""

import math
from pathlib import Path

import pytest
import torch
from samples import write_mnist

from mnist_lightning.data.augment import MOVED, Augment
from mnist_lightning.data.loader import TensorLoader
from mnist_lightning.data.module import MNISTDataModule
from mnist_lightning.data.synthetic import synthetic_digits

IMAGES, LABELS = synthetic_digits(20, seed=1)
affine, everything = Augment("affine"), Augment("all")


@pytest.mark.parametrize("augment", [affine, everything])
def test_no_change(augment: Augment) -> None:
    assert torch.equal(augment(IMAGES, torch.zeros(20, augment.numbers)), IMAGES)


def test_strokes_grow_thicker_and_thinner_and_nothing_else() -> None:
    numbers = torch.zeros(20, everything.numbers)
    ink = [everything(IMAGES, numbers + torch.eye(everything.numbers)[-1] * by).long().sum((1, 2)) for by in (-1, 0, 1)]
    assert (ink[0] < ink[1]).all()
    assert (ink[1] < ink[2]).all()
    thicker = everything(IMAGES, numbers + torch.eye(everything.numbers)[-1])
    assert (thicker >= IMAGES).all()


def test_a_bent_line_stays_one_line() -> None:
    bar = torch.zeros(50, 28, 28, dtype=torch.uint8)
    bar[:, 4:24, 12:15] = 255
    numbers = everything.draw(50, seed=4)
    numbers[:, :MOVED], numbers[:, -1] = 0, 0
    bent = everything(bar, numbers).double()
    centres = (bent * torch.arange(28.0)).sum(2)[:, 6:22] / bent.sum(2)[:, 6:22]
    assert (centres.diff(dim=1).abs() < 1).all()  # of a row to the next
    assert (centres.amax(1) - centres.amin(1)).mean() > 0.5
    assert ((centres - 13).abs() < 3).all()


def test_two_pixels_to_the_right_and_up() -> None:
    numbers = torch.zeros(20, MOVED)
    numbers[:, 4], numbers[:, 5] = 1, -1
    assert torch.equal(affine(IMAGES, numbers)[:, :-2, 2:], IMAGES[:, 2:, :-2])


def test_larger() -> None:
    numbers = torch.zeros(20, MOVED)
    numbers[:, 1] = 1
    ratio = affine(IMAGES, numbers).double().sum((1, 2)) / IMAGES.double().sum((1, 2))
    assert abs(ratio.median() - 1.2712) < 0.01  # exp(2 * 0.12)


def test_a_turn_keeps_the_ink() -> None:
    numbers = torch.zeros(1, MOVED)
    numbers[:, 0] = 1
    bar = torch.zeros(1, 28, 28, dtype=torch.uint8)
    bar[:, 4:24, 13:15] = 255
    turned = affine(bar, numbers)[0].double()
    assert abs(turned.sum() / bar.double().sum() - 1) < 0.02
    top, bottom = (turned[row] @ torch.arange(28.0).double() / turned[row].sum() for row in (6, 21))
    assert abs(abs(float(bottom - top)) - 15 * math.tan(math.radians(12))) < 0.1


def loader(batch_size: int, shuffle: bool = True, augment: Augment = affine) -> TensorLoader:
    return TensorLoader(IMAGES, LABELS, batch_size=batch_size, augment=augment, shuffle=shuffle, seed=5)


def test_batches_do_not_change_what_an_image_becomes() -> None:
    whole, parts = (torch.cat([images for images, _ in loader(size)]) for size in (20, 3))
    assert torch.equal(whole, parts)


def test_each_epoch_is_new_and_comes_again() -> None:
    one = loader(20, shuffle=False, augment=everything)
    (first, _), (second, _) = next(iter(one)), next(iter(one))
    assert not torch.equal(first, second)
    one.set_epoch(0)
    assert torch.equal(next(iter(one))[0], first)
    assert torch.equal(everything.draw(20, 3), everything.draw(20, 3))


def test_only_training_images_are_changed_and_drawn_ones_are_not_validated(tmp_path: Path) -> None:
    write_mnist(tmp_path, (IMAGES, LABELS), (IMAGES, LABELS))
    settings = {"root": str(tmp_path), "source": "mnist", "val_size": 5, "normalize": "none"}
    plain, more = MNISTDataModule(**settings), MNISTDataModule(**settings, drawn=30, augment="affine")
    for data in (plain, more):
        data.setup("fit")
    assert (len(plain.labels("train")), len(more.labels("train"))) == (15, 45)
    assert torch.equal(more.labels("val"), plain.labels("val"))
    assert torch.equal(next(iter(more.val_dataloader()))[0], next(iter(plain.val_dataloader()))[0])
    assert not torch.equal(more.normalized(IMAGES), next(iter(more.train_dataloader()))[0][:20])
