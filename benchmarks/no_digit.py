"""Pictures without a digit, or with several: letters, scribbles, blank paper, textures, crops of photos.

Some are for looking how they are refused (photos.py), and `no_digits` is for training: what the eleventh class of the
shipped weights' training is made of.
"""

import math
import string
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.random import Generator
from pens import Strokes, coverage, jpeg, photo, turned
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from scipy import ndimage

from mnist_lightning.data.photo import prepare

# letters that are no digit in some hand, and the Greek ones among them
LATIN = "".join(c for c in string.ascii_letters if c not in "OoIlSsZzqgBbiDJTy")
GREEK = "ΔΛΞΠΣΥΨΩαδεηκλμνξπρυχψω"
SIGNS = "&%#@?+=*<>{}"


def fonts_in(folder: Path) -> list[Path]:
    """The fonts of a folder that have all Latin letters."""
    return [file for file in sorted(folder.rglob("*.[to]tf")) if draws(file, LATIN)]


def draws(file: Path, letters: str) -> bool:
    """Whether a font has its own form for each of the letters."""
    try:
        font = ImageFont.truetype(file, 24)
    except OSError:
        return False
    forms = [bytes(font.getmask(letter)) for letter in letters]
    missing = bytes(font.getmask("\uffff"))
    return len(set(forms)) > 0.8 * len(forms) and not any(form in (b"", missing) for form in forms)


def matplotlib_fonts() -> list[Path]:
    """DejaVu and STIX, which come with matplotlib."""
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    fonts = [f for f in sorted(folder.glob("*.ttf")) if f.name.startswith(("DejaVuSans", "DejaVuSerif", "STIXGeneral"))]
    return [f for f in fonts if "Display" not in f.name]


def letter(rng: Generator, fonts: list[Path], letters: str = LATIN, largest: int = 400) -> Image.Image:
    """A letter of a font, thin or thick, on a canvas."""
    text = letters[rng.integers(len(letters))]
    size = int(rng.integers(100, largest))
    font = ImageFont.truetype(fonts[rng.integers(len(fonts))], int(size * 0.6))
    image = Image.new("L", (size, size), 255)
    ImageDraw.Draw(image).text((size / 2, size / 2), text, 0, font, anchor="mm")
    image = image.rotate(rng.normal(0, 6), fillcolor=255)
    return image.filter(ImageFilter.MinFilter(3)) if rng.random() < 0.3 else image


def bent(image: Image.Image, rng: Generator) -> Image.Image:
    """A picture on white, slanted, stretched and bent as by a hand."""
    values = np.asarray(image.convert("L"), np.float32)
    height, width = values.shape
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    u, v = x / width - 0.5, y / height - 0.5
    slant, across, down = rng.normal(0, 0.2), math.exp(rng.normal(0, 0.15)), math.exp(rng.normal(0, 0.15))
    nodes = torch.from_numpy(rng.normal(0, 0.04, (1, 2, 4, 4)))
    waves = F.interpolate(nodes, (height, width), mode="bicubic", align_corners=True)[0].numpy()
    u, v = u * across + slant * v + waves[0], v * down + waves[1]
    found = ndimage.map_coordinates(values, [(v + 0.5) * height, (u + 0.5) * width], order=1, cval=255)
    return Image.fromarray(found.astype(np.uint8))


def scribble(rng: Generator) -> Image.Image:
    """Some strokes of a pen that writes nothing; none that is as narrow as a 1."""
    strokes: Strokes = []
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        count = int(rng.integers(5, 16))
        points = rng.uniform(0, 1, (count, 2)) if rng.random() < 0.6 else rng.normal(0, 0.3, (count, 2)).cumsum(0)
        low, high = points.min(0), points.max(0)
        if (high - low).min() < 0.4 * (high - low).max():
            points[:, (high - low).argmin()] *= 2.5
            low, high = points.min(0), points.max(0)
        points = (points - low) / max((high - low).max(), 1e-6)
        if rng.random() < 0.7:
            points = ndimage.zoom(points, (8, 1), order=3)
        strokes.append(points)
    ink = coverage((120, 120), strokes, (15, 15, 90), math.exp(rng.uniform(math.log(1.5), math.log(12))), 3)
    return Image.fromarray((255 - 255 * ink).astype(np.uint8))


def touching(pens: list[tuple[int, Strokes]], rng: Generator) -> Image.Image:
    """Two or three digits that touch, so that they are one piece of ink."""
    count = int(rng.choice([2, 2, 3]))
    parts, left = [], 0.0
    for _ in range(count):
        strokes = turned(pens[rng.integers(len(pens))][1], rng)
        low = min(s[:, 0].min() for s in strokes)
        parts += [s - (low - left, 0) for s in strokes]
        left = max(s[:, 0].max() for s in parts) - rng.uniform(0.0, 0.12)
    span = max(s[:, 0].max() for s in parts)
    side, pen = 90 / max(span, 1), math.exp(rng.uniform(math.log(2), math.log(8)))
    ink = coverage((120, 120), parts, (15, (120 - side) / 2, side), pen, 3)
    return Image.fromarray((255 - 255 * ink).astype(np.uint8))


