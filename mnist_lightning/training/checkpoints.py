"""Checkpoints that survive: written durably, checked before use, found again, never trusted.

A file is torch's own zip with a SHA-256 of everything before it as the archive's comment, so `torch.load` reads it
as it is. It holds tensors and plain values only.
"""

import hashlib
import io
import os
import shutil
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import CheckpointIO
from torch import Tensor

from mnist_lightning.errors import UserError
from mnist_lightning.models import MODELS, DigitClassifier
from mnist_lightning.runs import is_device
from mnist_lightning.training.strangers import LARGEST, STATE, check_pickle, check_values

MARK = b"sha256:"
COMMENT = len(MARK) + 64  # bytes of the zip comment


def plain(value: Any) -> Any:
    """A copy with dicts, lists, tuples, strings, numbers and compact CPU tensors only.

    Strings are interned: pickle writes a string once for each object, so equal states give equal files only if
    equal strings are one object, however the state came about.
    """
    if isinstance(value, Tensor):  # a copy: training goes on, and a view has the whole tensor behind it
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(plain(item) for item in value) if type(value) in (list, tuple) else list(map(plain, value))
    if isinstance(value, bool | int | float | None):
        return value
    return sys.intern(str(value))


def write_checkpoint(
    checkpoint: dict[str, Any], path: Path, also: Path | None = None, table: Path | None = None
) -> None:
    """Writes the file whole or not at all.

    `also` is a second name for it, given first; `table` a file whose length the checkpoint holds, synced before.
    """
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    # a zip ends with the length of its comment, which torch leaves at 0
    buffer.seek(-2, os.SEEK_END)
    buffer.write(COMMENT.to_bytes(2, "little"))
    digest = hashlib.sha256(buffer.getbuffer()).hexdigest()
    buffer.write(MARK + digest.encode())
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        if table is not None and table.exists():
            _sync(table)
        temporary.unlink(missing_ok=True)  # one left by a killed process can be a second name of best.ckpt
        with temporary.open("wb") as file:
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        if also is not None:
            _give_name(temporary, also)
        if path.exists():  # the one before lives on, in case this one is damaged later
            _give_name(path, path.with_name(PREVIOUS))
        os.replace(temporary, path)
        _sync(path.parent)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


PREVIOUS = "previous.ckpt"


def also_known_as(path: Path, also: Path) -> None:
    """Lets `also` mean this checkpoint too, durably."""
    _give_name(path, also)
    _sync(also.parent)


def _give_name(file: Path, name: Path) -> None:
    """Lets `name` mean this file too, at once or not at all."""
    temporary = name.with_name(f".{name.name}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        try:
            os.link(file, temporary)  # no second copy, nothing to sync
        except OSError:  # a file system without hard links
            shutil.copyfile(file, temporary)
            _sync(temporary)
        os.replace(temporary, name)
    except OSError as error:
        raise _unwritable(name, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _unwritable(path: Path, error: OSError) -> UserError:
    return UserError(
        f"{path} cannot be written: {error.strerror or error}; the last good checkpoint is kept: make room or mend the "
        "folder, then continue with --ckpt_path last"
    )


def _sync(path: Path) -> None:
    """Waits until a file's or a folder's content is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a checkpoint of this project; runs none of its content.

    Raises UserError, in one line, for a file that is missing, damaged, foreign or hostile.
    """
    try:
        if is_device(path):
            raise UserError(f"{path} is a pipe or a device, no checkpoint: see --ckpt_path")
        if path.stat().st_size > LARGEST:
            raise UserError(f"{path} is no checkpoint of mnist_lightning: it is larger than any")
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}; see --ckpt_path") from error
    body, comment = data[:-COMMENT], data[-COMMENT:]
    if not data.startswith(b"PK") or not comment.startswith(MARK):
        raise UserError(f"{path} is damaged or no checkpoint of mnist_lightning; --ckpt_path last takes a good one")
    if hashlib.sha256(body).hexdigest().encode() != comment[len(MARK) :]:
        raise UserError(f"{path} is damaged: its checksum does not match; --ckpt_path last takes a good one")
    try:
        check_pickle(data)
        # True is said here because TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD would otherwise decide
        checkpoint = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        check_values(checkpoint)
    except Exception as error:
        # a file with the right checksum and the wrong content was made by somebody else
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} is not a checkpoint of mnist_lightning and was not loaded: {reason[:200]}") from error
    return checkpoint


