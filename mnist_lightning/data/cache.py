"""What took time to read, kept in the user's cache folder until one of its files changes."""

import hashlib
import os
import sys
import time
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mnist_lightning.console import say
from mnist_lightning.data.digits import SIDE
from mnist_lightning.errors import UserError
from mnist_lightning.files import whole_file
from mnist_lightning.processes import is_first_process

LEAST = 1000  # files; fewer are read as fast
FORMAT = 1  # of what is kept; another way of reading takes another number
OFF = "--data.cache false reads them anew each time"


def kept(where: Path, paths: list[Path], read: Callable[[], Tensor]) -> Tensor:
    """The images uint8 [N, 28, 28] of these files, from the cache if none of them has changed; it says which."""
    state, place = _state(paths), _place(where)
    if (images := _load(place, state, len(paths))) is not None:
        _tell(f"{len(paths):,} pictures of {where} from {place}, as they have not changed; {OFF}")
        return images
    start = time.perf_counter()
    images = read()
    seconds = time.perf_counter() - start
    try:
        _write(place, state, images)
        _tell(f"{len(paths):,} pictures of {where} read in {seconds:.1f} s, and kept in {place}; {OFF}")
    except (UserError, OSError) as error:  # a full disk, a folder that only can be read
        _tell(f"{len(paths):,} pictures of {where} read in {seconds:.1f} s, and not kept: {error}")
    return images


def folder() -> Path:
    """The user's cache folder for this program, as each system has it."""
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "mnist_lightning"


def _place(where: Path) -> Path:
    return folder() / f"{hashlib.sha256(str(where.resolve()).encode()).hexdigest()[:16]}.npz"


def _state(paths: list[Path]) -> str:
    """Tells names, sizes and times of files from any others."""
    digest = hashlib.sha256(b"%d" % FORMAT)
    for path in paths:
        with suppress(OSError):  # it will be told when it is read
            status = os.stat(path)
            digest.update(f"{path}\0{status.st_size} {status.st_mtime_ns}\0".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _load(place: Path, state: str, count: int) -> Tensor | None:
    """What is kept there of these very files; None if nothing, or if it is damaged."""
    try:
        with place.open("rb") as file, np.load(file, allow_pickle=False) as content:
            if str(content["state"]) != state:
                return None
            images = content["images"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, MemoryError):
        return None
    right = images.shape == (count, SIDE, SIDE) and images.dtype == np.uint8
    return torch.from_numpy(images) if right else None


def _write(place: Path, state: str, images: Tensor) -> None:
    """Each process writes a file of its own, which then takes the place of the last one."""
    place.parent.mkdir(parents=True, exist_ok=True)
    mine = place.with_suffix(f".{os.getpid()}.npz")
    try:
        with whole_file(mine) as file:
            np.savez(file, state=np.array(state), images=images.numpy())
        os.replace(mine, place)
    finally:
        with suppress(OSError):
            mine.unlink(missing_ok=True)


def _tell(line: str) -> None:
    if is_first_process():
        say(line)
