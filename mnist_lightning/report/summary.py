"""Report: all that is known of one run, and its numbers as JSON has them."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from mnist_lightning.report import measures
from mnist_lightning.report.evaluation import Evaluation
from mnist_lightning.report.history import History, number

WORST = 24  # errors that are shown
SUREST = 0.99  # the share of the images whose errors are told, where the least sure ones may be refused
CONFUSED = 10  # pairs of classes
ACCURACIES = (0.99, 0.995, 0.999, 1.0)  # of the answers, for which it is told how many can be given


@dataclass
class Report:
    """A run, or weights without one: where it comes from, how it was trained, what it reads."""

    name: str
    origin: str
    history: History
    settings: dict[str, Any]  # by flag: "model.lr"
    evaluation: Evaluation | None = None
    filters: Tensor | None = None  # [n, height, width]
    folder: Path | None = None
    notes: list[str] = field(default_factory=list)
    temperature: float = 1.0  # that the network's logits are divided by
    chosen: int = 0  # the image that is looked at more closely


def accuracy_of(right: Tensor) -> dict[str, Any]:
    """How many of bool [n] are true, and the interval for others like them."""
    images, correct = len(right), int(right.sum())
    low, high = measures.interval(correct, images) if images else (None, None)
    share = correct / images if images else None
    return {"accuracy": share, "correct": correct, "errors": images - correct, "images": images,
            "interval_95": [low, high]}  # fmt: skip


def numbers(report: Report) -> dict[str, Any]:
    """What `--json` prints: always the same keys, null where nothing is known; every number is finite."""
    history, sessions = report.history, report.history.sessions
    found: dict[str, Any] = {
        "run": report.name,
        "folder": str(report.folder) if report.folder else None,
        "origin": report.origin,
        "temperature": report.temperature,
        "evaluation": _evaluated(report.evaluation) if report.evaluation else None,
        "test_at_end_of_training": history.result or None,
        "epochs": [
            {"epoch": epoch} | {name: value if (value := number(text)) is not None else text
                                for name, text in row.items()}
            for epoch, row in history.epochs.items()
        ],
        "resumed_at_epochs": history.resumed,
        "seconds": history.seconds,
        "machine": sessions[-1]["machine"] if sessions else None,
        "versions": (sessions[-1].get("versions") if sessions else None) or history.result.get("versions"),
        "settings": report.settings,
        "notes": report.notes,
    }  # fmt: skip
    return finite(found)


def _evaluated(evaluation: Evaluation) -> dict[str, Any]:
    labels, rows = evaluation.labels, evaluation.probabilities
    matrix = measures.confusion_matrix(labels, evaluation.predictions, rows.shape[1])
    names = [evaluation.name(k) for k in range(rows.shape[1])]
    doubted = evaluation.doubted
    return {
        "source": evaluation.source,
        "split": evaluation.split,
        **accuracy_of(evaluation.right),
        "without_doubted_labels": accuracy_of(evaluation.right[~doubted]) if doubted.any() else None,
        "doubted_labels": doubted.nonzero()[:, 0].tolist(),
        "cross_entropy": measures.cross_entropy(labels, rows),
        "expected_calibration_error": measures.calibration_error(labels, rows),
        "mean_confidence": float(rows.amax(1).double().mean()),
        "classes": [{"name": name} | row for name, row in zip(names, measures.per_class(matrix), strict=True)],
        "confusion_rows_true_columns_predicted": matrix.tolist(),
        "most_confused": confused(matrix, names),
        "answered": answered(evaluation),
        "surest": measures.surest(labels, rows, SUREST),
        "worst_errors": [error(evaluation, place) for place in measures.worst(labels, rows, WORST).tolist()],
        "sha256": evaluation.fingerprint,
    }  # fmt: skip


def confused(matrix: Tensor, names: list[str], most: int = CONFUSED) -> list[dict[str, Any]]:
    """The pairs of classes that are taken for each other most often."""
    pairs = [
        {"true": names[row], "read": names[column], "images": int(matrix[row, column])}
        for row, column in matrix.nonzero().tolist()
        if row != column
    ]
    return sorted(pairs, key=lambda pair: -int(str(pair["images"])))[:most]


def answered(evaluation: Evaluation) -> list[dict[str, Any]]:
    """For some accuracies of the answers: the largest share of the images that can be answered, the surest first."""
    share, accuracy, confidence = measures.coverage_curve(evaluation.labels, evaluation.probabilities)
    found = []
    for least in ACCURACIES:
        enough = (accuracy >= least).nonzero()[:, 0]
        at = int(enough[-1]) if len(enough) else None
        known = {"share": 0.0, "confidence": None} if at is None else {
            "share": float(share[at]), "confidence": float(confidence[at])}  # fmt: skip
        found.append({"accuracy": least} | known)
    return found


def error(evaluation: Evaluation, place: int) -> dict[str, Any]:
    """What is said of one image."""
    row, true = evaluation.probabilities[place], int(evaluation.labels[place])
    read = int(row.argmax())
    return {
        "image": place,
        "true": evaluation.name(true),
        "read": evaluation.name(read),
        "probability_of_true": float(row[true]),
        "probability_of_read": float(row[read]),
        "label_is_doubted": bool(evaluation.doubted[place]),
    }


def compared(reports: list[Report]) -> dict[str, Any]:
    """Several runs beside each other: settings that differ, and McNemar's test of each pair on the same images."""
    names = sorted({name for report in reports for name in report.settings})
    values = {name: [report.settings.get(name) for report in reports] for name in names}
    pairs, notes = [], []
    for place, first in enumerate(reports):
        for second in reports[place + 1 :]:
            one, other = first.evaluation, second.evaluation
            if one and other and one.fingerprint == other.fingerprint:
                test = measures.mcnemar(one.right, other.right)
                pairs.append({"first": first.name, "second": second.name, "images": len(one.labels)} | test)
            else:
                why = "were measured on different images" if one and other else "were not both measured"
                notes.append(f"{first.name} and {second.name} {why}: their errors are not compared")
    differ = {name: found for name, found in values.items() if any(value != found[0] for value in found)}
    return {
        "runs": [numbers(report) for report in reports],
        "settings_that_differ": differ,
        "mcnemar": pairs,
        "notes": notes,
    }


def finite(value: Any) -> Any:
    """As JSON holds it: what is not a finite number is null, what it does not know is text."""
    if isinstance(value, Mapping):
        return {str(name): finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else re.sub(r" at 0x\w+", "", str(value))


def flags(settings: Any, before: str = "") -> dict[str, Any]:
    """Nested settings, as config.yaml has them, by flag: {"model": {"lr": 1}} -> {"model.lr": 1}."""
    if not isinstance(settings, Mapping) or not settings:
        return {before: settings} if before else {}
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if name == "init_args":
            found |= flags(value, before)
        elif name == "class_path":
            found[before] = value
        else:
            found |= flags(value, f"{before}.{name}" if before else str(name))
    return found
