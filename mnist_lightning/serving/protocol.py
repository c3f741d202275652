"""uvicorn's HTTP, with time limits for heads of requests, a bound on connections, and errors in JSON."""

import asyncio
import json
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 10.0  # until the head of a request is there: some clients send a byte now and then to hold connections
LINGER_SECONDS = 2.0  # for a client to read its last answer
MOST_CONNECTIONS = 900  # a process often has 1,024 open files


class Protocol(H11Protocol):
    """One connection."""

    _waiting: asyncio.TimerHandle | None = None
    _told = False  # the last answer: what still comes is thrown away

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > MOST_CONNECTIONS:
            self._tell(503, "too many connections: try again in a second", [(b"retry-after", b"1")])
        else:
            self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if not self._told:
            super().data_received(data)
        if not self._told:
            self._watch()

    def shutdown(self) -> None:
        if self._told:
            self.transport.close()
        else:
            super().shutdown()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def send_400_response(self, msg: str) -> None:
        self._tell(400, "this is no HTTP request")

    def _watch(self) -> None:
        """Lets the time run while a head is waited for, from the first moment on."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._unwatch()
        elif self._waiting is None:
            self._waiting = self.loop.call_later(HEAD_SECONDS, self._too_slow)

    def _unwatch(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _too_slow(self) -> None:
        self._waiting = None
        if self.conn.trailing_data[0]:
            self._tell(408, f"the request did not come within {HEAD_SECONDS:.0f} s")
        else:
            self.transport.close()

    def _tell(self, status: int, why: str, headers: list[tuple[bytes, bytes]] | None = None) -> None:
        """A last answer on this connection, where there is no request that the app could answer."""
        self._told = True
        self._unwatch()
        self._unset_keepalive_if_required()
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        content = json.dumps({"error": why}).encode()
        length = (b"content-length", b"%d" % len(content))
        head = [(b"content-type", b"application/json"), length, (b"connection", b"close"), *(headers or [])]
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            start = h11.Response(status_code=status, headers=head, reason=HTTPStatus(status).phrase.encode())
            for event in (start, h11.Data(data=content), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        # Closed at once, with something unread, it would be reset, and the client could not read the answer.
        self.transport.write_eof()
        self.loop.call_later(LINGER_SECONDS, self.transport.close)
