"""From what is seen on pictures to what they say: a digit and its word, or why there is none."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mnist_lightning.data.photo import Seen
from mnist_lightning.predictor import Predictor

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass
class Reading:
    """What a picture says: status ok, unsure, number, blank, none or unreadable.

    `name` and `runner_up` are classes' names. Of an unsure one they are the likeliest; of a number, all of its digits.
    """

    file: str
    status: str
    name: str | None = None
    word: str | None = None
    confidence: float | None = None
    runner_up: str | None = None
    reason: str | None = None  # why it is unreadable
    parts: Sequence[Tensor] = field(default=(), repr=False)  # uint8 [28, 28] of each digit
    probabilities: Sequence[float] = field(default=(), repr=False)  # of each class; none of a number

    def row(self) -> dict[str, Any]:
        """As it is written as JSON or CSV; `digit` is None where the class is no digit."""
        several = len(self.parts) > 1
        row = {
            "file": self.file,
            "digit": int(self.name) if self.name in DIGITS and not several else None,
            "word": self.word,
            "confidence": None if self.confidence is None else round(self.confidence, 6),
            "runner_up": self.runner_up,
            "status": self.status,
        }
        if several:
            row["number"] = self.name
        return row | ({"reason": self.reason} if self.reason else {})


DIGITS = frozenset("0123456789")


def readings(predictor: Predictor, sights: Sequence[tuple[str, Seen | str]]) -> Iterable[Reading]:
    """What each picture says, in their order, with one forward for all."""
    words = dict(zip("0123456789", WORDS, strict=True))
    parts = [part for _, seen in sights if isinstance(seen, Seen) for part in seen.parts]
    logits = predictor.logits(torch.stack(parts) if parts else torch.zeros(0, 28, 28, dtype=torch.uint8))
    probabilities = logits.softmax(1)
    best = probabilities.topk(min(2, predictor.classes))
    doubts = predictor.unsure(logits).tolist()
    rows = zip(best.values.tolist(), best.indices.tolist(), doubts, probabilities.tolist(), strict=True)
    for file, seen in sights:
        if isinstance(seen, str):
            yield Reading(file, "unreadable", reason=seen)
            continue
        found = [next(rows) for _ in seen.parts]
        if not found:
            yield Reading(file, seen.status)
            continue
        names = [predictor.names[index] for _, (index, *_), *_ in found]
        _, (_, *others), _, row = found[0]
        yield Reading(
            file,
            "unsure" if any(doubt for *_, doubt, _ in found) else seen.status,
            "".join(names),
            " ".join(words.get(name, name) for name in names),
            math.prod(probability for (probability, *_), *_ in found),
            predictor.names[others[0]] if len(found) == 1 and others else None,
            parts=seen.parts,
            probabilities=row if len(found) == 1 else (),
        )
