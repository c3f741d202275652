"""Checkpoints that survive: written durably, checked before use, never trusted.

A file is torch's own zip with a SHA-256 of everything before it as the archive's comment, so `torch.load` reads it
as it is. It holds tensors and plain values only.
"""

import hashlib
import io
import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import nn

from mnist_lightning.data.digits import MOST_CLASSES
from mnist_lightning.errors import UserError, first_line
from mnist_lightning.files import is_device, sync, write_whole
from mnist_lightning.models import MODELS, DigitClassifier
from mnist_lightning.run import Run
from mnist_lightning.training.checkpoint_content import LARGEST, STATE, check_values, load_plain, plain

MARK = b"sha256:"
COMMENT = len(MARK) + 64  # bytes of the zip comment
NO_COMMENT = b"PK\x05\x06"  # where a zip archive without one has its end: 22 bytes before that of the file
OF_CLASSES = ("class_names", "class_weights")  # settings of models with an entry for each class
GONE = {"gradient_clip_val", "seed"}  # settings of models that earlier checkpoints have


def write_checkpoint(checkpoint: dict[str, Any], path: Path, table: Path | None = None, **names: Path | None) -> None:
    """Writes the file whole or not at all, durably; `names` are the others that `write_whole` gives it.

    `table` is a file whose length the checkpoint holds, synced before.
    """
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    # a zip ends with the length of its comment, which torch leaves at 0
    buffer.seek(-2, os.SEEK_END)
    buffer.write(COMMENT.to_bytes(2, "little"))
    digest = hashlib.sha256(buffer.getbuffer()).hexdigest()
    buffer.write(MARK + digest.encode())
    try:
        if table is not None and table.exists():
            sync(table)
        write_whole(buffer.getbuffer(), path, **names)
    except UserError as error:
        run = Run(path.parent)
        on = f"go on with {run.words('last')}" if run.config.exists() and path.exists() else "start again"
        raise UserError(f"{error}, then {on}") from error


class DurableCheckpointIO(TorchCheckpointIO):
    """Lightning's way in and out of files.

    With `storage_options`, which are what `write_checkpoint` takes besides, a checkpoint is written in a thread while
    the training goes on. Without, as Lightning's own callbacks save, it is there when the call returns.
    """

    def __init__(self) -> None:
        super().__init__()
        self._writing: Future[None] | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        self.wait()
        content, path = plain(checkpoint), Path(path)
        try:
            check_values(content)
        except ValueError as error:
            raise UserError(f"{path} cannot be written: {error}; see the states of callbacks and modules") from error
        path.parent.mkdir(parents=True, exist_ok=True)  # a ModelCheckpoint's own folder
        thread = ThreadPoolExecutor(max_workers=1)
        self._writing = thread.submit(write_checkpoint, content, path, **(storage_options or {}))
        thread.shutdown(wait=False)  # it ends when that is written; a session has no thread more than before
        if storage_options is None:
            self.wait()

    def wait(self) -> None:
        """Until the last checkpoint is on the disk; raises UserError if it could not be written."""
        if self._writing is not None:
            failure = self._writing.exception()  # a signal can come while this waits: then somebody waits again
            self._writing = None
            if failure is not None:
                raise failure

    teardown = wait  # Lightning calls it at the end, however that came

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        self.wait()  # Lightning's tuner saves and loads in a row, outside of any run
        return read_weights(Path(path))


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a checkpoint of a run; runs none of its content.

    Raises UserError, in one line, for a file that is missing, damaged, foreign or hostile.
    """
    checkpoint = read_weights(path)
    if STATE not in checkpoint:
        raise UserError(f"{path} is not of a run of mnist_lightning: see --init_from")
    return checkpoint


def read_weights(path: Path) -> dict[str, Any]:
    """Likewise, also what any Trainer wrote: of that count `state_dict` and `hyper_parameters`."""
    data = _read(path)
    try:
        return load_plain(data)
    except Exception as error:  # a file with the right checksum and the wrong content was made by somebody else
        raise UserError(f"{path} is no checkpoint and was not loaded: {first_line(error)[:200]}") from error


def _read(path: Path) -> bytes:
    """The file's content, if its checksum is right or it is without one, as torch alone writes it."""
    try:
        if is_device(path):
            raise UserError(f"{path} is a pipe or a device, no checkpoint: see --ckpt_path")
        if path.stat().st_size > LARGEST:
            raise UserError(f"{path} is no checkpoint of mnist_lightning: it is larger than any")
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}; see --ckpt_path") from error
    if data[-22:-18] == NO_COMMENT:
        return data
    if not data[-COMMENT:].startswith(MARK):
        raise UserError(f"{path} is damaged or no checkpoint of mnist_lightning; {_another(path)}")
    if MARK + hashlib.sha256(memoryview(data)[:-COMMENT]).hexdigest().encode() != data[-COMMENT:]:
        raise UserError(f"{path} is damaged: its checksum does not match; {_another(path)}")
    return data


