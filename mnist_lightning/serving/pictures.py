"""From the body of a request to pictures, and from those to the 28x28 that the network takes."""

import base64
import binascii
import io
import json
from typing import Any

import torch
from PIL import Image
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from mnist_lightning.data.photo import Seen, prepare
from mnist_lightning.serving.refusal import Refused

MOST_PIXELS = 64_000_000  # of a picture: a telephone's; a few bytes can announce far more
MOST_PICTURES = 1000  # of a request
KINDS = "PNG, JPEG, WebP, BMP, TIFF, GIF or HEIC"
_RAW = "28 rows of 28 whole numbers from 0, the paper, to 255, the ink"
Picture = bytes | Seen  # a file's content, or what the network takes already


async def pictures_of(request: Request) -> list[Picture]:
    """The pictures of a request: multipart files, JSON, or else one file's content, whatever its type is said to be."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    body = await request.body()
    if not body:
        raise Refused(400, "the body is empty: send a picture")
    if kind == "multipart/form-data":
        return await _of_form(request, body)
    if kind == "application/json" or kind.endswith("+json"):
        return _of_json(json_of(body))
    return [body]


async def _of_form(request: Request, body: bytes) -> list[Picture]:
    parser = MultiPartParser(request.headers, request.stream(), max_files=MOST_PICTURES, max_fields=20)
    parser.spool_max_size = len(body)  # it is in memory as it is
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise Refused(400, f"the form cannot be read: {error.message}") from error
    try:
        files = [await value.read() for _, value in form.multi_items() if not isinstance(value, str)]
    finally:
        await form.close()
    if not body.rstrip().endswith(b"--"):
        raise Refused(400, "the form ends early: its last boundary is missing")
    if not files:
        raise Refused(400, "the form has no file: send one, as curl -F image=@FILE does")
    return list(files)


def json_of(body: bytes) -> Any:
    """The JSON value in a body."""

    def no_number(word: str) -> None:
        raise ValueError(word)

    try:
        return json.loads(body, parse_constant=no_number)
    except (ValueError, RecursionError) as error:
        raise Refused(400, "the body is no JSON, though it is said to be") from error


def _of_json(value: Any) -> list[Picture]:
    """Of {"image": one}, {"images": [one, ...]} or [one, ...]; see `picture_of`."""
    if isinstance(value, dict):
        if len(value.keys() & {"image", "images"}) != 1:
            raise Refused(400, 'the JSON object takes either "image" or "images"')
        if "image" in value:
            return [picture_of(value["image"])]
        value = value["images"]
    if not isinstance(value, list) or not value:
        raise Refused(400, "a list with at least one image was expected")
    if len(value) > MOST_PICTURES:
        raise Refused(413, f"at most {MOST_PICTURES} images go into one request; these are {len(value)}")
    return [picture_of(one, number) for number, one in enumerate(value, 1)]


def picture_of(value: Any, number: int = 1) -> Picture:
    """A picture in JSON: a string, which is a data: URL or base64, or the 28x28 numbers themselves."""
    if isinstance(value, str):
        head, comma, data = value.partition(",")
        if comma and not (head.startswith("data:") and head.endswith(";base64")):
            raise Refused(400, f"image {number} is no data: URL in base64")
        try:
            return base64.b64decode(data if comma else value, validate=True)
        except (binascii.Error, ValueError) as error:
            raise Refused(400, f"image {number} is no base64") from error
    rows = value if isinstance(value, list) else []
    if len(rows) != 28 or not all(isinstance(row, list) and len(row) == 28 for row in rows):
        raise Refused(400, f"image {number} is neither a string nor {_RAW}")
    levels = [level for row in rows for level in row]
    if not all(type(level) is int and 0 <= level <= 255 for level in levels):
        raise Refused(400, f"image {number} is not {_RAW}")
    image = torch.tensor(levels, dtype=torch.uint8).view(28, 28)
    return Seen("ok", image, (image,)) if image.any() else Seen("blank")


def seen_of(picture: Picture, formats: list[str], number: int = 1) -> Seen:
    """What the network sees of a picture; takes from 1 ms to, for a large photo, a good part of a second."""
    return picture if isinstance(picture, Seen) else prepare(_opened(picture, formats, number))


def _opened(content: bytes, formats: list[str], number: int) -> Image.Image:
    try:
        picture = Image.open(io.BytesIO(content), formats=formats)
        width, height = picture.size
    except Exception as error:  # Pillow's readers raise whatever a damaged file brings about
        raise Refused(422, f"image {number} is no picture that can be read: send {KINDS}") from error
    if width * height > MOST_PIXELS:
        raise Refused(
            413, f"image {number} has {width}x{height} pixels; at most {MOST_PIXELS // 10**6} million are read"
        )
    try:
        if max(width, height) > 2400:
            picture.draft(None, (2000, 2000))  # a JPEG at a half or a quarter, in as much less time
        picture.load()
    except Exception as error:
        raise Refused(422, f"image {number} is damaged: it cannot be decoded") from error
    return picture
