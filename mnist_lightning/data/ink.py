"""Where on a picture is ink: its strength at every pixel, whatever the paper, the light and the rulings.

Arrays are float32 [h, w] unless said otherwise; grey levels are 0 to 255, strengths 0 (paper) to about 1 (black).
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from scipy import ndimage

Grey = NDArray[np.float32]
FAINT = 0.07  # strength below which nothing counts as ink: JPEG's ripples, a crease, the other side of the paper
_TINY = 40  # pixels: the longest side of a picture that is no photo
_SMALL = 48  # pixels: the longest side at which polarity is decided


class Ink(NamedTuple):
    """Strength [h, w] of the ink at each pixel, and how strong paper alone comes out of noise."""

    strength: Grey
    noise: float


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


def without_frame(grey: Grey) -> Grey:
    """The same less a frame of one grey along all four edges, as a cut-out box or a picture of a window has it."""
    most, corner = min(grey.shape) // 4, grey[0, 0]
    if max(grey.shape) <= _TINY or most < 2:
        return grey
    if any(abs(line.mean() - corner) > 40 for line in (grey[-1], grey[:, 0], grey[:, -1])):
        return grey
    inner = grey[most:-most, most:-most]
    paper = np.median(inner[:: 1 + most // 50, :: 1 + most // 50])
    if abs(corner - paper) <= 64:
        return grey
    depths = []
    for lines in (grey, grey[::-1], grey.T, grey.T[::-1]):
        middle = np.median(lines[: most + 1, most : -most : 1 + most // 8], axis=1)
        depths.append(int((np.abs(middle - corner) > 64).argmax()) + 1)  # and its soft edge
    if min(depths) == 1:
        return grey
    for more in range(0, most // 3, 1 + most // 24):  # further in where the frame is not level
        top, bottom, left, right = (depth + more for depth in depths)
        inside = grey[top:-bottom, left:-right]
        if np.mean(np.abs(_edges(inside) - paper) <= 64) >= 0.95:
            break
    else:
        return grey
    outside = np.sum(np.abs(grey - corner) <= 64) - np.sum(np.abs(inside - corner) <= 64)
    # How much is as it should be, of the frame and of what is in it: less of a thick 8, which has paper in its middle.
    fits = outside / (grey.size - inside.size) + np.mean(np.abs(inside - paper) <= 64)
    return inside if fits > 1.6 and np.ptp(inside) > 64 else grey


def with_margin(grey: Grey) -> Grey:
    """The same with paper around it, where ink on even paper is near the edges: a digit that is cut out closely."""
    if max(grey.shape) <= _TINY:
        return grey
    edges = _edges(grey)
    paper = float(np.bincount(edges.astype(np.uint8), minlength=256).argmax())
    corners = grey[[0, 0, -1, -1], [0, -1, 0, -1]]
    if np.mean(np.abs(edges - paper) <= 8) < 0.4 or (np.abs(corners - paper) <= 8).sum() < 2:
        return grey  # most photos: a large one is not looked through
    away, wide = np.abs(grey - paper), max(grey.shape) // 8
    ink = away > 0.4 * away.max()
    ink[wide:-wide, wide:-wide] = False
    if not ink.any() or np.mean(away <= 2) < 0.25 or not _is_even(grey, paper):
        return grey
    return np.pad(grey, 2 * wide, constant_values=paper)


def drawn(grey: Grey) -> Ink | None:
    """Ink on even paper, as on a canvas; None where it is not that: a photo, a scan, ruled paper."""
    if max(grey.shape) <= _TINY:
        return _tiny(grey)
    sample = grey[:: 1 + grey.shape[0] // 500, :: 1 + grey.shape[1] // 500]
    paper = float(np.bincount(sample.astype(np.uint8).ravel(), minlength=256).argmax())
    if np.mean(np.abs(sample - paper) <= 8) < 0.5 or not _is_even(grey, paper):
        return None
    away = np.abs(grey - paper)
    most = float(away.max())
    if most < 8:
        return Ink(np.zeros_like(grey), 0.0)
    # Else light that falls in.
    return Ink(away / most, 0.0) if np.mean(_edges(away) > 0.6 * most) < 0.15 else None


def _edges(values: Grey) -> Grey:
    return np.concatenate([values[0], values[-1], values[:, 0], values[:, -1]])


def _is_even(grey: Grey, paper: float) -> bool:
    """Whether all that is not of the paper's grey is ink, darker or else lighter, and its soft edges: no shades."""
    most = float(np.abs(grey - paper).max())
    if most < 8:
        return True
    away = (grey - paper) / most
    darker, lighter = int((away < -0.2).sum()), int((away > 0.2).sum())
    if min(darker, lighter) > 0.005 * max(darker, lighter):
        return False  # ink in the shade, and paper in the light
    strength, side = np.abs(away), max(grey.shape)
    pale, strong = (strength > 0.2) & (strength < 0.8), strength >= 0.6
    if _has_patch(pale, side // 6) or (_share_of_its_box(strong) > 0.7 and _has_patch(strong, side // 4)):
        return False  # of shade, or a sheet on a table: wider than strokes are
    between, few = pale & ~strong, 0.1 * strong.sum()
    if between.sum() > few:
        near = ndimage.maximum_filter(strong.view(np.uint8), 3 + 2 * (side // 30))
        return bool((between & (near == 0)).sum() <= few)
    return True


def _has_patch(mask: NDArray[np.bool_], side: int) -> bool:
    """Whether a square of so many pixels a side lies in the mask."""
    return mask.sum() >= side**2 and bool(ndimage.minimum_filter(mask.view(np.uint8), side, mode="constant").any())


def _share_of_its_box(mask: NDArray[np.bool_]) -> float:
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    return float(mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].mean())


def photographed(grey: Grey) -> Ink:
    """Dark ink on paper in uneven light; rulings are taken off."""
    grey = ndimage.gaussian_filter(grey, 0.6)
    window = max(3, int(0.2 * min(grey.shape)) | 1)
    closed = ndimage.grey_closing(np.pad(grey, window // 2, "edge"), (window, window), mode="nearest")
    paper = ndimage.uniform_filter(closed, 3)[window // 2 : -(window // 2), window // 2 : -(window // 2)]
    strength = np.maximum(paper - grey, 0) / np.maximum(paper, 48)
    strength = _without_rulings(strength)
    return Ink(strength, _noise(strength))


def evened(ink: Ink) -> Ink:
    """The same with full ink at 1, where a pen is pale."""
    is_ink = ink.strength > max(FAINT, 5 * ink.noise)
    level = float(np.quantile(ink.strength[is_ink], 0.9)) if is_ink.any() else 1.0
    return Ink(np.minimum(ink.strength / level, 1), ink.noise / level)


def _tiny(grey: Grey) -> Ink:
    """Ink of a picture that is too small to be a photo of paper, in pixels of which a stroke has several."""
    low, high = float(grey.min()), float(grey.max())
    if high - low < 8:
        return Ink(np.zeros_like(grey), 0.0)
    light = grey > (low + high) / 2
    corners = int(light[[0, 0, -1, -1], [0, -1, 0, -1]].sum())
    # A digit that is cut out closely leaves its corners to the paper; a 1 may not, and is dark more often than light.
    paper = high if corners > 2 or (corners == 2 and light.mean() > 1 / 3) else low
    strength = np.pad(np.abs(grey - paper) / (high - low), 2)  # digits are often cut out without a margin
    times = -(-2 * _TINY // max(strength.shape))
    larger = ndimage.zoom(strength, times, order=3, mode="nearest", grid_mode=True)
    return Ink(larger.clip(0, 1), 0.0)


def is_light_on_dark(grey: Grey) -> bool:
    """Whether light parts stray further than dark ones from the median around them; shadows are too wide to count."""
    small = shrunk(grey, -(-max(grey.shape) // _SMALL)) / 255
    window, stroke = (max(3, int(share * max(small.shape)) | 1) for share in (0.4, 0.2))
    away = small - ndimage.median_filter(small, window, mode="nearest")
    dark = ndimage.grey_closing(small, (stroke, stroke), mode="nearest") - small
    light = small - ndimage.grey_opening(small, (stroke, stroke), mode="nearest")
    light, dark = np.minimum(away, light), np.minimum(-away, dark)
    return float((np.maximum(light, 0) ** 3).sum()) > 3 * float((np.maximum(dark, 0) ** 3).sum())  # chalk is rare


def _noise(strength: Grey) -> float:
    """Standard deviation of paper, from neighbouring pixels: half of them differ by less."""
    apart = np.abs(strength[:, 2:] - strength[:, :-2])
    return float(np.median(apart)) / 0.954 if apart.size else 0.0


def shrunk(values: Grey, step: int) -> Grey:
    """Means of squares of step x step pixels; what is left over at the right and bottom edge is dropped."""
    if step <= 1:
        return values
    height, width = (max(1, side // step) for side in values.shape)
    part = values[: height * step, : width * step]
    return part.reshape(height, -1, width, part.shape[1] // width).mean((1, 3), dtype=np.float32)


# ---------------------------------------------------------------------- rulings


def _without_rulings(strength: Grey) -> Grey:
    """Less the long thin lines of ruled and squared paper: what a digit has beyond them is left."""
    for turned in (False, True):
        lines = strength.T if turned else strength
        lines = _without_rows(lines)
        strength = lines.T if turned else lines
    return strength


def _without_rows(strength: Grey) -> Grey:
    """Less the lines that run from the left to the right edge, at a slope of up to 0.2."""
    height, width = strength.shape
    if min(height, width) < 40:
        return strength
    shift = np.rint(_slope(strength) * (np.arange(width) - width / 2)).astype(int)
    rows = (np.arange(height)[:, None] + shift) % height
    level = np.take_along_axis(strength, rows, 0)  # the lines lie flat
    thick = max(1, round(min(height, width) / 200))
    near = ndimage.maximum_filter1d(level, 2 * thick + 1, axis=0)
    # A line is there along most of a part, and of most parts: a digit's bar ends.
    along = ndimage.uniform_filter1d((near > FAINT / 2).astype(np.float32), int(0.2 * width) | 1, axis=1) > 0.8
    through = ndimage.maximum_filter1d(along, 6 * thick + 1, axis=0).mean(1) > 0.85
    line = along & through[:, None]
    if not line.any():
        return strength
    depth = float(np.median(near[line]))
    ink = (level > max(1.7 * depth, depth + 0.1)) | ~line
    rest = np.where(ink, level, 0)
    bridged = ndimage.grey_closing(ndimage.maximum_filter1d(rest, 3, axis=1), (4 * thick + 3, 1))
    rest = np.where(ink, level, np.minimum(level, bridged))  # a stroke that crosses the line, no darker than it
    back = np.empty_like(strength)
    np.put_along_axis(back, rows, rest, 0)
    return back


def _slope(strength: Grey) -> float:
    """The slope along which rows differ most in strength."""
    step = max(1, max(strength.shape) // 300)
    small = np.minimum(ndimage.maximum_filter1d(strength, step, axis=0)[::step, ::step], 0.3)
    height, width = small.shape
    blocks = small[:, : width // 16 * 16].reshape(height, 16, -1).mean(2)  # few columns, each the mean of many
    places = (np.arange(16) + 0.5) * (width // 16) - width / 2
    best, found = 0.0, 0.0
    rows = np.arange(height)[:, None]
    for slope in np.linspace(-0.2, 0.2, 41):
        sheared = np.take_along_axis(blocks, (rows + np.rint(slope * places).astype(int)) % height, 0)
        score = float(np.square(np.diff(sheared.mean(1))).sum())
        if score > best:
            best, found = score, float(slope)
    return found
