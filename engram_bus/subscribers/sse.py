"""One stream of server-sent events: a feed whose frames go straight to the socket, as chunks of the response."""

import asyncio
from collections.abc import Callable

from engram_bus.embedded import Bus
from engram_bus.errors import EngramError, SlowConsumer
from engram_bus.limits import SOCKET_STALL_SECONDS, SSE_RETRY_MS
from engram_bus.router.fanout import Feed
from engram_bus.subscribers.frames import SseFraming
from engram_bus.subscribers.requests import SubscribeRequest
from engram_bus.subscribers.sockets import Socket

HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store, no-transform"),
    # nginx buffers responses otherwise.
    (b"x-accel-buffering", b"no"),
)

_FRAMING = SseFraming()


class Stream:
    """One response that does not end until the client leaves or the bus stops.

    It is made before the response's head is sent, for it raises as `Bus.feed`; what it has to say waits for `begin`.
    """

    def __init__(self, bus: Bus, socket: Socket, request: SubscribeRequest, after: int) -> None:
        self._socket = socket
        self._early: list[bytes] | None = []
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._feed: Feed = bus.feed(request.wanted, _FRAMING, self, after)

    def begin(self) -> None:
        """The head was sent."""
        assert self._early is not None, "a response has one head"
        early, self._early = self._early, None
        for frame in early:
            self.write(frame)
        self._socket.listen(self)
        self._feed.drained()

    def close(self) -> None:
        """The request is over, however it ended."""
        self._feed.close()

    # --- As a feed's sink --------------------------------------------------------------------------------------------

    @property
    def writable(self) -> bool:
        return self._early is None and self._socket.has_room

    @property
    def push(self) -> Callable[[bytes], object]:
        return self._socket.push

    def write(self, frame: bytes) -> None:
        if self._early is None:
            self._socket.write_raw(frame)
        else:
            self._early.append(frame)

    def end(self, error: EngramError, cursor: str) -> None:
        if isinstance(error, SlowConsumer):
            self.write(_FRAMING.goaway(error.code, SSE_RETRY_MS, cursor))
            self._socket.abort_after(SOCKET_STALL_SECONDS)
        self._finish()

    # --- What the socket says ----------------------------------------------------------------------------------------

    def full(self) -> None:
        self._feed.full()

    def drained(self) -> None:
        self._feed.drained()

    def lost(self) -> None:
        self.close()
        self._finish()

    def _finish(self) -> None:
        if not self.over.done():
            self.over.set_result(None)
