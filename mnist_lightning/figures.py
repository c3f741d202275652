"""Pictures of a run and of what a network reads, for notebooks, articles and `report`.

    from mnist_lightning import figures
    figures.curve("checkpoints/cnn", measure="loss")
    figures.confusion(labels, probabilities.argmax(1)).savefig("confusion.png")

Each function returns a matplotlib Figure of its own; pyplot's state is neither used nor changed. Tensors, arrays and
lists all do: `images` uint8 [n, 28, 28], `labels` whole numbers [n], `probabilities` [n, classes], `names` one a class.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter
from torch import Tensor

from mnist_lightning.report import measures
from mnist_lightning.report.history import MEASURES, History, Point, read_history
from mnist_lightning.report.look import INK, MUTED, PAPER, SERIES, Picture, new_figure, percent_axes, plain_axis, text
from mnist_lightning.report.look import png as png  # for whoever draws
from mnist_lightning.run import Run

HEAT = LinearSegmentedColormap.from_list("heat", [PAPER, "#f6c9a8", "#b3470b"])
WORDS = {"train": "training", "val": "validation", "test": "test"}
LONGEST = 20  # letters of a class's name
MOST_MARKED = 30  # points of a curve that each get a dot
Numbers = Any  # a tensor, an array or a list


# ---------------------------------------------------------------------- of the training


def curve(
    *runs: History | Path | str,
    measure: Literal["accuracy", "loss"] = "accuracy",
    over: Literal["epochs", "examples"] = "epochs",
) -> Figure:
    """Accuracy or loss of one run, or of several, over epochs or training examples seen.

    A run is its folder's path. Of one run it shows training and validation, and where it was resumed.
    """
    histories = [run if isinstance(run, History) else read_history(Run(Path(run))) for run in runs]
    figure, axes = new_figure(4.2, 3.0)
    for number, history in enumerate(histories):
        for split, line in (("train", "--"), ("val", "-"), ("test", ":")):
            points = _on_axis(history.curves.get(f"{split}_{MEASURES[measure]}", []), over)
            if not points or (len(histories) > 1 and split == "test"):
                continue
            color = SERIES[(number if len(histories) > 1 else list(WORDS).index(split)) % len(SERIES)]
            label = WORDS[split] if len(histories) == 1 else f"{history.name}, {WORDS[split]}"
            few = len(points) <= MOST_MARKED
            axes.plot(*zip(*points, strict=True), line, color=color, marker="o" if few else "", markersize=3.5,
                      linewidth=1.6, label=text(label))  # fmt: skip
    if measure == "loss" and len(histories) == 1:
        steps = _on_axis(histories[0].curves.get("train_loss_step", []), over)
        if len(steps) > 1:
            axes.plot(*zip(*steps, strict=True), color=MUTED, linewidth=0.7, alpha=0.7, label="single training steps",
                      zorder=1)  # fmt: skip
    _finish_curve(axes, histories, measure, over)
    return figure


def _on_axis(points: list[Point], over: str) -> list[tuple[float, float]]:
    if over == "epochs":
        return [(point.epoch, point.value) for point in points]
    return [(point.images, point.value) for point in points if point.images is not None]


def _finish_curve(axes: Any, histories: list[History], measure: str, over: str) -> None:
    handles = axes.get_lines()
    axes.set_ylabel(measure)
    axes.set_xlabel("epochs" if over == "epochs" else "training examples seen")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    values = np.concatenate([line.get_ydata() for line in handles] or [np.zeros(0)])
    if measure == "accuracy":
        axes.yaxis.set_major_formatter(PercentFormatter(1))
    elif len(values) and values.min() > 0 and values.max() > 20 * values.min():
        axes.set_yscale("log")
    if over != "epochs":
        axes.xaxis.set_major_formatter(FuncFormatter(_short))
    elif len(histories) == 1 and (rate := histories[0].images_per_epoch):
        top = axes.secondary_xaxis("top", functions=(lambda x: x * rate, lambda x: x / rate))
        top.set_xlabel("training examples seen", color=MUTED, fontsize=9)
        top.xaxis.set_major_locator(MaxNLocator(5))
        top.xaxis.set_major_formatter(FuncFormatter(_short))
        plain_axis(top)
    if not handles:
        axes.text(0.5, 0.5, "nothing was recorded", transform=axes.transAxes, ha="center", color=MUTED)
        return
    axes.set_xlim(0, max(line.get_xdata().max() for line in handles) * 1.03)
    for history in histories[:1] if len(histories) == 1 and over == "epochs" else []:
        for number, epoch in enumerate(history.resumed):
            line = axes.axvline(epoch, color=MUTED, linewidth=1, linestyle=(0, (2, 2)), zorder=1)
            line.set_label("resumed" if number == 0 else "_more")
    axes.legend(fontsize=8.5, frameon=False, labelcolor=INK)


def _short(value: float, position: int | None = None) -> str:
    """12000 -> 12 k."""
    for size, sign in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= size:
            return f"{value / size:g}{sign}"
    return f"{value:g}"


# ---------------------------------------------------------------------- of the images


def samples(
    images: Numbers, labels: Numbers = None, names: Sequence[str] | None = None, most: int = 40, columns: int = 10
) -> Figure:
    """The first so many images, with their labels."""
    shown = _images(images)[:most]
    labels = None if labels is None else _labels(labels)[:most].tolist()
    titles = [""] * len(shown) if labels is None else [_name(label, names) for label in labels]
    return _grid(shown, titles, columns, size=0.62)


def errors(
    images: Numbers, labels: Numbers, probabilities: Numbers, names: Sequence[str] | None = None, most: int = 24
) -> Figure:
    """The images read wrongly, those whose true label has the least probability first."""
    labels, rows = _labels(labels), _rows(probabilities)
    chosen = measures.worst(labels, rows, most)
    titles = []
    for true, row in zip(labels[chosen].tolist(), rows[chosen], strict=True):
        read = int(row.argmax())
        titles.append(f"true {_name(true, names)}: {row[true]:.0%}\nread {_name(read, names)}: {row[read]:.0%}")
    return _grid(_images(images)[chosen], titles, columns=6, size=1.0)


def _grid(images: Tensor, titles: list[str], columns: int, size: float, **shown: Any) -> Figure:
    """Small pictures in rows, a title above each: a single image for matplotlib, which is slow with many axes."""
    if not len(images):
        figure, axes = new_figure(4, 1)
        axes.set_axis_off()
        axes.text(0.5, 0.5, "there are none", transform=axes.transAxes, ha="center", color=MUTED)
        return figure
    count, height, width = images.shape
    rows, columns = math.ceil(count / columns), min(columns, count)
    line = 0.15 * height / size  # of text, in pixels
    above, gap = line * (1 + max(title.count("\n") for title in titles)) * any(titles), 0.12 * width
    step = height + above + gap
    figure = Picture(figsize=(columns * size * 1.12, size / height * (rows * step + gap)), facecolor=PAPER)
    axes = figure.add_axes((0, 0, 1, 1))
    look: dict[str, Any] = {"cmap": "gray", "vmin": 0, "vmax": 255, "interpolation": "nearest"} | shown
    for place, (image, title) in enumerate(zip(images.numpy(), titles, strict=True)):
        left, top = place % columns * (width + gap) + gap / 2, place // columns * step + gap / 2 + above
        axes.imshow(image, extent=(left, left + width, top + height, top), **look)
        axes.text(left + width / 2, top - 0.15 * line, title, fontsize=8, color=INK, ha="center", va="bottom")
    axes.set(xlim=(0, columns * (width + gap)), ylim=(rows * step + gap, 0))
    axes.set_axis_off()
    return figure


def filters(weights: Numbers, most: int = 64) -> Figure:
    """Weights of a network's first layer, [n, height, width]: blue below zero, red above, one scale for all."""
    shown = torch.as_tensor(weights).detach().float().cpu()[:most]
    peak = float(shown.abs().max()) if shown.numel() else 1.0
    peak = peak if math.isfinite(peak) and peak > 0 else 1.0
    return _grid(shown, [""] * len(shown), 8, 0.55, cmap="RdBu_r", vmin=-peak, vmax=peak)


