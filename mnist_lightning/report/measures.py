"""What probabilities are worth: counts, shares, calibration, and whether two networks differ by more than chance.

`labels` are int64 [n], `probabilities` float32 [n, classes].
"""

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error, multiclass_confusion_matrix

BINS = 15  # of the expected calibration error
EXACT_BELOW = 25  # discordant images: McNemar's test is then the exact binomial
# The labels of MNIST's test images that fewer than 3 of 5 annotators keep (cleanlab/label-errors, mturk/mnist_mturk)
DOUBTED = (947, 1621, 1901, 2130, 2462, 2597, 2654, 3520, 3558, 5937, 6651, 6783, 8527, 9679, 9729)
MNIST_TEST = "c3f9adf9c66efb572b1f9326c3a511b45910c7173b97be66ceceeeeaef6b802b"


def fingerprint(images: Tensor, labels: Tensor) -> str:
    """SHA-256 of uint8 images and labels: the same images have the same."""
    digest = hashlib.sha256(images.cpu().contiguous().numpy().tobytes())
    digest.update(labels.cpu().to(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def confusion_matrix(labels: Tensor, predictions: Tensor, classes: int) -> Tensor:
    """int64 [classes, classes]: rows true, columns predicted."""
    return multiclass_confusion_matrix(predictions, labels, classes, validate_args=False).long()


def per_class(matrix: Tensor) -> list[dict[str, float | int | None]]:
    """Precision, recall, F1 and support of each class; None where there is nothing to take a share of."""
    right, true, predicted = (t.tolist() for t in (matrix.diag(), matrix.sum(1), matrix.sum(0)))
    return [
        {"precision": _share(hits, told), "recall": _share(hits, there), "f1": _share(2 * hits, told + there),
         "support": there}
        for hits, there, told in zip(right, true, predicted, strict=True)
    ]  # fmt: skip


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def interval(correct: int, images: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's 95 % interval of an accuracy: what other images of the same kind would give."""
    share, weight = correct / images, z * z / images
    middle = (share + weight / 2) / (1 + weight)
    half = z / (1 + weight) * math.sqrt(share * (1 - share) / images + weight / (4 * images))
    return max(0.0, middle - half), min(1.0, middle + half)


def calibration_error(labels: Tensor, probabilities: Tensor) -> float:
    """Expected calibration error: over 15 equal bins of confidence (the highest probability), the distance between
    mean confidence and accuracy, weighted by the images in each bin."""
    return float(
        multiclass_calibration_error(
            probabilities, labels, probabilities.shape[1], n_bins=BINS, norm="l1", validate_args=False
        )
    )


@dataclass
class Bin:
    """Images whose confidence is in one of the bins."""

    images: int
    confidence: float  # mean
    accuracy: float


def reliability_bins(labels: Tensor, probabilities: Tensor, bins: int = BINS) -> list[Bin]:
    """The bins that hold images, (k / bins, (k + 1) / bins] each, from low to high."""
    confidence, predictions = probabilities.double().max(1)
    right = (predictions == labels).double()
    places = (confidence * bins).ceil().long().clamp(1, bins) - 1
    counts = places.bincount(minlength=bins)
    sums = [places.bincount(values, minlength=bins) for values in (confidence, right)]
    return [
        Bin(int(n), float(c / n), float(r / n)) for n, c, r in zip(counts, *sums, strict=True) if n
    ]  # fmt: skip


def coverage_curve(labels: Tensor, probabilities: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Share answered, accuracy of those answers, and the confidence that they need; double [m] each.

    The surest are answered first; of equally sure ones all or none.
    """
    confidence, predictions = probabilities.double().max(1)
    order = confidence.argsort(descending=True, stable=True)
    confidence, right = confidence[order], (predictions == labels)[order].double()
    answered = torch.arange(1, len(labels) + 1, dtype=torch.double)
    last = torch.cat([confidence[1:] != confidence[:-1], torch.ones(1, dtype=torch.bool)])
    return (answered / len(labels))[last], (right.cumsum(0) / answered)[last], confidence[last]


def surest(labels: Tensor, probabilities: Tensor, share: float) -> dict[str, Any]:
    """How many images the surest share of them is, and how many of those are read wrong; of equally sure ones the
    wrong count first."""
    confidence, predictions = probabilities.double().max(1)
    wrong = predictions != labels
    order = torch.cat([wrong.nonzero()[:, 0], wrong.logical_not().nonzero()[:, 0]])
    order = order[confidence[order].argsort(descending=True, stable=True)]
    count = round(share * len(labels))
    return {"share": share, "images": count, "errors": int(wrong[order[:count]].sum())}


def worst(labels: Tensor, probabilities: Tensor, most: int) -> Tensor:
    """Positions of the errors, those whose true label has the least probability first."""
    wrong = (probabilities.argmax(1) != labels).nonzero()[:, 0]
    given = probabilities[wrong, labels[wrong]]
    return wrong[given.argsort(stable=True)][:most]


def cross_entropy(labels: Tensor, probabilities: Tensor) -> float:
    """Mean negative logarithm of the true label's probability."""
    given = probabilities[torch.arange(len(labels)), labels].double()
    return float(-given.clamp_min(torch.finfo(torch.float32).tiny).log().mean())


def mcnemar(first: Tensor, second: Tensor) -> dict[str, Any]:
    """McNemar's paired test of two networks on the same images; bool [n] each: which were read right.

    Exact binomial below 25 images that only one of them reads right, else chi-squared with continuity correction.
    """
    one, other = int((first & ~second).sum()), int((~first & second).sum())
    if one + other < EXACT_BELOW:
        tail = sum(math.comb(one + other, k) for k in range(min(one, other) + 1)) / 2 ** (one + other)
        p, test = min(1.0, 2 * tail), "exact binomial"
    else:
        statistic = (abs(one - other) - 1) ** 2 / (one + other)
        p, test = math.erfc(math.sqrt(statistic / 2)), "chi-squared with continuity correction"
    return {"only_first_right": one, "only_second_right": other, "p": p, "test": test}
