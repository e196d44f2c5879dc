"""A small request that is answered without ASGI: taken whole, and answered by one write and no task."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

Headers = Sequence[tuple[bytes, bytes]]
Respond = Callable[[int, Headers, bytes], None]
"""Takes the status, the headers (with the length) and the body; call it once."""
Taker = Callable[[Mapping[bytes, bytes], bytes, Respond], None]
"""Takes a request's headers and body. It may respond at once or later, and raises nothing."""

_NOBODY_WAITS = asyncio.Event()


class _Edge(Protocol):
    """What an exchange needs of its connection."""

    def responded(self, cycle: "DirectCycle", response: bytes) -> None:
        """Write this, which is the whole answer."""


def is_direct(headers: Mapping[bytes, bytes]) -> bool:
    """Whether a request is of a size that is told, and too small to be held up half-way."""
    told = headers.get(b"content-length", b"")
    return (
        told.isdigit()
        and int(told) <= HIGH_WATER_LIMIT
        and b"transfer-encoding" not in headers
        and b"expect" not in headers
    )


class DirectCycle:
    """A request with its answer, in the place of uvicorn's `RequestResponseCycle`, whose names it has."""

    __slots__ = (
        "_edge",
        "_take",
        "body",
        "disconnected",
        "headers",
        "is_due",
        "keep_alive",
        "message_event",
        "more_body",
        "response_complete",
        "response_started",
    )

    def __init__(self, edge: _Edge, take: Taker, headers: Mapping[bytes, bytes], *, keep_alive: bool) -> None:
        self._edge = edge
        self._take = take
        self.headers = headers
        self.keep_alive = keep_alive
        self.body = b""
        self.more_body = True
        self.is_due = False
        """Whether every request before it has its answer."""
        self.message_event = _NOBODY_WAITS
        self.disconnected = self.response_started = self.response_complete = False

    def perform(self) -> None:
        """Hand the request over."""
        self._take(self.headers, self.body, self._respond)

    def _respond(self, status: int, headers: Headers, body: bytes) -> None:
        if self.disconnected:
            return
        self.response_started = self.response_complete = True
        close = b"" if self.keep_alive else b"connection: close\r\n"
        lines = b"".join([b"%b: %b\r\n" % header for header in headers])
        self._edge.responded(self, b"".join((STATUS_LINE[status], lines, close, b"\r\n", body)))
