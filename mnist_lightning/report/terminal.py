"""The short form of a report, as a terminal shows it. No torch is imported."""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from mnist_lightning.console import console, say
from mnist_lightning.report.history import MEASURES, History

# Columns of the table of epochs, in this order, and how they are written
SHOWN = {"images": ",.0f", "lr": ".3g"}
for split in ("train", "val", "test"):
    SHOWN |= {f"{split}_acc": ".2%", f"{split}_loss": ".4f"}
# Where the terminal is narrow, after the columns that others logged
DROPPED_FIRST = ("lr", "images", "train_loss", "test_loss", "val_loss", "train_acc", "test_acc")
BRAILLE = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # dots of a character: four rows of two
STYLES = {"train": "blue", "val": "dark_orange3", "test": "green"}
PLOT = (100, 12)  # characters across, at most, and down


def all_runs(histories: Sequence[History]) -> None:
    """A table of all runs."""
    table = Table("run", "epochs", "validation", "test", "images of")
    for history in histories:
        validated = [point.value for point in history.curves.get("val_acc", [])]
        accuracy, source = history.result.get("accuracy"), str(history.result.get("source", ""))
        damaged = any("damaged" in note for note in history.notes)
        table.add_row(
            escape(history.name),
            str(max(history.epochs, default=0)),
            f"{max(validated):.2%}" if validated else "",
            f"{accuracy:.2%}" if accuracy is not None else "",
            "[red]a file is damaged[/]" if damaged else "[red]synthetic, not MNIST[/]" if source == "synthetic"
            else escape(source),
        )  # fmt: skip
    console.print(table)


def epochs(history: History) -> None:
    """Loss and accuracy of each epoch and whatever else was logged, as far as there is room; what is not is named."""
    there = {name for row in history.epochs.values() for name in row}
    names = [*(name for name in SHOWN if name in there), *sorted(there - SHOWN.keys())]
    cells = {
        name: [_cell(row.get(name, ""), SHOWN.get(name, ".4g")) for row in history.epochs.values()] for name in names
    }
    wide = {name: 3 + max(map(len, [name, *cells[name]])) for name in names}
    left_out = []
    for name in [*sorted(there - SHOWN.keys(), reverse=True), *DROPPED_FIRST]:
        if sum(wide[one] for one in names) + 9 > console.width and name in names:
            names.remove(name)
            left_out.append(name)
    table = Table("epoch", *map(escape, names), title=escape(history.name))
    for place, epoch in enumerate(history.epochs):
        table.add_row(str(epoch), *(escape(cells[name][place]) for name in names))
    console.print(table)
    if left_out:
        say(f"No room for {', '.join(reversed(left_out))}: see metrics.csv")


def _cell(value: str, form: str) -> str:
    try:
        return f"{float(value):{form}}"
    except ValueError:
        return value  # a callback's own text


# ---------------------------------------------------------------------- the plot


def curve(history: History) -> None:
    """Accuracy, or of a short training the loss of its steps, over epochs, as wide as the terminal."""
    measure = "accuracy" if len(history.curves.get("val_acc", history.curves.get("train_acc", []))) > 1 else "loss"
    lines = {
        split: [(point.epoch, point.value) for point in history.curves.get(f"{split}_{MEASURES[measure]}", [])]
        for split in STYLES
    }
    if measure == "loss" and len(lines["train"]) < 2:
        lines["train"] = [(point.epoch, point.value) for point in history.curves.get("train_loss_step", [])]
    lines = {split: points for split, points in lines.items() if points}
    if max(map(len, lines.values()), default=0) > 1:
        for line in plot(lines, measure, min(console.width, PLOT[0]), PLOT[1], console.options.ascii_only):
            console.print(line, no_wrap=True, overflow="crop")
        if history.resumed:
            say(f"resumed after {', '.join(f'{epoch:.4g}' for epoch in history.resumed)} epochs")