# ---------------------------------------------------------------------- of what is read


def confusion(labels: Numbers, predictions: Numbers, names: Sequence[str] | None = None) -> Figure:
    """The confusion matrix: rows true, columns predicted; coloured by the share of the row, errors only."""
    labels, predictions = _labels(labels), _labels(predictions)
    classes = _classes(labels, predictions, names)
    matrix = measures.confusion_matrix(labels, predictions, classes).numpy()
    return _matrix_figure(matrix, [_name(k, names) for k in range(classes)])


def _classes(labels: Tensor, predictions: Tensor, names: Sequence[str] | None) -> int:
    highest = [int(values.max()) + 1 for values in (labels, predictions) if len(values)]
    return max([len(names or ()), 2, *highest])


def _matrix_figure(matrix: Any, names: list[str]) -> Figure:
    classes = len(names)
    cell = 0.42 if classes <= 12 else 0.29 if classes <= 36 else 0.21
    room = 0.8 + 0.08 * max(map(len, names))  # inches, for the names
    figure, axes = new_figure(room + max(classes * cell, 1), room + max(classes * cell, 1))
    wrong = matrix * (1 - np.eye(classes))
    shares = wrong / np.maximum(matrix.sum(1, keepdims=True), 1)
    axes.imshow(shares, cmap=HEAT, norm=PowerNorm(0.5, vmin=0, vmax=max(shares.max(), 0.01)), interpolation="nearest")
    size = 9 if classes <= 12 else 6.5 if classes <= 36 else 4.5
    dark = 0.8 * math.sqrt(max(shares.max(), 0.01))
    for (row, column), count in np.ndenumerate(matrix):
        if count:
            on_dark = row != column and math.sqrt(shares[row, column]) > dark
            axes.text(column, row, str(int(count)), ha="center", va="center", fontsize=size,
                      color=PAPER if on_dark else INK, fontweight="bold" if row == column else "normal")  # fmt: skip
    axes.set_xticks(range(classes), names, fontsize=size, rotation=90 if max(map(len, names)) > 2 else 0)
    axes.set_yticks(range(classes), names, fontsize=size)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.grid(False)
    axes.spines[:].set_visible(False)
    return figure


