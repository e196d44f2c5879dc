"""A small request that is answered without ASGI: taken whole, and answered by one write and no task.

A client says the same head again and again: one that was parsed before is not parsed again.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

Headers = Sequence[tuple[bytes, bytes]]
Respond = Callable[[int, Headers, bytes], None]
"""Takes the status, the headers (with the length) and the body; call it once."""
Taker = Callable[[Mapping[bytes, bytes], bytes, Respond], None]
"""Takes a request's headers and body. It may respond at once or later, and raises nothing."""

_NOBODY_WAITS = asyncio.Event()
_HEAD_END = b"\r\n\r\n"
_HEAD_BYTES_MAX = 1_024
_HEADS_MAX = 1_024
"""Of all connections together. Beyond, all are forgotten: what is still said is soon known again."""


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


class Head(NamedTuple):
    """All of a request before its body, on a connection that stays open."""

    take: Taker
    headers: Mapping[bytes, bytes]
    body_bytes: int


class Heads:
    """Heads of requests that were parsed, by their bytes: the same bytes are the same head."""

    def __init__(self) -> None:
        self._known: dict[bytes, Head] = {}

    def find(self, data: bytes) -> tuple[Head, bytes] | None:
        """The head and body of a piece that is one request, whole, with a head that is known."""
        end = _body_at(data)
        head = self._known.get(data[:end])
        return (head, data[end:]) if head is not None and len(data) - end == head.body_bytes else None

    def learn(self, data: bytes, cycle: "DirectCycle") -> None:
        """This piece was parsed, as the one request of this cycle and nothing else."""
        end = _body_at(data)
        if not end or not cycle.keep_alive or len(data) - end != len(cycle.body):
            return
        if len(self._known) >= _HEADS_MAX:
            self._known.clear()
        self._known[data[:end]] = Head(cycle.take, cycle.headers, len(cycle.body))


def _body_at(data: bytes) -> int:
    """Where the head is over; 0 for one that is too large to be kept, or not whole."""
    end = data.find(_HEAD_END, 0, _HEAD_BYTES_MAX)
    return end + len(_HEAD_END) if end >= 0 else 0


class DirectCycle:
    """A request with its answer, in the place of uvicorn's `RequestResponseCycle`, whose names it has."""

    __slots__ = (
        "_edge",
        "body",
        "disconnected",
        "headers",
        "is_due",
        "keep_alive",
        "message_event",
        "more_body",
        "response_complete",
        "response_started",
        "take",
    )

    def __init__(self, edge: _Edge, take: Taker, headers: Mapping[bytes, bytes], *, keep_alive: bool) -> None:
        self._edge = edge
        self.take = take
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
        self.take(self.headers, self.body, self._respond)

    def _respond(self, status: int, headers: Headers, body: bytes) -> None:
        if self.disconnected:
            return
        self.response_started = self.response_complete = True
        close = b"" if self.keep_alive else b"connection: close\r\n"
        lines = b"".join([b"%b: %b\r\n" % header for header in headers])
        self._edge.responded(self, b"".join((STATUS_LINE[status], lines, close, b"\r\n", body)))
