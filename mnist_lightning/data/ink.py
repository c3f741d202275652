"""Where on a picture is ink: its strength at every pixel, whatever the paper, the light and the rulings.

Arrays are float32 [h, w] unless said otherwise; grey levels are 0 to 255, strengths 0 (paper) to about 1 (black).
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Image = NDArray[np.float32]
FAINT = 0.07  # strength below which nothing counts as ink: JPEG's ripples, a crease, the other side of the paper
_SMALL = 48  # pixels: the longest side at which polarity is decided
_ROUND = np.ones((3, 3), bool)  # the eight neighbours


class Ink(NamedTuple):
    """Strength [h, w] of the ink at each pixel, and how strong paper alone comes out of noise."""

    strength: Image
    noise: float


def drawn(grey: Image) -> Ink | None:
    """Ink on even paper, as on a canvas; None where it is not that: a photo, a scan, ruled paper."""
    paper = float(np.bincount(grey.astype(np.uint8).ravel(), minlength=256).argmax())
    away = np.abs(grey - paper)
    most = float(away.max())
    if np.mean(away <= 8) < 0.5 or most < 8:
        return None if most >= 8 else Ink(np.zeros_like(grey), 0.0)
    strength = away / most
    between = (strength > 0.2) & (strength < 0.6)  # soft edges, else shades
    edges = ndimage.binary_dilation(strength >= 0.6, _ROUND, iterations=1 + max(grey.shape) // 100)
    if (between & ~edges).sum() > 0.1 * (strength >= 0.6).sum():
        return None
    return Ink(strength, 0.0)


def photographed(grey: Image) -> Ink:
    """Ink on paper in uneven light; rulings are taken off."""
    grey = ndimage.gaussian_filter(grey, 0.6)
    if _light_on_dark(grey):
        grey = 255 - grey
    window = int(0.2 * min(grey.shape)) | 1
    paper = ndimage.uniform_filter(ndimage.grey_closing(grey, (window, window)), 3)
    strength = np.maximum(paper - grey, 0) / np.maximum(paper, 48)
    strength = _without_rulings(strength)
    return Ink(strength, _noise(strength))


def _light_on_dark(grey: Image) -> bool:
    """Whether light parts stray further than dark ones from the median around them."""
    step = -(-max(grey.shape) // _SMALL)
    small = shrunk(grey, step)
    window = max(3, int(0.4 * max(small.shape)) | 1)
    away = (small - ndimage.median_filter(small, window, mode="reflect")) / 255
    return float((np.maximum(away, 0) ** 3).sum()) > float((np.maximum(-away, 0) ** 3).sum())


def _noise(strength: Image) -> float:
    """Standard deviation of paper, from neighbouring pixels: half of them differ by less."""
    return float(np.median(np.abs(strength[:, 2:] - strength[:, :-2]))) / 0.954


def shrunk(values: Image, step: int) -> Image:
    """Means of squares of step x step pixels; what is left over at the right and bottom edge is dropped."""
    if step <= 1:
        return values
    height, width = (max(1, side // step) for side in values.shape)
    part = values[: height * step, : width * step]
    return part.reshape(height, -1, width, part.shape[1] // width).mean((1, 3), dtype=np.float32)


# ---------------------------------------------------------------------- rulings


def _without_rulings(strength: Image) -> Image:
    """Less the long thin lines of ruled and squared paper: what a digit has beyond them is left."""
    for turned in (False, True):
        lines = strength.T if turned else strength
        lines = _without_rows(lines)
        strength = lines.T if turned else lines
    return strength


def _without_rows(strength: Image) -> Image:
    """Less the lines that run from the left to the right, at a slope of up to 0.2."""
    height, width = strength.shape
    if height < 40 or width < 40:
        return strength
    slope = _slope(strength)
    if slope is None:
        return strength
    shift = np.rint(slope * (np.arange(width) - width / 2)).astype(int)
    rows = (np.arange(height)[:, None] + shift) % height
    level = np.take_along_axis(strength, rows, 0)
    thick = max(1, round(min(height, width) / 200))
    near = ndimage.maximum_filter1d(level, 2 * thick + 1, axis=0)
    # A line is where something lies along most of a long way, and nothing a few lines above and below.
    length = int(0.3 * width) | 1
    along = ndimage.uniform_filter1d((near > FAINT / 2).astype(np.float32), length, axis=1)
    middle = ndimage.percentile_filter(near[:, :: max(1, length // 15)], 50, (1, 15))
    middle = np.repeat(middle, max(1, length // 15), axis=1)[:, :width]
    line = np.where(along > 0.75, middle, 0)
    level = np.maximum(level - 1.2 * line, 0)
    back = np.empty_like(strength)
    np.put_along_axis(back, rows, level, 0)
    return back


def _slope(strength: Image) -> float | None:
    """The slope along which rows differ most in strength; None where no line stands out of the rows."""
    step = max(1, max(strength.shape) // 300)
    small = np.minimum(ndimage.maximum_filter1d(strength, step, axis=0)[::step, ::step], 0.3)
    height, width = small.shape
    blocks = small[:, : width // 16 * 16].reshape(height, 16, -1).mean(2)  # few columns, each the mean of many
    places = (np.arange(16) + 0.5) * (width // 16) - width / 2
    best, found = 0.0, None
    rows = np.arange(height)[:, None]
    for slope in np.linspace(-0.2, 0.2, 41):
        sheared = np.take_along_axis(blocks, (rows + np.rint(slope * places).astype(int)) % height, 0)
        score = float(np.square(np.diff(sheared.mean(1))).sum())
        if score > best:
            best, found = score, float(slope)
    return found
