"""From a picture of a digit, as people make them, to the 28 x 28 image that MNIST's makers would have made of it.

Find the ink (ink.py), find the digit among it, bring its strokes to the width of MNIST's, fit it into 20 x 20 pixels
with its aspect ratio kept, put its centre of mass into the middle of 28 x 28.
"""

from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from scipy import ndimage
from torch import Tensor

from mnist_lightning.data.ink import FAINT, Ink, drawn, evened, is_light_on_dark, photographed, shrunk, with_margin

Status = Literal["ok", "blank", "none", "number"]
Grey = NDArray[np.float32]
_BOX, _SIDE = 20, 28  # pixels: the box that the ink fills, and the image
_STROKE = (2.0, 3.6)  # pixels: least and greatest width of a stroke in the image; MNIST's median is 2.5
_FINE = (80, 256)  # pixels: least and greatest longest side of a digit whose strokes are measured
_MOST_DIGITS = 12  # in a row; more is a text
_FIND = 640  # pixels: the longest side at which a digit is looked for


class Seen(NamedTuple):
    """What is on a picture: a digit (ok), several in a row (number), nothing (blank), or no digit (none).

    parts: uint8 [28, 28] of each digit, left to right, 0 the paper and 255 full ink; image: the only one, else None.
    """

    status: Status
    image: Tensor | None = None
    parts: tuple[Tensor, ...] = ()


class _Shape(NamedTuple):
    """A connected piece of ink, or several that make one digit: their numbers and the box around them."""

    labels: tuple[int, ...]
    top: int
    bottom: int
    left: int
    right: int
    contrast: float

    @property
    def height(self) -> int:
        return self.bottom - self.top

    @property
    def width(self) -> int:
        return self.right - self.left

    @property
    def longest(self) -> int:
        return max(self.height, self.width)


def prepare(picture: Image.Image) -> Seen:
    """A picture of any mode and size, as MNIST would have it; raises OSError where its file cannot be decoded."""
    if picture.size == (_SIDE, _SIDE) and (image := _as_it_is(picture)) is not None:
        return Seen("ok", image, (image,))
    grey = with_margin(grey_levels(picture))
    ink = drawn(grey)
    return _seen_in(ink, photo=False)[0] if ink else _found_in_photo(grey)