def crop(photos: list[Image.Image], rng: Generator) -> Image.Image:
    """A part of a photo."""
    picture = photos[rng.integers(len(photos))]
    share = math.exp(rng.uniform(math.log(0.1), 0))
    width, height = (max(int(share * side), 40) for side in picture.size)
    left, top = (
        int(rng.integers(0, whole - side + 1)) for whole, side in zip(picture.size, (width, height), strict=True)
    )
    part = picture.crop((left, top, left + width, top + height))
    part.thumbnail((400, 400))
    return part.rotate(90 * int(rng.integers(4)), expand=True)


def blank(rng: Generator) -> Image.Image:
    kind = rng.integers(4)
    if kind == 0:
        return Image.new("RGB", (int(rng.integers(20, 1200)),) * 2, (int(rng.integers(256)),) * 3)
    if kind == 1:
        return Image.new("RGBA", (int(rng.integers(20, 1200)),) * 2, (0, 0, 0, 0))
    lines = ["white", "ruled", "squared"][rng.integers(3)]
    return photo(None, rng, lines, shadow=bool(rng.random() < 0.4))


def scene(rng: Generator, largest: int = 1000) -> Image.Image:
    """A photo without a digit: blurred patches, edges, textures, as a table, a room, a tree."""
    width, height = int(rng.integers(largest // 5, largest)), int(rng.integers(largest // 5, largest))
    image = np.zeros((height, width, 3), np.float32)
    for scale in (100, 30, 10, 3, 1):
        noise = rng.normal(0, 1, (height // scale + 3, width // scale + 3, 3))
        noise = ndimage.zoom(noise, (scale, scale, 1), order=1)[:height, :width]
        image += noise * scale ** rng.uniform(0.3, 0.9)
    picture = Image.fromarray(((image - image.min()) / np.ptp(image) * 255).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for _ in range(rng.integers(0, 12)):
        corners = [tuple(rng.uniform(-0.2, 1.2, 2) * (width, height)) for _ in range(rng.integers(3, 6))]
        draw.polygon(corners, fill=tuple(int(v) for v in rng.integers(0, 256, 3)))
    return jpeg(picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 2))), rng)


def several(pens: list[tuple[int, Strokes]], rng: Generator) -> tuple[str, Image.Image]:
    """Several digits: in a row, then also their number, or anywhere, then ""."""
    count = int(rng.integers(2, 5))
    chosen = [pens[rng.integers(len(pens))] for _ in range(count)]
    row = rng.random() < 0.6
    size = (220 * count, 300) if row else (800, 800)
    ink = np.zeros((size[1], size[0]), np.float32)
    pen = rng.uniform(4, 18)
    cells = rng.permutation(16)[:count]
    for i, (_, strokes) in enumerate(chosen):
        side = rng.uniform(130, 170)
        left, top = (
            (220 * i + rng.uniform(15, 35), rng.uniform(55, 90))
            if row
            else (cells[i] % 4 * 200 + rng.uniform(5, 20), cells[i] // 4 * 200 + rng.uniform(5, 20))
        )
        ink = np.maximum(ink, coverage(size, turned(strokes, rng), (left, top, side), pen, 2))
    number = "".join(str(label) for label, _ in chosen) if row else ""
    return number, Image.fromarray((255 - 230 * ink).astype(np.uint8))


def no_digits(
    fonts: list[Path], pens: list[tuple[int, Strokes]], photos: list[Image.Image], count: int, rng: Generator
) -> Iterator[torch.Tensor]:
    """What `prepare` sees on `count` pictures that it does not refuse by itself: uint8 [28, 28]."""
    greek = [font for font in fonts if draws(font, GREEK)]
    kinds: list[tuple[float, Callable[[], Image.Image]]] = [
        (0.40, lambda: bent(letter(rng, fonts, LATIN, 150), rng)),
        (0.15, lambda: bent(letter(rng, greek or fonts, GREEK if greek else LATIN, 150), rng)),
        (0.05, lambda: bent(letter(rng, fonts, SIGNS, 150), rng)),
        (0.15, lambda: scribble(rng)),
        (0.15, lambda: touching(pens, rng)),
        (0.05, lambda: scene(rng, 300)),
        (0.05, lambda: crop(photos, rng)),
    ]
    shares = np.array([share for share, _ in kinds])
    for which in rng.choice(len(kinds), count, p=shares / shares.sum()):
        for _ in range(5):
            if parts := prepare(kinds[which][1]()).parts:
                yield parts[rng.integers(len(parts))]
                break
