"""What a client is told of a picture."""

import base64
import io
from collections.abc import Sequence
from typing import Any

from PIL import Image
from torch import Tensor

from mnist_lightning.data.photo import Seen
from mnist_lightning.predictor import Predictor
from mnist_lightning.reading import Reading, readings

Answer = dict[str, Any]


class Reader:
    """Answers for many pictures with one forward."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor

    def __call__(self, seen: Sequence[Seen]) -> list[Answer]:
        """An answer for each, in their order."""
        return [self._answer(reading) for reading in readings(self.predictor, [("", one) for one in seen])]

    def _answer(self, reading: Reading) -> Answer:
        """What `predict --json` prints, the name of the class, all probabilities, and what the network saw."""
        answer: Answer = {"number": None} | reading.row()
        del answer["file"]
        pairs = zip(self.predictor.names, reading.probabilities, strict=False)
        answer["name"] = reading.name
        answer["probabilities"] = {name: round(probability, 6) for name, probability in pairs} or None
        answer["seen"] = [_as_url(part) for part in reading.parts]
        return answer


def png_of(image: Tensor) -> bytes:
    """The PNG file of uint8 [28, 28]."""
    file = io.BytesIO()
    Image.fromarray(image.numpy()).save(file, "PNG")
    return file.getvalue()


def _as_url(image: Tensor) -> str:
    return "data:image/png;base64," + base64.b64encode(png_of(image)).decode()
