"""The app: a page to draw on, and the same for programs."""

import asyncio
import base64
import hashlib
import os
import re
from collections import abc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from mnist_lightning.data.photo import Seen
from mnist_lightning.data.pictures import known_formats
from mnist_lightning.predictor import Predictor
from mnist_lightning.serving.answers import Answer, Reader
from mnist_lightning.serving.batches import Batches
from mnist_lightning.serving.collection import Collection
from mnist_lightning.serving.guard import LOOPBACK, Guard, Limits
from mnist_lightning.serving.metrics import Metrics
from mnist_lightning.serving.openapi import description
from mnist_lightning.serving.pictures import Picture, json_of, picture_of, pictures_of, seen_of
from mnist_lightning.serving.refusal import FAILED, Refused

PAGE = Path(__file__).parents[1] / "commands" / "page.html"
PUBLIC = ("/", "/health", "/openapi.json")  # nothing that a token protects


class App:
    """An ASGI app that answers with one Predictor.

    Args:
        predictor: Who reads.
        model: What it is called on the page.
        collection: Where corrected drawings go; None: they are not taken.
        token: What clients must show; None: nothing.
        hosts: The names that a client may call this server by; None: any.
        limits: How much is taken.
        threads: How many pictures are decoded at the same time.
        starting: Called once in the thread of the network before the first forward.
    """

    def __init__(
        self,
        predictor: Predictor,
        model: str = "A neural network",
        collection: Collection | None = None,
        token: str | None = None,
        hosts: abc.Collection[str] | None = LOOPBACK,
        limits: Limits | None = None,
        threads: int = os.cpu_count() or 1,
        starting: Callable[[], None] = lambda: None,
    ) -> None:
        self.names, self.model, self.collection, self.metrics = predictor.names, model, collection, Metrics()
        self._batches: Batches[Seen, Answer] = Batches(
            Reader(predictor), noted=self.metrics.images.add, starting=starting
        )
        self._decoders = ThreadPoolExecutor(threads, "decode")
        self._formats = known_formats()
        self._page = PAGE.read_text(encoding="utf-8")
        self._description = description(self.names, collection is not None, token is not None)
        self._policy = policy(self._page)
        routes = {
            "/": ("GET", self._get_page),
            "/predict": ("POST", self._predict),
            "/predict/batch": ("POST", self._predict_batch),
            "/health": ("GET", self._health),
            "/metrics": ("GET", self._get_metrics),
            "/openapi.json": ("GET", self._openapi),
        }
        if collection is not None:
            routes["/collect"] = ("POST", self._collect)
        starlette = Starlette(
            routes=[Route(path, endpoint, methods=[method]) for path, (method, endpoint) in routes.items()],
            exception_handlers={HTTPException: _as_json, Refused: _as_json, Exception: _as_json},
        )
        starlette.router.redirect_slashes = False
        self._guarded = Guard(starlette, self.metrics, routes, PUBLIC, token, hosts, limits)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._guarded(scope, receive, send)

    def close(self) -> None:
        """Ends its threads."""
        self._decoders.shutdown(cancel_futures=True)
        self._batches.close()

    # ------------------------------------------------------------------ answers

    async def _predict(self, request: Request) -> Response:
        pictures = await pictures_of(request)
        if len(pictures) != 1:
            raise Refused(400, f"there are {len(pictures)} pictures: send one, or send them to /predict/batch")
        return JSONResponse((await self._read(pictures))[0])

    async def _predict_batch(self, request: Request) -> Response:
        return JSONResponse({"answers": await self._read(await pictures_of(request))})

    async def _read(self, pictures: list[Picture]) -> list[Answer]:
        return await self._batches(await asyncio.gather(*map(self._seen, pictures, range(1, len(pictures) + 1))))

    async def _seen(self, picture: Picture, number: int = 1) -> Seen:
        if isinstance(picture, Seen):
            return picture
        return await self._in_thread(seen_of, picture, self._formats, number)

    async def _collect(self, request: Request) -> Response:
        assert self.collection is not None
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # what a form of another site could not send unasked
            raise Refused(415, "the body must be JSON, and be said to be: application/json")
        value = json_of(await request.body())
        if not isinstance(value, dict) or value.keys() != {"image", "label"} or not isinstance(value["label"], str):
            raise Refused(400, 'the body takes {"image": a data: URL or 28x28 numbers, "label": the class}')
        seen = await self._seen(picture_of(value["image"]))
        if seen.image is None:
            raise Refused(422, "there is not one digit on the picture that could be saved")
        await self._in_thread(self.collection.save, seen.image, value["label"])
        return JSONResponse({"label": value["label"], "count": self.collection.count})

    async def _in_thread(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._decoders, partial(function, *arguments))

    # ------------------------------------------------------------------ what is not read

    async def _get_page(self, request: Request) -> Response:
        return Response(self._page, media_type="text/html", headers={"Content-Security-Policy": self._policy})

    async def _health(self, request: Request) -> Response:
        about = {"status": "ok", "model": self.model, "classes": self.names, "collects": self.collection is not None}
        return JSONResponse(about)

    async def _get_metrics(self, request: Request) -> Response:
        return PlainTextResponse(self.metrics.text(), media_type="text/plain; version=0.0.4")

    async def _openapi(self, request: Request) -> Response:
        return JSONResponse(self._description)


def _as_json(request: Request, error: Exception) -> Response:
    """What a client is told of an error; one that is the server's own goes on to the guard, which logs it."""
    if isinstance(error, HTTPException):  # Starlette's: a path or a method that is not there
        error = Refused(error.status_code, error.detail.lower(), dict(error.headers or {}))
    refused = error if isinstance(error, Refused) else FAILED
    return JSONResponse({"error": refused.why}, refused.status, refused.headers)


def policy(page: str) -> str:
    """The content policy under which this page's own scripts and styles run, and nothing else does."""

    def hashes(tag: str) -> str:
        parts = re.findall(rf"<{tag}\b[^>]*>(.*?)</{tag}>", page, re.DOTALL)
        digests = [base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() for part in parts]
        return " ".join(f"'sha256-{digest}'" for digest in digests)

    return (
        f"default-src 'none'; script-src {hashes('script')}; style-src {hashes('style')}; img-src data: blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
