"""Accuracy for steps of a tenth of a millisecond."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy

WAITING = 64  # batches
MOST = 20_000  # images, whose logits are kept meanwhile


class Accuracy(MulticlassAccuracy):
    """Share of the images read right: torchmetrics' own, whose update counts many small batches at once."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes, average="micro", validate_args=False)
        self._waiting: list[tuple[Tensor, Tensor]] = []

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """`update`, now or later: logits [n, classes], labels int64 [n]."""
        count = labels.numel()  # len() of a tensor takes ten times as long
        if count == 0:  # torchmetrics takes no share of nothing
            return
        self._waiting.append((logits.detach(), labels))
        if len(self._waiting) == WAITING or len(self._waiting) * count > MOST:
            self.flush()

    def flush(self) -> None:
        """Counts what waits."""
        if self._waiting:
            logits, labels = map(torch.cat, zip(*self._waiting, strict=True))
            self._waiting.clear()
            self.update(logits, labels)
            self._update_count = 1  # how many were counted together shall not show in a checkpoint

    def _wrap_compute(self, compute: Callable[..., Any]) -> Callable[..., Any]:
        wrapped = super()._wrap_compute(compute)

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.flush()
            return wrapped(*args, **kwargs)

        return counted

    def reset(self) -> None:
        self._waiting.clear()
        super().reset()

    @property
    def metric_state(self) -> dict[str, Tensor | list[Tensor]]:
        self.flush()
        return super().metric_state
