"""`report`: what a run came to, on a page and in the terminal; several runs side by side."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mnist_lightning.console import console, say
from mnist_lightning.errors import BadSetting, UserError, nearest, needs
from mnist_lightning.processes import Signals
from mnist_lightning.report import terminal
from mnist_lightning.report.history import read_history
from mnist_lightning.run import Run

if TYPE_CHECKING:
    from mnist_lightning.report.build import Source
    from mnist_lightning.report.summary import Report

USAGE = """usage: python -m mnist_lightning report [RUN …] [--SETTING VALUE …]

A page of one run (report/index.html in its folder, with its pictures as PNG), and its short form in the terminal:
curves, accuracy, confusion matrix, calibration, the worst errors. RUN is a run's name or folder, or a checkpoint file;
without one, a table of all runs and the page of the newest, or of the shipped weights if there is no run yet. Several
are compared, with McNemar's test of their errors on the same images. RUN may be a study of search: then what was tried.

  --run NAME                        the same as RUN
  --ckpt_path best|last             which checkpoint of the run (best)
  --image N                         the test image that is looked at more closely, counted from 0 (the worst error)
  --output DIR                      where page and pictures go
  --storage postgresql://…          where a study of search is kept, if not in its folder
  --data.root DIR, --data.…         where the images are now, if not where the training found them
  --trainer.default_root_dir DIR    where the runs are (checkpoints)
  --table                           only the table of all runs, or of the epochs of one: reads no image
  --json                            for programs: the numbers, and nothing else, on standard output
"""
SWITCHES = ("json", "table", "debug", "help")
FLAGS = ("run", "ckpt_path", "image", "output", "storage", "trainer.default_root_dir", "data")
SHIPPED = "pretrained"


def command(name: str, words: list[str], signals: Signals) -> None:
    """Shows one run, or compares several."""
    named, asked = _split(words)
    if "help" in asked:
        print(USAGE, end="")
        return
    root = Path(asked.get("trainer.default_root_dir", "checkpoints"))
    named += [asked["run"]] if "run" in asked else []
    before = console.stderr, console.record
    console.stderr = console.stderr or "json" in asked  # what is said besides is not for the program that reads
    console.record = True  # for a picture of it
    try:
        _tables(root, named, asked) if "table" in asked else _reports(root, named, asked)
    finally:
        console.export_text()  # forgets it
        console.stderr, console.record = before


def _split(words: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The names of runs, and the value of each flag."""
    named: list[str] = []
    asked: dict[str, str] = {}
    left = iter(words)
    for word in left:
        flag, equals, value = word.removeprefix("--").partition("=")
        if word == "-h" or (word.startswith("--") and flag in SWITCHES and not equals):
            asked["help" if word == "-h" else flag] = ""
        elif not word.startswith("-") or word == "-":
            named.append(word)
        elif word.startswith("--") and (flag in FLAGS or flag.startswith("data.")):
            value = value if equals else next(left, "--")
            if value.startswith("--") and not equals:
                raise BadSetting(f"--{flag} takes a value; see --help")
            asked[flag] = value
        else:
            raise BadSetting(f"there is no flag {word}; {nearest(flag, [f'--{one}' for one in (*FLAGS, *SWITCHES)])}")
    return named, asked


# ---------------------------------------------------------------------- tables alone, without torch


def _tables(root: Path, named: list[str], asked: dict[str, str]) -> None:
    runs = [_run(root, name) for name in named] or Run.all(root) or [Run.newest(root)]  # which says that there is none
    histories = [read_history(run) for run in runs]
    if "json" in asked:
        rows = [{"run": one.name, "epochs": one.epochs, "test": one.result, "notes": one.notes} for one in histories]
        print(json.dumps(rows, indent=2))
    elif named:
        for history in histories:
            terminal.epochs(history)
            terminal.curve(history)
    else:
        terminal.all_runs(histories)


def _run(root: Path, name: str) -> Run:
    """The run of that name or in that folder."""
    folder = Path(name)
    if Path(name).name == name and (root / name / "config.yaml").exists():
        return Run.named(root, name)
    if folder.is_dir() and (folder / "config.yaml").exists():
        return Run(folder)
    if folder.is_dir() and any(folder.glob("*/config.yaml")):
        raise BadSetting(f"{name} is a folder of runs, no run: give --trainer.default_root_dir {name}")
    return Run.named(root, name)  # says which there are


# ---------------------------------------------------------------------- pages


