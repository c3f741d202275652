"""The page of a report: one HTML file that needs nothing else."""

import re
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from mnist_lightning import __version__, figures
from mnist_lightning.report import augmentation, measures
from mnist_lightning.report.evaluation import Evaluation
from mnist_lightning.report.history import History
from mnist_lightning.report.summary import Report
from mnist_lightning.report.svg import image, in_colours, inline

SAMPLES = 40
FILTERS = 64
SHORT = 3  # letters of a name that is written across its column
CROWDED = 12  # classes from which on a matrix is set smaller
Found = dict[str, Any]  # of `summary.numbers`


def page_of(report: Report, found: Found) -> str:
    """The page of one run, of its numbers."""
    evaluation, sections, name = report.evaluation, [], escape(report.name)
    if report.history.epochs or report.history.curves:
        sections.append(("training", "Training", training(report.history)))
    if evaluation:
        told = found["evaluation"]
        sections.append(("samples", "Sample digits", samples(evaluation)))
        if (changed := augmentation.changed(report)) is not None:
            sections.append(("augmented", "What training made of digits", augmentation.section(changed)))
        sections += [
            ("confusion", "What is taken for what", confusion(told)),
            ("classes", "Each class", classes(told)),
            ("calibration", "How sure, how right", calibration(evaluation, found)),
            ("errors", "The worst errors", errors(evaluation, told)),
            ("image", "One image", one_image(evaluation, report.chosen)),
        ]
    if report.filters is not None:
        sections.append(("filters", "First layer", filters(report)))
    sections.append(("settings", "Settings, versions, machine", settings(found)))
    return page(f"{report.name}: report", f"<h1>{name}</h1>\n{summary(report, found)}", sections, report.notes)


