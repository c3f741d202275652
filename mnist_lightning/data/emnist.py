"""EMNIST: names for its labels, and images the right way up, which in its files lie mirrored along their diagonal."""

import re
import string
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from mnist_lightning.data.digits import TEN, Digits, sample

_MERGED = (*TEN, *string.ascii_uppercase, *"abdefghnqrt")  # the other small letters are like their capitals
# For each set the label of each class, and its name
SETS: dict[str, tuple[range, tuple[str, ...]]] = {
    "byclass": (range(62), (*TEN, *string.ascii_uppercase, *string.ascii_lowercase)),
    "bymerge": (range(47), _MERGED),
    "balanced": (range(47), _MERGED),
    "letters": (range(1, 27), tuple(string.ascii_uppercase)),
    "digits": (range(10), TEN),
    "mnist": (range(10), TEN),
}
_EACH = 40  # of a class
_CLEAR = 0.08  # of a correlation


def set_of(where: str, digits: Digits) -> str | None:
    """Which of the six sets this is, by the name of its file, else by its labels."""
    name = where.lower()
    for kind in ("byclass", "bymerge", "balanced", "letters", "digits", "mnist"):
        if re.search(rf"emnist[^a-z0-9]*{kind}", name):
            return kind
    if not all(name.isdecimal() for name in digits.names):
        return None
    values = {int(name) for name in digits.names}
    if digits.names == TEN:
        return "digits" if "emnist" in name else None
    for kind in ("letters", "balanced", "byclass"):
        labels = set(SETS[kind][0])
        if values <= labels and len(values) * 5 >= len(labels) * 4 and (max(values) == max(labels)):
            return kind
    return None


def names_of(kind: str, mappings: list[Path]) -> dict[int, str]:
    """The character of each label: from the set's mapping file (`label code [code]` a line), else as published."""
    labels, names = SETS[kind]
    for path in sorted(mappings, key=lambda path: kind not in path.name):
        if kind in path.name or len(mappings) == 1:
            lines = [line.split() for line in _text(path).splitlines()]
            found = {
                int(line[0]): chr(int(line[1]))
                for line in lines
                if len(line) > 1 and all(word.isdecimal() and len(word) < 7 for word in line[:2])
            }
            if set(found) == set(labels) and all(name.isprintable() for name in found.values()):
                return found
    return dict(zip(labels, names, strict=True))


def _text(path: Path) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read(1 << 14)
    except OSError:
        return ""


def renamed(digits: Digits, names: dict[int, str]) -> Digits:
    """The same with all classes of the set, whichever of them are there, by their names."""
    place = {label: at for at, label in enumerate(names)}
    if digits.labels is None or not all(name.isdecimal() and int(name) in place for name in digits.names):
        return digits
    table = torch.zeros(256, dtype=torch.uint8)
    table[: len(digits.names)] = torch.tensor([place[int(name)] for name in digits.names], dtype=torch.uint8)
    return Digits(digits.images, table[digits.labels.long()], tuple(names.values()))


# ---------------------------------------------------------------------- which way is up


def likeness(digits: Digits) -> tuple[float, float, float]:
    """How like the classes' mean images are to drawn characters of their names: as they are, and mirrored along their
    diagonal; and the share of classes that are liker mirrored.

    A correlation of what is the classes' own: any two characters are alike in being ink in the middle.
    """
    some = sample(len(digits.labels))
    labels = digits.labels[some]
    means, drawn = [], []
    for at, name in enumerate(digits.names):
        mine = some[labels == at][:_EACH]
        if len(mine) and name.isascii() and name.isalnum() and len(name) == 1:
            means.append(digits.images[mine].float().mean(0))
            drawn.append(_drawn(name))
    if len(means) < 3:
        return 0.0, 0.0, 0.0
    own, printed = (torch.stack(pictures) for pictures in (means, drawn))
    own, printed = own - own.mean(0), (printed - printed.mean(0)).flatten(1)
    upright, mirrored = (
        (images * printed).sum(1) / (images.norm(dim=1) * printed.norm(dim=1)).clamp(min=1e-6)
        for images in (own.flatten(1), own.mT.flatten(1))
    )
    return float(upright.mean()), float(mirrored.mean()), float((mirrored > upright).double().mean())


def lies_mirrored(digits: Digits, known: bool) -> bool:
    """Whether these images lie as EMNIST's files have them. `known`: they are EMNIST's by their name, so that it takes
    clear images to believe otherwise; if not, it takes clear images to believe it."""
    upright, mirrored, share = likeness(digits)
    if known:
        return upright - mirrored < _CLEAR
    return mirrored - upright > _CLEAR and mirrored > 0.2 and share >= 0.6


def turned(digits: Digits) -> Digits:
    return Digits(digits.images.transpose(1, 2).contiguous(), digits.labels, digits.names)


@lru_cache(maxsize=64)
def _drawn(character: str) -> Tensor:
    """float32 [28, 28]: a printed character in a box of 20x20, blurred as the mean of many hands is."""
    from PIL import Image, ImageDraw, ImageFilter, ImageFont

    picture = Image.new("L", (120, 120))
    ImageDraw.Draw(picture).text((30, 10), character, fill=255, font=ImageFont.load_default(80))
    ink = picture.crop(picture.getbbox())
    scale = 20 / max(ink.size)
    small = ink.resize((max(1, round(ink.width * scale)), max(1, round(ink.height * scale))))
    paper = Image.new("L", (28, 28))
    paper.paste(small, ((28 - small.width) // 2, (28 - small.height) // 2))
    blurred = paper.filter(ImageFilter.GaussianBlur(2))
    return torch.tensor(list(blurred.tobytes()), dtype=torch.float32).view(28, 28)
