"""Pictures of digits as people make them, drawn by program from the pen trajectories of writers.

A line of a file of trajectories is a label, a tab, and strokes parted by " / " of points x,y (y upwards).
"""

import gzip
import io
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageChops, ImageDraw
from scipy import ndimage

Strokes = list[np.ndarray]  # of points [n, 2] in 0 to 1, y downwards


def read_pens(path: Path) -> list[tuple[int, Strokes]]:
    """Each digit's label and strokes, its longest side 1."""
    digits = []
    for line in gzip.decompress(path.read_bytes()).decode().splitlines():
        if line.startswith("#"):
            continue
        label, text = line.rstrip("\n").split("\t")
        strokes = [np.array([p.split(",") for p in s.split()], float) * (1, -1) for s in text.split(" / ") if s.strip()]
        points = np.concatenate(strokes)
        low, high = points.min(0), points.max(0)
        size = max((high - low).max(), 1)
        digits.append((int(label), [(s - (low + high) / 2) / size + 0.5 for s in strokes]))
    return digits


def turned(strokes: Strokes, rng: Generator) -> Strokes:
    """As another would write it: slanted, stretched and turned a little."""
    angle, slant, stretch = rng.normal(0, 0.08), rng.normal(0, 0.12), math.exp(rng.normal(0, 0.12))
    matrix = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    matrix = matrix @ np.array([[stretch, -slant], [0, 1]])
    return [(s - 0.5) @ matrix.T + 0.5 for s in strokes]


def coverage(
    size: tuple[int, int], strokes: Strokes, box: tuple[float, float, float], width: float, smooth: int = 4
) -> np.ndarray:
    """How much of each pixel [h, w] the pen covers; box: left, top and side of the square that strokes fill."""
    image = Image.new("L", (size[0] * smooth, size[1] * smooth))
    draw = ImageDraw.Draw(image)
    left, top, side = box
    radius = width * smooth / 2
    for stroke in strokes:
        points = [tuple(p) for p in (stroke * side + (left, top)) * smooth]
        if len(points) > 1:
            draw.line(points, fill=255, width=max(1, round(width * smooth)), joint="curve")
        for x, y in points:
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    return np.asarray(image.resize(size, Image.Resampling.BOX), np.float32) / 255


def thin(strokes: Strokes, rng: Generator) -> Image.Image:
    """A pen of about 2 pixels on white 1050 x 800 paper, anywhere and of any size."""
    side = math.exp(rng.uniform(math.log(40), math.log(700)))
    box = rng.uniform(5, 1045 - side), rng.uniform(5, 795 - side), side
    ink = coverage((1050, 800), turned(strokes, rng), box, rng.uniform(1.2, 3), 2 if side > 300 else 3)
    colour = np.array([(0, 0, 0), (0, 0, 0), (30, 30, 160), (200, 20, 20)][rng.integers(4)])
    if rng.random() < 0.3:
        ink = (ink > 0.5).astype(np.float32)
    return Image.fromarray((255 - ink[:, :, None] * (255 - colour)).astype(np.uint8))


def small(strokes: Strokes, rng: Generator) -> Image.Image:
    """A 32 x 32 drawing with a thick pen; some with alpha."""
    side, pen = rng.uniform(15, 27), rng.uniform(2.0, 5.0)
    side = min(side, 31 - pen)
    box = rng.uniform(pen / 2, 32 - side - pen / 2), rng.uniform(pen / 2, 32 - side - pen / 2), side
    ink = coverage((32, 32), turned(strokes, rng), box, pen)
    if rng.random() < 0.4:
        ink = (ink > 0.5).astype(np.float32)
    level = (ink * 255).astype(np.uint8)
    kind = rng.integers(4)
    if kind == 0:
        return Image.fromarray(255 - level)
    if kind == 1:
        return Image.fromarray(level)
    rgba = np.zeros((32, 32, 4), np.uint8)
    rgba[..., 3] = level
    rgba[..., :3] = 255 if kind == 2 and rng.random() < 0.5 else 0
    if kind == 3:
        rgba[..., :3] = 255 - level[..., None]
        rgba[..., 3] = 255
    return Image.fromarray(rgba)


