"""The drawn digits: their form, their determinism, and that a network taught on them alone reads MNIST."""

import gzip
import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mnist_lightning.data.synthetic import synthetic_digits

MNIST_ROOT = Path(os.environ.get("MNIST_ROOT") or Path(__file__).parents[3] / "shared" / "mnist")


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    return synthetic_digits(2050, seed=1)  # not a multiple of the chunk


def test_shapes_and_types(digits: tuple[Tensor, Tensor]) -> None:
    images, labels = digits
    assert images.shape == (2050, 28, 28)
    assert labels.shape == (2050,)
    assert images.dtype == labels.dtype == torch.uint8


@pytest.mark.parametrize("count", [0, 1])
def test_small_counts(count: int) -> None:
    images, labels = synthetic_digits(count, seed=1)
    assert images.shape == (count, 28, 28)
    assert labels.shape == (count,)


def test_same_seed_same_digits_whatever_the_count(digits: tuple[Tensor, Tensor]) -> None:
    images, labels = synthetic_digits(130, seed=1)
    assert torch.equal(images, digits[0][:130])
    assert torch.equal(labels, digits[1][:130])


def test_other_seed_other_digits(digits: tuple[Tensor, Tensor]) -> None:
    images, labels = synthetic_digits(1000, seed=2)
    assert not torch.equal(labels, digits[1][:1000])
    both = torch.cat([images, digits[0]]).flatten(1)
    assert len(both.unique(dim=0)) == len(both)  # a test set repeats no training image


def test_global_random_state_is_neither_read_nor_changed(digits: tuple[Tensor, Tensor]) -> None:
    torch.manual_seed(123)
    state = torch.get_rng_state()
    images, _ = synthetic_digits(10, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(images, digits[0][:10])


def test_classes_are_about_equally_frequent(digits: tuple[Tensor, Tensor]) -> None:
    counts = digits[1].bincount(minlength=10)
    assert len(counts) == 10
    assert counts.min() > 150  # 205 expected, with a standard deviation of 14
    assert counts.max() < 260


def test_ink_fills_a_box_of_20_pixels_on_empty_paper(digits: tuple[Tensor, Tensor]) -> None:
    ink = digits[0] > 0
    rows, columns = ink.any(2), ink.any(1)

    def extent(lines: Tensor) -> Tensor:
        return lines.shape[1] - lines.int().argmax(1) - lines.flip(1).int().argmax(1)

    longest = torch.maximum(extent(rows), extent(columns))
    assert longest.min() >= 19
    assert longest.max() <= 20
    assert ink.float().mean() < 0.3  # the paper is exactly 0; of MNIST's pixels 19 % bear ink


def test_ink_is_centred_by_mass(digits: tuple[Tensor, Tensor]) -> None:
    images = digits[0].double()
    middles = torch.arange(28).double() + 0.5
    for axis in (1, 2):
        centre = (images.sum(3 - axis) @ middles) / images.sum((1, 2))
        assert (centre - 14.5).abs().quantile(0.99) <= 0.5  # MNIST's centres lie from 14 to 15
        assert (centre - 14.5).abs().max() < 1


def test_grey_levels_are_like_mnist(digits: tuple[Tensor, Tensor]) -> None:
    levels = digits[0].double() / 255
    assert levels.amax((1, 2)).min() > 0.5  # no digit so pale that it vanishes
    assert abs(levels.mean() - 0.1307) < 0.02
    assert abs(levels.std() - 0.3081) < 0.03


def _read_idx(name: str, header: int, *shape: int) -> Tensor:
    """One of MNIST's files as uint8 [-1, *shape], without its header of so many bytes."""
    path = MNIST_ROOT / name
    if not path.is_file():
        pytest.skip(f"MNIST's real images are not here: {path} (MNIST_ROOT names their folder)")
    content = bytearray(gzip.decompress(path.read_bytes()))
    return torch.frombuffer(content, dtype=torch.uint8, offset=header).view(-1, *shape)


@pytest.mark.slow
def test_a_network_taught_on_drawn_digits_reads_real_ones() -> None:
    # Training images: the digits are tuned by them, and by test images nothing is.
    real_images = _read_idx("train-images-idx3-ubyte.gz", 16, 1, 28, 28)[:10_000]
    real_labels = _read_idx("train-labels-idx1-ubyte.gz", 8)[:10_000]
    images, labels = synthetic_digits(20_000, seed=1)

    def prepare(pixels: Tensor) -> Tensor:
        return (pixels.view(-1, 1, 28, 28).float() / 255 - 0.1307) / 0.3081

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(
            *(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 32, 3), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(800, 64), nn.ReLU(), nn.Linear(64, 10)),
        )
        optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
        for _ in range(3):
            for batch in torch.randperm(len(images)).split(128):
                optimizer.zero_grad()
                F.cross_entropy(network(prepare(images[batch])), labels[batch].long()).backward()
                optimizer.step()
    with torch.no_grad():
        read = torch.cat([network(prepare(part)).argmax(1) for part in real_images.split(1000)])
    accuracy = (read == real_labels).double().mean().item()
    assert accuracy >= 0.96