def plot(
    lines: dict[str, list[tuple[float, float]]], measure: str, width: int, height: int, ascii_only: bool = False
) -> list[Text]:
    """Lines of text that show the curves, and what they are below."""
    values = [value for points in lines.values() for _, value in points]
    low, high = min(values), max(values)
    low, high = (low, high) if high > low else (low - 0.5 * abs(low) - 1e-9, high + 0.5 * abs(high) + 1e-9)
    end = max(x for points in lines.values() for x, _ in points) or 1.0
    form = ".1%" if measure == "accuracy" else ".3g"
    labels = [f"{value:{form}}" for value in (high, low)]
    margin = max(map(len, labels))
    across = max(width - margin - 2, 8)
    dots: dict[tuple[int, int], tuple[int, str]] = {}
    for split, points in lines.items():
        for x, y in _drawn(points, end, low, high, 2 * across, 4 * height, every=3 if split == "train" else 1):
            bits, _ = dots.get((y // 4, x // 2), (0, ""))
            dots[y // 4, x // 2] = bits | BRAILLE[y % 4][x % 2], split
    shown = []
    for row in range(height):
        label = labels[0] if row == 0 else labels[1] if row == height - 1 else ""
        text = Text(f"{label:>{margin}} {'|' if ascii_only else '│'}")
        for column in range(across):
            bits, split = dots.get((row, column), (0, ""))
            sign = " " if not bits else {"train": ".", "val": "*"}.get(split, "+") if ascii_only else chr(0x2800 + bits)
            text.append(sign, STYLES.get(split, ""))
        shown.append(text)
    axis = f"{'0':<{across - len(f'{end:g}')}}{end:g}"
    legend = Text(f"{'':>{margin}}  {measure} over epochs: ")
    for split in lines:
        words = {"train": "training (dotted)", "val": "validation", "test": "test"}[split]
        legend.append(words, STYLES[split]).append("  ")
    return [*shown, Text(f"{'':>{margin}}  {axis}"), legend]


def _drawn(
    points: list[tuple[float, float]], end: float, low: float, high: float, width: int, height: int, every: int
) -> Iterable[tuple[int, int]]:
    """The dots of a line through the points, from the upper left; only those of each so many columns."""
    placed = [
        (round(x / end * (width - 1)), round((high - y) / (high - low) * (height - 1))) for x, y in sorted(points)
    ]
    yield from placed
    for (x0, y0), (x1, y1) in pairwise(placed):
        steps = max(x1 - x0, abs(y1 - y0), 1)
        for step in range(steps + 1):
            if step % every == 0:
                yield round(x0 + (x1 - x0) * step / steps), round(y0 + (y1 - y0) * step / steps)


# ---------------------------------------------------------------------- what was measured


def measured(found: dict[str, Any]) -> None:
    """Accuracy and what else is in few lines, of `summary.numbers`."""
    told = found["evaluation"]
    if told is None:
        result = found["test_at_end_of_training"] or {}
        if "accuracy" in result:
            images = f"{result['images']} images" if "images" in result else "the images"
            say(f"test: {result['accuracy']:.2%} of {images} of {result.get('source', 'the test set')}")
        return
    table = Table(show_header=False, title=f"{'Test' if told['split'] == 'test' else 'Validation'} images")
    table.add_column()
    table.add_column(overflow="fold")
    low, high = told["interval_95"]
    table.add_row("accuracy", f"[bold]{told['accuracy']:.2%}[/]  ({told['correct']:,} of {told['images']:,} images)")
    table.add_row("95 % interval", f"{low:.2%} to {high:.2%}")
    if without := told["without_doubted_labels"]:
        doubted = len(told["doubted_labels"])
        table.add_row(f"without {doubted} doubted labels", f"{without['accuracy']:.2%}  ({without['errors']:,} errors)")
    table.add_row("cross-entropy", f"{told['cross_entropy']:.4f}")
    table.add_row("calibration error", f"{told['expected_calibration_error']:.2%}  (expected, 15 bins)")
    sure = told["surest"]
    table.add_row(f"surest {sure['share']:.0%} answered", f"{sure['errors']:,} errors in {sure['images']:,} answers")
    if found["temperature"] != 1:
        table.add_row("temperature", f"{found['temperature']:.3f}  (fitted after the training)")
    if told["most_confused"]:
        pairs = ", ".join(f"{one['true']} as {one['read']} ({one['images']})" for one in told["most_confused"][:4])
        table.add_row("most confused", escape(pairs))
    source = told["source"]
    table.add_row("images of", "[bold red]SYNTHETIC digits, not MNIST[/]" if source == "synthetic" else escape(source))
    table.add_row("network", escape(found["origin"]))
    console.print(table)


def compared(found: dict[str, Any]) -> None:
    """Runs beside each other, of `summary.compared`."""
    table = Table("run", "accuracy", "errors", "cross-entropy", "calibration error", "seconds")
    for run in found["runs"]:
        told, seconds = run["evaluation"], run["seconds"]
        cells = [""] * 4 if told is None else [
            f"{told['accuracy']:.2%}", f"{told['errors']:,}", f"{told['cross_entropy']:.4f}",
            f"{told['expected_calibration_error']:.2%}"]  # fmt: skip
        table.add_row(escape(run["run"]), *cells, "" if seconds is None else f"{seconds:,.1f}")
    console.print(table)
    if found["settings_that_differ"]:
        table = Table("setting", *(escape(run["run"]) for run in found["runs"]))
        for name, values in found["settings_that_differ"].items():
            table.add_row(escape(f"--{name}"), *(escape(str(value)) for value in values))
        console.print(table)
    for pair in found["mcnemar"]:
        say(in_words(pair))


def in_words(pair: dict[str, Any]) -> str:
    """What McNemar's test says of two runs."""
    sure = "differ by more than chance" if pair["p"] < 0.05 else "may differ by chance alone"
    p = f"p = {pair['p']:.3f}" if pair["p"] >= 0.001 else f"p = {pair['p']:.1e}"
    return (
        f"{pair['first']} and {pair['second']} {sure}: of {pair['images']:,} images {pair['only_first_right']:,} are "
        f"read right by the first only, {pair['only_second_right']:,} by the second only (McNemar, {pair['test']}, {p})"
    )
