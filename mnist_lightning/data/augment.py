"""Training images as they would look written a little differently, made on the device and anew in each epoch."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

DRAWS = 6  # random numbers for an image: its turn, size, aspect, slant, and shift to the right and down
_MOST = (12.0, 0.12, 0.1, 0.2, 2.0, 2.0)  # degrees, shares, shares, columns a row, pixels, pixels


def affine(images: Tensor, draws: Tensor) -> Tensor:
    """Images uint8 [n, 28, 28], turned, scaled, slanted and moved by `draws`, in -1 to 1, float32 [n, DRAWS]."""
    angle, size, aspect, slant, right, down = (draws * draws.new_tensor(_MOST)).unbind(1)
    angle = angle * (math.pi / 180)
    # From each place of the new image to the one that it shows, in grid_sample's units: 1 is half a side.
    wide, high = (-size - aspect).exp(), (-size + aspect).exp()
    first = torch.stack([angle.cos() * wide, (angle.sin() + slant) * wide, -right / 14], dim=1)
    second = torch.stack([-angle.sin() * high, angle.cos() * high, -down / 14], dim=1)
    grid = F.affine_grid(torch.stack([first, second], dim=1), [len(images), 1, 28, 28], align_corners=False)
    pixels = F.grid_sample(images.unsqueeze(1).float(), grid, align_corners=False)
    return pixels.squeeze(1).round_().to(torch.uint8)


def draws(size: int, seed: int) -> Tensor:
    """Numbers in -1 to 1 for each image of a data set, float32 [size, DRAWS], the same on every device."""
    return torch.rand(size, DRAWS, generator=torch.Generator().manual_seed(seed)) * 2 - 1
