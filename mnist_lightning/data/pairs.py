"""Which labels go with which images, where they lie in files or arrays of their own."""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, TypeVar

PACKED = re.compile(r"\.(gz|gzip|bz2|xz|zip)$", re.IGNORECASE)
_WORDS = re.compile(
    r"images?|imgs?|pictures?|labels?|lbls?|targets?|classes|idx\d|ubyte|int(?![a-z])|(?<![a-z])[xy](?![a-z])"
    r"|(?<![a-z])[xy](?=train|test|val)|(?<=train|.test)[xy](?![a-z])|(?<=/)[01](?![\d])|[^a-z0-9]"
)
_MOST = 400  # arrays of each kind that are compared with all of the other


class Half(Protocol):
    """Images or labels: where they lie, and the shape of the array, () where that is not known."""

    @property
    def place(self) -> Path: ...
    @property
    def shape(self) -> tuple[int, ...]: ...


_Half = TypeVar("_Half", bound=Half)


def paired(images: Sequence[_Half], labels: Sequence[_Half]) -> list[tuple[_Half, _Half | None]]:
    """Each images' labels: as many as there are images, of the likest name; labels are given once.

    Where the names agree and only the numbers do not, they are a pair, so that reading them says so.
    """
    images, labels = images[:_MOST], labels[:_MOST]
    best = sorted(
        ((_as_many(one, other), _like(one.place, other.place), -at, -by))
        for at, one in enumerate(images)
        for by, other in enumerate(labels)
    )
    partner: dict[int, int] = {}
    for as_many, like, at, by in reversed(best):
        if (as_many or like == 1) and -at not in partner and -by not in partner.values():
            partner[-at] = -by
    return [(one, labels[partner[at]] if at in partner else None) for at, one in enumerate(images)]


def _as_many(images: Half, labels: Half) -> bool:
    if not images.shape or not labels.shape:
        return True
    count = max(labels.shape) if 1 in labels.shape else labels.shape[0]
    return count in (images.shape[0], images.shape[-1])


def _like(images: Path, labels: Path) -> float:
    """How like two names are, from 0 to 1: 1 where they differ only by the words for images and labels."""
    one, other = (_WORDS.sub("", PACKED.sub("", path.as_posix().lower())) for path in (images, labels))
    return 1.0 if one == other else 0.99 * difflib.SequenceMatcher(None, one, other).ratio()
