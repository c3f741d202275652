"""What is told of a set of images in few numbers: mean and deviation, weights of classes, a fingerprint."""

import zlib

import torch
from torch import Tensor

from mnist_lightning.data.digits import Digits

SAMPLE = 60_000  # images looked at for mean and standard deviation; all of MNIST's


def fingerprint_of(digits: Digits) -> str:
    parts = (digits.labels, torch.cat(spread(digits.images, 1000, 100)))
    return f"{zlib.crc32(b''.join(tensor.cpu().numpy().tobytes() for tensor in parts)):08x}"


def class_weights(labels: Tensor, classes: int) -> list[float]:
    """What the loss of each class weighs, so that all that are there weigh alike together; 1 on the average image."""
    counts = labels.long().bincount(minlength=classes).tolist()
    present = sum(count > 0 for count in counts)
    return [round(len(labels) / (present * count), 6) if count else 0.0 for count in counts]


def mean_std_of(images: Tensor) -> tuple[float, float]:
    """Mean and standard deviation of a pixel in [0, 1], of at most SAMPLE images, to four decimals."""
    counts = torch.stack([part.flatten().bincount(minlength=256) for part in spread(images, SAMPLE, 1000)]).sum(0)
    share, level = counts.double() / counts.sum(), torch.arange(256).double() / 255
    mean = float(share @ level)
    return round(mean, 4), max(round(float(share @ (level - mean) ** 2) ** 0.5, 4), 1e-4)


def spread(images: Tensor, most: int, size: int) -> tuple[Tensor, ...]:
    """Parts of `size` images, all of them or evenly spaced ones with `most` images in all.

    Parts, because single images all over a mapped file would each cost a read of the disk.
    """
    parts = images.split(size)
    return parts if len(images) <= most else parts[:: -(-len(parts) * size // most)]
