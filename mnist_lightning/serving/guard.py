"""What every request has to pass: the right host, origin and token, a body of bounded size that comes in time."""

import asyncio
import hmac
import json
import logging
import time
from collections.abc import Collection
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mnist_lightning.serving.metrics import Metrics
from mnist_lightning.serving.refusal import FAILED, Refused, busy

log = logging.getLogger(__name__)
LOOPBACK = ("localhost", "127.0.0.1", "::1")
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_NOTHING = "default-src 'none'; frame-ancestors 'none'"


@dataclass(frozen=True)
class Limits:
    """How much is taken of whom."""

    body: int = 20 * 2**20  # bytes of a request
    bodies: int = 256 * 2**20  # bytes of all that are under way
    drained: int = 100 * 2**20  # bytes of a request that is too large: clients read no answer before they have sent all
    requests: int = 1024  # under way
    body_seconds: float = 30.0  # until a body is there
    seconds: float = 60.0  # until there is an answer


class Guard:
    """The app behind all checks. What goes wrong is told in one line of JSON, never with a path or a traceback.

    Args:
        app: The app, which gets a request when its body is there.
        metrics: Counts requests.
        paths: Those that are counted by their name.
        public: Paths that need no token.
        token: What clients must show as `Authorization: Bearer TOKEN`; None: nothing.
        hosts: The names in a Host header that mean this server; None: any. (A page elsewhere can have its own name
            point to 127.0.0.1, and would then be of the same origin.)
        limits: How much is taken.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        paths: Collection[str],
        public: Collection[str],
        token: str | None = None,
        hosts: Collection[str] | None = LOOPBACK,
        limits: Limits | None = None,
    ) -> None:
        self.app, self.metrics, self.paths, self.public = app, metrics, paths, public
        self.token, self.hosts, self.limits = token, hosts, limits or Limits()
        self.stored = 0  # bytes of bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        start, answered = time.perf_counter(), _Answer(send)
        self.metrics.in_flight += 1
        try:
            await self._pass(scope, receive, answered)
        except _Gone:
            answered.status = 499  # nobody is there to be answered
        except Exception as error:
            refused = error if isinstance(error, Refused) else FAILED
            if refused is not error:
                log.error("%s %s failed", scope["method"], scope["path"], exc_info=error)
            if not answered.status:
                await answered.refuse(refused)
        finally:
            self.metrics.in_flight -= 1
            path = scope["path"] if scope["path"] in self.paths else "other"
            self.metrics.requests[path, answered.status] += 1
            self.metrics.seconds.add(time.perf_counter() - start)

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        self._check(scope, headers)
        if self.metrics.in_flight > self.limits.requests:
            raise busy(f"{self.limits.requests} requests are under way")
        body = bytearray()
        try:
            await self._read(headers, receive, body)
            replayed = iter([{"type": "http.request", "body": bytes(body), "more_body": False}])

            async def received() -> Message:
                return next(replayed, None) or await receive()

            try:
                async with asyncio.timeout(self.limits.seconds):
                    await self.app(scope, received, send)
            except TimeoutError:
                raise busy(f"no answer within {self.limits.seconds:.0f} s") from None
        finally:
            self.stored -= len(body)

    def _check(self, scope: Scope, headers: Headers) -> None:
        host = headers.get("host", "")
        if self.hosts is not None and _name(host) not in self.hosts:
            raise Refused(421, "this server is not called so: open it as localhost, or start it with --token")
        origin = headers.get("origin")
        if scope["method"] not in ("GET", "HEAD") and (
            (origin is not None and urlsplit(origin).netloc.lower() != host.lower())
            or headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none")
        ):
            raise Refused(403, "the request comes from another site's page")
        if self.token is None or scope["path"] in self.public:
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self.token.encode()):
            raise Refused(401, "the token is missing or wrong", {"WWW-Authenticate": "Bearer"})

    async def _read(self, headers: Headers, receive: Receive, body: bytearray) -> None:
        """Fills `body`, which counts as stored."""
        too_large = Refused(413, f"the body is too large: at most {self.limits.body // 2**20} MiB are taken")
        announced = int(headers.get("content-length", 0))
        if announced > self.limits.body and "expect" in headers:
            raise too_large  # before it is sent
        size = 0
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _Gone
                    piece = message.get("body", b"")
                    size += len(piece)
                    if size > self.limits.drained:
                        too_large.headers["Connection"] = "close"
                        raise too_large
                    if max(size, announced) <= self.limits.body:
                        if self.stored + len(piece) > self.limits.bodies:
                            raise busy("too much is being sent at the same time")
                        body += piece
                        self.stored += len(piece)
                    if not message.get("more_body"):
                        break
        except TimeoutError:
            why = f"the body did not come within {self.limits.body_seconds:.0f} s"
            raise Refused(408, why, {"Connection": "close"}) from None
        if max(size, announced) > self.limits.body:
            raise too_large


class _Gone(Exception):  # noqa: N818
    """The client has closed the connection."""


class _Answer:
    """Sends an answer with the headers that every one has; knows its status."""

    def __init__(self, send: Send) -> None:
        self._send, self.status = send, 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
            headers.setdefault("Content-Security-Policy", _NOTHING)
        await self._send(message)

    async def refuse(self, refused: Refused) -> None:
        content = json.dumps({"error": refused.why}).encode()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(content)), **refused.headers}
        raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        await self({"type": "http.response.start", "status": refused.status, "headers": raw})
        await self({"type": "http.response.body", "body": content})


def _name(host: str) -> str:
    """That of a Host header, without its port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