def find_checkpoint(folder: Path, which: str) -> tuple[Path, list[str]]:
    """The checkpoint that `last` or `best` of a run means, and what is to be said of those passed over.

    `last` is the newest that verifies. Raises UserError if there is none.
    """
    if which == "best":
        if not (folder / "best.ckpt").exists():
            raise UserError(
                f"{folder} has no best.ckpt: none is chosen before the first validation, or without validation "
                "images before the end; use --ckpt_path last"
            )
        return folder / "best.ckpt", []
    # of names for one file, last.ckpt first
    files = [folder / name for name in ("last.ckpt", PREVIOUS, "best.ckpt")]
    files = sorted(filter(Path.exists, files), key=lambda file: -file.stat().st_mtime_ns)
    passed = []
    for file in files:
        try:
            read_checkpoint(file)
        except UserError as error:
            passed.append(str(error).split("; ")[0])
            continue
        if passed:
            passed.append(f"continuing with {file}, the newest that verifies")
        return file, passed
    why = "; ".join(passed) if passed else "no checkpoint has been written yet"
    raise UserError(f"{folder} has no checkpoint to load ({why}): start a new run without --ckpt_path")


def model_of(checkpoint: dict[str, Any], path: Path) -> DigitClassifier:
    """The network that a checkpoint describes, with its weights."""
    check_model(checkpoint, path)
    model = MODELS[checkpoint[STATE]["model"]](**checkpoint["hyper_parameters"])
    load_weights(model, checkpoint, path)
    return model


def check_model(checkpoint: dict[str, Any], path: Path) -> None:
    """Refuses a description that is not that of the weights, without spending memory on what it describes."""
    name, settings, weights = checkpoint[STATE]["model"], checkpoint["hyper_parameters"], checkpoint["state_dict"]
    if name not in MODELS:
        raise UserError(f"{path} holds a model that is not known here: {name!r}; there are {', '.join(MODELS)}")
    try:
        if any(isinstance(value, list) and len(value) > len(weights) + 5 for value in settings.values()):
            raise ValueError("more layers than weights")
        with torch.device("meta"):
            model = MODELS[name](**settings)
        model.load_state_dict(weights, assign=True)
    except Exception as error:  # settings of any kind, given to any constructor
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} describes no {name} of its weights: {reason[:200]}") from error


def load_weights(model: DigitClassifier, checkpoint: dict[str, Any], path: Path) -> None:
    try:
        model.load_state_dict(checkpoint["state_dict"])
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"{path} is of another architecture than this {type(model).__name__}: use it with the recipe that it was "
            "trained with"
        ) from error


def load_model(path: str | Path) -> DigitClassifier:
    """The classifier of a checkpoint, ready to use: float32 [n, 1, 28, 28] normalised -> logits [n, 10].

    Mean and standard deviation of its training images are in the checkpoint, under "MNISTDataModule". Raises
    UserError for a file that is missing, damaged or foreign.
    """
    return model_of(read_checkpoint(Path(path)), Path(path)).eval()


class DurableCheckpointIO(CheckpointIO):
    """Lightning's way in and out of files. A checkpoint is written in a thread while the training goes on."""

    def __init__(self) -> None:
        super().__init__()
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._writing: Future[None] | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        self.wait()
        Path(path).parent.mkdir(parents=True, exist_ok=True)  # a ModelCheckpoint's own folder
        self._writing = self._thread.submit(write_checkpoint, plain(checkpoint), Path(path), **(storage_options or {}))

    def wait(self) -> None:
        """Until the last checkpoint is on the disk; raises UserError if it could not be written."""
        if self._writing is None:
            return
        failure = self._writing.exception()  # a signal can come while this waits: then somebody waits again
        self._writing = None
        if failure is not None:
            raise failure

    teardown = wait  # Lightning calls it at the end, however that came

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return read_checkpoint(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        self.wait()
        Path(path).unlink(missing_ok=True)
