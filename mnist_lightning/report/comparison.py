"""The page that shows several runs beside each other."""

from collections.abc import Sequence
from html import escape
from typing import Any

from mnist_lightning import figures
from mnist_lightning.report.page import describe, digits, epochs_table, page, percent, plot, table
from mnist_lightning.report.summary import Report
from mnist_lightning.report.svg import image
from mnist_lightning.report.terminal import in_words

DISAGREEMENTS = 24  # images that are shown


def page_of(reports: Sequence[Report], found: dict[str, Any]) -> str:
    """The page of several runs, of the numbers of `summary.compared`."""
    sections = [("accuracy", "What they read", accuracies(found))]
    histories = [report.history for report in reports if report.history.curves]
    if histories:
        sections.append(("training", "Training", training(histories)))
    if found["settings_that_differ"]:
        sections.append(("settings", "Settings that differ", settings(found)))
    if shown := disagreements(reports):
        sections.append(("images", "Images that not all read right", shown))
    names = [report.name for report in reports]
    header = f"<h1>{escape(' and '.join(names) if len(names) == 2 else ', '.join(names))}</h1><p>Side by side.</p>"
    notes = [*found["notes"], *(f"{report.name}: {note}" for report in reports for note in report.notes)]
    return page(f"{', '.join(names)}: compared", header, sections, notes)


def accuracies(found: dict[str, Any]) -> str:
    rows = []
    for run in found["runs"]:
        told, epochs = run["evaluation"], str(len(run["epochs"]))
        seconds = "–" if run["seconds"] is None else f"{run['seconds']:,.1f}"
        if told is None:
            rows.append([run["run"], *["–"] * 6, epochs, seconds])
            continue
        without = told["without_doubted_labels"]
        low, high = told["interval_95"]
        rows.append([
            run["run"], percent(told["accuracy"]), f"{percent(low)} to {percent(high)}", f"{told['errors']:,}",
            percent(without["accuracy"]) if without else "–", f"{told['cross_entropy']:.4f}",
            percent(told["expected_calibration_error"]), epochs, seconds,
        ])  # fmt: skip
    columns = ["run", "accuracy", "95 % interval", "errors", "without doubted labels", "cross-entropy",
               "calibration error", "epochs", "seconds"]  # fmt: skip
    text = table("Accuracy and what belongs to it", columns, rows)
    if pairs := found["mcnemar"]:
        rows = [
            [f"{pair['first']} and {pair['second']}", f"{pair['only_first_right']:,}", f"{pair['only_second_right']:,}",
             f"{pair['p']:.3g}", pair["test"]]
            for pair in pairs
        ]  # fmt: skip
        caption = "McNemar's paired test of their errors on the same images"
        caption += "; p is not corrected for the number of pairs" if len(pairs) > 1 else ""
        columns = ["runs", "only the first is right", "only the second is right", "p", "test"]
        text += "".join(f"<p>{escape(in_words(pair))}.</p>" for pair in pairs) + table(caption, columns, rows)
    return text


def training(histories: list[Any]) -> str:
    plots = []
    for measure in ("accuracy", "loss"):
        words = "; ".join(describe(history, measure) for history in histories)
        plots += [
            plot(figures.curve(*histories, measure=measure), f"{measure}-epochs", words),
            plot(figures.curve(*histories, measure=measure, over="examples"), f"{measure}-examples", words),
        ]
    return f'<div class="plots">{"".join(plots)}</div>\n{epochs_table(histories)}'


def settings(found: dict[str, Any]) -> str:
    names = [run["run"] for run in found["runs"]]
    rows = [[f"--{name}", *map(str, values)] for name, values in found["settings_that_differ"].items()]
    return table("None: not set", ["setting", *names], rows, "text")


def disagreements(reports: Sequence[Report]) -> str:
    """Images that some of the runs read right and others do not, where all were measured on the same."""
    found = [report.evaluation for report in reports if report.evaluation]
    if len(found) < len(reports) or len({one.fingerprint for one in found}) > 1:
        return ""
    first, right = found[0], sum(one.right.long() for one in found)
    places = ((right > 0) & (right < len(found))).nonzero()[:, 0].tolist()
    items = []
    for place in places[:DISAGREEMENTS]:
        true = first.name(int(first.labels[place]))
        reads = "<br>".join(
            f"{escape(report.name)}: {escape(one.name(int(one.predictions[place])))}"
            for report, one in zip(reports, found, strict=True)
        )
        alt = f"image {place}, a {true}"
        items.append(f"{image(first.images[place], alt, 3)}true {escape(true)}<br>{reads}<br>image {place}")
    told = f"<p>{len(places):,} images; the first {len(items)}.</p>" if len(places) > len(items) else ""
    return told + digits(items, wide="7rem") if items else ""
