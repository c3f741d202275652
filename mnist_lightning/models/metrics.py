"""What torchmetrics does not have."""

import torch
from torch import Tensor
from torchmetrics import Metric


class MeanLoss(Metric):
    """Mean loss over images. (torchmetrics' MeanMetric loses its weights when it need not look for NaN.)"""

    total: Tensor
    images: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros(()), "sum")
        self.add_state("images", torch.zeros(()), "sum")

    def update(self, losses: Tensor, sizes: Tensor) -> None:
        """Mean losses [k] of so many images [k]."""
        self.total += (losses * sizes).sum()
        self.images += sizes.sum()

    def compute(self) -> Tensor:
        return self.total / self.images
