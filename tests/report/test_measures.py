"""Numbers that were worked out by hand, or that torchmetrics and scipy give too."""

import pytest
import torch
from scipy import stats

from mnist_lightning.data.module import MNISTDataModule
from mnist_lightning.report.measures import (
    DOUBTED,
    MNIST_TEST,
    calibration_error,
    confusion_matrix,
    coverage_curve,
    cross_entropy,
    fingerprint,
    interval,
    mcnemar,
    per_class,
    reliability_bins,
    surest,
    worst,
)  # fmt: skip

LABELS = torch.tensor([0, 0, 1, 1])
ROWS = torch.tensor([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.7, 0.3]])


def test_rows_are_true_columns_predicted():
    assert confusion_matrix(torch.tensor([0, 0, 2]), torch.tensor([1, 0, 1]), 3).tolist() == [
        [1, 1, 0],
        [0, 0, 0],
        [0, 1, 0],
    ]


def test_precision_recall_f1_support():
    found = per_class(torch.tensor([[8, 2, 0], [1, 9, 0], [0, 0, 0]]))
    assert found[0] == {"precision": 8 / 9, "recall": 0.8, "f1": 16 / 19, "support": 10}
    assert found[2] == {"precision": None, "recall": None, "f1": None, "support": 0}


def test_expected_calibration_error():
    # each image in a bin of its own: |1 - 0.9|, |0 - 0.6|, |1 - 0.8|, |0 - 0.7|
    assert calibration_error(LABELS, ROWS) == pytest.approx((0.1 + 0.6 + 0.2 + 0.7) / 4)


def test_the_diagram_shows_what_the_error_sums():
    torch.manual_seed(0)
    labels, rows = torch.randint(10, (500,)), torch.randn(500, 10).mul(2).softmax(1)
    bins = reliability_bins(labels, rows)
    assert sum(one.images for one in bins) == 500
    summed = sum(one.images / 500 * abs(one.confidence - one.accuracy) for one in bins)
    assert summed == pytest.approx(calibration_error(labels, rows), abs=1e-5)


def test_certain_outputs_are_in_the_last_bin():
    (one,) = reliability_bins(torch.tensor([0, 1]), torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    assert (one.images, one.confidence, one.accuracy) == (2, 1.0, 0.5)


def test_the_surest_are_answered_first():
    share, accuracy, confidence = coverage_curve(LABELS, ROWS)
    assert share.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert accuracy.tolist() == [1.0, 1.0, pytest.approx(2 / 3), 0.5]
    assert confidence.tolist() == pytest.approx([0.9, 0.8, 0.7, 0.6])


def test_errors_among_the_surest():
    assert surest(LABELS, ROWS, 0.5) == {"share": 0.5, "images": 2, "errors": 0}
    assert surest(LABELS, ROWS, 0.75) == {"share": 0.75, "images": 3, "errors": 1}
    alike = torch.tensor([[0.8, 0.2]] * 4)  # which of them would be answered nobody can say: the errors count
    assert surest(LABELS, alike, 0.5) == {"share": 0.5, "images": 2, "errors": 2}


def test_equally_sure_ones_are_answered_together():
    share, accuracy, _ = coverage_curve(torch.tensor([0, 1, 1]), torch.tensor([[0.8, 0.2], [0.8, 0.2], [0.4, 0.6]]))
    assert share.tolist() == pytest.approx([2 / 3, 1.0])
    assert accuracy.tolist() == pytest.approx([0.5, 2 / 3])


def test_the_worst_have_the_least_probability_of_the_truth():
    assert worst(LABELS, ROWS, 5).tolist() == [3, 1]
    assert worst(LABELS, ROWS, 1).tolist() == [3]


def test_cross_entropy_is_torchs():
    assert cross_entropy(LABELS, ROWS) == pytest.approx(float(torch.nn.functional.nll_loss(ROWS.log(), LABELS)))
    assert cross_entropy(LABELS[:1], torch.tensor([[0.0, 1.0]])) > 80  # finite


@pytest.mark.parametrize(("one", "other"), [(3, 10), (0, 1), (12, 12), (0, 24)])
def test_few_discordant_images_are_tested_exactly(one: int, other: int):
    first = torch.tensor([True] * one + [False] * other + [True] * 50)
    second = torch.tensor([False] * one + [True] * other + [True] * 50)
    found = mcnemar(first, second)
    assert (found["only_first_right"], found["only_second_right"], found["test"]) == (one, other, "exact binomial")
    assert found["p"] == pytest.approx(stats.binomtest(one, one + other).pvalue)


def test_many_discordant_images_are_tested_by_chi_squared():
    first, second = torch.tensor([True] * 30 + [False] * 10), torch.tensor([False] * 30 + [True] * 10)
    found = mcnemar(first, second)
    assert found["p"] == pytest.approx(stats.chi2.sf((20 - 1) ** 2 / 40, 1))
    assert mcnemar(first, first)["p"] == 1.0


def test_wilsons_interval():
    known = stats.binomtest(9760, 10000).proportion_ci(method="wilson")
    assert interval(9760, 10000) == pytest.approx((known.low, known.high), abs=1e-5)
    assert interval(10, 10)[1] == pytest.approx(1.0)


def test_real_test_images_are_known_by_their_fingerprint(real_mnist):
    digits = MNISTDataModule(str(real_mnist), "mnist").read("test")
    assert fingerprint(digits.images, digits.labels) == MNIST_TEST
    assert (digits.labels[947], len(DOUBTED)) == (8, 15)
    assert fingerprint(digits.images[:-1], digits.labels[:-1]) != MNIST_TEST
