"""Digits that people have drawn and labelled, as a folder of images by class."""

import hashlib
import os
import re
import threading
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from mnist_lightning.errors import BadSetting, UserError
from mnist_lightning.files import unwritable, write_whole
from mnist_lightning.serving.answers import png_of
from mnist_lightning.serving.refusal import Refused

MOST = 100_000  # files in the folder


class Collection:
    """Saves 28x28 images as `folder/LABEL/HASH.png`, bright on black as MNIST's: what `fit --data.root folder` reads.

    The same image saved again under another label goes over to that one. Raises BadSetting where a class cannot be a
    folder's name, UserError where the folder cannot be written.
    """

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.folder, self.names = folder, tuple(names)
        for name in names:
            if not re.fullmatch(r"\w[\w .+-]{0,63}", name):
                raise BadSetting(f"--collect: the class {name!r} cannot be the name of a folder")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(folder, error) from error
        if not os.access(folder, os.W_OK | os.X_OK):
            raise UserError(f"{folder} cannot be written: give --collect a folder of yours")
        self.count = sum(1 for _ in folder.glob("*/*.png"))
        self._lock = threading.Lock()

    def save(self, image: Tensor, label: str) -> None:
        """Saves uint8 [28, 28], whole or not at all."""
        if label not in self.names:
            raise Refused(422, f"the label is none of {', '.join(self.names)}")
        file = f"{hashlib.sha256(image.numpy().tobytes()).hexdigest()[:20]}.png"
        with self._lock:
            others = [there for there in self.folder.glob(f"*/{file}") if there.parent.name in self.names]
            if self.count >= MOST and not others:
                raise Refused(507, f"{MOST} drawings are saved: there is no room for more")
            path = self.folder / label / file
            try:
                path.parent.mkdir(exist_ok=True)
                write_whole(png_of(image), path)
                for there in others:
                    if there != path:
                        there.unlink(missing_ok=True)
            except (OSError, UserError) as error:
                raise Refused(507, "the drawing could not be saved: the disk is full or the folder is gone") from error
            self.count += not others
