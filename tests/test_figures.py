"""Pictures: what is on them, and that nothing is left behind of them."""

import gc
import warnings
import weakref
from io import BytesIO

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from mnist_lightning import figures


@pytest.fixture(scope="module")
def read(tiny_digits):
    """Images, labels and what some network may say of them."""
    images, labels = tiny_digits[1]
    torch.manual_seed(1)
    rows = (torch.nn.functional.one_hot(labels.long(), 10) * 4 + torch.randn(len(labels), 10) * 2).softmax(1)
    return images, labels, rows


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def drawn(figure: Figure) -> Image.Image:
    return Image.open(BytesIO(figures.png(figure)))


def test_all_are_drawn_without_pyplot(read, tmp_path):
    from matplotlib import pyplot

    images, labels, rows = read
    (tmp_path / "metrics.csv").write_text("epoch,step,val_acc,train_loss_step\n0,9,0.5,\n1,12,,0.3\n1,19,0.75,0.2\n")
    made = [
        figures.samples(images, labels), figures.errors(images, labels, rows),
        figures.confusion(labels, rows.argmax(1)),
        figures.reliability(labels, rows), figures.coverage(labels, rows), figures.filters(torch.randn(8, 5, 5)),
        figures.probabilities(images[0], rows[0], true=int(labels[0])), figures.curve(tmp_path),
        figures.curve(str(tmp_path), measure="loss"), figures.curve(tmp_path, tmp_path, over="examples"),
    ]  # fmt: skip
    for figure in made:
        picture = drawn(figure)
        assert min(picture.size) > 80
        assert len(picture.convert("L").getcolors()) > 5
        assert figure._repr_png_().startswith(b"\x89PNG")
    assert pyplot.get_fignums() == []


def test_figures_are_freed(read):
    images, labels, _ = read
    kept = weakref.ref(figures.samples(images, labels))
    gc.collect()
    assert kept() is None


def test_lists_and_arrays_do_too(read):
    _, labels, rows = read
    one = figures.confusion(labels, rows.argmax(1))
    other = figures.confusion(labels.tolist(), rows.argmax(1).numpy())
    assert texts(one) == texts(other)


def test_counts_of_the_matrix():
    shown = figures.confusion([0, 0, 1, 1, 1], [0, 1, 1, 1, 0], names=["a", "b"])
    axes = shown.axes[0]
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("true", "predicted")
    assert {(text.get_position(), text.get_text()) for text in axes.texts} == {
        ((0, 0), "1"), ((1, 0), "1"), ((0, 1), "1"), ((1, 1), "2"),
    }  # fmt: skip


@pytest.mark.parametrize("classes", [26, 62])
def test_many_classes_have_room(classes: int):
    labels = torch.arange(classes).repeat(4)
    predictions = torch.where(torch.rand(len(labels)) < 0.2, labels.flip(0), labels)
    figure = figures.confusion(labels, predictions, [chr(0x41 + k) for k in range(classes)])
    assert drawn(figure).width / classes > 20  # pixels of a cell


def test_errors_are_told_with_both_probabilities():
    images = torch.zeros(2, 28, 28, dtype=torch.uint8)
    shown = figures.errors(images, [0, 1], [[0.25, 0.75], [0.1, 0.9]], names=["yes", "no"])
    assert texts(shown) == ["true yes: 25%\nread no: 75%"]
    assert texts(figures.errors(images, [1, 1], [[0.25, 0.75], [0.1, 0.9]])) == ["there are none"]


@pytest.mark.parametrize("name", ["$x", "$\\frac{", "_hidden", "四", "<b>", "a" * 60, ""])
def test_names_of_any_kind(name: str, tmp_path):
    (tmp_path / "metrics.csv").write_text("epoch,step,val_acc\n0,9,0.5\n1,19,0.75\n")
    one, other = figures.read_history(figures.Run(tmp_path)), figures.read_history(figures.Run(tmp_path))
    one.name = name
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures.png(figures.curve(one, other))
        figures.png(figures.confusion([0, 1], [1, 1], [name, "b"]))
        figures.png(figures.probabilities(torch.zeros(28, 28), [0.5, 0.5], [name, "b"]))


def test_a_run_without_a_finished_epoch(tmp_path):
    assert texts(figures.curve(tmp_path)) == ["nothing was recorded"]


def test_the_resume_is_in_the_legend(tmp_path):
    (tmp_path / "metrics.csv").write_text("epoch,step,val_acc,train_acc\n0,9,0.5,.4\n1,19,0.75,.6\n")
    (tmp_path / "sessions.jsonl").write_text('{"step": 0, "machine": {}}\n{"step": 10, "machine": {}}\n')
    axes = figures.curve(tmp_path).axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["training", "validation", "resumed"]
    assert axes.get_lines()[-1].get_xdata() == [1.0, 1.0]
