"""A study as one of several processes sees it."""

from pathlib import Path

from mnist_lightning.searching.space import Dimension
from mnist_lightning.searching.storage import open_journal
from mnist_lightning.searching.study import Study

SPACE = [Dimension("model.lr", (), 1e-4, 1e-1, log=True), Dimension("model.hidden", ([32], [64], [128]))]


class Process:
    """A study as one process sees it."""

    def __init__(self, folder: Path, **options) -> None:
        storage, self.locks = open_journal(folder)
        self.study = Study("s", storage, self.locks, maximize=True, space=SPACE, **options)

    def dies(self) -> None:
        self.locks.close()  # as the system does