def grey_levels(picture: Image.Image) -> Grey:
    """Grey levels float32 [h, w] in 0 to 255, upright, as it would look on white paper."""
    if max(picture.size) > 2400:
        picture.draft(None, (2000, 2000))  # a JPEG is decoded at a half or a quarter
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith(("I", "F")):
        values = np.nan_to_num(np.asarray(picture, dtype=np.float32))
        low, high = float(values.min()), float(values.max())
        top = next((top for top in (1.0, 255.0, 65535.0) if low >= 0 and high <= top), None)
        return values * (255 / top) if top else (values - low) * (255 / max(high - low, 1e-9))
    if max(picture.size) > 3200:
        picture = picture.reduce(max(picture.size) // 1600) if picture.mode not in ("P", "1") else picture
    if not picture.has_transparency_data:
        return np.asarray(picture.convert("L"), dtype=np.float32)
    coloured = picture.convert("RGBA")
    cover = np.asarray(coloured.getchannel("A"), dtype=np.float32) / 255
    level = np.asarray(coloured.convert("RGB").convert("L"), dtype=np.float32)
    # Where most is left out, what is there is the ink, and the paper is what it stands out from.
    light = cover.mean() < 0.5 and cover.any() and float((level * cover).sum() / cover.sum()) > 160
    return (level * cover + np.float32(0 if light else 255) * (1 - cover)).astype(np.float32)


def _as_it_is(picture: Image.Image) -> Tensor | None:
    """A picture that is like MNIST's already: 28 x 28, no ink at its edges, the centre of mass about the middle."""
    if picture.mode not in ("L", "RGB", "1") or picture.has_transparency_data:
        return None
    levels = np.asarray(picture if picture.mode == "L" else picture.convert("L"))
    images, like = as_they_are(levels[None])
    return torch.from_numpy(images[0]) if like[0] else None


def as_they_are(levels: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Grey levels [n, 28, 28], bright on black; and which of them [n] need nothing else, as they are like MNIST's."""
    images = np.where(levels[:, :1, :1] < 128, levels, 255 - levels)
    inside = images[:, 1:-1, 1:-1].sum((1, 2), dtype=np.int64)
    lines = images.sum(2, dtype=np.float32), images.sum(1, dtype=np.float32)  # [n, 28] each
    total = np.maximum(lines[0].sum(1), 1)
    like = (images.max((1, 2)) >= 96) & (total - inside <= 0.05 * total)
    for line in lines:
        like &= np.abs(line @ _PLACES / total - 14) <= 2.5
    longest = np.maximum(*((line > 128).sum(1) for line in lines))
    return images, like & (longest >= 12) & (longest <= 24)


_PLACES = np.arange(_SIDE, dtype=np.float32)

# ---------------------------------------------------------------------- which ink is the digit


def _found_in_photo(grey: Grey) -> Seen:
    """Find first, at a moderate size; then cut out and look closer, wider while ink runs out of the cut."""
    step = max(1, round(max(grey.shape) / _FIND))
    if is_light_on_dark(shrunk(grey, step)):
        grey = 255 - grey
    ink = photographed(shrunk(grey, step))
    groups = _grouped(_shapes(ink, ink.strength > max(FAINT, 5 * ink.noise))[0])
    if not groups:
        return Seen("blank")
    size = ink.strength.shape
    best = max(groups, key=lambda group: _score(group, size))
    if best.contrast < max(1.5 * FAINT, 8 * ink.noise) or best.longest < 0.02 * max(size):
        return Seen("blank")
    rivals = [g for g in groups if g.longest > 0.4 * best.longest and _score(g, size) > 0.4 * _score(best, size)]
    if any(_overlap(group.top, group.bottom, best.top, best.bottom) < 0.4 for group in rivals):
        return Seen("none")
    top, bottom = min(g.top for g in rivals) * step, max(g.bottom for g in rivals) * step
    left, right = min(g.left for g in rivals) * step, max(g.right for g in rivals) * step
    for wider in (0.5, 0.8, 1.2):
        margin = int(wider * step * best.longest) + 4
        cut = grey[max(0, top - margin) : bottom + margin, max(0, left - margin) : right + margin]
        ink = photographed(shrunk(cut, max(1, round(max(cut.shape) / 400))))
        seen, runs_out = _seen_in(evened(ink), photo=True)
        if not runs_out or cut.shape == grey.shape:
            break
    return seen


def _score(shape: _Shape, size: tuple[int, ...]) -> float:
    """How much a shape is like the one that the picture was taken for: dark, large, in the middle, whole."""
    height, width = size
    y, x = (shape.top + shape.bottom) / height - 1, (shape.left + shape.right) / width - 1
    whole = 0.1 if _at_edge(shape, size) else 1.0
    return shape.contrast * shape.longest**0.5 * (1 - 0.3 * max(abs(x), abs(y))) * whole


def _seen_in(ink: Ink, photo: bool) -> tuple[Seen, bool]:
    """What is seen where the ink is found, and whether the digit runs over an edge."""
    strength = ink.strength
    shapes, labels = _shapes(ink, strength > 0.4)
    if photo:  # what runs in from outside is no part of it, unless there is nothing else
        shapes = [shape for shape in shapes if not _at_edge(shape, strength.shape)] or shapes
    if not shapes:
        return Seen("blank"), False
    groups = _grouped(shapes)
    main = max(groups, key=lambda group: _score(group, strength.shape) if photo else group.longest)
    runs_out = _at_edge(main, strength.shape)
    peers = sorted((g for g in groups if g.longest >= 0.5 * main.longest), key=lambda g: g.left)
    rows = [_overlap(peer.top, peer.bottom, main.top, main.bottom) >= 0.5 for peer in peers]
    if not all(rows) or len(peers) > _MOST_DIGITS or (len(peers) == 1 and main.width > 2 * main.height):
        return Seen("none"), runs_out
    if photo and len(peers) == 1 and _is_solid(np.isin(labels, main.labels), main.longest):
        return Seen("none"), runs_out
    parts = tuple(_normalised(strength, labels, peer) for peer in peers)
    return (Seen("ok", *parts, parts) if len(parts) == 1 else Seen("number", None, parts)), runs_out


def _is_solid(mask: NDArray[np.bool_], longest: int) -> bool:
    """Whether it is a patch rather than strokes: wider inside than any pen's."""
    return 2 * float(ndimage.distance_transform_edt(mask).max()) > 0.4 * longest


def _at_edge(shape: _Shape, size: tuple[int, ...]) -> bool:
    return shape.top <= 1 or shape.left <= 1 or shape.bottom >= size[0] - 1 or shape.right >= size[1] - 1


def _shapes(ink: Ink, mask: NDArray[np.bool_]) -> tuple[list[_Shape], NDArray[np.int32]]:
    """The connected pieces of the mask [h, w], without specks, and the number of each pixel's piece."""
    labels, count = ndimage.label(mask, np.ones((3, 3)))
    if not count:
        return [], labels
    boxes = ndimage.find_objects(labels)
    sides = [max(rows.stop - rows.start, columns.stop - columns.start) for rows, columns in boxes]
    least = max(0.1 * max(sides), 3)
    shapes = []
    for number, (box, side) in enumerate(zip(boxes, sides, strict=True), 1):
        if side >= least:
            contrast = float(ink.strength[box][labels[box] == number].max())
            shapes.append(_Shape((number,), box[0].start, box[0].stop, box[1].start, box[1].stop, contrast))
    return shapes, labels


def _overlap(start: float, end: float, other_start: float, other_end: float) -> float:
    """How much of the shorter of two stretches lies in the other; below 0 the gap, in the same measure."""
    shorter = max(min(end - start, other_end - other_start), 1)
    return (min(end, other_end) - max(start, other_start)) / shorter


def _one_digit(a: _Shape, b: _Shape) -> bool:
    """Whether two pieces are strokes of one digit: one above the other, or a small one close to a large one."""
    large, small = (a, b) if a.longest >= b.longest else (b, a)
    gap_x = max(a.left, b.left) - min(a.right, b.right)
    gap_y = max(a.top, b.top) - min(a.bottom, b.bottom)
    if gap_x <= 0 and _overlap(a.left, a.right, b.left, b.right) > 0.3:
        return gap_y <= (0.12 if small.height > 0.4 * large.height else 0.35) * large.longest
    if small.longest < 0.45 * large.longest:
        return max(gap_x, gap_y) <= 0.2 * large.longest
    left, right = (a, b) if a.left <= b.left else (b, a)
    lower = min(right.top - left.top, right.bottom - left.bottom) / large.longest
    if lower >= 0.15 and gap_y <= 0 and right.width < 0.5 * right.height:  # a 4, its second stroke by itself
        return gap_x <= 0.12 * large.longest
    return max(gap_x, gap_y) <= 0.04 * large.longest and small.height < 0.75 * large.height


def _grouped(shapes: list[_Shape]) -> list[_Shape]:
    """Pieces that make one digit, put together."""
    groups = sorted(shapes, key=lambda shape: -shape.longest)
    changed = True
    while changed:
        changed = False
        for i, a in enumerate(groups):
            for b in groups[i + 1 :]:
                if _one_digit(a, b):
                    groups.remove(b)
                    groups[i] = a = _Shape(
                        a.labels + b.labels, min(a.top, b.top), max(a.bottom, b.bottom),
                        min(a.left, b.left), max(a.right, b.right), max(a.contrast, b.contrast),
                    )  # fmt: skip
                    changed = True
    return groups


# ---------------------------------------------------------------------- as MNIST's makers placed theirs


def _normalised(strength: Grey, labels: NDArray[np.int32], shape: _Shape) -> Tensor:
    """uint8 [28, 28] of one shape: strokes of MNIST's width, the longest side 20, the centre of mass in the middle."""
    cut = slice(max(shape.top - 1, 0), shape.bottom + 1), slice(max(shape.left - 1, 0), shape.right + 1)
    own = np.isin(labels[cut], shape.labels)
    ink = np.where(ndimage.binary_dilation(own, np.ones((3, 3))), np.minimum(strength[cut], 1), 0)
    return _placed(_even_strokes(_fine(np.pad(ink, 1).astype(np.float32)) > 0.4))


def _fine(ink: Grey) -> Grey:
    """Enlarged or reduced by a whole factor to a size at which strokes can be measured; thin ones survive."""
    longest = max(ink.shape)
    if longest > _FINE[1]:
        step = -(-longest // _FINE[1])
        padded = np.pad(ink, [(0, -side % step) for side in ink.shape])
        return padded.reshape(padded.shape[0] // step, step, -1, step).max((1, 3))
    times = -(-_FINE[0] // longest)
    rows, columns = (_bilinear(side, times) for side in ink.shape)
    return (rows @ ink @ columns.T).astype(np.float32)


def _bilinear(side: int, times: int) -> Grey:
    """Weights [times * side, side] of each pixel in an enlarged line."""
    place = (np.arange(times * side) + 0.5) / times - 0.5
    return np.maximum(1 - np.abs(place.clip(0, side - 1)[:, None] - np.arange(side)), 0).astype(np.float32)


def _even_strokes(mask: NDArray[np.bool_]) -> Grey:
    """Ink in 0 to 1 [h, w] of the mask, its strokes widened or thinned to what MNIST's have at a longest side of 20."""
    padded = np.pad(mask, max(mask.shape) // 8)
    inside, outside = ndimage.distance_transform_edt(padded), ndimage.distance_transform_edt(~padded)
    lines = [np.flatnonzero(padded.any(axis)) for axis in (0, 1)]
    longest = max(line[-1] - line[0] + 1 for line in lines)
    width = 4 * (float(inside[padded].mean()) - 0.5)
    wanted = min(max(width * _BOX / longest, _STROKE[0]), _STROKE[1])
    grown = (wanted * longest - _BOX * width) / (2 * (_BOX - wanted))  # on each side
    grown = max(grown, -0.5 * float(inside.max()))
    edge = longest / _BOX  # a pixel of the image
    return np.clip(0.5 + (grown + inside - outside) / edge, 0, 1).astype(np.float32)


def _placed(ink: Grey) -> Tensor:
    """uint8 [28, 28]: the ink's longest side 20 pixels, its centre of mass in the middle."""
    lines = [np.flatnonzero((ink > 0.5).any(axis)) for axis in (1, 0)]
    step = max(line[-1] - line[0] + 1 for line in lines) / _BOX
    total = float(ink.sum())
    weights = []
    for axis in (1, 0):
        mass = ink.sum(axis)
        middle = float(mass @ (np.arange(len(mass)) + 0.5)) / total
        start = middle + (np.arange(_SIDE)[:, None] - 14.5) * step  # 14.5 as MNIST's
        pixel = np.arange(len(mass))
        overlap = np.minimum(start + step, pixel + 1) - np.maximum(start, pixel)
        weights.append(np.maximum(overlap, 0) / step)
    rows, columns = weights
    image = rows @ ink @ columns.T
    return torch.from_numpy(np.rint(image * 255).clip(0, 255).astype(np.uint8))
