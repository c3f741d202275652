"""Labels of pictures that lie in one folder: in a part of their names, or in a table beside them."""

import csv
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from mnist_lightning.data.columns import LABEL, plain
from mnist_lightning.data.delimited import UTF16
from mnist_lightning.data.digits import WORDS
from mnist_lightning.errors import UserError

_MOST_BYTES = 1 << 26  # of a table
_EACH = 4  # pictures of a class at least, on average, so that numbers which only count are no labels


def labels_of(
    paths: list[Path], files: Iterable[Path], content: Callable[[Path], bytes]
) -> tuple[dict[Path, str], str]:
    """The label of each picture, and where they were found; none where no place is sure to hold them.

    A table that names over half of the pictures is meant to name all of them. `content`: that of one of the `files`.
    """
    for file in files:
        if is_table(file) and file.parent in (paths[0].parent, paths[0].parent.parent):
            found = _in_table(paths, file, content)
            if 2 * len(found) > len(paths):
                return found, f" (labels in {file.name})"
    return _in_names(paths)


def is_table(file: Path) -> bool:
    """Whether names and labels may stand there."""
    return file.suffix.lower() in (".csv", ".tsv", ".txt")


def class_names(names: list[str]) -> list[str]:
    """Names of classes, less what stands around the number in each, as in class_3."""
    found = [re.fullmatch(r"(\D*)(\d+)(\D.*)?", name) for name in names]
    around = {(match[1], match[3]) for match in found if match}
    return [match[2] for match in found if match] if all(found) and len(around) == 1 else names


def _in_names(paths: list[Path]) -> tuple[dict[Path, str], str]:
    """The first or the last word of each name, as in 7_00012.png; not where both could be it."""
    words = [re.findall(r"[A-Za-z0-9]+", path.stem) for path in paths]
    fitting = []
    for at, place in ((0, "first"), (-1, "last")):
        labels = [row[at] for row in words if len(row) > 1]
        distinct = sorted(set(labels))
        called = dict(zip(distinct, class_names(distinct), strict=True))
        if (
            len(labels) == len(paths) >= _EACH * len(distinct)
            and len(distinct) > 1
            and all(map(_is_class, called.values()))
        ):
            fitting.append(({path: called[label] for path, label in zip(paths, labels, strict=True)}, place))
    if len(fitting) != 1:
        return {}, ""
    return fitting[0][0], f" (label {fitting[0][1]} in their names)"


def _is_class(name: str) -> bool:
    return bool(re.fullmatch(r"\d|[A-Za-z]", name)) or name.lower() in WORDS


def _in_table(paths: list[Path], file: Path, content: Callable[[Path], bytes]) -> dict[Path, str]:
    """Of a table with a column of the files' names, with or without their endings, and one of labels."""
    by_name = {path.stem: path for path in paths} | {path.name: path for path in paths}
    try:
        if file.exists() and file.stat().st_size > _MOST_BYTES:
            return {}
        data = content(file)
        text = data.decode("utf-16" if data.startswith(UTF16) else "utf-8-sig")
        head = text[: text.find("\n")]
        separator = next((sign for sign in ("\t", ";", ",") if sign in head), ",")
        rows = [[cell.strip() for cell in row] for row in csv.reader(text.splitlines(), delimiter=separator) if row]
    except (OSError, UserError, ValueError, csv.Error):
        return {}
    if len({len(row) for row in rows}) != 1:
        return {}
    # the column that names most pictures: labels can be names of pictures, too, of a few
    columns = [
        [by_name.get(Path(cell.replace("\\", "/")).name) for cell in column] for column in zip(*rows, strict=True)
    ]
    named = max(range(len(columns)), key=lambda at: len(set(columns[at])))
    others = [at for at in range(len(columns)) if at != named]
    called = [at for at in others if LABEL.fullmatch(plain(rows[0][at]))]
    label = called if len(called) == 1 else others
    if len(label) != 1:
        return {}
    found = zip(columns[named], (row[label[0]] for row in rows), strict=True)
    return {path: text for path, text in found if path is not None and text}
