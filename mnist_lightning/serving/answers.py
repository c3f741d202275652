"""From what the network sees to what a client is told."""

import base64
import io
import math
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mnist_lightning.data.photo import Seen
from mnist_lightning.predictor import Predictor

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
Answer = dict[str, Any]


class Reader:
    """Answers for many pictures with one forward."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor, self.names = predictor, predictor.names
        digits = tuple(map(str, range(10)))
        self.words = WORDS if self.names == digits else self.names

    def __call__(self, seen: Sequence[Seen]) -> list[Answer]:
        """An answer for each, in their order."""
        parts = [part for one in seen for part in one.parts]
        if not parts:
            return [_nothing(one) for one in seen]
        logits = self.predictor.logits(torch.stack(parts))
        rows = zip(logits.softmax(1).tolist(), self.predictor.unsure(logits).tolist(), strict=True)
        return [self._answer(one, [next(rows) for _ in one.parts]) for one in seen]

    def _answer(self, seen: Seen, rows: list[tuple[list[float], bool]]) -> Answer:
        if not rows:
            return _nothing(seen)
        orders = [sorted(range(len(row)), key=row.__getitem__, reverse=True) for row, _ in rows]
        best = [order[0] for order in orders]
        unsure, alone = any(doubt for _, doubt in rows), len(rows) == 1
        row = rows[0][0]
        return {
            "status": "unsure" if unsure else seen.status,
            "digit": self.names[best[0]] if alone and not unsure else None,
            "number": None if alone else "".join(self.names[index] for index in best),
            "word": " ".join(self.words[index] for index in best),
            "confidence": round(math.prod(row[index] for (row, _), index in zip(rows, best, strict=True)), 6),
            "runner_up": self.names[orders[0][1]] if alone else None,
            "probabilities": {name: round(p, 6) for name, p in zip(self.names, row, strict=True)} if alone else None,
            "seen": [_as_url(part) for part in seen.parts],
        }


def _nothing(seen: Seen) -> Answer:
    """Of a picture without a digit."""
    keys = ("digit", "number", "word", "confidence", "runner_up", "probabilities")
    return {"status": seen.status, **dict.fromkeys(keys), "seen": []}


def png_of(image: Tensor) -> bytes:
    """The PNG file of uint8 [28, 28]."""
    file = io.BytesIO()
    Image.fromarray(image.numpy()).save(file, "PNG")
    return file.getvalue()


def _as_url(image: Tensor) -> str:
    return "data:image/png;base64," + base64.b64encode(png_of(image)).decode()
