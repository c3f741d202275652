"""Training images as they would look written a little differently, made on the device and anew in each epoch."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Kind = Literal["affine", "all"]
MOVED = 6  # random numbers for an image's turn, size, aspect, slant, and shift to the right and down
NODES = 5  # of the net, a side, that an image is bent with
NUMBERS: dict[Kind, int] = {"affine": MOVED, "all": MOVED + 2 * NODES**2 + 1}  # random numbers for an image
_MOST = (12.0, 0.12, 0.1, 0.2, 2.0, 2.0)  # degrees, shares, shares, columns a row, pixels, pixels
_BENT = 1.5  # pixels that a node of the net is moved at most
_STROKE = 0.6  # of the way to a stroke that is thicker or thinner by a pixel on each side


class Augment:
    """Changes uint8 [n, 28, 28] by random numbers float32 [n, numbers] in -1 to 1; all zeros change nothing.

    affine: images are turned, scaled, slanted and moved. all: bent as well (Simard et al. 2003, elastic distortions),
    with strokes that are thicker or thinner.
    """

    def __init__(self, kind: Kind) -> None:
        self.kind, self.numbers = kind, NUMBERS[kind]

    def __call__(self, images: Tensor, drawn: Tensor) -> Tensor:
        pixels, grid = images.unsqueeze(1).float(), _moved(drawn[:, :MOVED])
        if self.kind == "all":
            pixels = _stroked(pixels, drawn[:, -1].view(-1, 1, 1, 1))
            grid = grid + _bent(drawn[:, MOVED:-1])
        return F.grid_sample(pixels, grid, align_corners=False).squeeze(1).round_().to(torch.uint8)

    def draw(self, size: int, seed: int) -> Tensor:
        """The numbers for each image of a data set, float32 [size, numbers], the same on every device."""
        return torch.rand(size, self.numbers, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def _moved(drawn: Tensor) -> Tensor:
    """From each place of the new image to the one that it shows, [n, 28, 28, 2] in grid_sample's units: 1 is half a
    side."""
    angle, size, aspect, slant, right, down = (drawn * drawn.new_tensor(_MOST)).unbind(1)
    angle = angle * (math.pi / 180)
    wide, high = (-size - aspect).exp(), (-size + aspect).exp()
    first = torch.stack([angle.cos() * wide, (angle.sin() + slant) * wide, -right / 14], dim=1)
    second = torch.stack([-angle.sin() * high, angle.cos() * high, -down / 14], dim=1)
    return F.affine_grid(torch.stack([first, second], dim=1), [len(drawn), 1, 28, 28], align_corners=False)


def _bent(drawn: Tensor) -> Tensor:
    """What the nodes of a net, moved at random, add to the places between them, [n, 28, 28, 2]."""
    nodes = drawn.view(-1, 2, NODES, NODES) * (_BENT / 14)
    return F.interpolate(nodes, (28, 28), mode="bicubic", align_corners=True).permute(0, 2, 3, 1)


def _stroked(pixels: Tensor, drawn: Tensor) -> Tensor:
    """Thicker strokes where the number is above zero, thinner where it is below; [n, 1, 28, 28], bright on black."""
    thick, thin = F.max_pool2d(pixels, 3, 1, 1), -F.max_pool2d(-pixels, 3, 1, 1)
    share = drawn * _STROKE
    return pixels + (thick - pixels) * share.clamp(min=0) + (thin - pixels) * (-share).clamp(min=0)
