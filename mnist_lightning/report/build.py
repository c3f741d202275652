"""From a run's folder, or a file of weights, to its report and the report's files."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mnist_lightning import figures
from mnist_lightning.commands.evaluate import settings_of_training
from mnist_lightning.errors import BadSetting, UserError
from mnist_lightning.files import write_whole
from mnist_lightning.predictor import Predictor, pretrained
from mnist_lightning.report import augmentation
from mnist_lightning.report.evaluation import Evaluation, evaluate, first_layer
from mnist_lightning.report.history import History, read_history
from mnist_lightning.report.look import png
from mnist_lightning.report.measures import worst
from mnist_lightning.report.summary import Report, flags
from mnist_lightning.run import Run
from mnist_lightning.settings import parsed, yaml_value
from mnist_lightning.training.checkpoints import read_weights
from mnist_lightning.words import Pairs, merged


@dataclass
class Source:
    """What a report is of: a run, a file of weights, or (neither) the shipped weights."""

    name: str
    folder: Path  # where the report goes
    run: Run | None = None
    file: Path | None = None  # a checkpoint that was asked for

    def history(self) -> History:
        history = read_history(self.run or Run(pretrained().parent)) if self.run or not self.file else History("")
        history.name = self.name
        return history


def build(source: Source, asked: Pairs, which: str | None = None, image: int | None = None) -> Report:
    """Measures the network of a run; what cannot be had becomes a note.

    `asked`: settings of the data; `which`: best or last; `image`: the one to look at more closely.
    """
    history = source.history()
    report = Report(source.name, str(source.folder), history, _settings(source), folder=source.folder)
    report.notes += history.notes
    try:
        predictor = _predictor(source, which)
    except UserError as error:
        if source.run is None or which or source.file:
            raise
        report.notes.append(f"the network is not shown: {error}")
        return report
    report.origin, report.temperature = predictor.origin, predictor.temperature
    checkpoint = {} if predictor.file.suffix == ".onnx" else read_weights(predictor.file)
    report.settings = report.settings or flags(
        {"model": checkpoint.get("hyper_parameters", {}), "data": checkpoint.get("datamodule_hyper_parameters", {})}
    )
    if predictor.model is not None:
        report.filters = first_layer(predictor.model.state_dict().items())
    report.evaluation = evaluate(predictor, _data(source, checkpoint, asked), report.notes)
    if report.evaluation:
        report.chosen = _chosen(report.evaluation, image)
    return report


def _predictor(source: Source, which: str | None) -> Predictor:
    if source.run is None or source.file:
        return Predictor(source.file)
    if source.run.members() and which is None:
        return Predictor(source.run.folder)
    return Predictor(source.run.checkpoint(which or ("best" if source.run.best.exists() else "last")))


def _settings(source: Source) -> dict[str, Any]:
    """Those of config.yaml, by flag."""
    if source.run is None:
        return {}
    try:
        settings = flags(yaml_value(source.run.config.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}
    return {name: value for name, value in settings.items() if value not in (None, [], {})}


def _data(source: Source, checkpoint: dict[str, Any], asked: Pairs) -> Any:
    """The data module, as the training had it but for what was asked."""
    pairs = settings_of_training(checkpoint, source.run) if checkpoint else []
    pairs = [pair for pair in pairs if pair[0].partition(".")[0] == "data"]
    if not any(name == "data.source" for name, _ in pairs):  # weights of no run: nothing is drawn in MNIST's place
        pairs = [("data.source", "mnist"), *pairs] if not any(name == "data" for name, _ in pairs) else pairs
    return parsed("test", merged(pairs + asked)).data.make()


def _chosen(evaluation: Evaluation, image: int | None) -> int:
    """The image that was asked for, else the worst error, else the least sure one."""
    if image is not None:
        if not 0 <= image < len(evaluation.labels):
            raise BadSetting(f"--image is {image}; there are images 0 to {len(evaluation.labels) - 1}")
        return image
    first = worst(evaluation.labels, evaluation.probabilities, 1)
    return int(first[0]) if len(first) else int(evaluation.probabilities.amax(1).argmin())


# ---------------------------------------------------------------------- its files


def pictures(report: Report) -> dict[str, Any]:
    """The figures of a report, by the names of their files."""
    found: dict[str, Any] = {}
    if report.history.curves:
        found |= {measure: figures.curve(report.history, measure=measure) for measure in ("accuracy", "loss")}
    if one := report.evaluation:
        names, rows = [one.name(k) for k in range(one.probabilities.shape[1])], one.probabilities
        chosen = report.chosen
        found |= {
            "samples": figures.samples(one.images[:40], one.labels[:40], names),
            "confusion": figures.confusion(one.labels, one.predictions, names),
            "reliability": figures.reliability(one.labels, rows),
            "coverage": figures.coverage(one.labels, rows),
            "errors": figures.errors(one.images, one.labels, rows, names),
            "image": figures.probabilities(one.images[chosen], rows[chosen], names, int(one.labels[chosen])),
        }
    if (changed := augmentation.changed(report)) is not None:
        found["augmented"] = augmentation.figure(changed)
    if report.filters is not None:
        found["filters"] = figures.filters(report.filters)
    return found


def write(page: str, drawn: dict[str, Any], folder: Path) -> Path:
    """index.html and the pictures; returns the page's path. Raises UserError if it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be made: {error.strerror or error}") from error
    for name, figure in drawn.items():
        write_whole(png(figure), folder / f"{name}.png")
    write_whole(page, folder / "index.html")
    return folder / "index.html"
