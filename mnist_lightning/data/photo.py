"""From a picture of a digit, as people make them, to the 28 x 28 image that MNIST's makers would have made of it.

Find the ink (ink.py), find the digit among it, bring its strokes to the width of MNIST's, fit it into 20 x 20 pixels
with its aspect ratio kept, put its centre of mass into the middle of 28 x 28 (placing.py).
"""

from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from torch import Tensor

from mnist_lightning.data.ink import (
    FAINT,
    Grey,
    Ink,
    drawn,
    evened,
    grey_levels,
    is_light_on_dark,
    photographed,
    shrunk,
    with_margin,
    without_frame,
)  # fmt: skip
from mnist_lightning.data.placing import SIDE, placed

Mask = NDArray[np.bool_]
Status = Literal["ok", "blank", "none", "number"]
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
    if picture.size == (SIDE, SIDE) and (image := _as_it_is(picture)) is not None:
        return Seen("ok", image, (image,))
    grey = with_margin(without_frame(grey_levels(picture)))
    ink = drawn(grey)
    return _seen_in(ink, photo=False)[0] if ink else _found_in_photo(grey)


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


_PLACES = np.arange(SIDE, dtype=np.float32)

# ---------------------------------------------------------------------- which ink is the digit


def _found_in_photo(grey: Grey) -> Seen:
    """Find first, at a moderate size; then cut out and look closer, wider while ink runs out of the cut."""
    step = max(1, round(max(grey.shape) / _FIND))
    if is_light_on_dark(shrunk(grey, step)):
        grey = 255 - grey
    ink = photographed(shrunk(grey, step))
    shapes, labels, outlines = _shapes(ink, ink.strength > max(FAINT, 5 * ink.noise))
    groups = _grouped(shapes)
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
    if outlines:
        around = ndimage.binary_dilation(np.isin(labels, outlines), iterations=2)  # and its soft edges
        parts, _ = ndimage.label(~around)
        within = [np.bincount(parts[labels == g.labels[0]], minlength=2)[1:].argmax() + 1 for g in rivals]
        grey = _painted_over(grey, ~np.isin(parts, within), step)
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
    shapes, labels, _ = _shapes(ink, strength > 0.4)
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
    parts = tuple(placed(_alone(strength, labels, peer)) for peer in peers)
    return (Seen("ok", *parts, parts) if len(parts) == 1 else Seen("number", None, parts)), runs_out


def _is_solid(mask: Mask, longest: int) -> bool:
    """Whether it is a patch rather than strokes: wider inside than any pen's."""
    return 2 * float(ndimage.distance_transform_edt(mask).max()) > 0.4 * longest


def _at_edge(shape: _Shape, size: tuple[int, ...]) -> bool:
    return shape.top <= 1 or shape.left <= 1 or shape.bottom >= size[0] - 1 or shape.right >= size[1] - 1


def _shapes(ink: Ink, mask: Mask) -> tuple[list[_Shape], NDArray[np.int32], list[int]]:
    """The connected pieces of the mask [h, w], without specks and outlines; each pixel's piece; which are outlines."""
    labels, _ = ndimage.label(mask, np.ones((3, 3)))
    boxes = dict(enumerate(ndimage.find_objects(labels), 1))
    sides = {number: max(_side(rows), _side(columns)) for number, (rows, columns) in boxes.items()}
    outlines = []
    while sides and _is_outline(largest := max(sides, key=sides.__getitem__), boxes, labels):
        outlines.append(largest)
        del sides[largest]
    shapes = []
    least = max(0.1 * max(sides.values(), default=0), 3)
    for number, side in sides.items():
        if side >= least:
            rows, columns = boxes[number]
            contrast = float(ink.strength[rows, columns][labels[rows, columns] == number].max())
            shapes.append(_Shape((number,), rows.start, rows.stop, columns.start, columns.stop, contrast))
    return shapes, labels, outlines


def _side(lines: slice) -> int:
    return int(lines.stop - lines.start)


def _is_outline(number: int, boxes: dict[int, tuple[slice, slice]], labels: NDArray[np.int32]) -> bool:
    """Whether a piece is only drawn around another: a form's box, a circle; it has ink along most of each side.

    That of a sheet may run out of the picture.
    """
    rows, columns = boxes[number]
    least = 0.25 * min(_side(rows), _side(columns))
    if not any(
        max(_side(down), _side(right)) > least
        and rows.start < down.start and down.stop < rows.stop
        and columns.start < right.start and right.stop < columns.stop
        for down, right in boxes.values()
    ):  # fmt: skip
        return False
    own = labels[rows, columns] == number
    if _side(columns) < 0.85 * _side(rows):  # a box has corners; else it is a 0 with a dot or a stroke in it
        deep = 1 + int(0.1 * _side(columns))
        ends = slice(deep), slice(-deep, None)
        if not all(own[down, right].any() for down in ends for right in ends):
            return False
    sides = (own, own[::-1], own.T, own.T[::-1])
    room = rows.start, len(labels) - rows.stop, columns.start, labels.shape[1] - columns.stop
    return all(
        lines[: 1 + int(0.15 * len(lines))].any(0).mean() >= 0.6 for lines, far in zip(sides, room, strict=True) if far
    )


def _painted_over(grey: Grey, mask: Mask, step: int) -> Grey:
    """Grey levels [h, w] with what is beside it where the mask is, of which a pixel is `step` pixels wide."""
    rows, columns = ndimage.distance_transform_edt(mask, return_distances=False, return_indices=True)
    paper, over = (values.repeat(step, 0).repeat(step, 1) for values in (shrunk(grey, step)[rows, columns], mask))
    painted = grey.copy()
    part = painted[: over.shape[0], : over.shape[1]]
    part[over] = paper[over]
    return painted


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


def _alone(strength: Grey, labels: NDArray[np.int32], shape: _Shape) -> Grey:
    """The ink of one shape, 0 to 1 [h, w], with its soft edges and without what else is near."""
    cut = slice(max(shape.top - 1, 0), shape.bottom + 1), slice(max(shape.left - 1, 0), shape.right + 1)
    own = np.isin(labels[cut], shape.labels)
    return np.where(ndimage.binary_dilation(own, np.ones((3, 3))), np.minimum(strength[cut], 1), 0)