def reliability(labels: Numbers, probabilities: Numbers, bins: int = measures.BINS) -> Figure:
    """The reliability diagram: accuracy of the images of each bin of confidence, against their mean confidence."""
    figure, axes = new_figure(4.2, 3.0)
    found = measures.reliability_bins(_labels(labels), _rows(probabilities), bins)
    most = max((one.images for one in found), default=1)
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle="--", label="as sure as right")
    areas = [12 + 150 * one.images / most for one in found]
    places = [one.confidence for one in found], [one.accuracy for one in found]
    axes.plot(*places, color=SERIES[0], linewidth=1)
    axes.scatter(*places, s=areas, color=SERIES[0], zorder=3, label="images of a bin (area: how many)")
    percent_axes(axes, "confidence (mean of the bin)", "accuracy")
    axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
    axes.legend(fontsize=8.5, frameon=False, labelcolor=INK, loc="upper left")
    return figure


def coverage(labels: Numbers, probabilities: Numbers) -> Figure:
    """Accuracy against the share of images answered, the surest first."""
    figure, axes = new_figure(4.2, 3.0)
    answered, accuracy, _ = measures.coverage_curve(_labels(labels), _rows(probabilities))
    axes.plot(answered, accuracy, color=SERIES[0], linewidth=1.6, marker="o" if len(answered) == 1 else "")
    percent_axes(axes, "share of the images answered, the surest first", "accuracy of the answers")
    axes.set_xlim(0, 1.02)
    return figure


def probabilities(image: Numbers, row: Numbers, names: Sequence[str] | None = None, true: int | None = None) -> Figure:
    """One image, and a bar for what the outputs say of each class; `true` marks its label."""
    row = torch.as_tensor(row).float()
    figure = Picture(figsize=(5.2, max(2.4, 0.2 * len(row))), facecolor=PAPER, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 2))
    left.imshow(_images(image)[0].numpy(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    left.set_axis_off()
    colors = [SERIES[2] if k == true else SERIES[1] if k == int(row.argmax()) else MUTED for k in range(len(row))]
    right.barh(range(len(row)), row.tolist(), color=colors)
    right.set_yticks(range(len(row)), [_name(k, names) for k in range(len(row))])
    right.invert_yaxis()
    right.set_xlim(0, 1)
    right.xaxis.set_major_formatter(PercentFormatter(1))
    right.set_xlabel("probability")
    plain_axis(right)
    return figure


# ---------------------------------------------------------------------- what they share


def _name(label: int, names: Sequence[str] | None) -> str:
    name = names[label] if names and label < len(names) else str(label)
    return text(name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…")


def _images(images: Numbers) -> Tensor:
    """uint8 [n, 28, 28] of one image or many."""
    shown = torch.as_tensor(images).cpu()
    return shown.reshape(-1, *shown.shape[-2:])


def _labels(labels: Numbers) -> Tensor:
    return torch.as_tensor(labels).cpu().long()


def _rows(rows: Numbers) -> Tensor:
    return torch.as_tensor(rows).cpu().float()