def _another(path: Path) -> str:
    """What to take instead of a damaged file."""
    run = Run(path.parent)
    return f"{run.words('last')} takes a good one" if run.config.exists() else "give another with --ckpt_path"


def load_model(path: str | Path) -> DigitClassifier:
    """The classifier of a checkpoint, ready to use: float32 [n, 1, 28, 28] normalised -> logits [n, classes].

    Also of one that a plain Trainer wrote of an MLP or a CNN. In that of a run are mean and standard deviation of its
    training images, under "MNISTDataModule". Raises UserError for a file that is missing, damaged or foreign.
    """
    return model_of(read_weights(Path(path)), Path(path)).eval()


def model_of(checkpoint: dict[str, Any], path: Path) -> DigitClassifier:
    """The network that a checkpoint describes, with its weights."""
    model = check_model(checkpoint, path)(**_settings(checkpoint))
    model.load_state_dict(checkpoint["state_dict"])
    return model


def check_model(checkpoint: dict[str, Any], path: Path) -> type[DigitClassifier]:
    """The class that a checkpoint describes. Refuses a description that is not that of the weights.

    Spends no memory on what is described. Without a name, it is the class that takes settings and weights.
    """
    name = checkpoint.get(STATE, {}).get("model")
    if name is not None and name not in MODELS:
        raise UserError(
            f"{path} holds a model that is not of this project and is not imported from here: {name!r}; give its class "
            "and settings with --model"
        )
    settings, weights, refusals = _settings(checkpoint), checkpoint["state_dict"], []
    for known in [name] if name else MODELS:
        try:
            lists = {name: len(value) for name, value in settings.items() if isinstance(value, list | tuple)}
            most = dict.fromkeys(OF_CLASSES, MOST_CLASSES)
            if any(length > most.get(name, len(weights) + 5) for name, length in lists.items()):
                raise ValueError("more layers than weights")
            with torch.device("meta"):
                MODELS[known](**settings).load_state_dict(weights, assign=True)
            return MODELS[known]
        except Exception as error:  # settings of any kind, given to any constructor
            refusals.append(f"{path} describes no {known} of its weights: {first_line(error)[:200]}")
    raise UserError("; ".join(refusals))


def _settings(checkpoint: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in checkpoint.get("hyper_parameters", {}).items() if name not in GONE}


def model_name(model: nn.Module) -> str:
    """What a checkpoint calls this model: a name of this project, else the import path of its class."""
    kind = type(model)
    return next((name for name, known in MODELS.items() if known is kind), f"{kind.__module__}.{kind.__qualname__}")


def load_weights(model: nn.Module, checkpoint: dict[str, Any], path: Path) -> None:
    try:
        model.load_state_dict(checkpoint["state_dict"])
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"{path} is of another architecture than this {type(model).__name__}: use it with the recipe that it was "
            "trained with"
        ) from error


def load_fitting_weights(model: nn.Module, checkpoint: dict[str, Any], path: Path) -> list[str]:
    """Starts from a checkpoint's weights as far as names and shapes agree; returns the names of those left fresh."""
    own, given = model.state_dict(), checkpoint["state_dict"]
    fitting = {name: given[name] for name in own if getattr(given.get(name), "shape", None) == own[name].shape}
    if not fitting:
        raise UserError(
            f"{path} has no weight that fits into this {type(model).__name__}: give the --config or --model with its "
            "settings that it was trained with"
        )
    model.load_state_dict(fitting, strict=False)
    return [name for name in own if name not in fitting]
