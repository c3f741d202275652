"""The ink of one digit as MNIST's makers placed theirs: 20 pixels long, its centre of mass in the middle of 28 x 28.

Strokes are brought to the width of MNIST's first. The drawing page does the same (exporting/drawing.js).
"""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from mnist_lightning.data.ink import Grey

BOX, SIDE = 20, 28  # pixels: the box that the ink fills, and the image
_STROKE = (2.0, 3.6)  # pixels: least and greatest width of a stroke in the image; MNIST's median is 2.5
_FINE = (80, 128)  # pixels: least and greatest longest side of a digit whose strokes are measured


def placed(ink: Grey) -> Tensor:
    """uint8 [28, 28] of the ink, 0 to 1 [h, w], of one digit and no more: 0 the paper and 255 full ink."""
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
    wanted = min(max(width * BOX / longest, _STROKE[0]), _STROKE[1])
    grown = (wanted * longest - BOX * width) / (2 * (BOX - wanted))  # on each side
    grown = max(grown, -0.5 * float(inside.max()))
    edge = longest / BOX  # a pixel of the image
    return np.clip(0.5 + (grown + inside - outside) / edge, 0, 1).astype(np.float32)


def _placed(ink: Grey) -> Tensor:
    """uint8 [28, 28]: the ink's longest side 20 pixels, its centre of mass in the middle."""
    lines = [np.flatnonzero((ink > 0.5).any(axis)) for axis in (1, 0)]
    step = max(line[-1] - line[0] + 1 for line in lines) / BOX
    total = float(ink.sum())
    weights = []
    for axis in (1, 0):
        mass = ink.sum(axis)
        middle = float(mass @ (np.arange(len(mass)) + 0.5)) / total
        start = middle + (np.arange(SIDE)[:, None] - 14.5) * step  # 14.5 as MNIST's
        pixel = np.arange(len(mass))
        overlap = np.minimum(start + step, pixel + 1) - np.maximum(start, pixel)
        weights.append(np.maximum(overlap, 0) / step)
    rows, columns = weights
    image = rows @ ink @ columns.T
    return torch.from_numpy(np.rint(image * 255).clip(0, 255).astype(np.uint8))