def _reports(root: Path, named: list[str], asked: dict[str, str]) -> None:
    which, file = _checkpoint(asked.get("ckpt_path"))
    if file and len(named) > 1:
        raise BadSetting("--ckpt_path FILE is of one run: to compare files, name them as the runs are named")
    if not named and not file and "json" not in asked and (runs := Run.all(root)):
        terminal.all_runs([read_history(run) for run in runs])
    for name in named:  # a mistake is said before torch is imported
        if not _is_file(name) and name != SHIPPED and not (len(named) == 1 and _study(root, name)):
            _run(root, name)
    image = _whole(asked["image"]) if "image" in asked else None
    if len(named) == 1 and (study := _study(root, named[0])):
        return _one_study(study, asked)

    from mnist_lightning.report.build import build  # with it comes torch

    settings = [(flag, value) for flag, value in asked.items() if flag.partition(".")[0] == "data"]
    reports = []
    for source in _sources(root, named or ([file] if file else [])):
        source.file = Path(file) if file and named else source.file
        if "json" not in asked and len(named) < 2:
            history = source.history()
            if history.epochs:
                terminal.epochs(history)
            terminal.curve(history)
        reports.append(build(source, settings, which, image))
    output = Path(asked["output"]) if "output" in asked else None
    if len(reports) == 1:
        _one(reports[0], output, "json" in asked)
    else:
        _several(reports, output, root, "json" in asked)


def _study(root: Path, name: str) -> Path | None:
    """The folder of the study of that name, or that is one."""
    places = [root / name] if Path(name).name == name else []
    parts = ("journal.log", "trials")
    return next((place for place in [*places, Path(name)] if any((place / part).exists() for part in parts)), None)


def _one_study(folder: Path, asked: dict[str, str]) -> None:
    with needs("search", "the report of a search"):
        import optuna  # noqa: F401
    from mnist_lightning.report.study import StudyReport

    report = StudyReport(folder, asked.get("storage"))
    found, drawn = report.numbers(), report.pictures()
    if "json" not in asked:
        report.tell(found)
    page, output = report.page(found, drawn), asked.get("output")
    _write(page, drawn, Path(output or folder / "report"), found, "json" in asked, output is not None)


def _checkpoint(asked: str | None) -> tuple[str | None, str | None]:
    """Which of a run's checkpoints is meant, or the file."""
    return (asked, None) if asked in (None, "best", "last") else (None, asked)


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise BadSetting(f"--image: {text!r} is no whole number") from error


def _is_file(name: str) -> bool:
    return Path(name).is_file() or Path(name).suffix in (".ckpt", ".onnx")


def _sources(root: Path, named: list[str]) -> "list[Source]":
    """Where each report comes from; their names are not the same."""
    from mnist_lightning.predictor import pretrained
    from mnist_lightning.report.build import Source

    if not named and not Run.all(root) and not pretrained().exists():
        Run.newest(root)  # says that there is none
    sources = []
    for name in named or ([Run.newest(root).folder.name] if Run.all(root) else [SHIPPED]):
        if _is_file(name):
            file, run = Path(name), Run(Path(name).parent)
            folder = file.parent / "report"
            sources.append(Source(file.stem, folder, run if run.config.exists() else None, file))
        elif name == SHIPPED and not (root / name / "config.yaml").exists():
            sources.append(Source("the shipped weights", root / SHIPPED / "report"))
        else:
            run = _run(root, name)
            sources.append(Source(run.folder.resolve().name, run.folder / "report", run))
    names = [source.name for source in sources]
    for source, name in zip(sources, named, strict=False):
        if names.count(source.name) > 1:
            source.name = name
    return sources


def _one(report: "Report", output: Path | None, as_json: bool) -> None:
    from mnist_lightning.report import build, page, summary
    from mnist_lightning.report.screen import screen

    found = summary.numbers(report)
    if not as_json:
        terminal.measured(found)
        for note in report.notes:
            say(f"Note: {note}")
    place, drawn = output or report.folder or Path("report"), build.pictures(report)
    if not as_json:
        drawn["terminal"] = screen(console.export_text(clear=False, styles=True))
    _write(page.page_of(report, found), drawn, place, found, as_json, output is not None)


def _several(reports: "list[Report]", output: Path | None, root: Path, as_json: bool) -> None:
    from mnist_lightning import figures
    from mnist_lightning.report import comparison, summary

    found = summary.compared(reports)
    if not as_json:
        terminal.compared(found)
        for note in [*found["notes"], *(f"{report.name}: {note}" for report in reports for note in report.notes)]:
            say(f"Note: {note}")
    histories = [report.history for report in reports if report.history.curves]
    drawn = {
        f"{measure}-{over}": figures.curve(*histories, measure=measure, over=over)
        for measure in ("accuracy", "loss")
        for over in ("epochs", "examples")
        if histories
    }
    page = comparison.page_of(reports, found)
    _write(page, drawn, output or root / "report", found, as_json, output is not None)


def _write(page: str, drawn: dict[str, Any], place: Path, found: Any, as_json: bool, asked_for: bool) -> None:
    """Page and pictures; a folder that cannot be written to withholds no result."""
    from mnist_lightning.report.build import write

    problem = None
    try:
        found["page"] = str(write(page, drawn, place))
    except UserError as error:
        found["page"], problem = None, error
    if as_json:
        print(json.dumps(found, indent=2, allow_nan=False))
    if problem is None:
        say(f"Page and pictures: {found['page']}")
    elif asked_for:
        raise problem
    else:
        say(f"Note: no page: {problem}; --output DIR puts it elsewhere")