def canvas(strokes: Strokes, rng: Generator) -> Image.Image:
    """The export of a drawing page: 200 to 400 pixels, a pen of 8 to 30, either polarity, perhaps a JPEG."""
    size, pen = int(rng.integers(200, 401)), rng.uniform(6, 30)
    side = rng.uniform(0.35, 0.85) * size
    low, high = pen / 2, max(size - side - pen / 2, pen / 2 + 1)
    ink = coverage((size, size), turned(strokes, rng), (rng.uniform(low, high), rng.uniform(low, high), side), pen)
    paper, level = (255, rng.integers(0, 90)) if rng.random() < 0.6 else (rng.integers(0, 30), 255)
    image = Image.fromarray((paper + ink * (float(level) - paper)).astype(np.uint8))
    return jpeg(image, rng) if rng.random() < 0.3 else image


def clean(strokes: Strokes, rng: Generator) -> Image.Image:
    """A drawing of 110 pixels with nothing around it."""
    size, pen = 110, math.exp(rng.uniform(math.log(1.5), math.log(11)))
    side = rng.uniform(0.6, 0.85) * size - pen
    ink = coverage((size, size), turned(strokes, rng), ((size - side) / 2, (size - side) / 2, side), pen, 3)
    return Image.fromarray((255 - 255 * ink).astype(np.uint8))


