"""What a training's augmentation makes of a few images: one picture, one section of the page."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mnist_lightning import figures
from mnist_lightning.data.augment import NUMBERS, Augment
from mnist_lightning.data.digits import SIDE
from mnist_lightning.report.summary import Report
from mnist_lightning.report.svg import image

DIGITS, VERSIONS = 6, 9


def changed(report: Report) -> Tensor | None:
    """Some of the images that were evaluated, each followed by what training might have made of it: uint8
    [n, 1 + versions, 28, 28]; None where nothing was augmented."""
    kind = report.settings.get("data.augment")
    if not isinstance(kind, str) or kind not in NUMBERS or report.evaluation is None:
        return None
    shown = report.evaluation.images[:DIGITS]
    augment = Augment(kind)
    numbers = augment.draw(len(shown) * VERSIONS, seed=0)
    versions = augment(shown.repeat_interleave(VERSIONS, 0), numbers).view(len(shown), VERSIONS, 28, 28)
    return torch.cat([shown.unsqueeze(1), versions], dim=1)


def figure(images: Tensor) -> figures.Figure:
    """A row for each digit, as it is first."""
    return figures.samples(images.flatten(0, 1), most=images[:, :, 0, 0].numel(), columns=images.shape[1])


def section(images: Tensor) -> str:
    """The same for the page."""
    digits, columns = images.shape[:2]
    whole = F.pad(images, (1, 1, 1, 1), value=96).transpose(1, 2).reshape(digits * (SIDE + 2), columns * (SIDE + 2))
    shown = image(whole, f"{digits} digits, a row each: as it was, then {columns - 1} versions of it", 2)
    return (
        "<p>Each epoch saw the training images changed anew. So it would change these, of which the first in each row "
        f'is as it was.</p><div class="changed">{shown}</div>'
    )