def page(title: str, header: str, sections: Sequence[tuple[str, str, str]], notes: Sequence[str]) -> str:
    """A page with these sections: name, heading, content."""
    links = "".join(f'<li><a href="#{name}">{heading}</a></li>' for name, heading, _ in sections)
    told = "".join(f"<li>{escape(note)}</li>" for note in notes)
    header += f'\n<div class="notes" role="note"><ul>{told}</ul></div>' if notes else ""
    header += f'\n<nav aria-label="Sections"><ul>{links}</ul></nav>'
    main = "\n".join(
        f'<section id="{name}" aria-labelledby="{name}-heading"><h2 id="{name}-heading">{heading}</h2>\n{content}\n'
        "</section>"
        for name, heading, content in sections
    )
    footer = f"<p>Made by <code>report</code> of mnist_lightning {__version__}. This file needs no network.</p>"
    content = {"title": escape(title), "header": header, "main": main, "footer": footer}
    parts = re.split("@(title|header|main|footer)@", Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
    return "".join(content[part] if place % 2 else part for place, part in enumerate(parts))


# ---------------------------------------------------------------------- sections


def summary(report: Report, found: Found) -> str:
    lines = [f'<p class="muted">{escape(report.origin)}</p>']
    if told := found["evaluation"]:
        lines.append(
            f'<p class="big"><strong>{percent(told["accuracy"])}</strong> of {told["images"]:,} {images_of(told)} '
            f"are read right; {told['errors']:,} are not.</p>"
        )
        low, high = told["interval_95"]
        lines.append(
            f"<p>95 % interval for other images of the kind (Wilson): {percent(low)} to {percent(high)}. "
            f"Cross-entropy {told['cross_entropy']:.4f}.</p>"
        )
        if without := told["without_doubted_labels"]:
            lines.append(
                f"<p>Without the {len(told['doubted_labels'])} images whose label most annotators doubt: "
                f"<strong>{percent(without['accuracy'])}</strong> of {without['images']:,}, "
                f"{without['errors']:,} errors.</p>"
            )
    return "\n".join(lines)


def images_of(told: Found) -> str:
    """ "test images of mnist", for a sentence."""
    kind = {"test": "test images", "val": "validation images"}[told["split"]]
    synthetic = told["source"] == "synthetic"
    return f"{kind} of " + ("<strong>SYNTHETIC digits, not MNIST</strong>," if synthetic else escape(told["source"]))


def training(history: History) -> str:
    plots = [
        plot(figures.curve(history, measure=measure), measure, describe(history, measure))
        for measure in ("accuracy", "loss")
    ]
    resumed = ", ".join(f"{epoch:.4g}" for epoch in history.resumed)
    text = "<p>Training values are means over an epoch while it is learnt, with dropout and augmentation; validation "
    text += "values are of the network at that moment.</p>"
    text += f"<p>The training was resumed after {resumed} epochs (dotted).</p>" if resumed else ""
    return f'{text}<div class="plots">{"".join(plots)}</div>\n{epochs_table([history])}'


def describe(history: History, measure: str) -> str:
    """A curve in words."""
    told = []
    for split in ("train", "val", "test"):
        points = history.curves.get(f"{split}_{figures.MEASURES[measure]}", [])
        if points:
            form = percent if measure == "accuracy" else "{:.4f}".format
            told.append(
                f"{figures.WORDS[split]} from {form(points[0].value)} after {points[0].epoch:g} epochs "
                f"to {form(points[-1].value)} after {points[-1].epoch:g}"
            )
    return f"{measure.capitalize()} of {history.name} over epochs: {'; '.join(told) or 'nothing was recorded'}"


def epochs_table(histories: Sequence[History]) -> str:
    """The values behind the curves, folded away."""
    tables = []
    for history in histories:
        names = list(dict.fromkeys(name for row in history.epochs.values() for name in row))
        rows = [[str(epoch), *(short(row.get(name, "")) for name in names)] for epoch, row in history.epochs.items()]
        tables.append(table(f"Epochs of {history.name}", ["epoch", *names], rows))
    return f"<details><summary>The numbers of each epoch</summary>{''.join(tables)}</details>"


def samples(evaluation: Evaluation) -> str:
    items = []
    for place, label in enumerate(evaluation.labels[:SAMPLES].tolist()):
        name = evaluation.name(label)
        items.append(f"{image(evaluation.images[place], f'image {place}')} {escape(name)}")
    return f"<p>The first {len(items)} of them, with their labels.</p>{digits(items)}"


def confusion(told: Found) -> str:
    names, matrix = [row["name"] for row in told["classes"]], told["confusion_rows_true_columns_predicted"]
    worst = max((n / max(sum(row), 1) for k, row in enumerate(matrix) for j, n in enumerate(row) if j != k), default=0)
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    lines = []
    for place, (name, row) in enumerate(zip(names, matrix, strict=True)):
        cells = "".join(_cell(n, place == k, n / max(sum(row), 1), worst) for k, n in enumerate(row))
        lines.append(f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>')
    size = "1rem" if len(names) <= CROWDED else ".8rem"
    sizes = f"--cell: {size}; --print: {min(10.0, 400 / max(len(names), 1)):.1f}pt"
    long = " long" if max(map(len, names)) > SHORT else ""
    caption = "Rows: true label; columns: predicted. Right ones are bold; an error is the darker, the larger its share "
    text = f"""<div class="scroll" tabindex="0" role="region" aria-label="Confusion matrix">
<table class="confusion{long}" style="{sizes}"><caption>{caption}of its row. Empty: none.</caption>
<thead><tr><td class="corner">true \\ predicted</td>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>"""
    pairs = [[pair["true"], pair["read"], f"{pair['images']:,}"] for pair in told["most_confused"]]
    return text + (table("Taken for another most often", ["true", "read as", "images"], pairs) if pairs else "")


def _cell(count: int, right: bool, share: float, worst: float) -> str:
    if right:
        return f'<td class="right">{count}</td>'
    return f'<td style="--a: {(share / worst) ** 0.5:.2f}">{count}</td>' if count else "<td></td>"


def classes(told: Found) -> str:
    rows = [
        [row["name"], *(percent(row[name]) for name in ("precision", "recall", "f1")), f"{row['support']:,}"]
        for row in told["classes"]
    ]
    caption = "Precision: right of those read as it. Recall: right of those that are it. F1: their harmonic mean. "
    return table(f"{caption}Support: images of it.", ["class", "precision", "recall", "F1", "support"], rows)


def calibration(evaluation: Evaluation, found: Found) -> str:
    labels, rows, told = evaluation.labels, evaluation.probabilities, found["evaluation"]
    divided = f" The logits are divided by {found['temperature']:.3f}, a temperature fitted after the training."
    tempered = divided if found["temperature"] != 1 else ""
    error, sure = told["expected_calibration_error"], told["mean_confidence"]
    words = f"expected calibration error {percent(error)}"
    plots = [
        plot(
            figures.reliability(labels, rows), "reliability", f"Reliability diagram: accuracy over confidence; {words}"
        ),
        plot(figures.coverage(labels, rows), "coverage", "Accuracy of the answers over the share of images answered"),
    ]
    least = [
        [
            percent(one["accuracy"], 1),
            percent(one["share"], 1),
            "" if one["confidence"] is None else f"{one['confidence']:.4f}",
        ]
        for one in told["answered"]
    ]
    return f"""<p>On average the network is {percent(sure)} sure and {percent(told["accuracy"])} right. The
{words} (ECE): the images are put into {measures.BINS} bins of equal width by confidence, the highest probability;
the distance between mean confidence and accuracy of each bin is averaged, each bin weighted by its images. If only the
surest {percent(told["surest"]["share"], 0)} are answered, {told["surest"]["errors"]:,} of
{told["surest"]["images"]:,} answers are wrong.{tempered}</p>
<div class="plots">{"".join(plots)}</div>
{table("If only sure answers are given", ["answers right", "images answered", "least confidence"], least)}"""


def errors(evaluation: Evaluation, told: Found) -> str:
    items = []
    for one in told["worst_errors"]:
        words = (
            f"true {escape(one['true'])}: {percent(one['probability_of_true'])}<br>"
            f"read {escape(one['read'])}: {percent(one['probability_of_read'])}<br>image {one['image']}"
        )
        doubt = '<br><span class="doubted">label doubted</span>' if one["label_is_doubted"] else ""
        alt = f"image {one['image']}, a {one['true']} read as {one['read']}"
        items.append(f"{image(evaluation.images[one['image']], alt, 3)}{words}{doubt}")
    if not items:
        return "<p>There are none: every image is read right.</p>"
    text = f"{len(items)} of {told['errors']:,} errors" if told["errors"] > len(items) else f"All {len(items)} errors"
    doubted = ""
    if told["doubted_labels"]:
        places = ", ".join(map(str, told["doubted_labels"]))
        doubted = f'<p class="muted">Most annotators doubt the labels of images {places} (counted from 0).</p>'
    lead = f"<p>{text}, least probability of the true label first; the probability of each is told.</p>"
    return lead + digits(items, wide="7rem") + doubted


def one_image(evaluation: Evaluation, place: int) -> str:
    row, true = evaluation.probabilities[place], int(evaluation.labels[place])
    read = int(row.argmax())
    lines = "".join(
        f'<tr><th scope="row">{escape(evaluation.name(k))}</th><td><span style="width: {value:.2%}"></span></td>'
        f"<td>{percent(value)}</td></tr>"
        for k, value in enumerate(row.tolist())
    )
    verdict = "right" if read == true else f"wrongly as {escape(evaluation.name(read))}"
    return f"""<p>Image {place}, a {escape(evaluation.name(true))}, read {verdict}. Another: <code>--image N</code>.</p>
<div class="one">{image(evaluation.images[place], f"image {place}, a {evaluation.name(true)}", 6)}
<div class="bars"><table style="width: 100%"><caption>What the outputs say, softmax of the network</caption>
<thead><tr><th scope="col">class</th><td></td><th scope="col">probability</th></tr></thead>
<tbody>{lines}</tbody></table></div></div>"""


def filters(report: Report) -> str:
    assert report.filters is not None
    shown = report.filters[:FILTERS]
    height, width = shown.shape[1:]
    items = [image(pixels, f"filter {k}", 8 if width < 10 else 3) for k, pixels in enumerate(in_colours(shown))]
    of = f", the first {len(items)} of {len(report.filters)}" if len(report.filters) > len(items) else ""
    text = f"<p>Weights of the first layer, {height}×{width} each{of}: blue below zero, red above.</p>"
    return text + digits(items, wide="3.5rem")


def settings(found: Found) -> str:
    parts = []
    if machine := found["machine"]:
        rows = [[name, str(value)] for name, value in machine.items()] if isinstance(machine, dict) else []
        seconds = found["seconds"]
        rows.insert(0, ["seconds of training", f"{seconds:,.1f}" if seconds is not None else "not recorded"])
        parts.append(table("Where and how long it was trained", ["", "machine"], rows, "text"))
    else:
        parts.append("<p>Machine and seconds were not recorded.</p>")
    if isinstance(found["versions"], dict):
        rows = [[str(name), str(value)] for name, value in found["versions"].items()]
        parts.append(table("Versions that trained it", ["package", "version"], rows, "text"))
    rows = [[f"--{name}", str(value)] for name, value in found["settings"].items() if value is not None]
    if rows:
        of = "All settings but those that are empty; fit --config takes the run's config.yaml"
        parts.append(table(of, ["setting", "value"], rows, "text"))
    return "\n".join(parts)


# ---------------------------------------------------------------------- what they are made of


def plot(figure: Any, name: str, description: str) -> str:
    return f"<figure>{inline(figure, name, description)}</figure>"


def digits(items: Iterable[str], wide: str = "3.2rem") -> str:
    return f'<ul class="digits" style="--wide: {wide}">{"".join(f"<li>{item}</li>" for item in items)}</ul>'


def table(caption: str, columns: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """A table whose first column names its rows; content is escaped here."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' if name else "<td></td>" for name in columns)
    body = "".join(
        f'<tr><th scope="row">{escape(first)}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in rest)}</tr>'
        for first, *rest in rows
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table class="{kind}"><caption>'
        f"{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def percent(share: float | None, digits: int = 2) -> str:
    return "–" if share is None else f"{100 * share:.{digits}f}\u00a0%"


def short(text: str) -> str:
    """A number in few digits; any other text as it is."""
    try:
        return f"{float(text):.6g}"
    except ValueError:
        return text