def surrounded(strokes: Strokes, rng: Generator, by: str) -> Image.Image:
    """A drawing in a box or a circle, drawn by hand, or on a sheet on a table; half of them in uneven light."""
    size, pen, tilt = 420, rng.uniform(3, 12), rng.uniform(-8, 8)
    side = rng.uniform(0.35, 0.6) * size
    ink = coverage((size, size), turned(strokes, rng), ((size - side) / 2, (size - side) / 2, side), pen)
    drawing = Image.fromarray((255 - 255 * ink).astype(np.uint8))
    if by == "table":
        table = Image.new("L", (size + int(rng.integers(20, 200)), size + int(rng.integers(20, 200))), 0)
        turned_sheet, cover = (
            sheet.rotate(tilt, Image.Resampling.BILINEAR, expand=True)
            for sheet in (drawing.point(lambda level: 60 + level * 0.7), Image.new("L", drawing.size, 255))
        )
        table.paste(int(rng.integers(10, 110)), (0, 0, *table.size))
        room = [max(0, outer - inner) for outer, inner in zip(table.size, turned_sheet.size, strict=True)]
        table.paste(turned_sheet, (int(rng.uniform(0, room[0] + 1)), int(rng.uniform(0, room[1] + 1))), cover)
        drawing = table
    else:
        around = Image.new("L", drawing.size, 255)
        draw = {"box": ImageDraw.Draw(around).rectangle, "circle": ImageDraw.Draw(around).ellipse}[by]
        room = (size - side) / 2 - 1.5 * pen
        edges = [rng.uniform(0.1, 0.9) * room if by == "box" else rng.uniform(0.05, 0.2) * room for _ in range(4)]
        draw((edges[0], edges[1], size - edges[2], size - edges[3]), outline=0, width=max(2, round(pen)))
        around = around.rotate(tilt, Image.Resampling.BILINEAR, expand=True, fillcolor=255)
        drawing, inner = Image.new("L", around.size, 255), drawing
        drawing.paste(inner, ((around.width - size) // 2, (around.height - size) // 2))
        drawing = ImageChops.darker(drawing, around)
    if rng.random() < 0.5:
        return drawing
    levels = np.asarray(drawing, np.float32) * np.linspace(*rng.uniform(0.6, 1, 2), drawing.width)
    return Image.fromarray((levels + rng.normal(0, 3, levels.shape)).clip(0, 255).astype(np.uint8))


def jpeg(image: Image.Image, rng: Generator) -> Image.Image:
    data = io.BytesIO()
    image.save(data, "JPEG", quality=int(rng.integers(40, 95)))
    return Image.open(data)


# ---------------------------------------------------------------------- photos


def paper_photo(size: tuple[int, int], rng: Generator, lines: str, shadow: bool) -> tuple[np.ndarray, np.ndarray]:
    """Paper [h, w, 3] and the light on it [h, w]."""
    width, height = size
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    tone = np.array([rng.uniform(195, 245)] * 3) * rng.uniform((0.96, 0.96, 0.86), (1.0, 1.0, 1.0))
    grain = ndimage.gaussian_filter(rng.standard_normal((height, width), np.float32), 2).astype(
        np.float32
    ) * rng.uniform(2, 10)
    page = np.ones((height, width, 3), np.float32) * tone + grain[..., None]
    pitch = min(size) / rng.uniform(6, 22)
    angle, bend = rng.normal(0, 0.04), rng.normal(0, 0.03)
    u = x * math.cos(angle) + y * math.sin(angle)
    v = y * math.cos(angle) - x * math.sin(angle) + bend * (x - width / 2) * (y - height / 2) / height
    thick = max(1.0, pitch * rng.uniform(0.02, 0.06))
    colour = np.array([(120, 150, 210), (150, 150, 160), (190, 140, 150)][rng.integers(3)])
    depth = rng.uniform(0.35, 0.9)
    for axis in {"ruled": [v], "squared": [u, v]}.get(lines, []):
        distance = np.abs((axis + rng.uniform(0, pitch)) % pitch - pitch / 2)
        cover = np.clip(thick / 2 + 0.5 - distance, 0, 1)[..., None] * depth
        page = page * (1 - cover) + cover * colour
    light = 1 + rng.uniform(-0.35, 0.35) * (x / width - 0.5) + rng.uniform(-0.35, 0.35) * (y / height - 0.5)
    if shadow:
        a = rng.uniform(0, math.tau)
        side = (x - width * rng.uniform(0.25, 0.75)) * math.cos(a) + (y - height * rng.uniform(0.25, 0.75)) * math.sin(
            a
        )
        soft = min(size) * math.exp(rng.uniform(math.log(0.004), math.log(0.1)))
        light = light * (1 - rng.uniform(0.3, 0.6) / (1 + np.exp(-np.clip(side / soft, -30, 30))))
    return page, light


def photo(
    strokes: Strokes | None, rng: Generator, lines: str = "white", shadow: bool = False, wide: bool = False
) -> Image.Image:
    """A phone's photo of ballpoint or marker on paper."""
    size = (int(rng.integers(400, 1100)), int(rng.integers(400, 1100)))
    if rng.random() < 0.3 and not wide:
        size = size[0] // 3, size[1] // 3
    page, light = paper_photo(size, rng, lines, shadow)
    if strokes is not None:
        share = rng.uniform(0.08, 0.2) if wide else rng.uniform(0.25, 0.8)
        side = max(share * min(size), 40)
        pen = max(side * math.exp(rng.uniform(math.log(0.025), math.log(0.13))), 2)
        left, top = (
            rng.uniform(0.04 * s + pen, 0.96 * s - side - pen) if s * 0.92 > side + 2 * pen else s * 0.05 for s in size
        )
        ink = coverage(size, turned(strokes, rng), (left, top, side), pen, 2)
        wear = ndimage.zoom(rng.uniform(0.75, 1, (size[1] // 8 + 2, size[0] // 8 + 2)), 8, order=1)[
            : size[1], : size[0]
        ]
        ink = (ink * wear * rng.uniform(0.75, 1))[..., None]
        colour = np.array([(25, 25, 30), (30, 40, 130), (60, 60, 70), (150, 30, 40), (20, 20, 20)][rng.integers(5)])
        page = page * (1 - ink) + ink * colour
    page = (page * light[..., None]).astype(np.float32)
    page = ndimage.gaussian_filter(page, (s := rng.uniform(0.4, 1.6), s, 0))
    page = page + rng.uniform(1, 7) * rng.standard_normal(page.shape, np.float32)
    return jpeg(Image.fromarray(page.clip(0, 255).astype(np.uint8)), rng)


PHOTOS = {
    "photo white": {}, "photo ruled": {"lines": "ruled"}, "photo squared": {"lines": "squared"},
    "photo shadow": {"shadow": True}, "photo wide": {"wide": True},
}  # fmt: skip


def digit_pictures(pens: list[tuple[int, Strokes]], count: int, seed: int) -> Iterator[tuple[str, int, Image.Image]]:
    """Kind, digit and picture: `count` of each kind."""
    for number, kind in enumerate(["thin", "small", "canvas", *PHOTOS]):
        rng = np.random.default_rng([seed, number])
        for _ in range(count):
            label, strokes = pens[rng.integers(len(pens))]
            if kind in PHOTOS:
                options = dict(PHOTOS[kind])
                if kind == "photo shadow":
                    options["lines"] = ["white", "ruled", "squared"][rng.integers(3)]
                yield kind, label, photo(strokes, rng, **options)
            else:
                yield kind, label, {"thin": thin, "small": small, "canvas": canvas}[kind](strokes, rng)
    rng = np.random.default_rng([seed, 98])
    for by in ("box", "circle", "table"):
        for _ in range(count):
            label, strokes = pens[rng.integers(len(pens))]
            yield f"with a {by}", label, surrounded(strokes, rng, by)
