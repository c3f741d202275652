"""metrics.csv: one table a run, which a resumed run continues without a row lost or doubled."""

import os
import zlib
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from mnist_lightning.errors import UserError

# Columns that are fixed from the start: rows are only ever appended, so that a killed process loses none.
COLUMNS = (
    "epoch", "step", "images", "lr", "train_loss_step",
    "train_loss", "train_acc", "val_loss", "val_acc", "test_loss", "test_acc",
)  # fmt: skip


class MetricsCSV(Logger):
    """Appends rows to a file. (Lightning's CSVLogger starts over when a run is resumed, and rewrites as it goes.)"""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    @property
    def name(self) -> str:
        return ""

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        """The run's folder: where Lightning's ModelCheckpoint and profilers put their files."""
        return str(self.path.parent)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """config.yaml has them."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        row = {"step": step, **metrics}
        line = ",".join(str(row.get(column, "")) for column in COLUMNS)
        try:
            with self.path.open("a") as file:
                if file.tell() == 0:
                    file.write(",".join(COLUMNS) + "\n")
                file.write(line + "\n")
        except OSError as error:
            raise UserError(_unwritable(self.path, error)) from error

    @rank_zero_only
    def position(self) -> dict[str, int]:
        """How much of the table there is: what a checkpoint remembers of it."""
        if not self.path.exists():
            return {"bytes": 0, "crc32": 0}
        try:
            data = self.path.read_bytes()
        except OSError as error:
            raise UserError(_unwritable(self.path, error)) from error
        return {"bytes": len(data), "crc32": zlib.crc32(data)}

    @rank_zero_only
    def rewind(self, position: dict[str, int], origin: Path) -> None:
        """Continues the table of `origin` from `position`: rows after it will be written again."""
        data = origin.read_bytes()[: position["bytes"]] if origin.exists() else b""
        if zlib.crc32(data) != position["crc32"] or len(data) != position["bytes"]:
            raise UserError(
                f"{origin} is not the table that the checkpoint belongs to: put it back, or start a new run without "
                "--ckpt_path"
            )
        temporary = self.path.with_name(".metrics.csv.tmp")
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.path)
        except OSError as error:
            raise UserError(_unwritable(self.path, error)) from error


def _unwritable(path: Path, error: OSError) -> str:
    return (
        f"{path} cannot be written: {error.strerror or error}; the last good checkpoint is kept: make room, then "
        "continue with --ckpt_path last"
    )
